//! `events.jsonl`: whole lines only, whatever happens to the disk.

use std::path::Path;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FlockOperation, OFlags, flock, fstat, ftruncate, openat};
use rustix::io::{Errno, pread, retry_on_intr};

use gttr::Frame;
use socktrace_event::{Event, PathError};

use crate::data_line;
use crate::folder::{FILE_MODE, check_file, explain_refusal};
use crate::outage::Failure;

/// Name of the file in the output directory.
pub(crate) const NAME: &str = "events.jsonl";
/// Lines are written when they take so much, in bytes, if they are not flushed before.
const WRITE_LEN: usize = 1 << 20;
/// How much is kept while nothing can be written, in bytes.
const MAX_PENDING: usize = 8 << 20;
/// How much is read at a time when looking for the last line's beginning, in bytes.
const SCAN_LEN: u64 = 64 << 10;

/// The open file and the lines that are still to be written.
#[derive(Debug)]
pub(crate) struct EventsFile {
    file: OwnedFd,
    /// Length of the whole lines that are written.
    len: u64,
    pending: Vec<u8>,
    /// Bytes of a line's beginning at the file's end that could not be taken off yet.
    torn: u64,
    lost: u64,
    lost_because: Option<Failure>,
    failure: Option<Failure>,
}

impl EventsFile {
    /// Opens or makes the file, and takes off a torn last line; returns whether there was one.
    pub(crate) fn open(folder: BorrowedFd<'_>, shown: &Path) -> Result<(Self, bool), PathError> {
        let path = &*shown.join(NAME);
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Not to wait for the other end of a FIFO, nor to get a terminal.
        let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = openat(folder, NAME, flags, FILE_MODE).map_err(|e| PathError::refused(path, explain_refusal(e)))?;
        let stat = check_file(&file).map_err(|e| PathError::refused(path, explain_refusal(e)))?;
        // Two servers would repair each other's last lines away. Where there are no locks, nobody can tell.
        if flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
            return Err(PathError::in_use(path, "another server is recording there: choose another output directory"));
        }
        let len = u64::try_from(stat.st_size).unwrap_or(0);
        let whole = whole_lines(&file, len).map_err(PathError::io(path, "cannot be read"))?;
        if whole < len {
            ftruncate(&file, whole).map_err(PathError::io(path, "a torn last line cannot be taken off"))?;
        }
        let pending = Vec::new();
        Ok((Self { file, len: whole, pending, torn: 0, lost: 0, lost_because: None, failure: None }, whole < len))
    }

    /// Length of the file as far as whole lines are written, in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing is pending.
    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.lost == 0
    }

    /// The file, to be read from.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Adds an event; while nothing can be written and too much is pending, counts it as lost.
    ///
    /// Once an event is lost, those after it are, too, until all that is pending is written: so the `lost` event comes
    /// to stand where the lost ones would.
    pub(crate) fn push(&mut self, event: &Event<'_>) {
        if !self.has_room() {
            return;
        }
        let before = self.pending.len();
        match serde_json::to_writer(&mut self.pending, event) {
            Ok(()) => self.pending.push(b'\n'),
            // Strings and numbers into memory: there is nothing that could fail. Were it to, it would not be silent.
            Err(_) => {
                self.pending.truncate(before);
                self.lost += 1;
            }
        }
    }

    /// Adds the event of a data frame, as [`EventsFile::push`] does, if it is one of the usual kind; otherwise returns
    /// false and does nothing.
    #[inline]
    pub(crate) fn push_data(&mut self, frame: &Frame<'_>) -> bool {
        // Losses are counted by the other way.
        let is_blocked = self.lost > 0 || self.failure.is_some();
        !is_blocked && data_line::push_data(&mut self.pending, frame)
    }

    /// Whether an event may be added; counts it as lost if not.
    fn has_room(&mut self) -> bool {
        let has_room = self.lost == 0 && (self.failure.is_none() || self.pending.len() < MAX_PENDING);
        if !has_room {
            self.lost += 1;
            self.lost_because = self.lost_because.or(self.failure);
        }
        has_room
    }

    /// Nothing is written now, for a reason that is not this file's.
    pub(crate) fn hold(&mut self, failure: Failure) {
        self.failure = Some(failure);
    }

    /// Whether so much is pending that it should be written.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.pending.len() >= WRITE_LEN
    }

    /// Writes what is pending, as whole lines.
    pub(crate) fn write(&mut self) -> Result<(), Failure> {
        let result = self.try_write().map_err(Failure);
        self.failure = result.err();
        result
    }

    fn try_write(&mut self) -> Result<(), Errno> {
        self.take_off_torn()?;
        let mut written = 0;
        let mut result = Ok(());
        while written < self.pending.len() {
            match retry_on_intr(|| rustix::io::write(&self.file, &self.pending[written..])) {
                Ok(0) => result = Err(Errno::IO),
                Ok(len) => written += len,
                Err(e) => result = Err(e),
            }
            if result.is_err() {
                break;
            }
        }
        let whole = self.pending[..written].iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        self.torn = (written - whole) as u64;
        self.len += whole as u64;
        self.pending.drain(..whole);
        self.pending.shrink_to(2 * WRITE_LEN);
        // If that fails it is tried again before the next write.
        let _ = self.take_off_torn();
        result
    }

    fn take_off_torn(&mut self) -> Result<(), Errno> {
        if self.torn > 0 {
            // By the file's real length, in case somebody else has shortened it.
            let len = u64::try_from(fstat(&self.file)?.st_size).unwrap_or(0);
            ftruncate(&self.file, len.saturating_sub(self.torn))?;
            self.torn = 0;
        }
        Ok(())
    }

    /// Why nothing could be written the last time, if it could not.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.failure
    }

    /// How many events were lost since this was last asked, and why.
    pub(crate) fn take_lost(&mut self) -> Option<(u64, Failure)> {
        let failure = self.lost_because.take().unwrap_or(Failure(Errno::IO));
        let lost = std::mem::take(&mut self.lost);
        (lost > 0).then_some((lost, failure))
    }

    /// How many events are lost or would be if nothing more were written.
    pub(crate) fn unwritten(&self) -> u64 {
        // A line feed within a string is escaped in JSON.
        self.lost + self.pending.iter().filter(|&&b| b == b'\n').count() as u64
    }
}

/// Length of the whole lines that a file of `len` bytes begins with.
fn whole_lines(file: impl AsFd, len: u64) -> Result<u64, Errno> {
    let mut end = len;
    let mut chunk = vec![0; usize::try_from(SCAN_LEN.min(len)).expect("at most SCAN_LEN")];
    while end > 0 {
        let start = end.saturating_sub(SCAN_LEN);
        let part = &mut chunk[..usize::try_from(end - start).expect("at most SCAN_LEN")];
        let mut filled = 0;
        while filled < part.len() {
            match retry_on_intr(|| pread(&file, &mut part[filled..], start + filled as u64))? {
                0 => return Err(Errno::IO),
                n => filled += n,
            }
        }
        if let Some(at) = part.iter().rposition(|&b| b == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}
