//! How long a server that does not read may hold the traced program up: once, for a bounded time.

use core::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::BorrowedFd;

use super::Undelivered;
use crate::clock::monotonic_ns;

/// The longest hold-up of a stall, in nanoseconds, whatever the number of calls and threads.
const MAX_STALL_NS: u64 = 100_000_000;

/// When the server last began not to read (CLOCK_MONOTONIC, nanoseconds); 0: it reads.
static SINCE_NS: AtomicU64 = AtomicU64::new(0);

/// A frame went through: the server reads.
pub(crate) fn end() {
    if SINCE_NS.load(Ordering::Relaxed) != 0 {
        SINCE_NS.store(0, Ordering::Relaxed);
    }
}

/// What is left of this stall's time.
pub(super) fn left_ns() -> u64 {
    let now_ns = monotonic_ns();
    let since = match SINCE_NS.compare_exchange(0, now_ns, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => now_ns,
        Err(since) => since,
    };
    (since + MAX_STALL_NS).saturating_sub(now_ns)
}

/// Waits until the server has read something; an error at the end of the stall's time.
pub(super) fn wait_for_room(fd: BorrowedFd<'_>) -> Result<(), Undelivered> {
    let left = left_ns();
    if left == 0 {
        return Err(Undelivered::Stalled);
    }
    let timeout = Timespec { tv_sec: 0, tv_nsec: left as _ };
    // Readiness, a signal and the end of the time all lead to another try, which finds out.
    let _ = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::OUT)], Some(&timeout));
    Ok(())
}
