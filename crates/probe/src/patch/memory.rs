//! Writing to code that threads may run in meanwhile.

use core::ffi::c_void;

use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mm::{MprotectFlags, mprotect};

use crate::arch::code;
use crate::sys::library::Range;

/// How code is written to.
pub(super) enum Access {
    /// Its pages are made writable meanwhile.
    Pages,
    /// By /proc/thread-self/mem, where memory that is writable cannot be executable (PR_SET_MDWE, prctl(2); SELinux). The kernel
    /// copies a few bytes at a time, so only before there is another thread.
    File(OwnedFd),
}

impl Access {
    /// To be closed afterwards. `None`: it cannot be written to.
    pub(super) fn open(text: Range) -> Option<Self> {
        if set_writable(text, true) {
            return Some(Self::Pages);
        }
        if !is_alone() {
            return None;
        }
        let file = openat(CWD, c"/proc/thread-self/mem", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).ok()?;
        Some(Self::File(file))
    }

    /// After it was written.
    pub(super) fn close(&self, text: Range) {
        if let Self::Pages = self {
            set_writable(text, false);
        }
    }

    /// Whether other threads see the bytes all at once.
    pub(super) fn can_write(&self, at: usize, len: usize) -> bool {
        match self {
            Self::Pages => at % code::CACHE_LINE_LEN + len <= code::CACHE_LINE_LEN,
            Self::File(_) => true,
        }
    }

    /// Writes code; whether that could be done.
    pub(super) fn write(&self, at: usize, bytes: &[u8]) -> bool {
        match self {
            Self::Pages => {
                // SAFETY: code that was made writable.
                unsafe { code::store(at, bytes) };
                true
            }
            Self::File(file) => rustix::io::pwrite(file, bytes, at as u64) == Ok(bytes.len()),
        }
    }
}

fn set_writable(text: Range, writable: bool) -> bool {
    const PAGE_LEN: usize = 4096;
    let mut flags = MprotectFlags::READ | MprotectFlags::EXEC;
    if writable {
        flags |= MprotectFlags::WRITE;
    }
    let start = text.start & !(PAGE_LEN - 1);
    let len = text.end.next_multiple_of(PAGE_LEN) - start;
    // SAFETY: a library's code; still executable while it is written to, for other threads run in it.
    unsafe { mprotect(start as *mut c_void, len, flags) }.is_ok()
}

/// Whether this is the only thread.
fn is_alone() -> bool {
    /// Of a folder without others in it: its name and its `.`.
    const LINKS: u64 = 2;
    rustix::fs::statat(CWD, c"/proc/self/task", rustix::fs::AtFlags::empty())
        .is_ok_and(|task| task.st_nlink == LINKS + 1)
}

/// Code of a library, at most so much.
pub(super) unsafe fn code(text: Range, at: usize, len: usize) -> &'static [u8] {
    let len = len.min(text.end.saturating_sub(at));
    // SAFETY: the caller's promise: mapped as long as the library is.
    unsafe { core::slice::from_raw_parts(at as *const u8, len) }
}
