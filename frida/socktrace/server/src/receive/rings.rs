//! Rings in shared memory, which agents hand over by their sockets (docs/gttr.md, "Rings").
//!
//! What is taken out of a ring stays there until it is on record, so that a server that is killed loses nothing: the
//! next one is handed the ring, begins where this one had given back, and leaves out what this one had recorded.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gttr::{FrameType, MAX_PAYLOAD_LEN};
use rustix::fs::fstat;
use rustix::thread::futex;
use socktrace_ring::{Memory, Reader, Step, map, unmap};

use crate::event::{Event, EventType};
use crate::notice::notice;
use crate::sink::Sink;

/// Rings at one time; one is some processes', so this is more than a machine runs.
const MAX_RINGS: usize = 4096;
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
/// How long a ring is kept whose agent has gone, or has not been heard of: a process may have closed our socket, and
/// connects anew within this time if it has anything to say.
const KEPT: Duration = Duration::from_secs(5);
/// How long a record may be unfinished before it is looked whether its thread is still there.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long a thread may take that is there and not stopped: it has jumped out of a signal handler, and will not.
const MAX_PATIENCE: Duration = Duration::from_secs(10);

/// A ring, and what is known of those who write to it.
struct Ring {
    memory: Memory,
    reader: Reader,
    /// Connections of agents that have announced it; 0 for datagrams.
    agents: HashSet<u64>,
    /// When a frame or an announcement last came.
    heard: Instant,
    /// Since when the next record is unfinished, at which position.
    unfinished: Option<(Instant, u64)>,
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the reader goes with it.
        unsafe { unmap(self.memory) };
    }
}

/// Every ring.
pub(super) struct Rings {
    /// By device and inode number of the memfd.
    rings: HashMap<(u64, u64), Ring>,
    /// Those that were no rings, or are none any more.
    refused: HashSet<(u64, u64)>,
    buffer: Vec<u8>,
    /// When a frame last came out of any.
    busy: Option<Instant>,
}

impl Default for Rings {
    fn default() -> Self {
        Self { rings: HashMap::new(), refused: HashSet::new(), buffer: vec![0; MAX_FRAME_LEN], busy: None }
    }
}

impl Rings {
    /// An agent has handed over a ring; again, if it has connected anew, or for datagrams whenever it speaks of it.
    pub(super) fn add(&mut self, fd: &OwnedFd, agent: u64, sink: &mut dyn Sink) {
        let Ok(stat) = fstat(fd) else { return };
        let key = (stat.st_dev, stat.st_ino);
        if let Some(ring) = self.rings.get_mut(&key) {
            ring.agents.insert(agent);
            ring.heard = Instant::now();
            return;
        }
        if self.refused.contains(&key) {
            return;
        }
        if self.rings.len() >= MAX_RINGS {
            return notice("too many rings at one time: what this agent records is dropped and counted by it");
        }
        let mapped = map(fd.as_fd()).map_err(|untrusted| untrusted.to_string());
        let made = mapped.and_then(|memory| match Reader::new(memory) {
            Some(reader) => Ok((memory, reader)),
            None => Err("a ring whose reader left off nowhere".into()),
        });
        match made {
            Ok((memory, reader)) => {
                let ring =
                    Ring { memory, reader, agents: HashSet::from([agent]), heard: Instant::now(), unfinished: None };
                self.rings.insert(key, ring);
            }
            Err(error) => {
                self.refused.insert(key);
                sink.event(&Event::bad_frame(&error, 0), b"");
            }
        }
    }

    /// An agent's connection has ended.
    pub(super) fn agent_gone(&mut self, agent: u64) {
        for ring in self.rings.values_mut() {
            if ring.agents.remove(&agent) && ring.agents.is_empty() {
                ring.heard = Instant::now();
            }
        }
    }

    /// How long nobody need look, if the sockets are silent; `None`: until they are not.
    pub(super) fn look_in(&self) -> Option<Duration> {
        match self.busy {
            _ if self.rings.is_empty() => None,
            Some(since) if since.elapsed() < BUSY => Some(BUSY_POLL),
            _ => {
                self.rings.values().for_each(|ring| ring.reader.words().sleeps.store(1, Ordering::SeqCst));
                let all_empty = self.rings.values().all(|ring| ring.reader.is_empty());
                Some(if all_empty { IDLE_POLL } else { BUSY_POLL })
            }
        }
    }

    /// Hands on what is in the rings, as much as is fair; whether there was anything.
    pub(super) fn take(&mut self, sink: &mut dyn Sink) -> bool {
        let mut any = false;
        let mut done = Vec::new();
        for (key, ring) in &mut self.rings {
            let before = ring.reader.position();
            let is_sound = ring.take(&mut self.buffer, sink);
            if ring.reader.position() != before {
                any = true;
                ring.heard = Instant::now();
            }
            if !is_sound {
                self.refused.insert(*key);
                sink.event(&Event::bad_frame("a ring that was written to by something else than an agent", 0), b"");
            }
            let is_left = ring.is_left();
            if is_left {
                ring.report_losses(sink);
            }
            if is_left || !is_sound {
                done.push(*key);
            }
        }
        if any {
            self.busy = Some(Instant::now());
        }
        for key in done {
            // Its frames were handed on, and nobody takes the ring over.
            self.rings.remove(&key);
        }
        any
    }

