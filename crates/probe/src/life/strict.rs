//! Threads in seccomp(2)'s strict mode: read(2), write(2), _exit(2) and sigreturn(2) are all that they may call, and any
//! other call, or a look at the time-stamp counter, kills them. The probe does in them what takes memory only.
//!
//! The mode is one thread's. It is noted before the call that sets it, by the thread pointer.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::process::{self, clock};
use crate::start::control;
use crate::sys::params::Transport;
use crate::sys::thread_pointer;
use crate::transport;

/// Threads that are noted; with more, all are taken to be in strict mode.
const MAX_THREADS: usize = 16;

static THREADS: [AtomicUsize; MAX_THREADS] = [const { AtomicUsize::new(0) }; MAX_THREADS];
/// How many ever were; more than [`MAX_THREADS`]: not all are noted.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// Whether this thread is in strict mode.
#[inline]
pub(crate) fn is_in_force() -> bool {
    COUNT.load(Ordering::Relaxed) != 0 && is_noted()
}

#[cold]
fn is_noted() -> bool {
    COUNT.load(Ordering::Relaxed) > MAX_THREADS as u32 || find(thread_pointer()).is_some()
}

fn find(thread: usize) -> Option<&'static AtomicUsize> {
    THREADS.iter().find(|noted| noted.load(Ordering::Relaxed) == thread)
}

/// This thread is about to make a call that puts it into strict mode. What `call` gives is the call's result, negative
/// where it failed.
pub(crate) fn around<T: PartialOrd + From<i8> + Copy>(call: impl FnOnce() -> T) -> T {
    clock::forget_counter();
    if transport::in_use() != Transport::Shm {
        control::say_strict();
    }
    let thread = thread_pointer();
    let place =
        THREADS.iter().find(|noted| noted.compare_exchange(0, thread, Ordering::Relaxed, Ordering::Relaxed).is_ok());
    COUNT.fetch_add(if place.is_some() { 1 } else { 1 + MAX_THREADS as u32 }, Ordering::Relaxed);
    let result = call();
    if result < T::from(0) {
        // Too many stay too many.
        if let Some(place) = place {
            place.store(0, Ordering::Relaxed);
            COUNT.fetch_sub(1, Ordering::Relaxed);
        }
    } else {
        // Nor do other threads help it out with what it may not do itself.
        process::set_confined();
    }
    result
}
