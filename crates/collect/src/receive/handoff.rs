//! What has arrived, on its way from the thread that receives to the one that records.
//!
//! The kernel holds few datagrams for us (net.unix.max_dgram_qlen is 10 by default), so receiving must not wait for
//! a disk. Two buffers are enough: one fills while the other is worked off, then they change places.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::futex::{self, Wait, WaitFlags, WaitPtr, WaitvFlags};
use rustix::time::{ClockId, Timespec, clock_gettime};

use super::ancillary::Came;
use crate::sender::Sender;

/// When so many bytes wait, receiving waits, too, and agents find their sockets full. There are two buffers of it, and
/// this much is worked off in some 30 ms.
const MAX_WAITING: usize = 8 << 20;
/// How long the recorder lets things gather when it has just worked something off: a wake-up for every few datagrams
/// costs more than recording them, and takes the core from the receiver.
const NAP: Duration = Duration::from_micros(500);
/// With so many bytes waiting it does not nap.
const WAKE_LEN: usize = 256 << 10;
/// What a part costs beside its bytes, so that many empty ones are bounded, too.
const PART_COST: usize = size_of::<Part>();
/// What a descriptor that came with one costs: there are fewer of them than bytes of memory, and one agent could have
/// all of them waiting here.
const FD_COST: usize = 64 << 10;
/// How often rings are looked at where the kernel cannot wait for them.
const LOOK: Duration = Duration::from_millis(10);
const NANOS: i64 = 1_000_000_000;
/// Room that a buffer keeps, in bytes.
const KEPT_CAPACITY: usize = 2 << 20;

/// A datagram, or what one read from a stream gave.
pub(super) struct Part {
    /// Which agent; 0 for datagrams.
    pub(super) from: u64,
    /// Bytes received.
    len: usize,
    /// Length of the datagram as sent.
    pub(super) sent_len: usize,
    /// Nothing more comes from this agent.
    pub(super) end: bool,
    /// A descriptor that came with it.
    pub(super) fd: Option<OwnedFd>,
    /// The process that has sent it, as the kernel says.
    pub(super) sender: Option<Sender>,
}

/// Parts in the order they arrived.
#[derive(Default)]
pub(super) struct Arrived {
    bytes: Vec<u8>,
    parts: Vec<Part>,
    /// Descriptors among them.
    fds: usize,
}

impl Arrived {
    /// The parts with their bytes.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&mut Part, &[u8])> {
        let mut rest = &*self.bytes;
        self.parts.iter_mut().map(move |part| {
            let (bytes, behind) = rest.split_at(part.len);
            rest = behind;
            (part, bytes)
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_CAPACITY);
        self.parts.clear();
        self.parts.shrink_to(KEPT_CAPACITY / PART_COST);
        self.fds = 0;
    }

    fn cost(&self) -> usize {
        self.bytes.len() + self.parts.len() * PART_COST + self.fds * FD_COST
    }
}

#[derive(Default)]
struct State {
    arrived: Arrived,
    /// The recorder sleeps until so many bytes wait. Waking nobody would still be a system call.
    asleep_until: Option<usize>,
    /// Nothing more will arrive.
    closed: bool,
    /// Nobody will take anything any more.
    abandoned: bool,
}

/// Where the two threads meet.
#[derive(Default)]
pub(super) struct Handoff {
    state: Mutex<State>,
    changed: Condvar,
    /// Counts the times that the recorder was waked, for when it waits for more than this (futex(2)).
    bell: AtomicU32,
}

