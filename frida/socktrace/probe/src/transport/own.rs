//! Descriptors of our own in a program that knows nothing of them: high, close-on-exec, and looked at before they are used,
//! because the program may close or reuse their numbers.

use core::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use rustix::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use rustix::io::Errno;

use crate::process;

/// The highest number asked for. High, to be out of the way of programs that number theirs; below 1024, because the
/// kernel's table of descriptors is copied by fork as far as the highest one.
const HIGHEST_FD: u64 = 1000;

/// One of our descriptors.
pub(super) struct Own {
    /// -1 without one.
    fd: AtomicI32,
    /// Inode number of what it leads to.
    inode: AtomicU64,
}

impl Own {
    pub(super) const fn none() -> Self {
        Self { fd: AtomicI32::new(-1), inode: AtomicU64::new(0) }
    }

    /// Its number.
    pub(super) fn number(&self) -> Option<i32> {
        Some(self.fd.load(Ordering::Relaxed)).filter(|&fd| fd >= 0)
    }

    /// The descriptor, if the number still leads to what is ours.
    pub(super) fn current(&self) -> Option<BorrowedFd<'static>> {
        let fd = self.number()?;
        // SAFETY: not -1; whether it is open at all is what fstat tells.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        if process::is_confined() {
            return Some(borrowed);
        }
        let ours = rustix::fs::fstat(borrowed).is_ok_and(|stat| stat.st_ino == self.inode.load(Ordering::Relaxed));
        if !ours {
            // The program closed or reused the number: it is not ours to close.
            let _ = self.fd.compare_exchange(fd, -1, Ordering::Relaxed, Ordering::Relaxed);
        }
        ours.then_some(borrowed)
    }

    /// Takes a descriptor in, under a high number if there is one to be had.
    pub(super) fn keep(&self, fd: OwnedFd) -> rustix::io::Result<BorrowedFd<'static>> {
        let inode = rustix::fs::fstat(&fd)?.st_ino;
        // SAFETY: `fd` is open; only its number is remembered below.
        let number = match move_high(unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }, -1) {
            Ok(high) => high.into_raw_fd(),
            Err(_) => fd.into_raw_fd(),
        };
        self.inode.store(inode, Ordering::Relaxed);
        self.fd.store(number, Ordering::Release);
        // SAFETY: open, and ours until `fd` says otherwise.
        Ok(unsafe { BorrowedFd::borrow_raw(number) })
    }

    /// Closes it, if it is still ours.
    pub(super) fn close(&self) {
        if let Some(fd) = self.current() {
            self.fd.store(-1, Ordering::Relaxed);
            // SAFETY: ours, as `current` has just made sure, and out of use from here on.
            unsafe { rustix::io::close(fd.as_raw_fd()) };
        }
    }

    /// The program closes this number: whether it is not ours any more, so that the close is the program's own business.
    /// A vforked child has a copy of our descriptor that is its to close.
    pub(super) fn gives_up(&self, fd: i32) -> bool {
        process::who().is_guest || self.current().is_none_or(|own| own.as_raw_fd() != fd)
    }

    /// The program is about to take this number for itself (dup2(2)): go elsewhere.
    pub(super) fn make_way(&self, fd: i32) {
        if self.number() != Some(fd) || process::who().is_guest {
            return;
        }
        let Some(old) = self.current() else { return };
        if let Ok(elsewhere) = move_high(old, fd) {
            self.fd.store(elsewhere.into_raw_fd(), Ordering::Relaxed);
            // The old number stays open for dup2 to close: freeing it first would let another thread have it.
        } else {
            self.fd.store(-1, Ordering::Relaxed);
        }
    }
}

/// A second descriptor for what is ours, high and other than `avoid`.
fn move_high(fd: BorrowedFd<'_>, avoid: i32) -> rustix::io::Result<OwnedFd> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    // Within the range by the bound above.
    let highest = limit.min(HIGHEST_FD) as i32;
    let mut result = Err(Errno::MFILE);
    for below in [16, 64, 256] {
        let min = highest.saturating_sub(below);
        if min > 2 && min != avoid {
            result = rustix::io::fcntl_dupfd_cloexec(fd, min);
            if result.is_ok() {
                break;
            }
        }
    }
    result
}
