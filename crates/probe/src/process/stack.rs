//! Stacks of our own, for what needs room: hooks run on whatever stack the program has, which may be a thread's of
//! 16 KiB, a coroutine's of 4 KiB, or a signal handler's that is nearly used up.
//!
//! A captured call of the common kind needs none. Everything else (a connection's announcement, a look at what a
//! descriptor is, a frame that is put together in pieces) is done by [`on_own`], which leaves a few hundred bytes on
//! the program's stack.
//!
//! Signals are held off meanwhile, but for those that the processor raises: a handler would find itself on a stack
//! that is not the program's, and might leave it by siglongjmp(3), which checks where it comes from. Under a seccomp filter
//! they are not, because that takes a system call that the filter may forbid.

use core::ffi::{c_int, c_void};
use core::mem::{ManuallyDrop, MaybeUninit};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

use crate::arch::register::{stack_pointer, thread_pointer};
use crate::arch::stack::switch_stack;
use crate::arch::valgrind;
use crate::sys::confined::is_confined;
use crate::sys::{SignalSet, hold_off, set_signal_mask};

/// Stacks that are kept. More threads than that seldom need one at the same moment; those map one for the moment.
pub(crate) const STACKS: usize = 8;
/// Bytes of each: the deepest use is some 12 KiB, and a handler of SIGSEGV that has no stack of its own has to find room.
const LEN: usize = 64 << 10;
/// Of these, at the low end, which nobody may write to.
const GUARD_LEN: usize = 4 << 10;
/// At the high end: where the program's stack was left.
const HEAD_LEN: usize = 16;

/// Signals that stay deliverable: held off, those that the processor raises end the program (sigprocmask(2)).
const SYNCHRONOUS: [c_int; 6] = [4, 5, 7, 8, 11, 31];
const HELD_OFF: SignalSet = {
    let (mut set, mut at): (SignalSet, usize) = (!0, 0);
    while at < SYNCHRONOUS.len() {
        set &= !(1 << (SYNCHRONOUS[at] - 1));
        at += 1;
    }
    set
};

/// Where they begin; 0: there was no memory for them.
static BASE: AtomicUsize = AtomicUsize::new(0);
/// Of each, the thread pointer of who is on it; 0: nobody.
static OWNERS: [AtomicUsize; STACKS] = [const { AtomicUsize::new(0) }; STACKS];
/// A bit for each that is mapped for writing, which happens on first use.
static OPENED: AtomicU32 = AtomicU32::new(0);

/// Reserves room for the stacks, once. Without it one is mapped each time.
pub(crate) fn init() {
    if BASE.load(Ordering::Acquire) != 0 {
        return;
    }
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::STACK;
    // SAFETY: a new mapping at an address of the kernel's choice touches nobody's memory.
    if let Ok(base) = unsafe { mmap_anonymous(core::ptr::null_mut(), STACKS * LEN, ProtFlags::empty(), flags) } {
        BASE.store(base as usize, Ordering::Release);
    }
}

/// Makes so many of them ready, while the kernel may still be asked for it.
pub(crate) fn open_some(count: usize) {
    (0..count).for_each(|index| {
        open(index);
    });
}

/// Makes a stack writable; whether it is.
fn open(index: usize) -> bool {
    let base = BASE.load(Ordering::Acquire);
    let bit = 1 << index;
    if base == 0 {
        return false;
    }
    if OPENED.load(Ordering::Acquire) & bit != 0 {
        return true;
    }
    if is_confined() {
        return false;
    }
    let low = base + index * LEN + GUARD_LEN;
    let access = MprotectFlags::READ | MprotectFlags::WRITE;
    // SAFETY: within our own mapping, of which nothing is in use yet.
    let is_open = unsafe { mprotect(low as *mut c_void, LEN - GUARD_LEN, access) }.is_ok();
    if is_open {
        tell_valgrind(low, low + LEN - GUARD_LEN);
        OPENED.fetch_or(bit, Ordering::AcqRel);
    }
    is_open
}

/// In a forked child: the other threads, and the stacks that they were on, are the parent's.
pub(crate) fn after_fork() {
    let own = thread_pointer();
    for owner in &OWNERS {
        if owner.load(Ordering::Relaxed) != own {
            owner.store(0, Ordering::Relaxed);
        }
    }
}

/// A stack that is this thread's for the moment.
enum Stack {
    Kept(usize),
    /// Mapped for this one use, from this address on.
    Mapped(*mut c_void),
}

impl Stack {
    /// `None` if this thread is on one already, or there is no memory for one.
    #[inline(never)]
    fn claim() -> Option<Self> {
        let base = BASE.load(Ordering::Acquire);
        if (base..base + STACKS * LEN).contains(&stack_pointer()) {
            return None;
        }
        let own = thread_pointer();
        for (index, owner) in OWNERS.iter().enumerate() {
            let is_free = owner.load(Ordering::Relaxed) == 0
                && owner.compare_exchange(0, own, Ordering::Acquire, Ordering::Relaxed).is_ok();
            if is_free && open(index) {
                return Some(Self::Kept(index));
            }
            if is_free {
                owner.store(0, Ordering::Relaxed);
                break;
            }
        }
        if is_confined() {
            return None;
        }
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::STACK);
        // SAFETY: a new mapping at an address of the kernel's choice touches nobody's memory.
        unsafe { mmap_anonymous(core::ptr::null_mut(), LEN, access, flags) }.ok().map(Self::Mapped)
    }

    fn top(&self) -> *mut u8 {
        let end = match self {
            Self::Kept(index) => BASE.load(Ordering::Relaxed) + (index + 1) * LEN,
            Self::Mapped(at) => *at as usize + LEN,
        };
        (end - HEAD_LEN) as *mut u8
    }

    fn give_back(self) {
        match self {
            Self::Kept(index) => OWNERS[index].store(0, Ordering::Release),
            // SAFETY: mapped with this length by `claim`, and nobody is on it.
            Self::Mapped(at) => drop(unsafe { munmap(at, LEN) }),
        }
    }
}