impl Handoff {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A thread that panicked left the state whole: each change is one step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds parts; waits first while too much is waiting.
    ///
    /// # Errors
    ///
    /// The recording thread is gone.
    pub(super) fn put<'a>(&self, parts: impl Iterator<Item = (Part, &'a [u8])>) -> io::Result<()> {
        let mut state = self.lock();
        while state.arrived.cost() >= MAX_WAITING && !state.abandoned {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.abandoned {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        for (part, bytes) in parts {
            state.arrived.bytes.extend_from_slice(bytes);
            state.arrived.fds += usize::from(part.fd.is_some());
            state.arrived.parts.push(part);
        }
        if state.asleep_until.is_some_and(|cost| state.arrived.cost() >= cost) {
            state.asleep_until = None;
            self.ring_bell();
        }
        Ok(())
    }

    /// Wakes the recorder, whichever way it sleeps.
    fn ring_bell(&self) {
        self.changed.notify_all();
        self.bell.fetch_add(1, Ordering::SeqCst);
        let _ = futex::wake(&self.bell, futex::Flags::PRIVATE, 1);
    }

    /// Waits until something arrives, nothing more will come, the time is over, or one of `words` is not 1 any more
    /// (futex_waitv(2)).
    fn sleep_beside<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        timeout: Option<Duration>,
        words: &[&AtomicU32],
    ) -> MutexGuard<'a, State> {
        if state.closed {
            return state;
        }
        state.asleep_until = Some(1);
        let seen = self.bell.load(Ordering::SeqCst);
        drop(state);
        let on = |word: &AtomicU32, value: u32, flags| {
            let mut wait = Wait::new();
            wait.val = value.into();
            wait.uaddr = WaitPtr::new(word.as_ptr().cast());
            wait.flags = flags;
            wait
        };
        let mut waits = vec![on(&self.bell, seen, WaitFlags::SIZE_U32 | WaitFlags::PRIVATE)];
        waits.extend(words.iter().map(|word| on(word, 1, WaitFlags::SIZE_U32)));
        // The kernel takes the time when it is to end.
        let end = timeout.map(|timeout| {
            let now = clock_gettime(ClockId::Monotonic);
            let (seconds, nanos) = (timeout.as_secs() as i64, i64::from(timeout.subsec_nanos()) + now.tv_nsec);
            Timespec { tv_sec: now.tv_sec + seconds + nanos / NANOS, tv_nsec: nanos % NANOS }
        });
        let waited = futex::waitv(&waits, WaitvFlags::empty(), end.as_ref(), ClockId::Monotonic);
        state = self.lock();
        if !matches!(waited, Ok(_) | Err(Errno::AGAIN | Errno::TIMEDOUT | Errno::INTR)) {
            // Not before Linux 5.16.
            let timeout = timeout.map_or(LOOK, |timeout| timeout.min(LOOK));
            return self.sleep(state, 1, Some(timeout));
        }
        state.asleep_until = None;
        state
    }

    /// Waits until so many bytes wait, nothing more will come, or the time is over.
    fn sleep<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        cost: usize,
        timeout: Option<Duration>,
    ) -> MutexGuard<'a, State> {
        state.asleep_until = Some(cost);
        let is_asleep = |state: &mut State| state.asleep_until.is_some() && !state.closed;
        state = match timeout {
            Some(timeout) => {
                let waited = self.changed.wait_timeout_while(state, timeout, is_asleep);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => self.changed.wait_while(state, is_asleep).unwrap_or_else(PoisonError::into_inner),
        };
        state.asleep_until = None;
        state
    }

    /// Waits until something has arrived or the time is over, and gives all that there is for an emptied `arrived`;
    /// returns false when that is nothing and nothing more will come. It does not wait on when one of `words`, which are
    /// somebody else's to write to, is not 1 any more.
    pub(super) fn take(&self, arrived: &mut Arrived, timeout: Option<Duration>, words: &[&AtomicU32]) -> bool {
        let is_busy = !arrived.is_empty();
        arrived.clear();
        let mut state = self.lock();
        if is_busy && state.arrived.cost() < WAKE_LEN {
            state = self.sleep(state, WAKE_LEN, Some(timeout.map_or(NAP, |timeout| timeout.min(NAP))));
        }
        if state.arrived.is_empty() {
            state =
                if words.is_empty() { self.sleep(state, 1, timeout) } else { self.sleep_beside(state, timeout, words) };
        }
        let was_full = state.arrived.cost() >= MAX_WAITING;
        std::mem::swap(&mut state.arrived, arrived);
        if was_full {
            self.changed.notify_all();
        }
        !(state.closed && arrived.is_empty())
    }

    /// Closes the handoff when dropped, also by a panic, so that the recorder does not wait for ever.
    pub(super) fn closer(&self) -> Closer<'_> {
        Closer(self)
    }

    /// Tells the receiver that nobody takes what it receives.
    pub(super) fn abandon(&self) {
        self.lock().abandoned = true;
        self.changed.notify_all();
    }
}

pub(super) struct Closer<'a>(&'a Handoff);

impl Drop for Closer<'_> {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.ring_bell();
    }
}

impl Part {
    /// A datagram of `sent_len` bytes, of which `len` were received.
    pub(super) fn datagram(len: usize, sent_len: usize, Came { fd, sender }: Came) -> Self {
        Self { from: 0, len, sent_len, end: false, fd, sender }
    }

    /// Bytes of an agent's stream; none: it has ended.
    pub(super) fn of_stream(from: u64, len: usize, Came { fd, sender }: Came) -> Self {
        Self { from, len, sent_len: len, end: len == 0, fd, sender }
    }
}
