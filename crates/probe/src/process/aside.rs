//! A place for what takes descriptors: a table that is not the program's.
//!
//! socket(2) and its like give the lowest number that is free. In the program's table that is a number which the program
//! would have got, and may have been promised (open(2)); its limit may leave no other. So the probe makes a thread that
//! has a table of its own (clone(2) without `CLONE_FILES`, by close_range(2) with `CLOSE_RANGE_UNSHARE`), has it do what there is
//! to do, and goes on when the thread is gone. What the thread maps is the program's memory, and stays.
//!
//! A thread and not a process: nobody hears of its end by SIGCHLD or wait(2), and it lives in the program's pid
//! namespace. Signals are held off meanwhile, in both.

use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use rustix::mm::{MprotectFlags, mprotect};
use rustix::process::{Resource, Rlimit, prlimit};
use rustix::thread::futex;
use rustix::time::{ClockId, Timespec};

use super::clock::monotonic_ns;
use crate::arch::call::clone;
use crate::process;
use crate::sys::confined::is_confined;
use crate::sys::params::{self, Complaint};
use crate::sys::{self, hold_off_signals, set_signal_mask};

/// Bytes of the stack, the lowest of which may not be touched.
const STACK_LEN: usize = 40 << 10;
/// Bytes at its lower end that end the program, should they ever be touched, instead of somebody else's data.
const GUARD_LEN: usize = 4096;
/// How long a thread waits for its turn, in nanoseconds: what is done aside takes some 100 microseconds, unless a debugger
/// holds who does it.
const MAX_TURN_NS: u64 = 100_000_000;
/// How often a thread that has all but ended is looked for by way of sched_yield(2), before time is given to it.
const MAX_YIELDS: u32 = 100;
/// The time then given, in nanoseconds, and how often: it may have to wait for a processor like any other.
const PAUSE_NS: i64 = 100_000;
const MAX_PAUSES: u32 = 1000;

const CLONE_VM: usize = 0x100;
const CLONE_FS: usize = 0x200;
const CLONE_FILES: usize = 0x400;
const CLONE_SIGHAND: usize = 0x800;
const CLONE_VFORK: usize = 0x4000;
const CLONE_THREAD: usize = 0x1_0000;
const CLONE_SYSVSEM: usize = 0x4_0000;
const CLONE_PARENT_SETTID: usize = 0x10_0000;
const CLONE_CHILD_CLEARTID: usize = 0x20_0000;

static STACK: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
/// Id of the thread that runs; 0: it has ended.
static TID: AtomicU32 = AtomicU32::new(0);
/// Whose turn it is: one at a time.
static TURN: AtomicU32 = AtomicU32::new(FREE);

const FREE: u32 = 0;
const HELD: u32 = 1;

pub(crate) fn init() -> Result<(), Complaint> {
    if STACK.load(Ordering::Acquire).is_null() {
        let stack = params::map(STACK_LEN)?;
        // SAFETY: its own first page, which nothing refers to. It only guards.
        let _ = unsafe { mprotect(stack.cast(), GUARD_LEN, MprotectFlags::empty()) };
        STACK.store(stack, Ordering::Release);
    }
    Ok(())
}

/// Whoever had the turn at the time of the fork is not in the child.
pub(crate) fn after_fork() {
    TURN.store(FREE, Ordering::Relaxed);
}

/// The turn, with signals held off; both end when it is dropped.
struct Turn {
    signals: sys::SignalSet,
}

impl Turn {
    fn take() -> Option<Self> {
        if STACK.load(Ordering::Acquire).is_null() || is_confined() {
            return None;
        }
        let signals = hold_off_signals();
        let started_ns = monotonic_ns();
        let timeout = futex::Timespec { tv_sec: 0, tv_nsec: MAX_TURN_NS as _ };
        while TURN.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_err() {
            if monotonic_ns() - started_ns > MAX_TURN_NS {
                set_signal_mask(signals);
                return None;
            }
            let _ = futex::wait(&TURN, futex::Flags::PRIVATE, HELD, Some(&timeout));
        }
        Some(Self { signals })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TURN.store(FREE, Ordering::Release);
        let _ = futex::wake(&TURN, futex::Flags::PRIVATE, 1);
        set_signal_mask(self.signals);
    }
}

/// A task, and what it gives.
struct Work<F, R> {
    task: UnsafeCell<Option<F>>,
    result: UnsafeCell<Option<R>>,
    /// Whether it is to be done with a table of its own.
    has_own_table: bool,
}

unsafe extern "C" fn run<R, F: FnOnce() -> R>(work: *mut c_void) {
    // SAFETY: what `perform` gave, whose thread waits.
    let work = unsafe { &*work.cast::<Work<F, R>>() };
    if work.has_own_table && !sys::take_empty_table() {
        return;
    }
    // SAFETY: as above.
    unsafe {
        if let Some(task) = (*work.task.get()).take() {
            *work.result.get() = Some(task());
        }
    }
}

