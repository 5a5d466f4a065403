//! One ring, and those who write to it.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gttr::{Frame, FrameType};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::thread::futex;
use socktrace_event::{End, Event, Layer, Lost, Sink, Stat, Taken, What};
use socktrace_ring::{Memory, Reader, Step, unmap};

use super::rings::{BUSY, Position};
use super::writers::{Announcer, Origin, Thread, Writers};
use crate::owners::Owners;
use crate::sender::Sender;

/// What is taken of one ring before the others have their turn, in bytes.
const TURN: u64 = 1 << 20;
/// How long a ring is kept whose agent has gone, or has not been heard of: a process may have closed our socket, and
/// connects anew within this time if it has anything to say.
const KEPT: Duration = Duration::from_secs(5);
/// How long a record may be unfinished before it is looked whether its thread is still there.
const PATIENCE: Duration = Duration::from_millis(200);
/// How often it is looked from then on: a thousand rings may each wait for a thread that is stopped.
const LOOK: Duration = Duration::from_secs(1);
/// How long a thread may take that is there and not stopped: it has jumped out of a signal handler, and will not.
const MAX_PATIENCE: Duration = Duration::from_secs(10);

/// A ring, and what is known of those who write to it.
#[derive(Debug)]
pub(super) struct Ring {
    /// Which one it is, counted as they came.
    pub(super) id: u64,
    /// Device and inode number of the memfd.
    pub(super) key: (u64, u64),
    pub(super) memory: Memory,
    pub(super) reader: Reader,
    /// The memfd, by which a lock of its writers is seen.
    pub(super) fd: OwnedFd,
    /// What was in other rings when it came, and until when that is waited for: a process that executes a program has a
    /// new ring, and what it did before is in an older one.
    pub(super) after: Vec<Position>,
    pub(super) after_until: Instant,
    /// Who was the first to announce it.
    pub(super) sender: Sender,
    /// Connections of agents that have announced it; 0 for datagrams.
    pub(super) agents: HashSet<u64>,
    pub(super) writers: Writers,
    /// When a frame or an announcement last came.
    pub(super) heard: Instant,
    pub(super) unfinished: Option<Unfinished>,
    /// It is none any more.
    pub(super) is_corrupt: bool,
}

/// The next record of a ring, as far as its writer has not come.
#[derive(Debug)]
pub(super) struct Unfinished {
    position: u64,
    since: Instant,
    /// When to look for its thread.
    look: Instant,
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the reader goes with it.
        unsafe { unmap(self.memory) };
    }
}

impl Ring {
    /// Learns of one of its writers, and tells them whether their numbers are known by that.
    pub(super) fn announce(&mut self, announcer: &Announcer) {
        let numbers = self.writers.announce(announcer);
        self.reader.words().numbers.store(numbers, Ordering::Relaxed);
    }

    /// Those that wait for room look again.
    pub(super) fn wake_writers(&self) {
        let words = self.reader.words();
        if words.waiting.load(Ordering::SeqCst) != 0 {
            words.room.fetch_add(1, Ordering::SeqCst);
            let _ = futex::wake(&words.room, futex::Flags::empty(), u32::MAX);
        }
    }

    /// Whether it is a ring still.
    pub(super) fn take<S: Sink>(
        &mut self,
        buffer: &mut [u8],
        owners: &mut Owners,
        sink: &mut S,
    ) -> Result<bool, End<S::Error>> {
        let end = self.reader.position() + TURN;
        while self.reader.position() < end {
            match self.reader.next(buffer) {
                Step::Frame(len) => {
                    if !hand_on(&buffer[..len], &mut self.writers, owners, sink)? {
                        self.reader.put_back(len);
                        break;
                    }
                }
                Step::Void => {}
                Step::Empty => break,
                Step::Corrupt => return Ok(false),
                Step::Unfinished { tid } => {
                    if !self.is_hopeless(tid) {
                        break;
                    }
                    if self.reader.step_over() {
                        let reason = "the thread ended, or went elsewhere, while it wrote the event";
                        let lost = Lost { events: Some(1), reason: Some(reason.into()), ..Lost::default() };
                        sink.event(&Event { tid: Some(tid), ..Event::now(What::Lost(lost)) }, b"")?;
                    }
                }
            }
            self.unfinished = None;
        }
        Ok(true)
    }

