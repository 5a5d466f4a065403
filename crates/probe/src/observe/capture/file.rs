//! sendfile(2): bytes that go from a file to a socket without ever being in the program's memory.
//!
//! They are read again, from the file: what the kernel sends is the file's pages, so that a file that is written to
//! meanwhile may reach the receiver either way too.

use core::ffi::c_long;

use rustix::fd::BorrowedFd;
use rustix::fs::{FileType, SeekFrom, fstat, seek};
use rustix::io::pread;

use super::call::Call;
use crate::sys::confined::is_confined;

/// The file that sendfile(2) is about to send from.
pub(crate) struct Source {
    fd: i32,
    /// Where the program keeps the position; null: it is the file's own.
    offset: *const c_long,
    /// The file's own position.
    position: Option<u64>,
    is_file: bool,
}

impl Source {
    /// Looks at the file before the call, if the call is one to record.
    pub(crate) fn before(call: &Call, fd: i32, offset: *const c_long) -> Self {
        let mut source = Self { fd, offset, position: None, is_file: false };
        if fd < 0 || call.is_idle(false) || is_confined() {
            return source;
        }
        // SAFETY: not -1; a closed one only makes the questions fail.
        let file = unsafe { BorrowedFd::borrow_raw(fd) };
        source.is_file = fstat(file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
        if source.is_file && offset.is_null() {
            source.position = seek(file, SeekFrom::Current(0)).ok();
        }
        source
    }

    fn file(&self) -> BorrowedFd<'_> {
        // SAFETY: not -1 where this is called; a closed one only makes the questions fail.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }

    /// Where in the file the `len` bytes were that have just been sent; `None` if that cannot be told.
    pub(super) fn sent_from(&self, len: u64) -> Option<u64> {
        if !self.is_file {
            return None;
        }
        if self.offset.is_null() {
            // Another thread may have moved the position.
            let now = seek(self.file(), SeekFrom::Current(0)).ok()?;
            return self.position.filter(|before| before.checked_add(len) == Some(now));
        }
        // SAFETY: the kernel has just written it.
        let after = unsafe { self.offset.read() };
        u64::try_from(after).ok()?.checked_sub(len)
    }

    /// Reads the file at a position; how many bytes, fewer than there is room for only if there are no more.
    pub(super) fn read_at(&self, buffer: &mut [u8], position: u64) -> usize {
        let mut len = 0;
        while len < buffer.len() {
            match pread(self.file(), &mut buffer[len..], position + len as u64) {
                Ok(n) if n > 0 => len += n,
                Err(rustix::io::Errno::INTR) => {}
                _ => break,
            }
        }
        len
    }
}
