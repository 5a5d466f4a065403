//! What the kernel tells of a socket by its inode number (sock_diag(7)).

use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

use super::address::AF_UNIX;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const UDIAG_SHOW_PEER: u32 = 4;
const UDIAG_SHOW_UID: u32 = 0x40;
const UNIX_DIAG_PEER: u16 = 2;
const UNIX_DIAG_UID: u16 = 7;
const NLMSG_HEADER_LEN: usize = 16;
const REQUEST_LEN: usize = NLMSG_HEADER_LEN + 24;
/// Bytes of `struct unix_diag_msg`.
const ANSWER_LEN: usize = 16;

/// The inode number of the socket at the other end of the socket with this one (sock_diag(7), UNIX_DIAG_PEER). To be
/// asked aside.
pub(crate) fn peer_inode(inode: u64) -> Option<u64> {
    let inode = u32::try_from(inode).ok()?;
    ask(inode, UDIAG_SHOW_PEER, UNIX_DIAG_PEER).filter(|&inode| inode != 0).map(u64::from)
}

/// The user whose the socket with an inode number is (UNIX_DIAG_UID, Linux 5.3). To be asked aside.
pub(crate) fn owner(inode: u64) -> Option<u32> {
    ask(u32::try_from(inode).ok()?, UDIAG_SHOW_UID, UNIX_DIAG_UID)
}

/// Asks the kernel for something that it shows of a socket.
fn ask(inode: u32, show: u32, attribute: u16) -> Option<u32> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(SOCK_DIAG)).ok()?;
    let mut request = [0; REQUEST_LEN];
    let mut put = |at: usize, bytes: &[u8]| request[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(REQUEST_LEN as u32).to_ne_bytes());
    put(4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(6, &NLM_F_REQUEST.to_ne_bytes());
    // struct unix_diag_req: family, protocol, padding, states, inode, what to show, a cookie of "any".
    put(16, &[AF_UNIX as u8]);
    put(20, &u32::MAX.to_ne_bytes());
    put(24, &inode.to_ne_bytes());
    put(28, &show.to_ne_bytes());
    put(32, &u64::MAX.to_ne_bytes());
    sendto(&socket, &request, SendFlags::DONTWAIT, &SocketAddrNetlink::new(0, 0)).ok()?;
    let mut answer = [0; 256];
    // The kernel answers before sendto(2) returns.
    let (len, _) = recv(&socket, &mut answer, RecvFlags::DONTWAIT).ok()?;
    let answer = answer.get(..len)?;
    if answer.get(4..6)? != SOCK_DIAG_BY_FAMILY.to_ne_bytes() {
        return None;
    }
    let mut attributes = answer.get(NLMSG_HEADER_LEN + ANSWER_LEN..)?;
    while let (Some(size), Some(kind)) = (attributes.get(..2), attributes.get(2..4)) {
        let size = usize::from(u16::from_ne_bytes([size[0], size[1]]));
        if kind == attribute.to_ne_bytes() {
            let value = attributes.get(4..8)?;
            return Some(u32::from_ne_bytes([value[0], value[1], value[2], value[3]]));
        }
        attributes = attributes.get(size.max(4).next_multiple_of(4)..)?;
    }
    None
}
