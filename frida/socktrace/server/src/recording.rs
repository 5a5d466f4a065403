//! Reads back what [`record`](crate::record) has written: events.jsonl, and the payload files that its events speak of.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::event::{Direction, Event, EventType};
use crate::events_file::NAME as EVENTS;

/// So many payload files are open at once.
const MAX_OPEN: usize = 128;

/// Bytes that a payload file lacks: at this offset in the file, so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hole {
    at: u64,
    len: u64,
}

/// One payload file, as far as its events have been read.
#[derive(Debug, Default)]
struct Position {
    /// Bytes that its data events speak of, so far.
    spoken_of: u64,
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
    events: BufReader<File>,
    /// The beginning of a line whose end is not there yet.
    torn: Vec<u8>,
    positions: HashMap<String, Position>,
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
        let path = folder.join(EVENTS);
        let shown = folder.display();
        let file = File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound if folder.is_dir() => anyhow::anyhow!("{shown}: no recording: it has no {EVENTS}"),
            io::ErrorKind::NotFound => anyhow::anyhow!("{shown}: no such directory"),
            io::ErrorKind::NotADirectory => {
                anyhow::anyhow!(
                    "{shown}: not a directory: what is wanted is the one that was given to -w or to the server"
                )
            }
            _ => anyhow::anyhow!("{}: cannot be read: {error}", path.display()),
        })?;
        let mut recording = Self {
            folder: folder.to_owned(),
            events: BufReader::new(file),
            torn: Vec::new(),
            positions: HashMap::new(),
            open: HashMap::new(),
            adrift: false,
            omits_payload: false,
            unreadable: 0,
        };
        // Events that tell of holes come after those whose bytes are missing.
        recording.find_holes(&path).with_context(|| format!("{}: cannot be read", path.display()))?;
        Ok(recording)
    }

    fn find_holes(&mut self, path: &Path) -> io::Result<()> {
        let mut lines = BufReader::new(File::open(path)?);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            // A cheap look first: nearly all lines are others.
            if line.starts_with(br#"{"type":"lost""#)
                && let Ok(event) = serde_json::from_slice::<Event<'_>>(&line)
            {
                self.note_hole(&event);
            }
            line.clear();
        }
        Ok(())
    }

    fn note_hole(&mut self, event: &Event<'_>) {
        let (Some(name), Some(at), Some(len)) = (payload_name(event), event.offset, event.bytes) else { return };
        let holes = &mut self.positions.entry(name).or_default().holes;
        let hole = Hole { at, len };
        if !holes.contains(&hole) {
            holes.push(hole);
            holes.sort_by_key(|hole| hole.at);
        }
    }

    /// The next whole line, without its end; None if there is none yet.
    ///
    /// # Errors
    ///
    /// Those of read(2).
    pub fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.events.read_until(b'\n', &mut self.torn)?;
        if self.torn.pop_if(|last| *last == b'\n').is_none() {
            return Ok(None);
        }
        Ok(Some(std::mem::take(&mut self.torn)))
    }

    /// Bytes of the last line, which has no end.
    pub fn torn_len(&self) -> usize {
        self.torn.len()
    }

    /// How long events.jsonl is by now, in bytes.
    ///
    /// # Errors
    ///
    /// Those of fstat(2).
    pub fn events_len(&self) -> io::Result<u64> {
        Ok(self.events.get_ref().metadata()?.len())
    }

    /// The event of a line; None, and counted, if it is none.
    pub fn event<'a>(&mut self, line: &'a [u8]) -> Option<Event<'a>> {
        match serde_json::from_slice(line) {
            Ok(event) => Some(event),
            Err(_) => {
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
        let is_new = !self.positions.contains_key(&name);
        let position = self.positions.entry(name.clone()).or_default();
        let from = position.spoken_of;
        position.spoken_of = from.saturating_add(size);
        if size == 0 {
            return Location::default();
        }
        if self.adrift && !is_new {
            return Location {
                missing: Some("events were lost, so where its bytes are is not known"),
                ..Location::default()
            };
        }
        let (at, len) = locate(&position.holes, from, size);
        Location { name, at, len, missing: (len < size).then_some("bytes were lost") }
    }

    /// Up to `max` of the bytes at a location.
    pub fn read(&mut self, location: &Location, max: usize) -> Payload {
        let wanted = location.len.min(max as u64);
        if wanted == 0 {
            return Payload { bytes: Vec::new(), missing: location.missing };
        }
        // An event's size is what somebody wrote into a file: memory is taken for bytes that are there.
        let (mut bytes, mut read) = (Vec::new(), 0);
        if let Ok(file) = self.file(&location.name) {
            let there = file.metadata().map_or(0, |file| file.len().saturating_sub(location.at));
            bytes = vec![0; usize::try_from(wanted.min(there)).unwrap_or(max)];
            read = read_up_to(file, &mut bytes, location.at).unwrap_or(0);
        }
        bytes.truncate(read);
        let ends_before = (read as u64) < wanted;
        Payload { bytes, missing: if ends_before { Some("the payload file ends before") } else { location.missing } }
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
            self.positions.remove(&name);
            self.open.remove(&name);
        }
    }

    fn file(&mut self, name: &str) -> io::Result<&File> {
        if !self.open.contains_key(name) {
            if self.open.len() >= MAX_OPEN {
                self.open.clear();
            }
            let mut options = fs::OpenOptions::new();
            // Not to wait for a FIFO, nor to be led out of the directory.
            options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY);
            self.open.insert(name.to_owned(), options.open(self.folder.join(name))?);
        }
        self.open.get(name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn payload_name(event: &Event<'_>) -> Option<String> {
    Some(format!("{}{}", event.payload_file()?, event.direction?.file_suffix()))
}

/// Where in the file the bytes from `from` on are, and how many of `size` are there before a hole.
fn locate(holes: &[Hole], from: u64, size: u64) -> (u64, u64) {
    let mut lost = 0_u64;
    for hole in holes {
        // Where the hole begins, counted in bytes that events speak of.
        let begin = hole.at.saturating_add(lost);
        let end = begin.saturating_add(hole.len);
        if from < begin {
            return (from - lost, size.min(begin - from));
        }
        if from < end {
            return (hole.at, 0);
        }
        lost = lost.saturating_add(hole.len);
    }
    (from.saturating_sub(lost), size)
}

fn read_up_to(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], at + filled as u64) {
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
        let holes = [Hole { at: 10, len: 5 }, Hole { at: 20, len: 100 }];
        assert_eq!(locate(&holes, 0, 4), (0, 4));
        assert_eq!(locate(&holes, 8, 4), (8, 2));
        assert_eq!(locate(&holes, 10, 5), (10, 0));
        assert_eq!(locate(&holes, 15, 3), (10, 3));
        assert_eq!(locate(&holes, 24, 10), (19, 1));
        assert_eq!(locate(&holes, 125, 7), (20, 7));
        assert_eq!(locate(&[], 9, 1), (9, 1));
    }
}
