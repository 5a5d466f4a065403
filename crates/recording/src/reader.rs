//! Reads a recording: events.jsonl, and the payload files that its events speak of.
//!
//! A recording may be anybody's and hold anything. Only regular files in its directory are opened, a line, an event's
//! bytes and all that is remembered have a limit, and what is left out for one is said.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use socktrace_event::{Data, Event, Lost, PathError, What};

use crate::events_file::NAME as EVENTS;
use crate::lines::{self, Lines};
use crate::ordered::Survey;

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
pub(crate) struct Location {
    /// The payload file's name, empty without bytes.
    name: String,
    at: u64,
    len: u64,
    missing: Option<&'static str>,
}

/// An event of a recording, and where its bytes are.
#[derive(Debug)]
pub struct Recorded {
    /// When it happened, as it was put in order: nanoseconds since the Unix epoch.
    pub(crate) ns: u64,
    pub(crate) line: Vec<u8>,
    location: Location,
    files: Arc<Files>,
}

impl Recorded {
    /// The event.
    pub fn event(&self) -> Event<'_> {
        // It was one when it was read.
        serde_json::from_slice(&self.line).unwrap_or_default()
    }

    /// Its line of events.jsonl, without the end.
    pub fn line(&self) -> &[u8] {
        &self.line
    }

    /// Up to `max` of the bytes that it speaks of, which are read now.
    pub fn payload(&self, max: usize) -> Payload {
        self.files.read(&self.location, max)
    }
}

/// The payload files.
#[derive(Debug)]
struct Files {
    folder: PathBuf,
    open: Mutex<HashMap<String, Arc<File>>>,
}

/// A recorded directory, read in the order in which its events arrived.
#[derive(Debug)]
pub struct Recording {
    files: Arc<Files>,
    lines: Lines,
    /// Up to which byte of events.jsonl the first reading went.
    end: u64,
    /// By the files' names, hashed with a key of our own: nobody can make two of them one.
    positions: HashMap<u64, Position>,
    names: RandomState,
    /// Whether events were lost between which payloads were written: where those of later events are, nobody knows.
    adrift: bool,
    /// Whether the server was told to write no payload files.
    omits_payload: bool,
    unreadable: u64,
}

/// Hears of each event in a first reading.
pub(crate) type Note<'n> = dyn FnMut(&Recording, &Event<'_>) + 'n;

impl Recording {
    /// # Errors
    ///
    /// One line that says what the path is instead.
    pub fn open(folder: &Path) -> Result<Self, PathError> {
        Ok(Self::survey(folder, &mut |_, _| {})?.0)
    }

