//! Reads a recording: events.jsonl, and the payload files that its events speak of.
//!
//! A recording may be anybody's and hold anything. Only regular files in its directory are opened, a line, an event's
//! bytes and all that is remembered have a limit, and what is left out for one is said.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use socktrace_event::{Captured, Event, PathError, What};

use crate::events_file::NAME as EVENTS;
use crate::lines::{self, Lines};
use crate::ordered::Survey;
use crate::places::{Location, Places};

/// So many payload files are open at once.
const MAX_OPEN: usize = 128;
/// No event has more bytes than a frame takes.
const MAX_PAYLOAD: usize = gttr::MAX_PAYLOAD_LEN as usize;

/// What is to be had of a data event's bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Payload {
    /// Those that are there, from the first one on.
    pub bytes: Vec<u8>,
    /// Why they are not all that the event speaks of.
    pub missing: Option<&'static str>,
}

impl Payload {
    /// The same, borrowed.
    pub fn captured(&self) -> Captured<'_> {
        Captured { bytes: &self.bytes, missing: self.missing }
    }
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
    places: Places,
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
            places: Places::default(),
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
                self.places.note_hole(&event, lost);
            }
            note(self, &event);
        }
        self.end = self.at();
        let torn = self.torn_len();
        self.lines.rewind()?;
        self.places.begin_again();
        self.unreadable = 0;
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
        let (ns, location) = (time(&event), self.places.locate(&event));
        Ok(Some(Some(Recorded { ns, location, files: Arc::clone(&self.files), line })))
    }

    /// All events that have arrived, in that order.
    pub fn events(mut self) -> impl Iterator<Item = Result<Recorded, PathError>> {
        std::iter::from_fn(move || self.next_event().transpose())
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
        self.places.lose_count();
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
