//! What the kernel tells of the sockets of a network namespace (sock_diag(7), linux/unix_diag.h).

use std::io::{self, ErrorKind};
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

use crate::address::Address;
use crate::socket::{Kind, Peer, Socket};

const AF_UNIX: u8 = 1;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
/// NLM_F_ROOT and NLM_F_MATCH (netlink(7)).
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_HEADER_LEN: usize = 16;
const REQUEST_LEN: usize = NLMSG_HEADER_LEN + 24;
/// Of `struct unix_diag_msg`.
const ANSWER_LEN: usize = 16;
/// As libmnl and iproute2 have it: the kernel makes no longer answers.
const BUFFER_LEN: usize = 32 << 10;
/// The kernel answers at once; should an answer be lost, nobody waits for it for good.
const PATIENCE: Duration = Duration::from_secs(5);

const SHOW_NAME: u32 = 1;
const SHOW_VFS: u32 = 2;
const SHOW_PEER: u32 = 4;
const SHOW_ICONS: u32 = 8;
const SHOW_RQLEN: u32 = 0x10;
const SHOW_UID: u32 = 0x40;

const NAME: u16 = 0;
const VFS: u16 = 1;
const PEER: u16 = 2;
const ICONS: u16 = 3;
const RQLEN: u16 = 4;
const SHUTDOWN: u16 = 6;
const UID: u16 = 7;

/// States of sockets, which are those of TCP (include/net/tcp_states.h).
const LISTEN: u8 = 10;
/// SHUTDOWN_MASK: nothing can be received or sent any more.
const BOTH_WAYS: u8 = 3;

/// The sockets of the calling thread's network namespace; what others call its number is `network`. Connections that nobody
/// has accepted yet are told of at their clients' ends only: the other one has no inode number yet.
pub(crate) fn sockets(network: u64) -> io::Result<Vec<Socket>> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(SOCK_DIAG))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    let show = SHOW_NAME | SHOW_VFS | SHOW_PEER | SHOW_RQLEN | SHOW_UID;
    let mut sockets = Vec::new();
    ask(&socket, 0, NLM_F_DUMP, show, |answer| sockets.extend(parse(answer, network)))?;
    // In an answer to all, a long queue would find no room, and the kernel would end the list there.
    let mut waiting = Vec::new();
    for listening in sockets.iter().filter(|socket| socket.listens && socket.receive_queue > 0) {
        let found = ask(&socket, listening.inode, 0, SHOW_ICONS, |answer| {
            waiting.extend(pending(answer).map(|client| (client, listening.inode)));
        });
        // It may be closed by now, or its queue too long for an answer: which socket they wait for is not known then.
        found.or_else(|error| if error.kind() == ErrorKind::WouldBlock { Err(error) } else { Ok(()) })?;
    }
    waiting.sort_unstable();
    for socket in &mut sockets {
        if let Peer::Waiting(listening) = &mut socket.peer {
            let at = waiting.binary_search_by_key(&socket.inode, |&(client, _)| client);
            *listening = at.ok().map(|at| waiting[at].1);
        }
    }
    Ok(sockets)
}

/// Hands on what the kernel answers: of the socket with an inode number, or of all.
fn ask(socket: &OwnedFd, inode: u32, flags: u16, show: u32, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let mut request = [0; REQUEST_LEN];
    let mut put = |at: usize, bytes: &[u8]| request[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(REQUEST_LEN as u32).to_ne_bytes());
    put(4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(6, &(NLM_F_REQUEST | flags).to_ne_bytes());
    // struct unix_diag_req: family, protocol, padding, states, inode, what to show, a cookie of "any".
    put(16, &[AF_UNIX]);
    put(20, &u32::MAX.to_ne_bytes());
    put(24, &inode.to_ne_bytes());
    put(28, &show.to_ne_bytes());
    put(32, &u64::MAX.to_ne_bytes());
    sendto(socket, &request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut buffer = vec![0; BUFFER_LEN];
    loop {
        let (len, _) = recv(socket, &mut *buffer, RecvFlags::empty())?;
        let mut rest = &buffer[..len];
        while let Some((kind, body, after)) = message(rest) {
            match kind {
                SOCK_DIAG_BY_FAMILY => take(body),
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let code = number(body, 0).unwrap_or(0).cast_signed();
                    return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
                }
                _ => {}
            }
            rest = after;
        }
        if flags & NLM_F_DUMP == 0 {
            return Ok(());
        }
    }
}

/// The first netlink message: its type, what it says, and what comes after it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = number(bytes, 0)? as usize;
    let body = bytes.get(NLMSG_HEADER_LEN..len)?;
    Some((short(bytes, 4)?, body, bytes.get(len.next_multiple_of(4)..).unwrap_or_default()))
}

/// The attributes of an answer: their types and values.
fn attributes(answer: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = answer.get(ANSWER_LEN..).unwrap_or_default();
    std::iter::from_fn(move || {
        let len = usize::from(short(rest, 0)?);
        let attribute = (short(rest, 2)?, rest.get(4..len)?);
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(attribute)
    })
}