    /// Whether so much is held back that writers may soon find their ring full.
    pub(super) fn is_pressing(&self) -> bool {
        self.rings.values().any(|ring| ring.reader.held() > ring.reader.ring_len() as u64 / 4)
    }

    /// All that was handed on is on record: gives the room back.
    pub(super) fn free(&mut self) {
        for ring in self.rings.values_mut().filter(|ring| ring.reader.held() > 0) {
            ring.reader.free();
            let words = ring.reader.words();
            if words.waiting.load(Ordering::SeqCst) != 0 {
                words.room.fetch_add(1, Ordering::SeqCst);
                let _ = futex::wake(&words.room, futex::Flags::empty(), u32::MAX);
            }
        }
    }

    /// The last look: agents that are gone have nothing more to say.
    pub(super) fn finish(&mut self, sink: &mut dyn Sink) {
        for ring in self.rings.values_mut().filter(|ring| ring.agents.is_empty()) {
            ring.report_losses(sink);
        }
    }
}

impl Ring {
    /// Whether it is a ring still.
    fn take(&mut self, buffer: &mut [u8], sink: &mut dyn Sink) -> bool {
        let end = self.reader.position() + TURN;
        while self.reader.position() < end {
            match self.reader.next(buffer) {
                Step::Frame(len) => hand_on(&buffer[..len], sink),
                Step::Void => {}
                Step::Empty => break,
                Step::Corrupt => return false,
                Step::Unfinished { tid } => {
                    if !self.is_hopeless(tid) {
                        break;
                    }
                    if self.reader.step_over() {
                        let reason = "the thread ended, or went elsewhere, while it wrote the event";
                        let tid = Some(tid);
                        let lost =
                            Event { tid, events: Some(1), reason: Some(reason.into()), ..Event::now(EventType::Lost) };
                        sink.event(&lost, b"");
                    }
                }
            }
            self.unfinished = None;
        }
        true
    }

    /// Whether the record that is next will not be finished any more.
    fn is_hopeless(&mut self, tid: u32) -> bool {
        let position = self.reader.position();
        let since = match self.unfinished {
            Some((since, at)) if at == position => since,
            _ => {
                self.unfinished = Some((Instant::now(), position));
                return false;
            }
        };
        let patience = match state_of(tid) {
            None => PATIENCE,
            Some('T' | 't') => return false,
            Some(_) => MAX_PATIENCE,
        };
        since.elapsed() > patience
    }

    /// Whether nobody is left who writes to it: those who spoke of it are gone or silent, and it is empty.
    fn is_left(&self) -> bool {
        let is_connected = self.agents.iter().any(|&agent| agent != 0);
        !is_connected && self.heard.elapsed() > KEPT && self.reader.is_empty() && self.reader.held() == 0
    }

    /// What its writers lost and did not come to say.
    fn report_losses(&self, sink: &mut dyn Sink) {
        let words = self.reader.words();
        let [events, bytes, since, until] =
            [&words.lost_events, &words.lost_bytes, &words.lost_since, &words.lost_until]
                .map(|word| word.swap(0, Ordering::AcqRel));
        if events != 0 {
            sink.event(
                &Event {
                    events: Some(events),
                    bytes: Some(bytes),
                    since_ns: Some(since),
                    until_ns: Some(until),
                    reason: Some("the ring was full, and the process ended before it could say so".into()),
                    ..Event::now(EventType::Lost)
                },
                b"",
            );
        }
    }
}

fn hand_on(frame: &[u8], sink: &mut dyn Sink) {
    match gttr::decode_datagram(frame) {
        Ok(frame) if frame.kind == FrameType::Ring => {}
        // A server that was killed had recorded it, and not given its room back.
        Ok(frame) if sink.is_recorded(&frame) => {}
        Ok(frame) => sink.frame(&frame),
        Err(error) => sink.event(&Event::bad_frame(&error.to_string(), frame.len()), b""),
    }
}

/// The state of a thread, as ps(1) has it; `None`: there is no such thread.
fn state_of(tid: u32) -> Option<char> {
    // A thread that nobody names is one that has only just taken its place.
    if tid == 0 {
        return Some('R');
    }
    let stat = std::fs::read_to_string(format!("/proc/{tid}/stat")).ok()?;
    // The name before it may have any character in it.
    let state = stat.rsplit_once(") ")?.1.chars().next()?;
    (!matches!(state, 'Z' | 'X')).then_some(state)
}
