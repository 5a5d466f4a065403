//! Rings in shared memory, which agents hand over by their sockets (docs/gttr.md, "Rings").
//!
//! What is taken out of a ring stays there until it is on record, so that a server that is killed loses nothing: the
//! next one is handed the ring, begins where this one had given back, and leaves out what this one had recorded.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use gttr::{Frame, FrameType, MAX_PAYLOAD_LEN};
use rustix::fs::{FlockOperation, flock, fstat};
use rustix::io::Errno;
use rustix::thread::futex;
use socktrace_event::{End, Event, Layer, Limited, Lost, Sink, Stat, Taken, What};
use socktrace_ring::{Memory, Reader, Step, map, unmap};

use super::writers::{Announcer, Origin, Thread, Writers};
use crate::owners::Owners;
use crate::sender::Sender;
use crate::shares::{Shares, Verdict};

/// Rings at one time; one is some processes', so this is more than a machine runs.
const MAX_RINGS: usize = 4096;
/// Bytes of all of them: giving room back writes to it, and so takes memory for what a hostile agent never touched.
const MAX_BYTES: u64 = 16 << 30;
/// Tells a ring from a stream, of which there may be one of the same number.
const RING_CHANNEL: u64 = 1 << 63;
/// The longest frame, in bytes: a payload, and what four 16-bit lengths can say.
const MAX_FRAME_LEN: usize = MAX_PAYLOAD_LEN as usize + 4 * (1 << 16);
/// What is taken of one ring before the others have their turn, in bytes.
const TURN: u64 = 1 << 20;
/// Rings are looked at this often while frames come...
const BUSY_POLL: Duration = Duration::from_millis(1);
/// ...and for so long after the last one; then agents are asked to wake us.
const BUSY: Duration = Duration::from_millis(50);
/// How often they are looked at all the same: an agent may look whether we sleep just before we do.
const IDLE_POLL: Duration = Duration::from_millis(100);
/// So many rings the kernel watches for us while we sleep (futex_waitv(2) takes 128 words, one of which is another's)...
const MAX_WATCHED: usize = 127;
/// ...and with more they are looked at this often.
const CROWD_POLL: Duration = Duration::from_millis(10);
/// How long a ring is kept whose agent has gone, or has not been heard of: a process may have closed our socket, and
/// connects anew within this time if it has anything to say.
const KEPT: Duration = Duration::from_secs(5);
/// How long a record may be unfinished before it is looked whether its thread is still there.
const PATIENCE: Duration = Duration::from_millis(200);
/// How often it is looked from then on: a thousand rings may each wait for a thread that is stopped.
const LOOK: Duration = Duration::from_secs(1);
/// How long a thread may take that is there and not stopped: it has jumped out of a signal handler, and will not.
const MAX_PATIENCE: Duration = Duration::from_secs(10);

/// So many rings are waited for that were there before one.
const MAX_AFTER: usize = 64;
/// How long that is done.
const MAX_TURN: Duration = Duration::from_secs(1);

/// A position in a ring.
#[derive(Debug)]
pub(super) struct Position {
    ring: u64,
    at: u64,
}

/// A ring, and what is known of those who write to it.
#[derive(Debug)]
struct Ring {
    /// Which one it is, counted as they came.
    id: u64,
    /// Device and inode number of the memfd.
    key: (u64, u64),
    memory: Memory,
    reader: Reader,
    /// The memfd, by which a lock of its writers is seen.
    fd: OwnedFd,
    /// What was in other rings when it came, and until when that is waited for: a process that executes a program has a
    /// new ring, and what it did before is in an older one.
    after: Vec<Position>,
    after_until: Instant,
    /// Who was the first to announce it.
    sender: Sender,
    /// Connections of agents that have announced it; 0 for datagrams.
    agents: HashSet<u64>,
    writers: Writers,
    /// When a frame or an announcement last came.
    heard: Instant,
    unfinished: Option<Unfinished>,
    /// It is none any more.
    is_corrupt: bool,
}

