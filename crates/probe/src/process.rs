//! Which process this is: pid, sequence numbers, and what fork and vfork do to them.
//!
//! A forked child has a copy of everything here and is another process; a vforked child, or one of posix_spawn(3),
//! has the very same memory and is another process too. The kernel tells them apart for us: one page is wiped in
//! forked children (MADV_WIPEONFORK, madvise(2)) and shared with vforked ones.

pub(crate) mod aside;
pub(crate) mod clock;
pub(crate) mod guest;
pub(crate) mod stack;

use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use rustix::mm::{Advice, madvise};
use rustix::process::{Resource, getppid, getrlimit};
use rustix::thread::gettid;

use core::cell::UnsafeCell;

use crate::sys::params::{self, Complaint};
use crate::sys::{in_thread, raw_pid};
use crate::table::descriptors;

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

/// The last event's number and time, which change together: in the order of the numbers, times never run backwards.
#[repr(C, align(16))]
struct Numbering {
    /// The number in the low half.
    both: UnsafeCell<u128>,
}

impl Numbering {
    /// The next event's number, and its time: `ts_ns`, or that of the event numbered before it if that is later.
    fn next(&self, ts_ns: u64) -> (u64, u64) {
        let words = self.both.get().cast::<u64>();
        // SAFETY: both halves are aligned; should they change in between, the exchange fails.
        let read = |at| unsafe { AtomicU64::from_ptr(words.add(at)) }.load(Ordering::Relaxed);
        let mut old = u128::from(read(0)) | u128::from(read(1)) << 64;
        loop {
            let (seq, ts_ns) = (old as u64 + 1, ts_ns.max((old >> 64) as u64));
            let new = u128::from(seq) | u128::from(ts_ns) << 64;
            // SAFETY: aligned, and read and written in no other way; every x86-64 processor that Linux 5 runs on has it.
            let found = unsafe { exchange(self.both.get(), old, new) };
            if found == old {
                return (seq, ts_ns);
            }
            old = found;
        }
    }
}

/// `lock cmpxchg16b`: writes `new` if `old` is there; what was there. core's needs a library for it where it is not inlined.
#[inline]
unsafe fn exchange(at: *mut u128, old: u128, new: u128) -> u128 {
    let (mut low, mut high) = (old as u64, (old >> 64) as u64);
    // SAFETY: the caller's promise: 16 bytes, aligned. The compiler keeps rbx for itself, so it is put back.
    unsafe {
        core::arch::asm!(
            "xchg rsi, rbx",
            "lock cmpxchg16b xmmword ptr [rdi]",
            "mov rbx, rsi",
            in("rdi") at,
            inout("rsi") new as u64 => _,
            in("rcx") (new >> 64) as u64,
            inout("rax") low,
            inout("rdx") high,
            options(nostack),
        );
    }
    u128::from(low) | u128::from(high) << 64
}

/// Losses not yet reported.
pub(crate) struct Lost {
    pub(crate) events: AtomicU64,
    pub(crate) bytes: AtomicU64,
    /// When the first happened, nanoseconds since the Unix epoch; 0: none has.
    pub(crate) since_ns: AtomicU64,
    pub(crate) until_ns: AtomicU64,
    /// What the last was due to: a number of `emit::Cause`.
    pub(crate) cause: AtomicU32,
    /// The number that the report will have, drawn when it was first tried; 0: not yet.
    pub(crate) report_seq: AtomicU64,
    /// And its time.
    pub(crate) report_ns: AtomicU64,
    /// The thread that reports, one at a time; 0: none.
    pub(crate) reporting: AtomicU32,
}

static OWN: AtomicPtr<Own> = AtomicPtr::new(core::ptr::null_mut());
/// Whether the program has put itself under a seccomp filter (seccomp(2)) since the probe was loaded. One that it was
/// under before is another matter: what the probe does on a traced call it has done while it was loaded, and lived.
static CONFINED: AtomicBool = AtomicBool::new(false);

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
    let page = params::map(PAGE_LEN)?;
    // SAFETY: a page of our own, freshly mapped.
    unsafe { madvise(page.cast(), PAGE_LEN, Advice::LinuxWipeOnFork) }
        .map_err(|_| "this kernel lacks MADV_WIPEONFORK: Linux 4.14 or later is needed")?;
    let own = page.cast::<Own>();
    // SAFETY: zeroed memory, large and aligned enough, is an `Own` of all zeroes.
    unsafe { &*own }.pid.store(raw_pid(), Ordering::Relaxed);
    OWN.store(own, Ordering::Release);
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

/// Where a libc keeps a thread's id, as an offset from the thread pointer: musl and glibc, on x86-64, in every version.
const TID_OFFSETS: [usize; 2] = [0x30, 0x2d0];
/// The one that is right here; 0: none is.
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

#[cold]
fn after_fork(pid: u32) {
    // Of several threads that a child may already have, one announces it.
    if own().pid.compare_exchange(0, pid, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
        stack::after_fork();
        guest::after_fork();
        crate::life::exec::after_fork();
        stack::on_own(|| {
            let announcement = crate::transport::after_fork();
            APART.store(crate::transport::number_apart(), Ordering::Relaxed);
            if descriptors::is_tracing() {
                crate::start::control::announce(gttr::FrameType::Fork, announcement);
            }
        });
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

/// Whether the table of descriptors is this process's. A vforked child closes descriptors of its own, while the table
/// in the shared memory is its parent's.
pub(crate) fn owns_descriptors() -> bool {
    // Hooks of a preloaded probe run before it is started, or although it could not be.
    descriptors::is_tracing() && !who().is_guest
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

/// Whether system calls that the program does not make itself are to be avoided.
pub(crate) fn is_confined() -> bool {
    CONFINED.load(Ordering::Relaxed)
}

/// Whether the program has limits of its memory (RLIMIT_AS, RLIMIT_DATA, getrlimit(2)).
pub(crate) fn is_memory_limited() -> bool {
    [Resource::As, Resource::Data].into_iter().any(|resource| getrlimit(resource).current.is_some())
}

pub(crate) fn set_confined() {
    CONFINED.store(true, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_no_gap_and_times_never_run_backwards() {
        struct Shared(Numbering);
        // SAFETY: it is what Numbering is for.
        unsafe impl Sync for Shared {}
        let numbering = Shared(Numbering { both: UnsafeCell::new(0) });
        let shared = &numbering;
        let mut drawn: Vec<(u64, u64)> = std::thread::scope(|scope| {
            let draw = |thread: u64| move || (0..10_000).map(|at| shared.0.next(at ^ thread)).collect::<Vec<_>>();
            let threads: Vec<_> = (0..4).map(|thread| scope.spawn(draw(thread * 37))).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        drawn.sort_unstable();
        assert!(drawn.iter().map(|(seq, _)| *seq).eq(1..=40_000));
        assert!(drawn.is_sorted_by_key(|(_, ts_ns)| *ts_ns));
    }
}
