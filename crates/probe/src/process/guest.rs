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

/// The guests of a process.
struct Guests {
    places: [Guest; MAX_GUESTS],
    /// Of guests that run beside the thread that made them, all together: of two at one time, each begins anew.
    others: Numbering,
    /// How many places are in use.
    count: AtomicU32,
    /// Whether there are guests that this cannot tell: the kernel is asked each time.
    is_wary: AtomicBool,
}

static GUESTS: Guests = Guests::none();

impl Guests {
    const fn none() -> Self {
        Self {
            places: [const { Guest::none() }; MAX_GUESTS],
            others: Numbering::none(),
            count: AtomicU32::new(0),
            is_wary: AtomicBool::new(false),
        }
    }

    /// Whether a call may be a guest's.
    #[inline]
    fn are_any(&self) -> bool {
        self.count.load(Ordering::Relaxed) != 0 || self.is_wary.load(Ordering::Relaxed)
    }

    fn of(&self, thread: usize) -> Option<&Guest> {
        self.places.iter().find(|guest| guest.thread.load(Ordering::Relaxed) == thread)
    }

    /// The process id of the guest that makes a call as this thread, where it is known or `ask` gives it.
    fn pid(&self, thread: usize, ask: impl FnOnce() -> u32) -> Option<u32> {
        match self.of(thread).map(|guest| guest.pid.load(Ordering::Relaxed)) {
            Some(pid @ 1..) => Some(pid),
            // Perhaps the process itself, whose pid is then what this gives.
            Some(0) => Some(ask()),
            None => self.is_wary.load(Ordering::Relaxed).then(ask),
        }
    }

    fn number(&self, thread: usize, pid: u32, ts_ns: u64) -> (u64, u64) {
        self.of(thread).map_or(&self.others, |guest| &guest.numbering).next(pid, ts_ns)
    }

    fn begin(&self, thread: usize, pid: u32) {
        let take =
            |guest: &&Guest| guest.thread.compare_exchange(0, thread, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        // A guest's guest has the place already.
        let own = self.of(thread);
        let Some(guest) = own.or_else(|| self.places.iter().find(take)) else {
            return self.is_wary.store(true, Ordering::Relaxed);
        };
        guest.announcement.store(0, Ordering::Relaxed);
        guest.pid.store(pid, Ordering::Relaxed);
        if own.is_none() {
            self.count.fetch_add(1, Ordering::Release);
        }
    }

    fn end(&self, thread: usize, own: u32, ask: impl FnOnce() -> u32) {
        let Some(guest) = self.of(thread) else { return };
        let pid = ask();
        if pid != own {
            return guest.pid.store(pid, Ordering::Relaxed);
        }
        guest.pid.store(0, Ordering::Relaxed);
        guest.thread.store(0, Ordering::Release);
        self.count.fetch_sub(1, Ordering::Release);
    }

    fn forget(&self) {
        self.places.iter().for_each(|guest| guest.thread.store(0, Ordering::Relaxed));
        self.count.store(0, Ordering::Relaxed);
    }
}

/// The process id of the guest that makes this call; `None`: the process itself does.
#[inline]
pub(crate) fn pid() -> Option<u32> {
    if GUESTS.are_any() { find() } else { None }
}

#[cold]
fn find() -> Option<u32> {
    if is_strict() { None } else { GUESTS.pid(thread_pointer(), raw_pid) }
}

/// The number of a guest's next event, and its time, which is `ts_ns` or later.
pub(crate) fn number(pid: u32, ts_ns: u64) -> (u64, u64) {
    GUESTS.number(thread_pointer(), pid, ts_ns)
}

/// The guest that makes this call has announced itself to the server, under this number.
#[cfg(feature = "standalone")]
pub(crate) fn has_announced(number: u64) {
    if let Some(guest) = GUESTS.of(thread_pointer()) {
        guest.announcement.store(number, Ordering::Relaxed);
    }
}

/// Under which number it has, if it has; asked once.
pub(crate) fn take_announcement() -> Option<u64> {
    let guest = GUESTS.of(thread_pointer())?;
    Some(guest.announcement.swap(0, Ordering::Relaxed)).filter(|&number| number != 0)
}

/// From here on, calls of this thread may be a guest's.
pub(crate) fn begin(pid: u32) {
    GUESTS.begin(thread_pointer(), pid);
}

/// The thread goes on, in the process `own` that the memory is of, or in a guest that had a guest.
pub(crate) fn end(own: u32) {
    GUESTS.end(thread_pointer(), own, raw_pid);
}

/// There may be guests that run beside the thread that made them.
pub(crate) fn be_wary() {
    GUESTS.is_wary.store(true, Ordering::Relaxed);
}

/// In a forked child: whatever guests there were are the parent's.
pub(crate) fn after_fork() {
    GUESTS.forget();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_known_by_its_thread_until_that_goes_on() {
        let guests = Guests::none();
        assert!(!guests.are_any());
        guests.begin(0x100, 7);
        let pid = |thread| guests.pid(thread, || unreachable!("it is known"));
        assert_eq!((guests.are_any(), pid(0x100), pid(0x200)), (true, Some(7), None));
        // It has a guest itself, and goes on after that.
        guests.begin(0x100, 8);
        assert_eq!(pid(0x100), Some(8));
        guests.end(0x100, 1, || 7);
        assert_eq!(pid(0x100), Some(7));
        guests.end(0x100, 1, || 1);
        assert_eq!((guests.are_any(), pid(0x100)), (false, None));
    }

    #[test]
    fn who_is_not_yet_known_and_who_has_no_place_is_asked_for() {
        let guests = Guests::none();
        guests.begin(0x100, 0);
        assert_eq!((guests.pid(0x100, || 9), guests.pid(0x200, || 9)), (Some(9), None));
        (1..=MAX_GUESTS).for_each(|thread| guests.begin(thread, 5));
        assert_eq!(guests.pid(0x200, || 9), Some(9));
        // A forked child has none of them.
        guests.forget();
        assert_eq!(guests.count.load(Ordering::Relaxed), 0);
        assert!(guests.of(1).is_none());
    }

    #[test]
    fn numbers_of_each_guest_begin_with_one_and_times_never_run_backwards() {
        let guests = Guests::none();
        guests.begin(0x100, 7);
        let next = |thread, pid, ts_ns| guests.number(thread, pid, ts_ns);
        assert_eq!([next(0x100, 7, 50), next(0x100, 7, 40), next(0x200, 8, 30)], [(1, 50), (2, 50), (1, 30)]);
        assert_eq!([next(0x100, 9, 20), next(0x200, 8, 60)], [(1, 20), (2, 60)]);
    }
}
