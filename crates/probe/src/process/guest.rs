//! Children that share our memory: made by vfork(2), by posix_spawn(3), or by clone(2) with CLONE_VM and without
//! CLONE_THREAD.
//!
//! Such a child runs as the thread that made it, by the same thread pointer, while that thread waits for it. So whether
//! a call is a guest's is known from the thread pointer, without asking the kernel for the process id.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::arch::register::thread_pointer;
use crate::sys::confined::is_strict;
use crate::sys::raw_pid;

/// Threads that may have a guest at one time.
const MAX_GUESTS: usize = 16;

struct Guest {
    /// The thread pointer; 0: free.
    thread: AtomicUsize,
    /// The guest's process id; 0: it is to be asked for, for this may be the thread itself.
    pid: AtomicU32,
    numbering: Numbering,
    /// Under which number it has announced itself to the server; 0: it has not.
    announcement: AtomicU64,
}

impl Guest {
    const fn none() -> Self {
        Self {
            thread: AtomicUsize::new(0),
            pid: AtomicU32::new(0),
            numbering: Numbering::none(),
            announcement: AtomicU64::new(0),
        }
    }
}

/// Number and time of the last event of a guest.
pub(crate) struct Numbering {
    /// Whose they are.
    pid: AtomicU32,
    seq: AtomicU32,
    ts_ns: AtomicU64,
}

impl Numbering {
    const fn none() -> Self {
        Self { pid: AtomicU32::new(0), seq: AtomicU32::new(0), ts_ns: AtomicU64::new(0) }
    }

    /// The next event's number, and its time: `ts_ns`, or that of the event before if that is later.
    fn next(&self, pid: u32, ts_ns: u64) -> (u64, u64) {
        if self.pid.swap(pid, Ordering::Relaxed) != pid {
            self.seq.store(0, Ordering::Relaxed);
            self.ts_ns.store(0, Ordering::Relaxed);
        }
        let seq = self.seq.fetch_add(1, Ordering::Relaxed) + 1;
        (seq.into(), ts_ns.max(self.ts_ns.fetch_max(ts_ns, Ordering::Relaxed)))
    }
}

static GUESTS: [Guest; MAX_GUESTS] = [const { Guest::none() }; MAX_GUESTS];
/// Of guests that run beside the thread that made them, all together: of two at one time, each begins anew.
static OTHERS: Numbering = Numbering::none();
/// How many of them are in use.
static COUNT: AtomicU32 = AtomicU32::new(0);
/// Whether there are guests that this cannot tell: the kernel is asked each time.
static WARY: AtomicBool = AtomicBool::new(false);

/// The process id of the guest that makes this call; `None`: the process itself does.
#[inline]
pub(crate) fn pid() -> Option<u32> {
    if COUNT.load(Ordering::Relaxed) == 0 && !WARY.load(Ordering::Relaxed) { None } else { find() }
}

#[cold]
fn find() -> Option<u32> {
    if is_strict() {
        return None;
    }
    match of_this_thread().map(|guest| guest.pid.load(Ordering::Relaxed)) {
        Some(pid @ 1..) => Some(pid),
        // Perhaps the process itself, whose pid is then what this gives.
        Some(0) => Some(raw_pid()),
        None => WARY.load(Ordering::Relaxed).then(raw_pid),
    }
}

fn of_this_thread() -> Option<&'static Guest> {
    let thread = thread_pointer();
    GUESTS.iter().find(|guest| guest.thread.load(Ordering::Relaxed) == thread)
}

/// The number of a guest's next event, and its time, which is `ts_ns` or later.
pub(crate) fn number(pid: u32, ts_ns: u64) -> (u64, u64) {
    of_this_thread().map_or(&OTHERS, |guest| &guest.numbering).next(pid, ts_ns)
}

/// The guest that makes this call has announced itself to the server, under this number.
#[cfg(feature = "standalone")]
pub(crate) fn has_announced(number: u64) {
    if let Some(guest) = of_this_thread() {
        guest.announcement.store(number, Ordering::Relaxed);
    }
}

/// Under which number it has, if it has; asked once.
pub(crate) fn take_announcement() -> Option<u64> {
    of_this_thread().map(|guest| guest.announcement.swap(0, Ordering::Relaxed)).filter(|&number| number != 0)
}

/// From here on, calls of this thread may be a guest's.
pub(crate) fn begin(pid: u32) {
    if let Some(guest) = of_this_thread() {
        // A guest's guest.
        guest.announcement.store(0, Ordering::Relaxed);
        return guest.pid.store(pid, Ordering::Relaxed);
    }
    let take = |guest: &&Guest| {
        guest.thread.compare_exchange(0, thread_pointer(), Ordering::AcqRel, Ordering::Relaxed).is_ok()
    };
    match GUESTS.iter().find(take) {
        Some(guest) => {
            guest.announcement.store(0, Ordering::Relaxed);
            guest.pid.store(pid, Ordering::Relaxed);
            COUNT.fetch_add(1, Ordering::Release);
        }
        None => be_wary(),
    }
}

/// The thread goes on, in the process `own` that the memory is of, or in a guest that had a guest.
pub(crate) fn end(own: u32) {
    let Some(guest) = of_this_thread() else { return };
    let pid = raw_pid();
    if pid != own {
        return guest.pid.store(pid, Ordering::Relaxed);
    }
    guest.pid.store(0, Ordering::Relaxed);
    guest.thread.store(0, Ordering::Release);
    COUNT.fetch_sub(1, Ordering::Release);
}

/// There may be guests that run beside the thread that made them.
pub(crate) fn be_wary() {
    WARY.store(true, Ordering::Relaxed);
}

/// In a forked child: whatever guests there were are the parent's.
pub(crate) fn after_fork() {
    GUESTS.iter().for_each(|guest| guest.thread.store(0, Ordering::Relaxed));
    COUNT.store(0, Ordering::Relaxed);
}
