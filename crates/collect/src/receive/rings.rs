//! Rings in shared memory, which agents hand over by their sockets (docs/gttr.md, "Rings").
//!
//! What is taken out of a ring stays there until it is on record, so that a server that is killed loses nothing: the
//! next one is handed the ring, begins where this one had given back, and leaves out what this one had recorded.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use gttr::MAX_PAYLOAD_LEN;
use rustix::fs::fstat;
use socktrace_event::{End, Event, Limited, Sink, Taken};
use socktrace_ring::{Reader, map, unmap};

use super::ring::Ring;
use super::writers::{Announcer, Writers};
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
/// Rings are looked at this often while frames come...
const BUSY_POLL: Duration = Duration::from_millis(1);
/// ...and for so long after the last one; then agents are asked to wake us.
pub(super) const BUSY: Duration = Duration::from_millis(50);
/// How often they are looked at all the same: an agent may look whether we sleep just before we do.
const IDLE_POLL: Duration = Duration::from_millis(100);
/// So many rings the kernel watches for us while we sleep (futex_waitv(2) takes 128 words, one of which is another's)...
const MAX_WATCHED: usize = 127;
/// ...and with more they are looked at this often.
const CROWD_POLL: Duration = Duration::from_millis(10);

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

/// Remembers what is no ring, so that it is complained of once; but no more than there may be rings.
fn refuse(refused: &mut HashSet<(u64, u64)>, key: (u64, u64)) {
    if refused.len() >= MAX_RINGS {
        refused.clear();
    }
    refused.insert(key);
}