fn parse(answer: &[u8], network: u64) -> Option<Socket> {
    let &[_, kind, state, _] = answer.first_chunk()?;
    let inode = number(answer, 4).filter(|&inode| inode != 0)?;
    let mut socket = Socket {
        inode,
        kind: Kind::of_kernel(kind),
        address: Address::Unnamed,
        network,
        owner: None,
        listens: state == LISTEN,
        peer: Peer::None,
        receive_queue: 0,
        send_queue: 0,
        file: None,
        holders: Vec::new(),
    };
    let (mut peer, mut shutdown) = (None, 0);
    for (attribute, value) in attributes(answer) {
        match attribute {
            NAME => socket.address = Address::of_kernel(value),
            VFS => socket.file = number(value, 0).zip(number(value, 4)).map(|(inode, device)| (dev(device), inode)),
            PEER => peer = number(value, 0),
            RQLEN => {
                socket.receive_queue = number(value, 0).unwrap_or(0);
                socket.send_queue = number(value, 4).unwrap_or(0);
            }
            SHUTDOWN => shutdown = value.first().copied().unwrap_or(0),
            UID => socket.owner = number(value, 0),
            _ => {}
        }
    }
    socket.peer = match peer {
        None => Peer::None,
        // The other end has no inode number: it has none yet, or none any more. When it is closed, so is this end for
        // connections; datagram sockets are never accepted.
        Some(0) if shutdown & BOTH_WAYS == BOTH_WAYS || socket.kind == Kind::Datagram => Peer::Closed,
        Some(0) => Peer::Waiting(None),
        Some(inode) => Peer::Socket(inode),
    };
    Some(socket)
}

/// A device's number as stat(2) has it, from the kernel's own (MKDEV, linux/kdev_t.h).
fn dev(of_kernel: u32) -> u64 {
    const MINOR_BITS: u32 = 20;
    rustix::fs::makedev(of_kernel >> MINOR_BITS, of_kernel & ((1 << MINOR_BITS) - 1))
}

/// Inode numbers of the clients that wait for a listening socket.
fn pending(answer: &[u8]) -> impl Iterator<Item = u32> {
    let lists = attributes(answer).filter(|&(attribute, _)| attribute == ICONS);
    lists.flat_map(|(_, list)| list.chunks_exact(4).filter_map(|bytes| number(bytes, 0))).filter(|&inode| inode != 0)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer as the kernel makes it.
    fn answer(kind: u8, state: u8, inode: u32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![AF_UNIX, kind, state, 0];
        bytes.extend(inode.to_ne_bytes());
        bytes.extend([0; 8]);
        for (attribute, value) in attributes {
            bytes.extend((value.len() as u16 + 4).to_ne_bytes());
            bytes.extend(attribute.to_ne_bytes());
            bytes.extend_from_slice(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn what_the_other_end_is() {
        let of = |kind, shutdown: u8, peer: Option<u32>| {
            let peer = peer.map(u32::to_ne_bytes);
            let mut attributes: Vec<(u16, &[u8])> = vec![(SHUTDOWN, std::slice::from_ref(&shutdown))];
            attributes.extend(peer.as_ref().map(|peer| (PEER, &peer[..])));
            parse(&answer(kind, 1, 7, &attributes), 0).unwrap().peer
        };
        assert_eq!(of(1, 0, Some(9)), Peer::Socket(9));
        assert_eq!((of(1, 0, Some(0)), of(1, 3, Some(0))), (Peer::Waiting(None), Peer::Closed));
        // Closed for sending only, while the connection still waits.
        assert_eq!(
            (of(5, 2, Some(0)), of(2, 0, Some(0)), of(1, 3, None)),
            (Peer::Waiting(None), Peer::Closed, Peer::None)
        );
    }

    #[test]
    fn numbers_and_names() {
        let answer = answer(
            1,
            LISTEN,
            7,
            &[(NAME, b"/a\0"), (RQLEN, &[1, 0, 0, 0, 128, 0, 0, 0]), (VFS, &[5, 0, 0, 0, 2, 0, 0x10, 0])],
        );
        let socket = parse(&answer, 4).unwrap();
        assert_eq!((socket.inode, socket.network, socket.listens), (7, 4, true));
        assert_eq!((socket.receive_queue, socket.send_queue), (1, 128));
        assert_eq!((socket.address.bytes(), socket.file), (b"/a".to_vec(), Some((rustix::fs::makedev(1, 2), 5))));
    }

    #[test]
    fn a_message_that_is_cut_off_is_none() {
        let whole = answer(1, 1, 7, &[(NAME, b"/abc\0")]);
        for len in 0..whole.len() {
            let _ = parse(&whole[..len], 0);
            let _ = message(&whole[..len]);
        }
        assert!(parse(&whole[..7], 0).is_none());
        // Nor one that says that it is shorter than it can be.
        assert!(message(&[4, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_none());
        assert_eq!(attributes(&[[0; ANSWER_LEN].as_slice(), &[0, 0, 1, 0]].concat()).count(), 0);
    }
}
