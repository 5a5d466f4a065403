//! Reads a recorded directory: events.jsonl, and the payload files that its events speak of.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use socktrace_server::{Event, EventType};

const EVENTS: &str = "events.jsonl";
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
    pub bytes: Vec<u8>,
    pub missing: Option<&'static str>,
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
                anyhow::anyhow!("{shown}: not a directory: show takes the one that was given to -w or to the server")
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

    /// The event of a line.
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
    pub fn payload(&mut self, event: &Event<'_>, max: usize) -> Payload {
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
                return Payload { missing, ..Payload::default() };
            }
            EventType::Data => return self.data(event, max),
            _ => {}
        }
        Payload::default()
    }

    fn data(&mut self, event: &Event<'_>, max: usize) -> Payload {
        let size = event.size.unwrap_or(0);
        let Some(name) = payload_name(event) else {
            return Payload { missing: Some("its event names no payload file"), ..Payload::default() };
        };
        let is_new = !self.positions.contains_key(&name);
        let position = self.positions.entry(name.clone()).or_default();
        let from = position.spoken_of;
        position.spoken_of = from.saturating_add(size);
        if size == 0 {
            return Payload::default();
        }
        if self.adrift && !is_new {
            return Payload {
                missing: Some("events were lost, so where its bytes are is not known"),
                ..Payload::default()
            };
        }
        let (at, there) = locate(&position.holes, from, size);
        let wanted = there.min(max as u64);
        let mut bytes = vec![0; usize::try_from(wanted).unwrap_or(max)];
        let read = self.file(&name).and_then(|file| read_up_to(file, &mut bytes, at)).unwrap_or(0);
        bytes.truncate(read);
        let missing = if (read as u64) < wanted {
            Some("the payload file ends before")
        } else if there < size {
            Some("bytes were lost")
        } else {
            None
        };
        Payload { bytes, missing }
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
