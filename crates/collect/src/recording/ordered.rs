//! A recording's events by time.
//!
//! events.jsonl is in the order of arrival: what one process did in a few milliseconds, then what another did meanwhile.
//! A first reading notes, for each piece of the file, the earliest time of it; from that follows, at each place, up to which
//! time nothing is to come. So an event is held back exactly as long as it must be, and a recording of any length takes
//! eight bytes for each 64 KiB of it, and what the order of arrival is off.

use std::collections::BTreeMap;
use std::io;

use super::{Location, Recording};
use crate::event::{Event, EventType};

/// Of so many bytes of events.jsonl the earliest time is known.
const PIECE_LEN: u64 = 64 << 10;
/// Lines that are held back at one time take no more than this, in bytes; a recording in which more stand before an
/// earlier one is shown out of order there, and [`Ordered::late`] counts how often. Collectors read their rings by
/// turns of 1 MiB.
const MAX_HELD: usize = 256 << 20;
/// What a line takes beside its bytes while it is held, about.
const HELD_LEN: usize = 200;

/// An event and where its bytes are.
#[derive(Debug)]
pub struct Held {
    /// When it happened, as it was put in order: nanoseconds since the Unix epoch.
    pub ns: u64,
    /// Its line of events.jsonl, which is an event's.
    pub line: Vec<u8>,
    /// For [`Recording::read`].
    pub location: Location,
}

/// Gives each event its place in time.
#[derive(Debug, Default)]
struct Order {
    latest: u64,
}

impl Order {
    /// The server's beginning and end belong where they are; their clock may be another's.
    fn place(&mut self, kind: EventType, ns: u64) -> u64 {
        match kind {
            EventType::HostInit | EventType::HostShutdown => self.latest,
            _ => {
                self.latest = self.latest.max(ns);
                ns
            }
        }
    }
}

/// When an event happened, in nanoseconds since the Unix epoch: of bytes sent when the call was entered, so that a message
/// is sent before it is received.
pub fn time_of(event: &Event<'_>) -> u64 {
    let ns = event.ts_ns.unwrap_or_else(|| event.ts_ms.saturating_mul(1_000_000));
    match (event.direction, event.entered_ns) {
        (Some(crate::event::Direction::Out), Some(entered)) => entered.min(ns),
        _ => ns,
    }
}

/// What the first reading learns of the times.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// By pieces of the file: the earliest time in it.
    earliest: Vec<u64>,
    order: Order,
}

impl Survey {
    pub(super) fn note(&mut self, at: u64, event: &Event<'_>) {
        let ns = self.order.place(event.kind, time_of(event));
        let piece = (at / PIECE_LEN) as usize;
        if self.earliest.len() <= piece {
            self.earliest.resize(piece + 1, u64::MAX);
        }
        self.earliest[piece] = self.earliest[piece].min(ns);
    }

    /// By pieces of the file: the earliest time in it and behind it.
    fn into_come(mut self) -> Vec<u64> {
        let mut earliest = u64::MAX;
        for piece in self.earliest.iter_mut().rev() {
            earliest = earliest.min(*piece);
            *piece = earliest;
        }
        self.earliest
    }
}

/// Reads a recording by time, as far as it went when this began, or from then on as it grows.
#[derive(Debug)]
pub struct Ordered {
    recording: Recording,
    order: Order,
    to_come: Vec<u64>,
    /// Up to which byte the times are known.
    end: u64,
    first_end: u64,
    /// By time, and by order of arrival where that is the same.
    held: BTreeMap<(u64, u64), (Vec<u8>, Location)>,
    held_len: usize,
    arrived: u64,
    latest_given: u64,
    /// Events that were given after a later one.
    pub late: u64,
    /// Whether the last event that was read says that the recording has ended.
    pub has_ended: bool,
    /// Bytes of a last line that had no end when this began.
    torn: usize,
}

impl Ordered {
    /// # Errors
    ///
    /// As of [`Recording::open`].
    pub fn open(folder: &std::path::Path) -> anyhow::Result<Self> {
        let (recording, survey, end, torn) = Recording::survey(folder)?;
        Ok(Self {
            recording,
            order: Order::default(),
            to_come: survey.into_come(),
            end,
            first_end: end,
            held: BTreeMap::new(),
            held_len: 0,
            arrived: 0,
            latest_given: 0,
            late: 0,
            has_ended: false,
            torn,
        })
    }

    /// The files.
    pub fn recording(&mut self) -> &mut Recording {
        &mut self.recording
    }

    /// Bytes of a last line that has no end.
    pub fn torn_len(&self) -> usize {
        match self.recording.torn_len() {
            // What was behind the end has not been read again.
            0 if self.recording.at() == self.first_end => self.torn,
            len => len,
        }
    }

    /// Up to which byte of events.jsonl the first reading went.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Bytes of events.jsonl that have been read.
    pub fn at(&self) -> u64 {
        self.recording.at()
    }

    /// The next event by time of what was there at the beginning; `None` if that was all.
    ///
    /// # Errors
    ///
    /// Those of read(2), and a file that is no recording.
    pub fn next_event(&mut self) -> io::Result<Option<Held>> {
        loop {
            let is_read = self.at() >= self.end;
            let until = if is_read { u64::MAX } else { self.nothing_before() };
            if let Some((&(ns, _), _)) = self.held.first_key_value()
                && (ns <= until || self.held_len > MAX_HELD)
            {
                return Ok(self.take());
            }
            if is_read || !self.read_one()? {
                self.end = self.at();
                if self.held.is_empty() {
                    return Ok(None);
                }
            }
        }
    }

    /// Reads what has been added. Returns whether that was anything.
    ///
    /// # Errors
    ///
    /// As of [`Ordered::next_event`].
    pub fn read_added(&mut self) -> io::Result<bool> {
        let mut any = false;
        while self.held_len <= MAX_HELD && self.read_one()? {
            any = true;
        }
        self.end = self.at();
        Ok(any)
    }

    /// Of what was added, the next event by time, if it happened `lag_ns` before the latest that has arrived.
    pub fn next_added(&mut self, lag_ns: u64) -> Option<Held> {
        let ((ns, _), _) = self.held.first_key_value()?;
        let is_due = lag_ns == 0 || ns.saturating_add(lag_ns) <= self.order.latest || self.held_len > MAX_HELD;
        if is_due { self.take() } else { None }
    }

    fn nothing_before(&self) -> u64 {
        self.to_come.get((self.at() / PIECE_LEN) as usize).copied().unwrap_or(u64::MAX)
    }

    fn take(&mut self) -> Option<Held> {
        let ((ns, _), (line, location)) = self.held.pop_first()?;
        self.held_len -= line.len() + HELD_LEN;
        if ns < self.latest_given {
            self.late += 1;
        }
        self.latest_given = self.latest_given.max(ns);
        Some(Held { ns, line, location })
    }

    /// False: there is no whole line.
    fn read_one(&mut self) -> io::Result<bool> {
        let Some(line) = self.recording.next_line()? else { return Ok(false) };
        let Some(event) = self.recording.event(&line) else {
            self.recording.check_readable()?;
            return Ok(true);
        };
        self.has_ended = event.kind == EventType::HostShutdown;
        let location = self.recording.locate(&event);
        let ns = self.order.place(event.kind, time_of(&event));
        self.held_len += line.len() + HELD_LEN;
        self.held.insert((ns, self.arrived), (line, location));
        self.arrived += 1;
        Ok(true)
    }
}
