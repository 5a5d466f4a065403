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

/// Whose turn it is.
struct Lock {
    state: AtomicU32,
    /// The thread whose turn it is, by its thread pointer, where signals are not held off; else 0.
    interruptible: AtomicUsize,
}

static LOCK: Lock = Lock::free();

/// The turn; given back when it is dropped.
pub(super) struct Turn<'a> {
    lock: &'a Lock,
    /// Those that were held off before; `None` if none are now.
    signals: Option<SignalSet>,
}

impl Lock {
    const fn free() -> Self {
        Self { state: AtomicU32::new(FREE), interruptible: AtomicUsize::new(0) }
    }

    fn take(&self) -> Result<Turn<'_>, Cause> {
        let own = if is_confined() { thread_pointer() } else { 0 };
        if own != 0 && self.interruptible.load(Ordering::Relaxed) == own {
            return Err(Cause::Stalled);
        }
        let signals = (own == 0).then(hold_off_signals);
        let mut state = self.state.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed);
        let contended = state.is_err();
        while state.is_err() {
            let left = if contended { stall::left_ns() } else { 0 };
            if left == 0 {
                give_back(signals);
                return Err(Cause::Stalled);
            }
            if self.state.swap(AWAITED, Ordering::Acquire) == FREE {
                break;
            }
            let timeout = futex::Timespec { tv_sec: 0, tv_nsec: left as _ };
            let _ = stall::waiting(|| futex::wait(&self.state, futex::Flags::PRIVATE, AWAITED, Some(&timeout)));
            state = self.state.compare_exchange(FREE, AWAITED, Ordering::Acquire, Ordering::Relaxed);
        }
        self.interruptible.store(own, Ordering::Relaxed);
        Ok(Turn { lock: self, signals })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Lock { state, interruptible } = self.lock;
        if state.swap(FREE, Ordering::Release) == AWAITED {
            let _ = futex::wake(state, futex::Flags::PRIVATE, 1);
        }
        if self.signals.is_none() {
            // Unless it is another thread's by now.
            let _ = interruptible.compare_exchange(thread_pointer(), 0, Ordering::Relaxed, Ordering::Relaxed);
        }
        give_back(self.signals);
    }
}

/// Waits for the turn, no longer than a stall may last: its holder may wait for the server, or may have been killed
/// between vfork and exec.
pub(super) fn take() -> Result<Turn<'static>, Cause> {
    LOCK.take()
}

/// Lets signals through again that were held off.
fn give_back(signals: Option<SignalSet>) {
    if let Some(signals) = signals {
        set_signal_mask(signals);
    }
}

/// Whoever had the turn at the time of the fork is not in the child.
pub(super) fn after_fork() {
    LOCK.interruptible.store(0, Ordering::Relaxed);
    LOCK.state.store(FREE, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_the_turn_at_a_time() {
        let (lock, turns) = (Lock::free(), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        // A thread that is kept waiting for as long as a stall may last goes on without.
                        let Ok(_turn) = lock.take() else { continue };
                        // In two steps, which another thread's would come between.
                        let before = turns.load(Ordering::Relaxed);
                        std::hint::spin_loop();
                        turns.store(before + 1, Ordering::Relaxed);
                        assert_eq!(turns.load(Ordering::Relaxed), before + 1);
                    }
                });
            }
        });
        assert!(turns.into_inner() > 0 && lock.state.into_inner() == FREE);
    }
}
