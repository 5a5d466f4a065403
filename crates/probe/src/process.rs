//! Which process this is: pid, sequence numbers, and what fork and vfork do to them.
//!
//! A forked child has a copy of everything here and is another process; a vforked child, or one of posix_spawn(3),
//! has the very same memory and is another process too. The kernel tells them apart for us: one page is wiped in
//! forked children (MADV_WIPEONFORK, madvise(2)) and shared with vforked ones.

pub(crate) mod aside;
pub(crate) mod clock;
pub(crate) mod guest;
pub(crate) mod losses;
pub(crate) mod stack;

use core::ffi::c_void;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use rustix::mm::{Advice, madvise};
use rustix::process::{Resource, getppid, getrlimit};
use rustix::thread::gettid;
use socktrace_ring::Pair;

use crate::arch::register::{TID_OFFSETS, in_thread};
use crate::sys::confined::is_confined;
use crate::sys::params::{self, Complaint};
use crate::sys::raw_pid;
use losses::Lost;

const PAGE_LEN: usize = 4096;

/// What belongs to one process and must not be inherited.
pub(crate) struct Own {
    /// 0 in a forked child until it has been noticed.
    pid: AtomicU32,
    numbering: Numbering,
    /// Connections named so far.
    pub(crate) connections: AtomicU32,
    /// UNIX sockets made so far.
    pub(crate) sockets: AtomicU32,
    /// Whether it has said that it ends.
    pub(crate) has_left: AtomicBool,
    /// Losses not yet reported.
    pub(crate) lost: Lost,
}

impl Own {
    /// A page of this process's, which stays.
    fn map() -> Result<&'static Self, Complaint> {
        const { assert!(size_of::<Own>() <= PAGE_LEN) };
        let page = params::map(PAGE_LEN)?;
        // SAFETY: a page of our own, freshly mapped.
        unsafe { madvise(page.cast(), PAGE_LEN, Advice::LinuxWipeOnFork) }
            .map_err(|_| "this kernel lacks MADV_WIPEONFORK: Linux 4.14 or later is needed")?;
        // SAFETY: zeroed memory, large and aligned enough, is an `Own` of all zeroes.
        let own = unsafe { &*page.cast::<Self>() };
        own.notice(raw_pid());
        Ok(own)
    }

    /// Notes whose it is, unless that is known; whether it was not. Of several threads that a forked child may already have,
    /// one hears that.
    fn notice(&self, pid: u32) -> bool {
        self.pid.compare_exchange(0, pid, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// The last event's number and time, which change together: in the order of the numbers, times never run backwards.
struct Numbering(Pair);

impl Numbering {
    /// The next event's number, and its time: `ts_ns`, or that of the event numbered before it if that is later.
    fn next(&self, ts_ns: u64) -> (u64, u64) {
        let mut old = self.0.read();
        loop {
            let new = [old[0] + 1, ts_ns.max(old[1])];
            match self.0.exchange(old, new) {
                Ok(()) => return (new[0], new[1]),
                Err(found) => old = found,
            }
        }
    }
}

static OWN: AtomicPtr<Own> = AtomicPtr::new(core::ptr::null_mut());

/// Which process and thread an event is of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who {
    pub(crate) pid: u32,
    /// 0: not known, because a filter might forbid the question.
    pub(crate) tid: u32,
    /// The process shares its memory, but not its descriptors, with the one the probe was loaded into.
    pub(crate) is_guest: bool,
}

/// Sets up the page that forked children do not inherit.
pub(crate) fn init() -> Result<(), Complaint> {
    if !OWN.load(Ordering::Acquire).is_null() {
        // Started before: the process and its numbering go on.
        notice_fork();
        return Ok(());
    }
    OWN.store(core::ptr::from_ref(Own::map()?).cast_mut(), Ordering::Release);
    find_tid();
    Ok(())
}

/// The process id of the process that this memory is of.
pub(crate) fn own_pid() -> u32 {
    own().pid.load(Ordering::Relaxed)
}

/// The page. Only valid once `init` has succeeded, which every caller knows from there being descriptors to trace.
pub(crate) fn own() -> &'static Own {
    // SAFETY: set by `init` before anything is traced, and never unmapped.
    unsafe { &*OWN.load(Ordering::Acquire) }
}

/// Which of [`TID_OFFSETS`] is right here; 0: none is.
static TID_OFFSET: AtomicUsize = AtomicUsize::new(0);

fn find_tid() {
    let tid = raw_tid();
    // SAFETY: both are within what glibc has for a thread; the second is looked at only where the first is not right.
    let offset = TID_OFFSETS.into_iter().find(|&offset| unsafe { in_thread(offset) } == tid);
    TID_OFFSET.store(offset.unwrap_or(0), Ordering::Relaxed);
}

fn raw_tid() -> u32 {
    gettid().as_raw_nonzero().get().cast_unsigned()
}

