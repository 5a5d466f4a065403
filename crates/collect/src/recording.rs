//! Reads back what [`record`](crate::record) has written: events.jsonl, and the payload files that its events speak of.
//!
//! A recording may be anybody's and hold anything. Only regular files in its directory are opened, a line, an event's
//! bytes and all that is remembered have a limit, and what is left out for one is said.

mod lines;
mod ordered;

use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::errno;
use crate::event::{Direction, Event, EventType};
use crate::events_file::NAME as EVENTS;
use lines::Lines;
pub use ordered::{Held, Ordered, time_of};

/// So many payload files are open at once.
const MAX_OPEN: usize = 128;
/// Of so many payload files it is known where the next event's bytes are, at some 50 bytes each.
const MAX_FILES: usize = 4 << 20;
/// So many gaps in one payload file are known: an outage leaves one.
const MAX_HOLES: usize = 16 << 10;
/// No event has more bytes than a frame takes.
const MAX_PAYLOAD: usize = gttr::MAX_PAYLOAD_LEN as usize;

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

/// What is to be had of a data event's bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Payload {
    /// Those that are there, from the first one on.
    pub bytes: Vec<u8>,
    /// Why they are not all that the event speaks of.
    pub missing: Option<&'static str>,
}

/// Where a data event's bytes are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Location {
    /// The payload file's name, empty without bytes.
    name: String,
    at: u64,
    len: u64,
    missing: Option<&'static str>,
}

/// The directory.
#[derive(Debug)]
pub struct Recording {
    folder: PathBuf,
    lines: Lines,
    /// By the files' names, hashed with a key of our own: nobody can make two of them one.
    positions: HashMap<u64, Position>,
    names: RandomState,
    open: HashMap<String, File>,
    /// Whether events were lost between which payloads were written: where those of later events are, nobody knows.
    adrift: bool,
    /// Whether the server was told to write no payload files.
    omits_payload: bool,
    /// Lines that are no events.
    pub unreadable: u64,
}

impl Recording {
    /// # Errors
    ///
    /// One line that says what the path is instead.
    pub fn open(folder: &Path) -> Result<Self> {
        Ok(Self::survey(folder)?.0)
    }