    /// Opens a recording and reads it once, as far as it goes now, for what must be known before: holes, and times; and how
    /// many bytes of a line that has no end are behind that.
    pub(crate) fn survey(folder: &Path, note: &mut Note<'_>) -> Result<(Self, Survey, usize), PathError> {
        let path = &*folder.join(EVENTS);
        let file = lines::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound if folder.is_dir() => {
                PathError::unsuitable(folder, format!("no recording: it has no {EVENTS}"))
            }
            io::ErrorKind::NotFound => PathError::unsuitable(folder, "no such directory"),
            io::ErrorKind::NotADirectory => PathError::unsuitable(
                folder,
                "not a directory: what is wanted is the one that was given to -w or to the server",
            ),
            io::ErrorKind::InvalidInput => PathError::unsuitable(path, format!("no recording: {error}")),
            _ => PathError::input(path)(error),
        })?;
        if lines::is_inflated(&file) {
            return Err(PathError::unsuitable(path, "no recording: it is nearly all a hole"));
        }
        let mut recording = Self {
            files: Arc::new(Files { folder: folder.to_owned(), open: Mutex::default() }),
            lines: Lines::new(file),
            end: 0,
            positions: HashMap::new(),
            names: RandomState::new(),
            adrift: false,
            omits_payload: false,
            unreadable: 0,
        };
        let (survey, torn) = recording.read_once(note).map_err(PathError::io(path, "cannot be read"))?;
        Ok((recording, survey, torn))
    }

    /// The times of what is there, and how many bytes of a line that has no end are behind that.
    fn read_once(&mut self, note: &mut Note<'_>) -> io::Result<(Survey, usize)> {
        let mut survey = Survey::default();
        self.end = self.events_len()?;
        // What grows while it is read has no end.
        while self.at() < self.end {
            let at = self.at();
            let Some(line) = self.lines.next()? else { break };
            let Some(event) = self.parse(&line)? else { continue };
            survey.note(at, &event);
            // Events that tell of holes come after those whose bytes are missing.
            if let What::Lost(lost) = &event.what {
                self.note_hole(&event, lost);
            }
            note(self, &event);
        }
        self.end = self.at();
        let torn = self.torn_len();
        self.lines.rewind()?;
        (self.adrift, self.unreadable) = (false, 0);
        Ok((survey, torn))
    }

    /// The next event that has arrived; None if there is none yet.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is something else than a recording.
    pub fn next_event(&mut self) -> Result<Option<Recorded>, PathError> {
        loop {
            match self.read_line(|event| event.time_ns())? {
                Some(None) => {}
                line => return Ok(line.flatten()),
            }
        }
    }

    /// The next line, if there is one yet, and its event, if it is one, with the time that it is given.
    pub(crate) fn read_line(
        &mut self,
        time: impl FnOnce(&Event<'_>) -> u64,
    ) -> Result<Option<Option<Recorded>>, PathError> {
        let read = self.try_read_line(time);
        read.map_err(PathError::io(&self.files.folder, "cannot be read"))
    }

    fn try_read_line(&mut self, time: impl FnOnce(&Event<'_>) -> u64) -> io::Result<Option<Option<Recorded>>> {
        let Some(line) = self.lines.next()? else { return Ok(None) };
        let Some(event) = self.parse(&line)? else { return Ok(Some(None)) };
        let (ns, location) = (time(&event), self.locate(&event));
        Ok(Some(Some(Recorded { ns, location, files: Arc::clone(&self.files), line })))
    }

    /// All events that have arrived, in that order.
    pub fn events(mut self) -> impl Iterator<Item = Result<Recorded, PathError>> {
        std::iter::from_fn(move || self.next_event().transpose())
    }

    fn note_hole(&mut self, event: &Event<'_>, lost: &Lost<'_>) {
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

    /// The event of a line; None, and counted, if it is none.
    fn parse<'l>(&mut self, line: &'l [u8]) -> io::Result<Option<Event<'l>>> {
        // An array of the fields' values would do, too.
        let is_object = line.trim_ascii_start().starts_with(b"{");
        match serde_json::from_slice(line) {
            Ok(event) if is_object => return Ok(Some(event)),
            _ => {}
        }
        self.unreadable += 1;
        self.adrift = true;
        if self.unreadable < lines::MAX_UNREADABLE {
            return Ok(None);
        }
        let why = format!("no recording: {} of its lines are no events", self.unreadable);
        Err(io::Error::new(io::ErrorKind::InvalidData, why))
    }

    /// The directory.
    pub fn folder(&self) -> &Path {
        &self.files.folder
    }

    /// Lines that were no events so far, and are left out.
    pub fn unreadable(&self) -> u64 {
        self.unreadable
    }

    /// Up to which byte events.jsonl went when it was opened.
    pub fn end(&self) -> u64 {
        self.end
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
        let (ours, there) = (self.lines.file().metadata(), std::fs::symlink_metadata(self.files.folder.join(EVENTS)));
        let (Ok(ours), Ok(there)) = (ours, there) else { return false };
        (ours.dev(), ours.ino()) == (there.dev(), there.ino()) && there.len() >= self.at() + self.torn_len() as u64
    }

    /// Takes note of what the event says of the payload files, and returns where its own bytes are.
    fn locate(&mut self, event: &Event<'_>) -> Location {
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

    /// The first bytes of a data event's payload file, at most `max`; none if they are not there.
    pub fn beginning(&self, event: &Event<'_>, max: usize) -> Vec<u8> {
        let Some(name) = event.payload_name() else { return Vec::new() };
        self.files.read(&Location { name, at: 0, len: max as u64, missing: None }, max).bytes
    }
}

impl Files {
    /// Up to `max` of the bytes at a location.
    fn read(&self, location: &Location, max: usize) -> Payload {
        let max = max.min(MAX_PAYLOAD);
        let wanted = location.len.min(max as u64);
        let too_long = location.len > MAX_PAYLOAD as u64 && max == MAX_PAYLOAD;
        if wanted == 0 {
            return Payload { bytes: Vec::new(), missing: location.missing };
        }
        // An event's size is what somebody wrote into a file: memory is taken for bytes that are there.
        let (mut bytes, mut read) = (Vec::new(), 0);
        if let Ok(file) = self.file(&location.name) {
            if lines::is_inflated(&file) {
                return Payload {
                    bytes,
                    missing: Some("its payload file is nearly all a hole, which socktrace makes none of"),
                };
            }
            let there = file.metadata().map_or(0, |file| file.len().saturating_sub(location.at));
            bytes = vec![0; usize::try_from(wanted.min(there)).unwrap_or(max)];
            read = read_up_to(&file, &mut bytes, location.at).unwrap_or(0);
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

    fn file(&self, name: &str) -> io::Result<Arc<File>> {
        // A thread that panicked left the map whole.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(name) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(lines::open(&self.folder.join(name))?);
        if open.len() >= MAX_OPEN {
            open.clear();
        }
        open.insert(name.to_owned(), Arc::clone(&file));
        Ok(file)
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