/// The next record of a ring, as far as its writer has not come.
#[derive(Debug)]
struct Unfinished {
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

/// Every ring.
#[derive(Debug)]
pub struct Rings {
    /// In the order in which they came.
    rings: Vec<Ring>,
    /// How many there were, ever.
    count: u64,
    /// Those that were no rings, or are none any more; the last few.
    refused: HashSet<(u64, u64)>,
    /// Who has how many, and how many bytes.
    numbers: Shares,
    bytes: Shares,
    told: Limited,
    buffer: Vec<u8>,
    /// When a frame last came out of any.
    busy: Option<Instant>,
}

impl Default for Rings {
    fn default() -> Self {
        Self {
            rings: Vec::new(),
            count: 0,
            refused: HashSet::new(),
            numbers: Shares::default(),
            bytes: Shares::default(),
            told: Limited::default(),
            buffer: vec![0; MAX_FRAME_LEN],
            busy: None,
        }
    }
}

impl Rings {
    /// An agent has handed over a ring; again, if it has connected anew, or for datagrams whenever it speaks of it.
    pub fn add<S: Sink>(
        &mut self,
        fd: &OwnedFd,
        agent: u64,
        sender: Sender,
        announcer: &Announcer,
        sink: &mut S,
    ) -> Taken<S::Error> {
        let Ok(stat) = fstat(fd) else { return Ok(()) };
        let key = (stat.st_dev, stat.st_ino);
        if let Some(ring) = self.rings.iter_mut().find(|ring| ring.key == key) {
            ring.agents.insert(agent);
            ring.announce(announcer);
            ring.heard = Instant::now();
            return Ok(());
        }
        if self.refused.contains(&key) {
            return Ok(());
        }
        if self.rings.len() >= MAX_RINGS && !self.make_room(sender, |rings| &rings.numbers, 1, sink)? {
            return Ok(());
        }
        let Ok(kept) = fd.try_clone() else {
            self.told.notice(|| {
                let Sender { pid, uid } = sender;
                format!(
                    "no file descriptor for another ring (see ulimit -n): what process {pid} of user {uid} records is \
                     dropped and counted by it"
                )
            });
            return Ok(());
        };
        let mapped = map(fd.as_fd()).map_err(|untrusted| untrusted.to_string());
        let made = mapped.and_then(|memory| match Reader::new(memory) {
            Some(reader) => Ok((memory, reader)),
            None => Err("a ring whose reader left off nowhere".into()),
        });
        match made {
            Ok((memory, reader)) => {
                let len = reader.ring_len() as u64;
                while self.bytes.total() + len > MAX_BYTES {
                    if !self.make_room(sender, |rings| &rings.bytes, len, sink)? {
                        // SAFETY: the reader goes, too.
                        unsafe { unmap(memory) };
                        return Ok(());
                    }
                }
                self.numbers.add(sender, 1);
                self.bytes.add(sender, len);
                // The last one to read it may have stopped.
                reader.words().stopped.store(0, Ordering::Relaxed);
                reader.words().taken.store(1, Ordering::Relaxed);
                let (now, agents) = (Instant::now(), HashSet::from([agent]));
                let newest = self.ends().into_iter().rev();
                let after = newest.filter(|end| !self.is_past(end)).take(MAX_AFTER).collect();
                let after_until = now + MAX_TURN;
                self.count += 1;
                let mut ring = Ring {
                    id: self.count,
                    key,
                    memory,
                    reader,
                    fd: kept,
                    after,
                    after_until,
                    sender,
                    agents,
                    writers: Writers::default(),
                    heard: now,
                    unfinished: None,
                    is_corrupt: false,
                };
                ring.announce(announcer);
                self.rings.push(ring);
            }
            Err(error) => {
                refuse(&mut self.refused, key);
                sink.event(&Event::bad_frame(&error, 0), b"")?;
            }
        }
        Ok(())
    }

    /// Gives up a ring of who has more of something than the sender of another would have; whether there was one.
    fn make_room<S: Sink>(
        &mut self,
        sender: Sender,
        of: fn(&Self) -> &Shares,
        amount: u64,
        sink: &mut S,
    ) -> Result<bool, End<S::Error>> {
        let Verdict::Displaces(greediest) = of(self).judge(sender, amount) else {
            let Sender { pid, uid } = sender;
            self.told.notice(|| {
                format!(
                    "too many rings at one time: what process {pid} of user {uid} records by another is dropped and \
                     counted by it"
                )
            });
            return Ok(false);
        };
        let Some(newest) = self.rings.iter().rposition(|ring| ring.sender == greediest) else { return Ok(false) };
        let Sender { pid, uid } = greediest;
        self.told.notice(|| {
            format!("too many rings at one time: process {pid} of user {uid} has most, and one of them is given up")
        });
        let ring = self.rings.remove(newest);
        self.numbers.take(greediest, 1);
        self.bytes.take(greediest, ring.reader.ring_len() as u64);
        refuse(&mut self.refused, ring.key);
        // Its writers wait for nobody.
        ring.reader.words().stopped.store(1, Ordering::SeqCst);
        ring.wake_writers();
        ring.report_losses(sink)?;
        let reason = "there were too many rings, and this one, of the process that had most, was given up";
        sink.event(&Event::lost(reason), b"")?;
        Ok(true)
    }

