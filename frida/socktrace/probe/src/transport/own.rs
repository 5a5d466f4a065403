//! Descriptors of our own in a program that knows nothing of them: above all numbers that it can have, close-on-exec, and
//! looked at before they are used, because the program may close or reuse their numbers.

use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use rustix::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, prlimit};

use crate::process;
use crate::sys::{hold_off_signals, set_signal_mask};

/// The highest number asked for below the program's limit, and the lowest above it. High, to be out of the way of
/// programs that number theirs; no higher, because the kernel's table of descriptors is copied by fork as far as the
/// highest one.
const HIGH_FD: u64 = 1000;
/// The highest limit to go above, for the same reason.
const HIGHEST_LIMIT: u64 = 4096;
/// Numbers above the limit among which one is looked for.
const ROOM: u64 = 64;
/// Whether a thread has raised the limit for a moment: a second one would take the raised limit for the program's.
static IS_RAISED: AtomicBool = AtomicBool::new(false);

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
        (process::is_confined() || rustix::fs::fstat(borrowed).is_ok_and(is_ours)).then_some(borrowed)
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
    if !process::is_confined()
        && let Ok(above) = move_above_limit(fd)
    {
        return Ok(above);
    }
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    // Within the range by the bound above.
    let highest = limit.min(HIGH_FD) as i32;
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

/// A second descriptor with a number that the program cannot have: not below its limit, which is raised for the moment
/// of the call only (getrlimit(2): descriptors stay open whatever the limit is). So it takes none of the program's
/// numbers, and one that asks what is open under each does not come across it.
fn move_above_limit(fd: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    if IS_RAISED.swap(true, Ordering::Acquire) {
        return Err(Errno::MFILE);
    }
    // A handler could leave us by a jump, or fork.
    let signals = hold_off_signals();
    let result = with_raised_limit(|number| rustix::io::fcntl_dupfd_cloexec(fd, number));
    set_signal_mask(signals);
    IS_RAISED.store(false, Ordering::Release);
    result
}

/// `action` is given a number that the program's limit does not allow, and may use it and some above.
fn with_raised_limit<T>(action: impl FnOnce(i32) -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let limit = current.filter(|&limit| limit <= HIGHEST_LIMIT).ok_or(Errno::MFILE)?;
    let number = limit.max(HIGH_FD);
    let raised = Rlimit { current: Some(number + ROOM), maximum };
    if maximum.is_some_and(|maximum| maximum < number + ROOM) {
        return Err(Errno::MFILE);
    }
    prlimit(None, Resource::Nofile, raised)?;
    // Within the range by the bounds above.
    let result = action(number as i32);
    let found = prlimit(None, Resource::Nofile, Rlimit { current, maximum })?;
    if found != raised {
        // Another thread has set it meanwhile.
        prlimit(None, Resource::Nofile, found)?;
    }
    result
}