fn perform<R, F: FnOnce() -> R>(task: F, flags: usize, has_own_table: bool) -> Option<(u32, Option<R>)> {
    let work = Work { task: UnsafeCell::new(Some(task)), result: UnsafeCell::new(None), has_own_table };
    let stack_end = STACK.load(Ordering::Acquire).wrapping_add(STACK_LEN);
    // SAFETY: whoever has the turn has the stack, `run` keeps to the work, and this thread waits for it.
    let id = unsafe { clone(flags, stack_end, &TID, run::<R, F>, (&raw const work).cast_mut().cast()) };
    let id = sys::result_of(id).ok()? as u32;
    if flags & CLONE_VFORK == 0 {
        loop {
            let tid = TID.load(Ordering::Acquire);
            if tid == 0 {
                break;
            }
            // The kernel wakes it as one that processes share.
            let _ = futex::wait(&TID, futex::Flags::empty(), tid, None);
        }
    }
    Some((id, work.result.into_inner()))
}

/// Does something in a thread that has a table of descriptors of its own; `None` if there can be none.
///
/// What it opens is closed when it ends. It runs on a small stack, and with the program's memory, and must not need a thread-local
/// variable of a libc.
pub(crate) fn aside<R>(task: impl FnOnce() -> R) -> Option<R> {
    let flags = CLONE_VM
        | CLONE_FS
        | CLONE_FILES
        | CLONE_SIGHAND
        | CLONE_THREAD
        | CLONE_SYSVSEM
        | CLONE_PARENT_SETTID
        | CLONE_CHILD_CLEARTID;
    let _turn = Turn::take()?;
    let (tid, result) = perform(task, flags, true)?;
    wait_until_gone(tid);
    result
}

/// Waits until a thread that does nothing more is none of the process's either: for unshare(2) and the like, a program is
/// to be one that has one thread.
fn wait_until_gone(tid: u32) {
    let mut looks = 0;
    while sys::is_thread(tid) && looks < MAX_YIELDS + MAX_PAUSES {
        if looks < MAX_YIELDS {
            rustix::thread::sched_yield();
        } else {
            let pause = Timespec { tv_sec: 0, tv_nsec: PAUSE_NS };
            let _ = rustix::thread::clock_nanosleep_relative(ClockId::Monotonic, &pause);
        }
        looks += 1;
    }
}

/// Does something to the program's own table with a limit of descriptors that is not the program's: in a process that
/// shares memory and table with it, and has limits of its own (getrlimit(2)). `None` if there can be none, or its limit
/// cannot be raised to this.
///
/// A process, so only where nobody could be disturbed by one: it is not made if it would be the first of a new pid
/// namespace, which ends with its first process.
pub(crate) fn with_limit<R>(limit: u64, task: impl FnOnce() -> R) -> Option<R> {
    // It knows no such process. And a guest has a table of its own, which is not the one that this is about.
    if sys::is_under_valgrind() || process::who().is_guest {
        return None;
    }
    // A thread cannot be made while a new namespace waits for its first process (unshare(2)).
    aside(|| ())?;
    let _turn = Turn::take()?;
    let in_limit = || {
        let maximum =
            prlimit(None, Resource::Nofile, Rlimit { current: Some(limit), maximum: Some(limit) }).or_else(|_| {
                let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
                prlimit(None, Resource::Nofile, Rlimit { current: Some(limit), maximum })
            });
        maximum.is_ok().then(task)
    };
    let flags = CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_FS;
    let (pid, result) = perform(in_limit, flags, false)?;
    sys::wait_for_child(pid);
    result.flatten()
}

/// Whether the process has one thread, as far as /proc tells: what it does to its table for a moment then, nobody sees.
pub(crate) fn is_alone() -> bool {
    /// Links of an empty directory: its own, and its parent's.
    const NO_THREAD: u64 = 2;
    rustix::fs::stat(c"/proc/self/task").is_ok_and(|stat| stat.st_nlink == NO_THREAD + 1)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    fn prepare() {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            process::init().unwrap();
            init().unwrap();
        });
    }

    fn aside<R>(task: impl Fn() -> R) -> R {
        // Others who test at the same time may have the turn for long.
        loop {
            if let Some(result) = super::aside(&task) {
                return result;
            }
        }
    }

    #[test]
    fn what_is_opened_aside_is_in_another_table() {
        prepare();
        let open = || rustix::fs::open("/dev/null", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
        let ours = rustix::fs::fcntl_getfl(std::io::stdin()).unwrap();
        // The table is empty, so that the first number is 0, and closing that closes nothing of ours.
        assert_eq!(aside(|| open().as_raw_fd()), 0);
        assert_eq!(rustix::fs::fcntl_getfl(std::io::stdin()).unwrap(), ours);
    }

    #[test]
    fn limits_stay_as_they_are() {
        prepare();
        let before = rustix::process::getrlimit(Resource::Nofile);
        let raised = before.current.unwrap_or(u64::MAX - 1);
        let inside = loop {
            if let Some(inside) = with_limit(raised, || rustix::process::getrlimit(Resource::Nofile).current) {
                break inside;
            }
        };
        assert_eq!(inside, Some(raised));
        assert_eq!(rustix::process::getrlimit(Resource::Nofile), before);
    }

    #[test]
    fn many_threads_do_their_work_in_turn() {
        prepare();
        let done = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..50).for_each(|_| {
                        aside(|| done.fetch_add(1, Ordering::Relaxed));
                    })
                });
            }
        });
        assert_eq!(done.into_inner(), 200);
    }
}
