//! Who is at the other end of a connection.

use core::fmt::Write as _;

use rustix::fd::BorrowedFd;
use rustix::fs::{CWD, readlinkat_raw};
use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

use crate::process;
use crate::process::aside::aside;
use crate::sys::{peer_credentials, raw_pid};
use crate::table::name::Text;

/// The longest path of an executable that an event shows, in bytes.
pub(crate) const MAX_EXE_LEN: usize = 1024;

/// The other end, as far as the kernel tells.
pub(crate) struct Peer {
    /// 0: not known.
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// 0: not known, or not accepted yet.
    pub(crate) inode: u64,
    pub(crate) exe: Text<MAX_EXE_LEN>,
}

impl Peer {
    /// Asks for the peer of a socket with an inode number. Credentials are those of whoever called connect(2), listen(2)
    /// or socketpair(2) (SO_PEERCRED, unix(7)). The other end of a pair is known: `mate`, if it is not 0.
    ///
    /// `is_accepted` says that there is another end by now. Of a connection that was only just asked for there mostly is none
    /// yet, and the question is not worth its price.
    pub(crate) fn of(fd: i32, inode: u64, mate: u64, is_accepted: bool) -> Option<Self> {
        if fd < 0 || process::is_confined() {
            return None;
        }
        // SAFETY: not -1; a closed one only makes the questions fail.
        let socket = unsafe { BorrowedFd::borrow_raw(fd) };
        let mut peer = Self { pid: 0, uid: 0, gid: 0, inode: 0, exe: Text::new() };
        if let Some(credentials) = peer_credentials(socket) {
            [peer.pid, peer.uid, peer.gid] = credentials;
            peer.exe = executable(peer.pid);
        }
        peer.inode = match mate {
            0 if is_accepted => aside(|| peer_inode(inode)).flatten().unwrap_or(0),
            mate => mate,
        };
        (peer.pid != 0 || peer.inode != 0).then_some(peer)
    }
}

/// Whether /proc shows processes under the numbers that this one sees: it may be that of another pid namespace
/// (pid_namespaces(7)), where the same number is a stranger's.
fn is_proc_of_our_namespace() -> bool {
    let (mut own, mut shown) = (Text::<16>::new(), Text::<16>::new());
    let _ = write!(own, "{}", raw_pid());
    shown.fill(|buffer| readlinkat_raw(CWD, c"/proc/self", buffer).unwrap_or(0));
    own.as_bytes() == shown.as_bytes()
}

/// The path of a process's executable, empty where it may not be known.
fn executable(pid: u32) -> Text<MAX_EXE_LEN> {
    if !is_proc_of_our_namespace() {
        return Text::new();
    }
    let mut link = Text::<32>::new();
    let _ = write!(link, "/proc/{pid}/exe");
    let mut exe = Text::new();
    if let Some(link) = link.as_c_str() {
        exe.fill(|buffer| readlinkat_raw(CWD, link, buffer).unwrap_or(0));
    }
    exe
}

/// Numbers of sock_diag(7).
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
    put(16, &[crate::sys::address::AF_UNIX as u8]);
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_pair_knows_its_other_end() {
        let (a, b) = UnixStream::pair().unwrap();
        let inode = |socket: &UnixStream| rustix::fs::fstat(socket).unwrap().st_ino;
        assert_eq!(peer_credentials(a.as_fd()).unwrap()[0], std::process::id());
        // A kernel without the unix_diag module does not tell.
        if let Some(peer) = peer_inode(inode(&a)) {
            assert_eq!(peer, inode(&b));
            assert_eq!(owner(peer), Some(rustix::process::geteuid().as_raw()));
        }
        let exe = executable(std::process::id());
        assert_eq!(exe.as_bytes(), std::env::current_exe().unwrap().as_os_str().as_encoded_bytes());
    }
}