/// The thread's id, from where libc keeps it; a guest's is not there.
#[inline]
fn tid() -> u32 {
    match TID_OFFSET.load(Ordering::Relaxed) {
        0 => raw_tid(),
        // SAFETY: found to be right by `find_tid`.
        offset => unsafe { in_thread(offset) },
    }
}

/// The number that tells this process's frames from another's that has the same process id in the same ring; 0: there is none.
static APART: AtomicU64 = AtomicU64::new(0);

pub(crate) fn set_apart(number: u64) {
    APART.store(number, Ordering::Relaxed);
}

#[inline]
pub(crate) fn apart() -> u64 {
    APART.load(Ordering::Relaxed)
}

/// Who is running. In a forked child's first call this is where the child is noticed.
#[inline]
pub(crate) fn who() -> Who {
    let known = own().pid.load(Ordering::Relaxed);
    if known != 0 && is_confined() && TID_OFFSET.load(Ordering::Relaxed) == 0 {
        return Who { pid: known, tid: 0, is_guest: false };
    }
    if known == 0 {
        after_fork(raw_pid());
        return Who { pid: raw_pid(), tid: raw_tid(), is_guest: false };
    }
    match guest::pid() {
        Some(pid) if pid != known => Who { pid, tid: raw_tid(), is_guest: true },
        _ => Who { pid: known, tid: tid(), is_guest: false },
    }
}

/// Whether this process is a forked child that has not been noticed yet, and notices it.
pub(crate) fn notice_fork() {
    if is_started() && own().pid.load(Ordering::Relaxed) == 0 {
        after_fork(raw_pid());
    }
}

/// What the layers above do in a forked child, as a function; null: nothing.
static ON_FORK: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());

/// Has a function called in every forked child, on a stack of our own, when it is noticed.
pub(crate) fn on_fork(call: fn()) {
    ON_FORK.store(call as *mut c_void, Ordering::Release);
}

#[cold]
fn after_fork(pid: u32) {
    if own().notice(pid) {
        stack::after_fork();
        guest::after_fork();
        let call = ON_FORK.load(Ordering::Acquire);
        if !call.is_null() {
            // SAFETY: what `on_fork` was given.
            stack::on_own(unsafe { core::mem::transmute::<*mut c_void, fn()>(call) });
        }
    }
}

/// UNIX sockets that the process has made.
pub(crate) fn sockets_made() -> u32 {
    own().sockets.load(Ordering::Relaxed)
}

/// Whether there is a page to speak of.
pub(crate) fn is_started() -> bool {
    !OWN.load(Ordering::Acquire).is_null()
}

/// The parent's process id; 0: the parent is in another pid namespace.
pub(crate) fn parent() -> u32 {
    getppid().map_or(0, |pid| pid.as_raw_nonzero().get().cast_unsigned())
}

/// The next event's number, and its time, which is `ts_ns` or later.
pub(crate) fn number(who: &Who, ts_ns: u64) -> (u64, u64) {
    if !who.is_guest {
        return own().numbering.next(ts_ns);
    }
    guest::number(who.pid, ts_ns)
}

/// Whether the program has limits of its memory (RLIMIT_AS, RLIMIT_DATA, getrlimit(2)).
pub(crate) fn is_memory_limited() -> bool {
    [Resource::As, Resource::Data].into_iter().any(|resource| getrlimit(resource).current.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" {
        fn fork() -> i32;
        fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
        fn _exit(status: i32) -> !;
    }

    #[test]
    fn a_forked_child_is_noticed_once_and_begins_anew() {
        let own = Own::map().unwrap();
        own.lost.count(1, 2, losses::Cause::Full);
        assert_eq!((own.notice(7), own.numbering.next(5)), (false, (1, 5)));
        // SAFETY: the child makes no call that is not allowed in a signal handler.
        let status = unsafe {
            let child = fork();
            if child == 0 {
                let is_new = own.notice(7) && !own.notice(8) && own.numbering.next(3) == (1, 3) && !own.lost.is_any();
                _exit(i32::from(!is_new));
            }
            let mut status = -1;
            assert_eq!(waitpid(child, &raw mut status, 0), child);
            status
        };
        assert_eq!(status, 0);
        assert_eq!((own.numbering.next(6), own.lost.is_any()), ((2, 6), true));
    }

    #[test]
    fn numbers_have_no_gap_and_times_never_run_backwards() {
        let numbering = &Numbering(Pair::default());
        let mut drawn: Vec<(u64, u64)> = std::thread::scope(|scope| {
            let draw = |thread: u64| move || (0..10_000).map(|at| numbering.next(at ^ thread)).collect::<Vec<_>>();
            let threads: Vec<_> = (0..4).map(|thread| scope.spawn(draw(thread * 37))).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        drawn.sort_unstable();
        assert!(drawn.iter().map(|(seq, _)| *seq).eq(1..=40_000));
        assert!(drawn.is_sorted_by_key(|(_, ts_ns)| *ts_ns));
    }
}
