//! Descriptors of our own in a program that knows nothing of them: above all numbers that it can have, close-on-exec, and
//! looked at before they are used, because the program may close or reuse their numbers.

use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use rustix::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::process::{self, aside};
use crate::sys::confined::is_confined;
use crate::sys::{hold_off_signals, is_under_valgrind, set_signal_mask};

/// The lowest number that one of ours may have. High, to be out of the way of programs that number theirs; no higher,
/// because the kernel's table of descriptors is copied by fork as far as the highest one.
const HIGH_FD: u64 = 1000;
/// The highest limit that ours are above, for the same reason. With a higher one they are in the midst of the numbers that
/// a program may have, where few come.
const HIGHEST_LIMIT: u64 = 4096;
/// Numbers above the limit among which one is looked for.
const ROOM: u64 = 64;

/// Whether the probe is being started. A preloaded one is alone then; with Frida, there are Frida's threads and
/// descriptors, too.
static IS_STARTING: AtomicBool = AtomicBool::new(false);

pub(super) fn set_starting(is_starting: bool) {
    IS_STARTING.store(is_starting, Ordering::Relaxed);
}

/// Whether a number can be taken for a moment and nobody sees it.
fn is_unseen() -> bool {
    IS_STARTING.load(Ordering::Relaxed) || aside::is_alone()
}

/// Does something that takes descriptors for a moment: aside, or here if that cannot be and nobody sees it.
pub(super) fn out_of_sight<R>(task: impl Fn() -> R) -> Option<R> {
    aside::aside(&task).or_else(|| is_unseen().then(task))
}

/// One of our descriptors.
pub(super) struct Own {
    /// -1 without one.
    fd: AtomicI32,
    /// Inode number of what it leads to.
    inode: AtomicU64,
}

/// Why a descriptor could not be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotKept {
    /// It could not be made.
    NotMade(Errno),
    /// There is no number for it that the program could not have.
    NoNumber,
}

impl Own {
    pub(super) const fn none() -> Self {
        Self { fd: AtomicI32::new(-1), inode: AtomicU64::new(0) }
    }

    /// Its number.
    pub(super) fn number(&self) -> Option<i32> {
        Some(self.fd.load(Ordering::Relaxed)).filter(|&fd| fd >= 0)
    }

    /// The descriptor, if the number still leads to what is ours; otherwise there is none any more.
    pub(super) fn current(&self) -> Option<BorrowedFd<'static>> {
        let fd = self.number()?;
        let ours = self.if_there();
        if ours.is_none() {
            // The program closed or reused the number: it is not ours to close.
            let _ = self.fd.compare_exchange(fd, -1, Ordering::Relaxed, Ordering::Relaxed);
        }
        ours
    }

    /// The same for a vforked child, which may have closed its own copy.
    pub(super) fn if_there(&self) -> Option<BorrowedFd<'static>> {
        // SAFETY: not -1; whether it is open at all is what fstat tells.
        let borrowed = unsafe { BorrowedFd::borrow_raw(self.number()?) };
        let is_ours = |stat: rustix::fs::Stat| stat.st_ino == self.inode.load(Ordering::Relaxed);
        (is_confined() || rustix::fs::fstat(borrowed).is_ok_and(is_ours)).then_some(borrowed)
    }

    /// Takes in the descriptor that `make` gives, under a number that the program cannot have.
    ///
    /// `make` gives the lowest number that is free, for a moment. So it is called only where nobody can see that: when the
    /// probe is started, and in a process that has one thread.
    pub(super) fn keep(
        &self,
        make: impl FnOnce() -> rustix::io::Result<OwnedFd>,
    ) -> Result<BorrowedFd<'static>, NotKept> {
        if !is_unseen() {
            return Err(NotKept::NoNumber);
        }
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let made = if limit > HIGHEST_LIMIT || is_under_valgrind() {
            let signals = hold_off_signals();
            let made = keep_at(HIGH_FD.min(limit.saturating_sub(ROOM)), make);
            set_signal_mask(signals);
            made
        } else {
            let lowest = limit.max(HIGH_FD);
            aside::with_limit(lowest + ROOM, || keep_at(lowest, make)).unwrap_or(Err(NotKept::NoNumber))
        };
        let (number, inode) = made?;
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
        // At a number that its limit does not allow the program gets EBADF, with us or without.
        if getrlimit(Resource::Nofile).current.is_some_and(|limit| u64::from(fd.cast_unsigned()) >= limit) {
            return;
        }
        match rustix::io::fcntl_dupfd_cloexec(old, fd.saturating_add(1)) {
            Ok(elsewhere) => self.fd.store(elsewhere.into_raw_fd(), Ordering::Relaxed),
            Err(_) => self.fd.store(-1, Ordering::Relaxed),
        }
        // The old number stays open for dup2 to close: freeing it first would let another thread have it.
    }
}

/// The descriptor that `make` gives, as one that has at least this number; with its inode number.
fn keep_at(lowest: u64, make: impl FnOnce() -> rustix::io::Result<OwnedFd>) -> Result<(i32, u64), NotKept> {
    let low = make().map_err(NotKept::NotMade)?;
    let stat = rustix::fs::fstat(&low).map_err(NotKept::NotMade)?;
    // Within the range by HIGHEST_LIMIT and HIGH_FD.
    let high = rustix::io::fcntl_dupfd_cloexec(&low, lowest as i32).map_err(|_| NotKept::NoNumber)?;
    Ok((high.into_raw_fd(), stat.st_ino))
}
