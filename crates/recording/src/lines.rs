//! The lines of events.jsonl, which may be anything: it is somebody else's file.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

/// The longest line, in bytes. A frame's texts are at most 192 KiB, five times that once they are escaped.
const MAX_LINE_LEN: usize = 4 << 20;
/// A file of more lines than this that are no events is not read on: it is something else.
pub(crate) const MAX_UNREADABLE: u64 = 1 << 20;
/// A file that is longer than this and all but empty (see [`is_inflated`]) is none of ours, in bytes.
const MAX_SPARSE_LEN: u64 = 1 << 30;
/// How many times as long as what it takes on the disk a file may be. File systems that compress come nowhere near.
const MAX_SPARSENESS: u64 = 64;
/// st_blocks counts in these, stat(3type).
const BLOCK_LEN: u64 = 512;

/// Opens a file of the recording that is to be read: a regular one, in the directory, and without waiting for anything.
///
/// # Errors
///
/// Those of open(2), and [`io::ErrorKind::InvalidInput`], saying what it is, for what is no regular file.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path).map_err(|error| {
        if Errno::from_io_error(&error) == Some(Errno::LOOP) {
            not_ours("a symbolic link, which is not followed")
        } else {
            error
        }
    })?;
    if !file.metadata()?.is_file() {
        return Err(not_ours("not a regular file"));
    }
    Ok(file)
}

/// Whether a file is mostly a hole, so that a few bytes on the disk are terabytes to whoever reads it.
pub(crate) fn is_inflated(file: &File) -> bool {
    file.metadata().is_ok_and(|stat| {
        stat.len() > MAX_SPARSE_LEN && stat.len() / MAX_SPARSENESS > stat.blocks().saturating_mul(BLOCK_LEN)
    })
}

fn not_ours(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

/// Reads lines.
#[derive(Debug)]
pub(crate) struct Lines {
    reader: BufReader<File>,
    /// The beginning of a line whose end is not there yet.
    torn: Vec<u8>,
    /// Where the next line begins.
    at: u64,
}

impl Lines {
    pub(crate) fn new(file: File) -> Self {
        Self { reader: BufReader::with_capacity(64 << 10, file), torn: Vec::new(), at: 0 }
    }

    pub(crate) fn file(&self) -> &File {
        self.reader.get_ref()
    }

    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    pub(crate) fn torn_len(&self) -> usize {
        self.torn.len()
    }

    pub(crate) fn rewind(&mut self) -> io::Result<()> {
        self.reader.rewind()?;
        self.torn.clear();
        self.at = 0;
        Ok(())
    }

    /// The next whole line, without its end; `None` if there is none yet.
    ///
    /// # Errors
    ///
    /// Those of read(2), and [`io::ErrorKind::InvalidData`] for a line that is longer than any of ours.
    pub(crate) fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let chunk = match self.reader.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                chunk => chunk?,
            };
            if chunk.is_empty() {
                return Ok(None);
            }
            let end = chunk.iter().position(|&b| b == b'\n');
            let taken = &chunk[..end.unwrap_or(chunk.len())];
            if self.torn.len() + taken.len() > MAX_LINE_LEN {
                let why = format!("the line at byte {} is longer than any that socktrace writes", self.at);
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            self.torn.extend_from_slice(taken);
            let used = taken.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                let line = std::mem::take(&mut self.torn);
                self.at += line.len() as u64 + 1;
                return Ok(Some(line));
            }
        }
    }
}
