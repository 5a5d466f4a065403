//! What was not recorded and not told yet.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Why something was not recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Cause {
    /// Nobody listens at the server's path.
    Absent = 0,
    /// The server is there and does not read.
    Stalled = 1,
    /// The descriptor leads to another socket by now.
    Unattributed = 2,
    /// There is no room in the ring.
    Full = 3,
    /// The call that wrote it was left.
    Left = 4,
    /// The program unmapped the bytes before they were copied.
    Unmapped = 5,
    /// Another user listens at the server's path.
    Stranger = 6,
}

impl Cause {
    fn text(number: u32) -> &'static [u8] {
        match number {
            0 => b"the server was not there",
            1 => b"the server did not read",
            3 => b"the ring was full",
            4 => b"a signal handler jumped out of a call while the event was written",
            5 => b"the program unmapped the bytes when the call had just returned",
            6 => b"another user, who is not root, listens at the server's path, and is told nothing",
            _ => b"the descriptor was closed and reused during the call",
        }
    }
}

/// Losses of a process that are not reported yet. All zeroes: there are none.
#[derive(Default)]
pub(crate) struct Lost {
    events: AtomicU64,
    bytes: AtomicU64,
    /// When the first happened, nanoseconds since the Unix epoch; 0: none has.
    since_ns: AtomicU64,
    until_ns: AtomicU64,
    /// What the last was due to: the number of a [`Cause`].
    cause: AtomicU32,
    /// The number that the report will have, drawn when it was first tried; 0: not yet.
    report_seq: AtomicU64,
    /// And its time.
    report_ns: AtomicU64,
    /// The thread that reports, one at a time; 0: none.
    reporting: AtomicU32,
}

/// Losses, to be reported.
pub(crate) struct Losses {
    pub(crate) events: u64,
    pub(crate) bytes: u64,
    /// When the first happened and the last, nanoseconds since the Unix epoch.
    pub(crate) since_ns: u64,
    pub(crate) until_ns: u64,
    /// What the last was due to.
    pub(crate) cause: &'static [u8],
}

impl Lost {
    #[inline]
    pub(crate) fn is_any(&self) -> bool {
        self.events.load(Ordering::Relaxed) != 0
    }

    /// Counts one event, and the payload bytes that it would have had.
    pub(crate) fn count(&self, bytes: u64, ts_ns: u64, cause: Cause) {
        self.until_ns.store(ts_ns, Ordering::Relaxed);
        self.cause.store(cause as u32, Ordering::Relaxed);
        self.add(1, bytes, ts_ns);
    }

    fn add(&self, events: u64, bytes: u64, since_ns: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let _ = self.since_ns.compare_exchange(0, since_ns, Ordering::Relaxed, Ordering::Relaxed);
        self.events.fetch_add(events, Ordering::Release);
    }

    /// How many events there are, their bytes, and when the first happened.
    pub(crate) fn now(&self) -> (u64, u64, u64) {
        let [events, bytes, since_ns] =
            [&self.events, &self.bytes, &self.since_ns].map(|word| word.load(Ordering::Relaxed));
        (events, bytes, since_ns)
    }

    /// Makes it this thread's to report them: whether it is. Another that is at it may be overtaken by this one's event.
    pub(crate) fn claim_report(&self, tid: u32) -> bool {
        // Never 0. One's own: a signal handler jumped out of the report, or this is one in the middle of it.
        let own = tid.max(1);
        let claimed = self.reporting.compare_exchange(0, own, Ordering::Acquire, Ordering::Relaxed);
        claimed.is_ok() || claimed == Err(own)
    }

    pub(crate) fn give_up_report(&self) {
        self.reporting.store(0, Ordering::Release);
    }

    /// Takes them, if there are any.
    pub(crate) fn take(&self) -> Option<Losses> {
        let (events, bytes) = (self.events.swap(0, Ordering::Acquire), self.bytes.swap(0, Ordering::Relaxed));
        (events != 0).then(|| Losses {
            events,
            bytes,
            since_ns: self.since_ns.swap(0, Ordering::Relaxed),
            until_ns: self.until_ns.load(Ordering::Relaxed),
            cause: Cause::text(self.cause.load(Ordering::Relaxed)),
        })
    }

    /// They could not be told.
    pub(crate) fn put_back(&self, events: u64, bytes: u64, since_ns: u64) {
        self.add(events, bytes, since_ns);
        self.since_ns.fetch_min(since_ns, Ordering::Relaxed);
    }

    /// The number and time of a report that could not be told.
    pub(crate) fn drawn_number(&self) -> Option<(u64, u64)> {
        let seq = self.report_seq.load(Ordering::Relaxed);
        (seq != 0).then(|| (seq, self.report_ns.load(Ordering::Relaxed)))
    }

    pub(crate) fn keep_number(&self, number: Option<(u64, u64)>) {
        let (seq, ts_ns) = number.unwrap_or((0, 0));
        self.report_ns.store(ts_ns, Ordering::Relaxed);
        self.report_seq.store(seq, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_told_is_told_with_what_comes_later() {
        let lost = Lost::default();
        assert!(!lost.is_any() && lost.take().is_none());
        lost.count(10, 500, Cause::Full);
        lost.count(20, 600, Cause::Absent);
        let first = lost.take().unwrap();
        assert_eq!((first.events, first.bytes, first.since_ns, first.until_ns), (2, 30, 500, 600));
        assert_eq!(first.cause, b"the server was not there");
        assert!(!lost.is_any());
        // One more meanwhile.
        lost.count(1, 700, Cause::Stalled);
        lost.put_back(first.events, first.bytes, first.since_ns);
        let all = lost.take().unwrap();
        assert_eq!((all.events, all.bytes, all.since_ns, all.until_ns), (3, 31, 500, 700));
    }

    #[test]
    fn one_thread_reports_and_may_come_back_to_it() {
        let lost = Lost::default();
        assert!(lost.claim_report(7) && lost.claim_report(7) && !lost.claim_report(8));
        lost.give_up_report();
        assert!(lost.claim_report(8));
        lost.keep_number(Some((3, 4)));
        assert_eq!(lost.drawn_number(), Some((3, 4)));
        lost.keep_number(None);
        assert_eq!(lost.drawn_number(), None);
    }
}
