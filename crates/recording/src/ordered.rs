//! A recording's events by time.
//!
//! events.jsonl is in the order of arrival: what one process did in a few milliseconds, then what another did meanwhile.
//! A first reading notes, for each piece of the file, the earliest time of it; from that follows, at each place, up to which
//! time nothing is to come. So an event is held back exactly as long as it must be, and a recording of any length takes
//! eight bytes for each 64 KiB of it, and what the order of arrival is off.

use std::collections::BTreeMap;
use std::path::Path;

use socktrace_event::{End, Event, Failed, Origin, PathError, Sink, Source, Stop, What};

use crate::reader::{Note, Recorded, Recording};

/// Of so many bytes of events.jsonl the earliest time is known.
const PIECE_LEN: u64 = 64 << 10;
/// Lines that are held back at one time take no more than this, in bytes; a recording in which more stand before an
/// earlier one is shown out of order there, and [`Condition::late`] counts how often. Collectors read their rings by
/// turns of 1 MiB.
const MAX_HELD: usize = 256 << 20;
/// What a line takes beside its bytes while it is held, about.
const HELD_LEN: usize = 200;

/// Gives each event its place in time.
#[derive(Debug, Default)]
struct Order {
    latest: u64,
}

impl Order {
    /// The server's beginning and end belong where they are; their clock may be another's.
    fn place(&mut self, event: &Event<'_>) -> u64 {
        match event.what {
            What::HostInit(_) | What::HostShutdown(_) => self.latest,
            _ => {
                let ns = event.time_ns();
                self.latest = self.latest.max(ns);
                ns
            }
        }
    }
}

/// What the first reading learns of the times.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// By pieces of the file: the earliest time in it.
    earliest: Vec<u64>,
    order: Order,
}

impl Survey {
    pub(crate) fn note(&mut self, at: u64, event: &Event<'_>) {
        let ns = self.order.place(event);
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

/// What a recording is like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// Lines that are no events.
    pub unreadable: u64,
    /// Events that were given after a later one.
    pub late: u64,
    /// Bytes of a last line that has no end.
    pub torn: usize,
    /// Whether its last event says that it has ended.
    pub has_ended: bool,
}

impl Condition {
    /// What is not as it should be, a sentence each.
    pub fn sentences(&self, folder: &Path) -> Vec<String> {
        let (shown, Self { unreadable, late, torn, has_ended }) = (folder.display(), *self);
        let mut all = Vec::new();
        if unreadable > 0 {
            all.push(format!("{shown}/events.jsonl: {unreadable} lines are no events and are left out"));
        }
        if late > 0 {
            all.push(format!(
                "{shown}: {late} events stand after later ones: too much lies between them to be put in order"
            ));
        }
        if torn > 0 {
            all.push(format!("{shown}/events.jsonl: the last line is cut off and is left out"));
        } else if !has_ended {
            all.push(format!("{shown}: its recording has not ended, or was cut off"));
        }
        all
    }
}

/// Reads a recording by time, as far as it went when this began.
#[derive(Debug)]
pub struct Ordered {
    recording: Recording,
    order: Order,
    to_come: Vec<u64>,
    /// Up to which byte the times are known.
    end: u64,
    /// By time, and by order of arrival where that is the same.
    held: BTreeMap<(u64, u64), Recorded>,
    held_len: usize,
    arrived: u64,
    latest_given: u64,
    late: u64,
    pub(crate) has_ended: bool,
    /// Bytes of a last line that had no end when this began.
    torn: usize,
}

impl Ordered {
    /// # Errors
    ///
    /// As of [`Recording::open`].
    pub fn open(folder: &Path) -> Result<Self, PathError> {
        Self::open_noting(folder, &mut |_, _| {})
    }

    /// The same for who must know of all events before the first is handed on: `note` hears of each in the order of arrival,
    /// as they are read for the first time.
    ///
    /// # Errors
    ///
    /// As of [`Recording::open`].
    pub fn open_noting(folder: &Path, note: &mut Note<'_>) -> Result<Self, PathError> {
        let (recording, survey, torn) = Recording::survey(folder, note)?;
        Ok(Self {
            order: Order::default(),
            to_come: survey.into_come(),
            end: recording.end(),
            recording,
            held: BTreeMap::new(),
            held_len: 0,
            arrived: 0,
            latest_given: 0,
            late: 0,
            has_ended: false,
            torn,
        })
    }

