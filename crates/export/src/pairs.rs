//! Which two connections are the two ends of one.

use std::num::NonZeroUsize;

use lru::LruCache;
use socktrace_event::Open;

/// Datagram sockets that are remembered for their other end to be found.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1 << 14).expect("not 0");

/// Tells of a connection that opens whether it is the other end of a connection that was opened before.
#[derive(Debug)]
pub struct Pairs {
    /// Inode numbers of datagram sockets and of the one at the other end.
    datagrams: LruCache<Box<str>, (Option<u64>, Option<u64>)>,
}

impl Default for Pairs {
    fn default() -> Self {
        Self { datagrams: LruCache::new(REMEMBERED) }
    }
}

impl Pairs {
    /// The `conn_id` of the other end, if it is traced, too, and was heard of before.
    ///
    /// The server has found it by the inode numbers (`peer_conn_id`). Of datagram sockets both must name each other: many
    /// may send to one.
    pub fn other_end<'e>(&mut self, open: &'e Open<'_>) -> Option<&'e str> {
        let other = open.peer_conn_id.as_deref();
        if !open.is_datagram() {
            return other;
        }
        let inodes = (open.inode, open.peer_inode);
        self.datagrams.put((*open.conn_id).into(), inodes);
        let (their_inode, their_peer) = *self.datagrams.get(other?)?;
        let mutual = inodes.0.is_some() && inodes.0 == their_peer && inodes.1.is_some() && inodes.1 == their_inode;
        other.filter(|_| mutual)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(id: &'static str, kind: &'static str, own: u64, peer: Option<u64>, other: &'static str) -> Open<'static> {
        let peer_conn_id = (!other.is_empty()).then(|| other.into());
        let (conn_id, socket_type) = (id.into(), Some(kind.into()));
        Open { conn_id, socket_type, inode: Some(own), peer_inode: peer, peer_conn_id, ..Open::default() }
    }

    #[test]
    fn streams_are_pairs_when_one_end_says_so() {
        let mut pairs = Pairs::default();
        assert_eq!(pairs.other_end(&open("c", "stream", 1, None, "")), None);
        assert_eq!(pairs.other_end(&open("s", "stream", 2, Some(1), "c")), Some("c"));
    }

    #[test]
    fn datagram_sockets_are_when_both_do() {
        let mut pairs = Pairs::default();
        assert_eq!(pairs.other_end(&open("a", "dgram", 1, Some(2), "")), None);
        assert_eq!(pairs.other_end(&open("b", "dgram", 2, Some(1), "a")), Some("a"));
        assert_eq!(pairs.other_end(&open("log", "dgram", 3, None, "")), None);
        assert_eq!(pairs.other_end(&open("client", "dgram", 4, Some(3), "log")), None);
    }
}