/// What is done on another stack, and what comes of it.
struct Job<F, R> {
    action: ManuallyDrop<F>,
    result: MaybeUninit<R>,
}

unsafe extern "C" fn run<F: FnOnce() -> R, R>(job: *mut c_void) {
    // SAFETY: `on_own` gives a job of this type, once.
    let job = unsafe { &mut *job.cast::<Job<F, R>>() };
    // SAFETY: taken once, see above.
    let action = unsafe { ManuallyDrop::take(&mut job.action) };
    job.result.write(action());
}

/// Does something on a stack of our own, with signals held off. On the program's own stack if there is none to be had:
/// under a seccomp filter, or without memory.
#[inline]
pub(crate) fn on_own<F: FnOnce() -> R, R>(action: F) -> R {
    let mut job = Job { action: ManuallyDrop::new(action), result: MaybeUninit::uninit() };
    run_on_own(run::<F, R>, (&raw mut job).cast());
    // SAFETY: `run` has written it.
    unsafe { job.result.assume_init() }
}

#[inline(never)]
fn run_on_own(run: unsafe extern "C" fn(*mut c_void), job: *mut c_void) {
    let Some(stack) = Stack::claim() else {
        // SAFETY: as below, without another stack.
        return unsafe { switch_stack(job, run, core::ptr::null_mut()) };
    };
    let signals = (!is_confined()).then(|| hold_off(HELD_OFF));
    // SAFETY: the job is this function's, and the stack is this thread's alone and has room.
    unsafe { switch_stack(job, run, stack.top()) };
    stack.give_back();
    if let Some(signals) = signals {
        set_signal_mask(signals);
    }
}

/// Where the program's own stack ends: as it is now, or where it was left.
pub(crate) fn program_pointer() -> usize {
    let (base, now) = (BASE.load(Ordering::Relaxed), stack_pointer());
    if base == 0 || !(base..base + STACKS * LEN).contains(&now) {
        return now;
    }
    let head = base + ((now - base) / LEN + 1) * LEN - HEAD_LEN;
    // SAFETY: on this stack, which is mapped; `switch_stack` has left the pointer there.
    unsafe { (head as *const usize).read() }
}

/// Tells valgrind, if the program runs under it, that this memory is a stack: it would take the change of the stack pointer
/// for a very large frame (valgrind/valgrind.h, `VALGRIND_STACK_REGISTER`).
fn tell_valgrind(low: usize, high: usize) {
    const STACK_REGISTER: usize = 0x1501;
    valgrind::request([STACK_REGISTER, low, high, 0, 0, 0]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_there_is_elsewhere_and_leaves_its_result() {
        init();
        let here = stack_pointer();
        let (there, left_at, text) = on_own(|| {
            let big = [7_u8; 8 << 10];
            (stack_pointer(), program_pointer(), big.iter().map(|&byte| u32::from(byte)).sum::<u32>())
        });
        let base = BASE.load(Ordering::Relaxed);
        assert!((base..base + STACKS * LEN).contains(&there), "{there:x} {base:x}");
        assert!(left_at.abs_diff(here) < 1024, "{left_at:x} {here:x}");
        assert_eq!(text, 7 * (8 << 10));
        assert_eq!(program_pointer().abs_diff(stack_pointer()) / 256, 0);
    }

    #[test]
    fn one_within_another_stays_where_it_is() {
        init();
        let (outer, inner) = on_own(|| (stack_pointer(), on_own(stack_pointer)));
        assert!(outer.abs_diff(inner) < 1024);
    }

    #[test]
    fn more_threads_than_stacks() {
        init();
        let barrier = std::sync::Barrier::new(3 * STACKS);
        std::thread::scope(|scope| {
            for number in 0..3 * STACKS {
                let barrier = &barrier;
                scope.spawn(move || {
                    let seen = on_own(|| {
                        let own = [number; 512];
                        barrier.wait();
                        barrier.wait();
                        own.iter().all(|&it| it == number)
                    });
                    assert!(seen);
                });
            }
        });
        assert!(OWNERS.iter().all(|owner| owner.load(Ordering::Relaxed) == 0));
    }

    #[test]
    fn signals_are_held_off_and_let_through_again() {
        init();
        let mask = || hold_off(0);
        let (before, there) = (mask(), on_own(mask));
        assert_eq!((there & HELD_OFF) | (1 << 8) | (1 << 18), HELD_OFF | (1 << 8) | (1 << 18));
        assert_eq!(mask(), before);
    }
}
