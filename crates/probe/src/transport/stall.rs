//! How long a server that does not read may hold the traced program up: for a bounded time, all waits together, until it
//! has read again.

use core::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::BorrowedFd;

use crate::process::clock::monotonic_ns;
use crate::process::losses::Cause;

/// Time that was waited, of whatever threads: where several wait at the same time, it counts once.
pub(super) struct Waited {
    ns: AtomicU64,
    /// Up to when it has been counted (CLOCK_MONOTONIC, nanoseconds).
    counted_ns: AtomicU64,
}

impl Waited {
    pub(super) const fn nothing() -> Self {
        Self { ns: AtomicU64::new(0), counted_ns: AtomicU64::new(0) }
    }

    #[inline]
    pub(super) fn is_nothing(&self) -> bool {
        self.ns.load(Ordering::Relaxed) == 0
    }

    pub(super) fn forget(&self) {
        self.ns.store(0, Ordering::Relaxed);
    }

    /// What is left of so much.
    pub(super) fn left_ns(&self, of_ns: u64) -> u64 {
        of_ns.saturating_sub(self.ns.load(Ordering::Relaxed))
    }

    /// Counts the time that `wait` takes.
    pub(super) fn during<T>(&self, wait: impl FnOnce() -> T) -> T {
        let from_ns = monotonic_ns();
        let result = wait();
        self.add(from_ns, monotonic_ns());
        result
    }

    fn add(&self, from_ns: u64, until_ns: u64) {
        let counted_ns = self.counted_ns.fetch_max(until_ns, Ordering::Relaxed);
        // At least something, so that it is seen to have been.
        let ns = until_ns.saturating_sub(from_ns.max(counted_ns)).max(1);
        self.ns.fetch_add(ns, Ordering::Relaxed);
    }
}

/// The longest hold-up by a socket's server, in nanoseconds, whatever the number of calls and threads.
const MAX_STALL_NS: u64 = 100_000_000;

static WAITED: Waited = Waited::nothing();

/// A new server, which has not kept anybody waiting.
pub(crate) fn end() {
    WAITED.forget();
}

/// A frame went through. That alone does not say that the server reads: a short one may find room where a long one did
/// not. But if there is now room as poll(2) has it, which is most of a queue, it has read.
pub(super) fn went_through(fd: BorrowedFd<'_>) {
    if !WAITED.is_nothing() && has_room(fd, Timespec { tv_sec: 0, tv_nsec: 0 }) {
        WAITED.forget();
    }
}

/// What is left of this stall's time.
pub(super) fn left_ns() -> u64 {
    WAITED.left_ns(MAX_STALL_NS)
}

/// Waits for something else that waits for the server.
pub(super) fn waiting<T>(wait: impl FnOnce() -> T) -> T {
    WAITED.during(wait)
}

/// Waits until the server has read something; an error at the end of the stall's time.
pub(super) fn wait_for_room(fd: BorrowedFd<'_>) -> Result<(), Cause> {
    let left = left_ns();
    if left == 0 {
        went_through(fd);
        return if left_ns() == 0 { Err(Cause::Stalled) } else { Ok(()) };
    }
    // Readiness, a signal and the end of the time all lead to another try, which finds out.
    let timeout = Timespec { tv_sec: 0, tv_nsec: left as _ };
    if WAITED.during(|| has_room(fd, timeout)) {
        WAITED.forget();
    }
    Ok(())
}

fn has_room(fd: BorrowedFd<'_>, timeout: Timespec) -> bool {
    let mut ready = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    poll(&mut ready, Some(&timeout)).is_ok() && ready[0].revents().contains(PollFlags::OUT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_add_up_and_overlapping_ones_count_once() {
        let waited = Waited::nothing();
        waited.add(100, 200);
        waited.add(150, 250);
        assert_eq!(waited.left_ns(1000), 850);
        waited.add(300, 400);
        assert_eq!(waited.left_ns(1000), 750);
        assert_eq!(waited.left_ns(200), 0);
        waited.forget();
        assert!(waited.is_nothing());
    }
}