    /// Whether the record that is next will not be finished any more.
    fn is_hopeless(&mut self, tid: u32) -> bool {
        let (position, now) = (self.reader.position(), Instant::now());
        let unfinished = match &mut self.unfinished {
            Some(unfinished) if unfinished.position == position => unfinished,
            _ => {
                self.unfinished = Some(Unfinished { position, since: now, look: now + PATIENCE });
                return false;
            }
        };
        if now < unfinished.look {
            return false;
        }
        unfinished.look = now + LOOK;
        let has_writers = self.has_writers();
        let Some(unfinished) = &self.unfinished else { return false };
        let since = unfinished.since;
        let thread = if self.writers.is_foreign() { self.writers.thread(tid) } else { Thread::Here(tid) };
        let state = match thread {
            Thread::Here(tid) => state_of(tid),
            // Its process may be one of which nothing has been heard yet: it is given some more time.
            Thread::Gone if has_writers && since.elapsed() < LOOK => return false,
            Thread::Gone => None,
            Thread::Unknown if has_writers => Some('R'),
            // Nobody is there who could finish it.
            Thread::Unknown => None,
        };
        let patience = match state {
            None => PATIENCE,
            Some('T' | 't') => return false,
            Some(_) => MAX_PATIENCE,
        };
        since.elapsed() >= patience
    }

    /// Whether a process is known to be there that writes to it.
    pub(super) fn has_writers(&self) -> bool {
        self.is_connected() || self.is_locked()
    }

    fn is_connected(&self) -> bool {
        self.agents.iter().any(|&agent| agent != 0)
    }

    /// Whether its writers hold a lock on it, as those do that need no connection to us: the kernel gives it back when the
    /// last of them is gone (flock(2)).
    fn is_locked(&self) -> bool {
        if self.reader.words().locked.load(Ordering::Relaxed) == 0 {
            return false;
        }
        match flock(&self.fd, FlockOperation::NonBlockingLockShared) {
            Ok(()) => {
                let _ = flock(&self.fd, FlockOperation::Unlock);
                false
            }
            Err(error) => error == Errno::WOULDBLOCK,
        }
    }

    /// Whether there is nothing to be had but for a record that has been unfinished for long.
    pub(super) fn is_held_up(&self) -> bool {
        let position = self.reader.position();
        self.unfinished.as_ref().is_some_and(|it| it.position == position && it.since.elapsed() > BUSY)
    }

    /// Whether nobody is left who writes to it: those who spoke of it are gone or silent, and it is empty.
    pub(super) fn is_left(&mut self) -> bool {
        let is_silent = self.heard.elapsed() > KEPT && self.reader.is_empty() && self.reader.held() == 0;
        if is_silent && self.is_locked() {
            // Looked at again after as long.
            self.heard = Instant::now();
        }
        is_silent && !self.is_connected() && self.heard.elapsed() > KEPT
    }

    /// What its writers lost and did not come to say.
    pub(super) fn report_losses<S: Sink>(&self, sink: &mut S) -> Taken<S::Error> {
        let words = self.reader.words();
        let [events, bytes, since, until] =
            [&words.lost_events, &words.lost_bytes, &words.lost_since, &words.lost_until]
                .map(|word| word.swap(0, Ordering::AcqRel));
        if events != 0 {
            let lost = Lost {
                events: Some(events),
                bytes: Some(bytes),
                since_ns: Some(since),
                until_ns: Some(until),
                reason: Some("the ring was full, and the process ended before it could say so".into()),
                ..Lost::default()
            };
            sink.event(&Event::now(What::Lost(lost)), b"")?;
        }
        Ok(())
    }
}

/// Hands a frame on; false: not now, because whose it is will be known in a moment.
fn hand_on<S: Sink>(
    frame: &[u8],
    writers: &mut Writers,
    owners: &mut Owners,
    sink: &mut S,
) -> Result<bool, End<S::Error>> {
    match gttr::decode_datagram(frame) {
        Ok(frame) if frame.kind == FrameType::Ring => {}
        Ok(frame) => match writers.origin(&frame) {
            Origin::Awaited => return Ok(false),
            // A server that was killed had recorded it, and not given its room back.
            _ if sink.is_recorded(&frame) => {}
            Origin::Known(None) => owners.frame(&frame, None, sink)?,
            Origin::Known(host_pid) => owners.frame(&Frame { host_pid, ..frame }, None, sink)?,
        },
        Err(error) => sink.event(&Event::bad_frame(&error.to_string(), frame.len()), b"")?,
    }
    Ok(true)
}

/// The state of a thread, as ps(1) has it; `None`: there is no such thread.
fn state_of(tid: u32) -> Option<char> {
    // A thread that nobody names is one that has only just taken its place.
    if tid == 0 {
        return Some('R');
    }
    Stat::of(tid).map(|stat| stat.state)
}