    /// An agent's connection has ended.
    pub fn agent_gone(&mut self, agent: u64) {
        for ring in &mut self.rings {
            if ring.agents.remove(&agent) && ring.agents.is_empty() {
                ring.heard = Instant::now();
            }
        }
    }

    /// How long nobody need look, if the sockets are silent; `None`: until they are not.
    pub fn look_in(&self) -> Option<Duration> {
        match self.busy {
            _ if self.rings.is_empty() => None,
            Some(since) if since.elapsed() < BUSY => Some(BUSY_POLL),
            _ => {
                self.rings.iter().for_each(|ring| ring.reader.words().sleeps.store(1, Ordering::SeqCst));
                let all_idle = self.rings.iter().all(|ring| ring.reader.is_empty() || ring.is_held_up());
                match self.rings.len() {
                    _ if !all_idle => Some(BUSY_POLL),
                    ..=MAX_WATCHED => Some(IDLE_POLL),
                    _ => Some(CROWD_POLL),
                }
            }
        }
    }

    /// The words of rings that are 1 until an agent wakes us by one, as many as the kernel watches at a time.
    pub(super) fn sleeping(&self) -> Vec<&AtomicU32> {
        if self.busy.is_some_and(|since| since.elapsed() < BUSY) {
            return Vec::new();
        }
        self.rings.iter().rev().take(MAX_WATCHED).map(|ring| &ring.reader.words().sleeps).collect()
    }

    /// Hands on what is in the rings, as much as is fair; whether there was anything.
    pub fn take<S: Sink>(&mut self, owners: &mut Owners, sink: &mut S) -> Result<bool, End<S::Error>> {
        let mut any = false;
        for index in 0..self.rings.len() {
            if self.must_wait(index) {
                continue;
            }
            let ring = &mut self.rings[index];
            let before = ring.reader.position();
            owners.sender(ring.sender, RING_CHANNEL | ring.id);
            let is_sound = ring.take(&mut self.buffer, owners, sink)?;
            if ring.reader.position() != before {
                any = true;
                ring.heard = Instant::now();
            }
            if !is_sound {
                ring.is_corrupt = true;
                refuse(&mut self.refused, ring.key);
                sink.event(&Event::bad_frame("a ring that was written to by something else than an agent", 0), b"")?;
            }
        }
        if any {
            self.busy = Some(Instant::now());
        }
        // Frames of one that is left were handed on, and nobody takes the ring over.
        let (numbers, bytes, mut taken) = (&mut self.numbers, &mut self.bytes, Ok(()));
        self.rings.retain_mut(|ring| {
            let is_left = ring.is_left();
            if is_left {
                // Whoever is there all the same is to hand it over again.
                ring.reader.words().taken.store(0, Ordering::Relaxed);
                let reported = ring.report_losses(sink);
                taken = std::mem::replace(&mut taken, Ok(())).and(reported);
            }
            let stays = !is_left && !ring.is_corrupt;
            if !stays {
                numbers.take(ring.sender, 1);
                bytes.take(ring.sender, ring.reader.ring_len() as u64);
            }
            stays
        });
        taken.map(|()| any)
    }