    /// The files, and how far they are read.
    pub fn recording(&self) -> &Recording {
        &self.recording
    }

    /// What it is like, as far as it is read.
    pub fn condition(&self) -> Condition {
        let recording = &self.recording;
        let torn = match recording.torn_len() {
            // What was behind the end has not been read again.
            0 if recording.at() == recording.end() => self.torn,
            len => len,
        };
        // It may have grown since.
        let has_grown = recording.events_len().is_ok_and(|len| len > recording.at() + torn as u64);
        let has_ended = self.has_ended && !has_grown;
        Condition { unreadable: recording.unreadable(), late: self.late, torn, has_ended }
    }

    /// The next event by time of what was there at the beginning; `None` if that was all.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is something else than a recording.
    pub fn next_event(&mut self) -> Result<Option<Recorded>, PathError> {
        loop {
            let is_read = self.recording.at() >= self.end;
            let until = if is_read { u64::MAX } else { self.nothing_before() };
            if let Some((&(ns, _), _)) = self.held.first_key_value()
                && (ns <= until || self.held_len > MAX_HELD)
            {
                return Ok(self.take());
            }
            if is_read || !self.read_one()? {
                self.end = self.recording.at();
                if self.held.is_empty() {
                    return Ok(None);
                }
            }
        }
    }

    /// All events of what was there at the beginning, by time.
    pub fn events(mut self) -> impl Iterator<Item = Result<Recorded, PathError>> {
        std::iter::from_fn(move || self.next_event().transpose())
    }

    /// Reads what has been added. Returns whether that was anything.
    ///
    /// # Errors
    ///
    /// As of [`Ordered::next_event`].
    pub(crate) fn read_added(&mut self) -> Result<bool, PathError> {
        let mut any = false;
        while self.held_len <= MAX_HELD && self.read_one()? {
            any = true;
        }
        self.end = self.recording.at();
        Ok(any)
    }

    /// Of what was added, the next event by time, if it happened `lag_ns` before the latest that has arrived.
    pub(crate) fn next_added(&mut self, lag_ns: u64) -> Option<Recorded> {
        let ((ns, _), _) = self.held.first_key_value()?;
        let is_due = lag_ns == 0 || ns.saturating_add(lag_ns) <= self.order.latest || self.held_len > MAX_HELD;
        if is_due { self.take() } else { None }
    }

    fn nothing_before(&self) -> u64 {
        self.to_come.get((self.recording.at() / PIECE_LEN) as usize).copied().unwrap_or(u64::MAX)
    }

    fn take(&mut self) -> Option<Recorded> {
        let (_, recorded) = self.held.pop_first()?;
        self.held_len -= recorded.line.len() + HELD_LEN;
        if recorded.ns < self.latest_given {
            self.late += 1;
        }
        self.latest_given = self.latest_given.max(recorded.ns);
        Some(recorded)
    }

    /// False: there is no whole line.
    fn read_one(&mut self) -> Result<bool, PathError> {
        let (order, has_ended) = (&mut self.order, &mut self.has_ended);
        let read = self.recording.read_line(|event| {
            *has_ended = matches!(event.what, What::HostShutdown(_));
            order.place(event)
        })?;
        if let Some(Some(recorded)) = read {
            self.held_len += recorded.line.len() + HELD_LEN;
            self.held.insert((recorded.ns, self.arrived), recorded);
            self.arrived += 1;
            return Ok(true);
        }
        Ok(read.is_some())
    }
}

/// Hands on what was there at the beginning, by time, with the bytes that are there.
impl Source for Ordered {
    type Error = PathError;

    fn origin(&self) -> Origin<'_> {
        Origin { path: self.recording.folder(), kind: "recording" }
    }

    fn run<S: Sink + ?Sized>(mut self, stop: &Stop, sink: &mut S) -> Result<&'static str, Failed<PathError, S::Error>> {
        while let Some(recorded) = self.next_event().map_err(Failed::Source)? {
            if let Some(reason) = stop.reason() {
                return Ok(reason);
            }
            if let Err(end) = sink.event(&recorded.event(), &recorded.payload(usize::MAX).bytes) {
                return end.reason();
            }
        }
        sink.flush().map_or_else(End::reason, |_| Ok("end of the recording"))
    }
}
