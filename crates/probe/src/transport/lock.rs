//! Whose turn it is on a stream. Frames of two threads must not mix, so one sends at a time; signals are held off
//! meanwhile, because a handler that sent, or jumped away, in the middle of a frame would tear it.
//!
//! Under a seccomp filter they are not, because that takes a system call that the filter may kill for. What a handler says
//! in the middle of a frame is then not sent, and counted.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use rustix::thread::futex;

use super::stall;
use crate::arch::register::thread_pointer;
use crate::process::losses::Cause;
use crate::sys::confined::is_confined;
use crate::sys::{SignalSet, hold_off_signals, set_signal_mask};

const FREE: u32 = 0;
const HELD: u32 = 1;
const AWAITED: u32 = 2;

static STATE: AtomicU32 = AtomicU32::new(FREE);
/// The thread whose turn it is, by its thread pointer, where signals are not held off; else 0.
static INTERRUPTIBLE: AtomicUsize = AtomicUsize::new(0);

/// The turn; given back when it is dropped.
pub(super) struct Turn {
    /// Those that were held off before; `None` if none are now.
    signals: Option<SignalSet>,
}

/// Waits for the turn, no longer than a stall may last: its holder may wait for the server, or may have been killed
/// between vfork and exec.
pub(super) fn take() -> Result<Turn, Cause> {
    let own = if is_confined() { thread_pointer() } else { 0 };
    if own != 0 && INTERRUPTIBLE.load(Ordering::Relaxed) == own {
        return Err(Cause::Stalled);
    }
    let signals = (own == 0).then(hold_off_signals);
    let mut state = STATE.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed);
    let contended = state.is_err();
    while state.is_err() {
        let left = if contended { stall::left_ns() } else { 0 };
        if left == 0 {
            give_back(signals);
            return Err(Cause::Stalled);
        }
        if STATE.swap(AWAITED, Ordering::Acquire) == FREE {
            break;
        }
        let timeout = futex::Timespec { tv_sec: 0, tv_nsec: left as _ };
        let _ = stall::waiting(|| futex::wait(&STATE, futex::Flags::PRIVATE, AWAITED, Some(&timeout)));
        state = STATE.compare_exchange(FREE, AWAITED, Ordering::Acquire, Ordering::Relaxed);
    }
    INTERRUPTIBLE.store(own, Ordering::Relaxed);
    Ok(Turn { signals })
}

impl Drop for Turn {
    fn drop(&mut self) {
        if STATE.swap(FREE, Ordering::Release) == AWAITED {
            let _ = futex::wake(&STATE, futex::Flags::PRIVATE, 1);
        }
        if self.signals.is_none() {
            // Unless it is another thread's by now.
            let _ = INTERRUPTIBLE.compare_exchange(thread_pointer(), 0, Ordering::Relaxed, Ordering::Relaxed);
        }
        give_back(self.signals);
    }
}

/// Lets signals through again that were held off.
fn give_back(signals: Option<SignalSet>) {
    if let Some(signals) = signals {
        set_signal_mask(signals);
    }
}

/// Whoever had the turn at the time of the fork is not in the child.
pub(super) fn after_fork() {
    INTERRUPTIBLE.store(0, Ordering::Relaxed);
    STATE.store(FREE, Ordering::Relaxed);
}