    /// Hands on all that is in rings that no other server can take over, whether or not it can be written: what cannot is
    /// then counted. No more than a ring holds, should somebody write to it all the same.
    pub(super) fn take_abandoned<S: Sink>(&mut self, owners: &mut Owners, sink: &mut S) -> Taken<S::Error> {
        for ring in &mut self.rings {
            if ring.has_writers() {
                continue;
            }
            owners.sender(ring.sender, RING_CHANNEL | ring.id);
            let begin = ring.reader.position();
            loop {
                let before = ring.reader.position();
                let is_sound = ring.take(&mut self.buffer, owners, sink)?;
                let at = ring.reader.position();
                if !is_sound || at == before || at.wrapping_sub(begin) >= ring.reader.ring_len() as u64 {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Whether there are frames in other rings that come before those of this one.
    fn must_wait(&mut self, index: usize) -> bool {
        let ring = &self.rings[index];
        if ring.after.is_empty() {
            return false;
        }
        if Instant::now() < ring.after_until && !ring.after.iter().all(|end| self.is_past(end)) {
            return true;
        }
        self.rings[index].after.clear();
        false
    }

    /// Whether so much is held back that writers may soon find their ring full.
    pub fn is_pressing(&self) -> bool {
        self.rings.iter().any(|ring| ring.reader.held() > ring.reader.ring_len() as u64 / 4)
    }

    /// All that was handed on is on record: gives the room back.
    pub fn free(&mut self) {
        for ring in self.rings.iter_mut().filter(|ring| ring.reader.held() > 0) {
            ring.reader.free();
            ring.wake_writers();
        }
    }

    /// Up to where each ring is written by now.
    pub(super) fn ends(&self) -> Vec<Position> {
        self.rings.iter().map(|ring| Position { ring: ring.id, at: ring.reader.words().tail_position() }).collect()
    }

    /// Whether all was taken that is before such a position.
    pub(super) fn is_past(&self, end: &Position) -> bool {
        match self.rings.binary_search_by_key(&end.ring, |ring| ring.id) {
            Ok(index) => end.at.wrapping_sub(self.rings[index].reader.position()).cast_signed() <= 0,
            // Dropped, at its end or as none.
            Err(_) => true,
        }
    }

    /// The last look: agents that are gone have nothing more to say, and the others need not wait for us.
    pub fn finish<S: Sink>(&mut self, sink: &mut S) -> Taken<S::Error> {
        for ring in &mut self.rings {
            ring.reader.words().stopped.store(1, Ordering::SeqCst);
            ring.wake_writers();
            if ring.has_writers() {
                // Another server can take it over.
                continue;
            }
            ring.report_losses(sink)?;
            if !ring.reader.is_empty() {
                let reason =
                    "the server had to stop before it had read all that was in the ring of a process that is gone";
                sink.event(&Event::lost(reason), b"")?;
            }
        }
        Ok(())
    }
}

impl Ring {
    /// Learns of one of its writers, and tells them whether their numbers are known by that.
    fn announce(&mut self, announcer: &Announcer) {
        let numbers = self.writers.announce(announcer);
        self.reader.words().numbers.store(numbers, Ordering::Relaxed);
    }

    /// Those that wait for room look again.
    fn wake_writers(&self) {
        let words = self.reader.words();
        if words.waiting.load(Ordering::SeqCst) != 0 {
            words.room.fetch_add(1, Ordering::SeqCst);
            let _ = futex::wake(&words.room, futex::Flags::empty(), u32::MAX);
        }
    }

    /// Whether it is a ring still.
    fn take<S: Sink>(&mut self, buffer: &mut [u8], owners: &mut Owners, sink: &mut S) -> Result<bool, End<S::Error>> {
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
    fn has_writers(&self) -> bool {
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
    fn is_held_up(&self) -> bool {
        let position = self.reader.position();
        self.unfinished.as_ref().is_some_and(|it| it.position == position && it.since.elapsed() > BUSY)
    }

    /// Whether nobody is left who writes to it: those who spoke of it are gone or silent, and it is empty.
    fn is_left(&mut self) -> bool {
        let is_silent = self.heard.elapsed() > KEPT && self.reader.is_empty() && self.reader.held() == 0;
        if is_silent && self.is_locked() {
            // Looked at again after as long.
            self.heard = Instant::now();
        }
        is_silent && !self.is_connected() && self.heard.elapsed() > KEPT
    }

    /// What its writers lost and did not come to say.
    fn report_losses<S: Sink>(&self, sink: &mut S) -> Taken<S::Error> {
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

/// Remembers what is no ring, so that it is complained of once; but no more than there may be rings.
fn refuse(refused: &mut HashSet<(u64, u64)>, key: (u64, u64)) {
    if refused.len() >= MAX_RINGS {
        refused.clear();
    }
    refused.insert(key);
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
