//! What makes a line: a socket, or both ends of a connection; and in which order lines come.

use std::collections::{BTreeMap, BTreeSet};

use socktrace_sockets::{Address, Kind, Peer, Snapshot, Socket};

/// What lines have in common that stand together. Paths come first, then abstract names, then sockets without a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group<'a> {
    pub address: &'a Address,
    pub kind: Kind,
    /// None: this process's own.
    pub network: Option<u64>,
}

/// A line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row<'a> {
    pub link: Link,
    pub left: ByInode<'a>,
    /// The other end.
    pub right: Option<ByInode<'a>>,
}

/// How two ends are related.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    /// There is one end, or nothing is known of the other one.
    One,
    /// A client, and who has accepted or will, or what takes its datagrams.
    Client,
    /// Neither end has a name: a socketpair, as a rule.
    Pair,
}

/// Sockets in the order of their numbers, which is more or less that of time.
#[derive(Clone, Copy, Debug)]
pub struct ByInode<'a>(pub &'a Socket);

impl PartialEq for ByInode<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.0.inode == other.0.inode
    }
}

impl Eq for ByInode<'_> {}

impl PartialOrd for ByInode<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByInode<'_> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.inode.cmp(&other.0.inode)
    }
}

/// All lines.
pub struct Rows<'a>(pub BTreeMap<Group<'a>, BTreeSet<Row<'a>>>);

impl<'a> Rows<'a> {
    /// Of these sockets, and their other ends.
    pub fn of(snapshot: &'a Snapshot, sockets: &[&'a Socket]) -> Self {
        let listening: BTreeSet<_> = snapshot
            .sockets
            .values()
            .filter(|socket| socket.listens)
            .map(|socket| (&socket.address, socket.network))
            .collect();
        let serves = |socket: &Socket| listening.contains(&(&socket.address, socket.network));
        let mut rows = BTreeMap::<_, BTreeSet<_>>::new();
        for &socket in sockets {
            let peer = snapshot.peer(socket);
            let is_mutual = peer.is_some_and(|peer| peer.peer == Peer::Socket(socket.inode));
            let (named, row) = match peer {
                None => (socket, Row { link: Link::One, left: ByInode(socket), right: None }),
                Some(peer) if is_mutual => {
                    // An end that is accepted has the name of what listens; a client may have one of its own.
                    let rank = |end: &Socket| (serves(end), end.address != Address::Unnamed);
                    let (client, server) = match rank(socket).cmp(&rank(peer)) {
                        std::cmp::Ordering::Greater => (peer, socket),
                        std::cmp::Ordering::Less => (socket, peer),
                        std::cmp::Ordering::Equal if socket.inode < peer.inode => (socket, peer),
                        std::cmp::Ordering::Equal => (peer, socket),
                    };
                    let link = if rank(client) == rank(server) { Link::Pair } else { Link::Client };
                    (server, Row { link, left: ByInode(client), right: Some(ByInode(server)) })
                }
                Some(peer) => (peer, Row { link: Link::Client, left: ByInode(socket), right: Some(ByInode(peer)) }),
            };
            let network = (named.network != snapshot.network).then_some(named.network);
            let group = Group { address: &named.address, kind: named.kind, network };
            rows.entry(group).or_default().insert(row);
        }
        Self(rows)
    }

    /// Processes at all ends.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        self.sockets().flat_map(|socket| &socket.holders).map(|holder| holder.pid)
    }

    /// Sockets at all ends, each once.
    pub fn sockets(&self) -> impl Iterator<Item = &'a Socket> {
        let ends = self.0.values().flatten().flat_map(|row| [Some(row.left), row.right]).flatten();
        ends.collect::<BTreeSet<_>>().into_iter().map(|end| end.0)
    }
}
