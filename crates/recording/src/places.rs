//! Where in its payload file an event's bytes are: behind those of the events before it, and around what was lost.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use socktrace_event::{Data, Event, Lost, What};

/// Of so many payload files it is known where the next event's bytes are, at some 50 bytes each.
const MAX_FILES: usize = 4 << 20;
/// So many gaps in one payload file are known: an outage leaves one.
const MAX_HOLES: usize = 16 << 10;

/// Bytes that a payload file lacks: at this offset in the file, so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hole {
    at: u64,
    len: u64,
    /// Where it begins, counted in bytes that events speak of.
    begin: u64,
}

/// One payload file, as far as its events have been read.
#[derive(Debug, Default)]
struct Position {
    /// Bytes that its data events speak of, so far.
    spoken_of: u64,
    /// Whether there was any data event yet.
    is_known: bool,
    /// Whether it has more holes than are known.
    is_lost: bool,
    holes: Vec<Hole>,
}

/// Where a data event's bytes are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Location {
    /// The payload file's name, empty without bytes.
    pub(crate) name: String,
    pub(crate) at: u64,
    pub(crate) len: u64,
    pub(crate) missing: Option<&'static str>,
}

/// All payload files of a recording, as far as it has been read.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// By the files' names, hashed with a key of our own: nobody can make two of them one.
    positions: HashMap<u64, Position>,
    names: RandomState,
    /// Whether events were lost between which payloads were written: where those of later events are, nobody knows.
    adrift: bool,
    /// Whether the server was told to write no payload files.
    omits_payload: bool,
}

impl Places {
    /// The events are read once more from the first one on. What was lost stays known.
    pub(crate) fn begin_again(&mut self) {
        self.adrift = false;
    }

    /// There is a line that is no event: nobody knows what it has said.
    pub(crate) fn lose_count(&mut self) {
        self.adrift = true;
    }

    /// Takes note of bytes that a payload file lacks.
    pub(crate) fn note_hole(&mut self, event: &Event<'_>, lost: &Lost<'_>) {
        let (Some(name), Some(at), Some(len)) = (event.payload_name(), lost.offset, lost.bytes) else { return };
        let Some(position) = self.position(&name) else { return };
        let holes = &mut position.holes;
        let place = holes.partition_point(|hole| hole.at <= at);
        if holes[..place].iter().rev().take_while(|hole| hole.at == at).any(|hole| hole.len == len) {
            return;
        }
        if holes.len() >= MAX_HOLES {
            position.is_lost = true;
            return;
        }
        holes.insert(place, Hole { at, len, begin: 0 });
        let mut lost = holes[..place].last().map_or(0, |hole| (hole.begin - hole.at).saturating_add(hole.len));
        for hole in &mut holes[place..] {
            hole.begin = hole.at.saturating_add(lost);
            lost = (hole.begin - hole.at).saturating_add(hole.len);
        }
    }

    /// What is known of a payload file; `None`: too many are, to note a new one.
    fn position(&mut self, name: &str) -> Option<&mut Position> {
        let key = self.names.hash_one(name);
        if self.positions.len() >= MAX_FILES && !self.positions.contains_key(&key) {
            return None;
        }
        Some(self.positions.entry(key).or_default())
    }

    /// Takes note of what the event says of the payload files, and returns where its own bytes are.
    pub(crate) fn locate(&mut self, event: &Event<'_>) -> Location {
        match &event.what {
            What::Lost(lost) => {
                self.note_hole(event, lost);
                // The recorder's own, about lines of events.jsonl; a process counts what never got there.
                self.adrift |= event.pid.is_none() && lost.conn_id.is_none() && lost.events.is_some();
            }
            What::HostInit(begun) => {
                self.omits_payload = begun.omits.as_deref() == Some("payload files");
                self.adrift |= begun.omits.as_deref() == Some("events");
            }
            What::Data(data) if self.omits_payload => {
                let missing = (data.size != 0).then_some("no payload files were written, as asked");
                return Location { missing, ..Location::default() };
            }
            What::Data(data) => return self.locate_data(event, data),
            _ => {}
        }
        Location::default()
    }

    fn locate_data(&mut self, event: &Event<'_>, data: &Data<'_>) -> Location {
        let size = data.size;
        let Some(name) = event.payload_name() else {
            return Location { missing: Some("its event names no payload file"), ..Location::default() };
        };
        let is_adrift = self.adrift;
        let Some(position) = self.position(&name) else {
            return Location {
                missing: Some("there are more payload files than can be followed"),
                ..Location::default()
            };
        };
        let (from, is_new) = (position.spoken_of, !position.is_known);
        (position.spoken_of, position.is_known) = (from.saturating_add(size), true);
        if size == 0 {
            return Location::default();
        }
        if is_adrift && !is_new {
            return Location {
                missing: Some("events were lost, so where its bytes are is not known"),
                ..Location::default()
            };
        }
        if position.is_lost {
            return Location { missing: Some("its payload file has too many gaps"), ..Location::default() };
        }
        let (at, len) = locate(&position.holes, from, size);
        Location { name, at, len, missing: (len < size).then_some("bytes were lost") }
    }
}

/// Where in the file the bytes from `from` on are, and how many of `size` are there before a hole.
fn locate(holes: &[Hole], from: u64, size: u64) -> (u64, u64) {
    let next = holes.partition_point(|hole| hole.begin <= from);
    let mut lost = 0;
    if let Some(hole) = holes[..next].last() {
        if from < hole.begin.saturating_add(hole.len) {
            return (hole.at, 0);
        }
        lost = (hole.begin - hole.at).saturating_add(hole.len);
    }
    let until = holes.get(next).map_or(u64::MAX, |hole| hole.begin);
    (from.saturating_sub(lost), size.min(until - from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_around_holes() {
        let holes = [Hole { at: 10, len: 5, begin: 10 }, Hole { at: 20, len: 100, begin: 25 }];
        assert_eq!(locate(&holes, 0, 4), (0, 4));
        assert_eq!(locate(&holes, 8, 4), (8, 2));
        assert_eq!(locate(&holes, 10, 5), (10, 0));
        assert_eq!(locate(&holes, 15, 3), (10, 3));
        assert_eq!(locate(&holes, 24, 10), (19, 1));
        assert_eq!(locate(&holes, 125, 7), (20, 7));
        assert_eq!(locate(&[], 9, 1), (9, 1));
    }
}
