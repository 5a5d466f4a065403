//! Who sends, as the kernel vouches for it.

use std::os::fd::{AsFd, AsRawFd};

use rustix::process::geteuid;

/// A process that speaks to the collector.
///
/// What a frame says of its process is the process's own word; this is not. It is of the moment when the process
/// connected (stream) or sent (datagram).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sender {
    /// Its number where the collector is; 0: it cannot be seen from there (pid_namespaces(7)).
    pub pid: u32,
    /// Its effective user.
    pub uid: u32,
}

impl Sender {
    /// One of whom the kernel says nothing.
    pub(crate) const UNKNOWN: Self = Self { pid: 0, uid: libc::uid_t::MAX };

    /// Who has connected: SO_PEERCRED (unix(7)).
    pub(crate) fn of_peer(socket: impl AsFd) -> Self {
        // Not rustix's, whose pid may not be 0, as it is for a process that cannot be seen from here.
        let mut peer = libc::ucred { pid: 0, uid: libc::uid_t::MAX, gid: 0 };
        let mut len = size_of::<libc::ucred>() as libc::socklen_t;
        let (fd, at) = (socket.as_fd().as_raw_fd(), (&raw mut peer).cast());
        // SAFETY: room for a `struct ucred`, and its length. Where it fails, nothing was changed.
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, at, &raw mut len) };
        Self::from(peer)
    }

    /// Whether it is root's, or of the user whose collector this is: neither needs to send anything to do harm to it.
    pub(crate) fn is_own(self) -> bool {
        self.uid == 0 || self.uid == geteuid().as_raw()
    }
}

impl From<libc::ucred> for Sender {
    fn from(ucred: libc::ucred) -> Self {
        Self { pid: ucred.pid.unsigned_abs(), uid: ucred.uid }
    }
}
