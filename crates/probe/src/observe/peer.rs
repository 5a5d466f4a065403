//! Who is at the other end of a connection.

use core::fmt::Write as _;

use rustix::fd::BorrowedFd;
use rustix::fs::{CWD, readlinkat_raw};

use crate::process::aside::aside;
use crate::sys::confined::is_confined;
use crate::sys::text::Text;
use crate::sys::{peer_credentials, raw_pid, sock_diag};

/// The longest path of an executable that an event shows, in bytes.
pub(crate) const MAX_EXE_LEN: usize = 1024;
/// Bytes of the extension values of an event that shows the path of an executable.
pub(crate) const EXE_EXT_LEN: usize = MAX_EXE_LEN + 192;

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
        if fd < 0 || is_confined() {
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
            0 if is_accepted => aside(|| sock_diag::peer_inode(inode)).flatten().unwrap_or(0),
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
        if let Some(peer) = sock_diag::peer_inode(inode(&a)) {
            assert_eq!(peer, inode(&b));
            assert_eq!(sock_diag::owner(peer), Some(rustix::process::geteuid().as_raw()));
        }
        let exe = executable(std::process::id());
        assert_eq!(exe.as_bytes(), std::env::current_exe().unwrap().as_os_str().as_encoded_bytes());
    }
}
