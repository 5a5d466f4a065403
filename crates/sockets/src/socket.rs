//! A socket, as the kernel tells of it.

use crate::Address;

/// An AF_UNIX socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Its inode number: /proc/PID/fd has links `socket:[…]` with it.
    pub inode: u32,
    /// Stream, datagram or seqpacket.
    pub kind: Kind,
    /// What it is bound to. An accepted socket has the name of the listening one.
    pub address: Address,
    /// Inode number of the network namespace that it was made in (/proc/PID/ns/net).
    pub network: u64,
    /// The user who made it; None before Linux 5.3.
    pub owner: Option<u32>,
    /// Whether it waits for connections.
    pub listens: bool,
    /// Its other end.
    pub peer: Peer,
    /// What waits to be received: bytes, of the next message only in a datagram socket; for one that listens, connections.
    pub receive_queue: u32,
    /// Memory of what it has sent and nobody has received; for one that listens, how many connections may wait.
    pub send_queue: u32,
    /// Device and inode number of the file that it is bound to.
    pub file: Option<(u64, u32)>,
    /// Which processes have descriptors of it, by their numbers. None where they cannot be seen, or where all are on their way
    /// in messages (SCM_RIGHTS, unix(7)).
    pub holders: Vec<Holder>,
}

/// The type of a socket (socket(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// SOCK_STREAM
    Stream,
    /// SOCK_DGRAM
    Datagram,
    /// SOCK_SEQPACKET
    Seqpacket,
    /// One that is not known here.
    Other(u8),
}

impl Kind {
    pub(crate) fn of_kernel(kind: u8) -> Self {
        match kind {
            1 => Self::Stream,
            2 => Self::Datagram,
            5 => Self::Seqpacket,
            other => Self::Other(other),
        }
    }

    /// As events have it (`socket_type`).
    pub fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Datagram => "dgram",
            Self::Seqpacket => "seqpacket",
            Self::Other(_) => "other",
        }
    }
}

/// The other end of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// It has none: it listens, is not connected, or takes datagrams from anybody.
    None,
    /// The socket with this inode number.
    Socket(u32),
    /// Nobody has accepted the connection yet. The listening socket, where that is known.
    Waiting(Option<u32>),
    /// It has been closed.
    Closed,
}

/// A process that has descriptors of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Which.
    pub pid: u32,
    /// Their numbers, in order.
    pub fds: Vec<i32>,
}

impl Socket {
    /// What state it is in, in a word.
    pub fn state(&self) -> &'static str {
        match self.peer {
            _ if self.listens => "listening",
            Peer::None => "unconnected",
            Peer::Socket(_) => "connected",
            Peer::Waiting(_) => "waiting",
            Peer::Closed => "closed by peer",
        }
    }
}
