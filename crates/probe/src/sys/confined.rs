//! What the process and its threads must not ask the kernel any more: seccomp(2).

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use crate::arch::register::thread_pointer;

/// Whether the program has put itself under a seccomp filter since the probe was loaded. One that it was under before is
/// another matter: what the probe does on a traced call it has done while it was loaded, and lived.
static CONFINED: AtomicBool = AtomicBool::new(false);

/// Whether system calls that the program does not make itself are to be avoided.
pub(crate) fn is_confined() -> bool {
    CONFINED.load(Ordering::Relaxed)
}

pub(crate) fn set_confined() {
    CONFINED.store(true, Ordering::Relaxed);
}

/// Threads in strict mode that are noted; with more, all are taken to be in it.
const MAX_STRICT: usize = 16;

/// Their thread pointers; 0: free.
static STRICT: [AtomicUsize; MAX_STRICT] = [const { AtomicUsize::new(0) }; MAX_STRICT];
/// How many ever were; more than [`MAX_STRICT`]: not all are noted.
static STRICT_COUNT: AtomicU32 = AtomicU32::new(0);

/// Whether this thread is in strict mode: read(2), write(2), _exit(2) and sigreturn(2) are all that it may call, and any
/// other call, or a look at the time-stamp counter, kills it. The probe does in it what takes memory only.
#[inline]
pub(crate) fn is_strict() -> bool {
    STRICT_COUNT.load(Ordering::Relaxed) != 0 && is_noted()
}

#[cold]
fn is_noted() -> bool {
    let thread = thread_pointer();
    STRICT_COUNT.load(Ordering::Relaxed) > MAX_STRICT as u32
        || STRICT.iter().any(|noted| noted.load(Ordering::Relaxed) == thread)
}

/// Notes that this thread is in strict mode from here on. What it gives takes that back.
pub(crate) fn note_strict() -> impl FnOnce() {
    let thread = thread_pointer();
    let place =
        STRICT.iter().find(|noted| noted.compare_exchange(0, thread, Ordering::Relaxed, Ordering::Relaxed).is_ok());
    STRICT_COUNT.fetch_add(if place.is_some() { 1 } else { 1 + MAX_STRICT as u32 }, Ordering::Relaxed);
    move || {
        // Too many stay too many.
        if let Some(place) = place {
            place.store(0, Ordering::Relaxed);
            STRICT_COUNT.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