    /// Opens a recording and reads it once, as far as it goes now, for what must be known before: holes, and times.
    fn survey(folder: &Path) -> Result<(Self, ordered::Survey, u64, usize)> {
        let path = folder.join(EVENTS);
        let shown = folder.display();
        let file = lines::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound if folder.is_dir() => anyhow::anyhow!("{shown}: no recording: it has no {EVENTS}"),
            io::ErrorKind::NotFound => anyhow::anyhow!("{shown}: no such directory"),
            io::ErrorKind::NotADirectory => {
                anyhow::anyhow!(
                    "{shown}: not a directory: what is wanted is the one that was given to -w or to the server"
                )
            }
            io::ErrorKind::InvalidInput => anyhow::anyhow!("{}: no recording: {error}", path.display()),
            _ => anyhow::anyhow!("{}: cannot be read: {}", path.display(), errno::explain_input(&error)),
        })?;
        if lines::is_inflated(&file) {
            anyhow::bail!("{}: no recording: it is nearly all a hole", path.display());
        }
        let mut recording = Self {
            folder: folder.to_owned(),
            lines: Lines::new(file),
            positions: HashMap::new(),
            names: RandomState::new(),
            open: HashMap::new(),
            adrift: false,
            omits_payload: false,
            unreadable: 0,
        };
        let (survey, end, torn) =
            recording.read_once().with_context(|| format!("{}: cannot be read", path.display()))?;
        Ok((recording, survey, end, torn))
    }

    /// What is there, up to which byte, and how many bytes of a line that has no end are behind that.
    fn read_once(&mut self) -> io::Result<(ordered::Survey, u64, usize)> {
        let mut survey = ordered::Survey::default();
        let end = self.events_len()?;
        // What grows while it is read has no end.
        while self.lines.at() < end {
            let at = self.lines.at();
            let Some(line) = self.next_line()? else { break };
            let Some(event) = self.event(&line) else {
                self.check_readable()?;
                continue;
            };
            survey.note(at, &event);
            // Events that tell of holes come after those whose bytes are missing.
            if event.kind == EventType::Lost {
                self.note_hole(&event);
            }
        }
        let (end, torn) = (self.lines.at(), self.lines.torn_len());
        self.lines.rewind()?;
        (self.adrift, self.unreadable) = (false, 0);
        Ok((survey, end, torn))
    }

    fn note_hole(&mut self, event: &Event<'_>) {
        let (Some(name), Some(at), Some(len)) = (payload_name(event), event.offset, event.bytes) else { return };
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

    /// The next whole line, without its end; None if there is none yet.
    ///
    /// # Errors
    ///
    /// Those of read(2), and a line that is longer than any of ours.
    pub fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.lines.next()
    }

    /// # Errors
    ///
    /// So much of the file is no events that it is something else.
    pub fn check_readable(&self) -> io::Result<()> {
        if self.unreadable < lines::MAX_UNREADABLE {
            return Ok(());
        }
        let why = format!("no recording: {} of its lines are no events", self.unreadable);
        Err(io::Error::new(io::ErrorKind::InvalidData, why))
    }

    /// Where in events.jsonl the next line begins.
    pub fn at(&self) -> u64 {
        self.lines.at()
    }

    /// Bytes of the last line, which has no end.
    pub fn torn_len(&self) -> usize {
        self.lines.torn_len()
    }

    /// How long events.jsonl is by now, in bytes.
    ///
    /// # Errors
    ///
    /// Those of fstat(2).
    pub fn events_len(&self) -> io::Result<u64> {
        Ok(self.lines.file().metadata()?.len())
    }

    /// Whether the directory's events.jsonl is still the file that is read, and no shorter than what was read of it.
    pub fn is_in_place(&self) -> bool {
        let (ours, there) = (self.lines.file().metadata(), std::fs::symlink_metadata(self.folder.join(EVENTS)));
        let (Ok(ours), Ok(there)) = (ours, there) else { return false };
        (ours.dev(), ours.ino()) == (there.dev(), there.ino()) && there.len() >= self.at() + self.torn_len() as u64
    }

    /// The event of a line; None, and counted, if it is none.
    pub fn event<'a>(&mut self, line: &'a [u8]) -> Option<Event<'a>> {
        // An array of the fields' values would do, too.
        let is_object = line.trim_ascii_start().starts_with(b"{");
        match serde_json::from_slice(line) {
            Ok(event) if is_object => Some(event),
            _ => {
                self.unreadable += 1;
                self.adrift = true;
                None
            }
        }
    }

    /// Takes note of what the event says of the payload files, and returns up to `max` of the bytes it speaks of.
    ///
    /// To be called once for each event, in order.
    pub fn payload(&mut self, event: &Event<'_>, max: usize) -> Payload {
        let location = self.locate(event);
        self.read(&location, max)
    }

    /// Takes note of what the event says of the payload files, and returns where its own bytes are.
    ///
    /// To be called once for each event, in order.
    pub fn locate(&mut self, event: &Event<'_>) -> Location {
        match event.kind {
            EventType::Lost => {
                self.note_hole(event);
                // The recorder's own, about lines of events.jsonl; a process counts what never got there.
                self.adrift |= event.pid.is_none() && event.conn_id.is_none() && event.events.is_some();
            }
            EventType::HostInit => {
                self.omits_payload = event.omits.as_deref() == Some("payload files");
                self.adrift |= event.omits.as_deref() == Some("events");
            }
            EventType::Data if self.omits_payload => {
                let missing = (event.size != Some(0)).then_some("no payload files were written, as asked");
                return Location { missing, ..Location::default() };
            }
            EventType::Data => return self.locate_data(event),
            _ => {}
        }
        Location::default()
    }

    fn locate_data(&mut self, event: &Event<'_>) -> Location {
        let size = event.size.unwrap_or(0);
        let Some(name) = payload_name(event) else {
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

    /// Up to `max` of the bytes at a location.
    pub fn read(&mut self, location: &Location, max: usize) -> Payload {
        let max = max.min(MAX_PAYLOAD);
        let wanted = location.len.min(max as u64);
        let too_long = location.len > MAX_PAYLOAD as u64 && max == MAX_PAYLOAD;
        if wanted == 0 {
            return Payload { bytes: Vec::new(), missing: location.missing };
        }
        // An event's size is what somebody wrote into a file: memory is taken for bytes that are there.
        let (mut bytes, mut read) = (Vec::new(), 0);
        if let Ok(file) = self.file(&location.name) {
            if lines::is_inflated(file) {
                return Payload {
                    bytes,
                    missing: Some("its payload file is nearly all a hole, which socktrace makes none of"),
                };
            }
            let there = file.metadata().map_or(0, |file| file.len().saturating_sub(location.at));
            bytes = vec![0; usize::try_from(wanted.min(there)).unwrap_or(max)];
            read = read_up_to(file, &mut bytes, location.at).unwrap_or(0);
        }
        bytes.truncate(read);
        let missing = if (read as u64) < wanted {
            Some("the payload file ends before")
        } else if too_long {
            Some("no event has so many bytes")
        } else {
            location.missing
        };
        Payload { bytes, missing }
    }

    /// The first bytes of a data event's payload file, at most `max`; none if they are not there.
    pub fn beginning(&mut self, event: &Event<'_>, max: usize) -> Vec<u8> {
        let Some(name) = payload_name(event) else { return Vec::new() };
        self.read(&Location { name, at: 0, len: max as u64, missing: None }, max).bytes
    }

    /// Forgets a connection of which no event is to come.
    pub fn forget(&mut self, event: &Event<'_>) {
        let Some(base) = event.payload_file() else { return };
        for direction in [Direction::In, Direction::Out] {
            let name = format!("{base}{}", direction.file_suffix());
            self.positions.remove(&self.names.hash_one(&name));
            self.open.remove(&name);
        }
    }

    fn file(&mut self, name: &str) -> io::Result<&File> {
        if !self.open.contains_key(name) {
            if self.open.len() >= MAX_OPEN {
                self.open.clear();
            }
            self.open.insert(name.to_owned(), lines::open(&self.folder.join(name))?);
        }
        self.open.get(name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn payload_name(event: &Event<'_>) -> Option<String> {
    Some(format!("{}{}", event.payload_file()?, event.direction?.file_suffix()))
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

fn read_up_to(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], at.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
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
