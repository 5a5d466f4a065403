//! Frames into the ring, and waiting for room there.

use core::sync::atomic::Ordering;

use rustix::thread::futex;
use socktrace_ring::{Full, Record, Writer};

use super::shared::{WAIT_NS, WAITED, has_server, left_ns, look_after, writer};
use super::unfinished::Unfinished;
use crate::process::clock::now_ns;
use crate::process::losses::Cause;
use crate::sys::confined::is_confined;
use crate::sys::copy_if_there;

/// From so many bytes on, a payload may lie in memory of its own, which whoever received it in the same process may have
/// unmapped already: allocators map large buffers and unmap them when they are freed. A system call for the copy then costs
/// little beside it.
pub(crate) const MAPPED_LEN: usize = 32 << 10;

/// Who writes a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writing {
    /// The thread.
    pub(crate) tid: u32,
    /// Where its call is on the stack.
    pub(crate) call: usize,
    /// Whether the payload may have been unmapped since the call was made.
    pub(crate) may_be_gone: bool,
}

/// The ring, while frames go there.
#[derive(Clone, Copy)]
pub(crate) struct Ring(&'static Writer);

/// The ring, if there is one.
#[inline]
pub(crate) fn ring() -> Option<Ring> {
    writer().map(Ring)
}

impl Ring {
    /// Sees to the server and takes the place for a frame of a length.
    #[inline(always)]
    pub(crate) fn begin(self, len: usize, from: Writing, now_ns: u64) -> Result<Begun, Cause> {
        look_after(now_ns);
        self.reserve(len, from)
    }

    #[inline(always)]
    fn reserve(self, len: usize, Writing { tid, call, .. }: Writing) -> Result<Begun, Cause> {
        let unfinished = Unfinished::new(self.0, tid, call);
        match self.0.reserve_noting(len, tid, |position| unfinished.at(position)) {
            Ok(record) => Ok(Begun { record, unfinished }),
            Err(Full) => match wait_for_room(self.0, len, tid, &unfinished) {
                Ok(record) => Ok(Begun { record, unfinished }),
                Err(why) => {
                    unfinished.done();
                    Err(why)
                }
            },
        }
    }

    pub(super) fn put(self, frame: &[&[u8]], from: Writing) -> Result<(), Cause> {
        let len = frame.iter().map(|part| part.len()).sum();
        let mut record = self.reserve(len, from)?;
        let is_whole = frame.iter().all(|part| record.push_if_there(part, from.may_be_gone));
        record.commit();
        if is_whole { Ok(()) } else { Err(Cause::Unmapped) }
    }
}

/// A frame's place in the ring, noted as unfinished.
pub(crate) struct Begun {
    record: Record,
    unfinished: Unfinished,
}

impl Begun {
    /// Appends to the frame.
    #[inline(always)]
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.record.push(bytes);
    }

    /// The same of bytes that may not be there any more, if they are so many that the program may have mapped them for
    /// this one call. If they are not, the frame is left out.
    fn push_if_there(&mut self, bytes: &[u8], may_be_gone: bool) -> bool {
        if !may_be_gone || bytes.len() < MAPPED_LEN {
            self.record.push(bytes);
            return true;
        }
        // SAFETY: `push_by` has room for so many.
        self.record.push_by(bytes.len(), |to| unsafe { copy_if_there(bytes.as_ptr(), to, bytes.len()) })
    }

    /// The same of a number of bytes that the compiler knows.
    #[inline(always)]
    pub(crate) fn push_array<const N: usize>(&mut self, bytes: [u8; N]) {
        self.record.push_array(bytes);
    }

    /// The same of a number of bytes that the compiler knows and `write` writes.
    #[inline(always)]
    pub(crate) fn push_with<const N: usize>(&mut self, write: impl FnOnce(&mut [u8; N])) {
        self.record.push_with(write);
    }

    /// The frame is complete.
    #[inline(always)]
    pub(crate) fn commit(self) {
        self.record.commit();
        self.unfinished.done();
    }
}

/// Waits for room if the parameters say so, for as long as they say, all waits together: until the server has read again.
#[cold]
#[inline(never)]
fn wait_for_room(writer: &Writer, len: usize, tid: u32, unfinished: &Unfinished) -> Result<Record, Cause> {
    let words = writer.memory().words();
    // Nobody reads a ring that no server was told of.
    if len > writer.max_frame_len() || is_confined() || !has_server() {
        return Err(Cause::Full);
    }
    loop {
        let seen = words.room.load(Ordering::Acquire);
        words.waiting.fetch_add(1, Ordering::SeqCst);
        let reserved = writer.reserve_noting(len, tid, |position| unfinished.at(position));
        let left = if reserved.is_ok() || words.stopped.load(Ordering::Relaxed) != 0 { 0 } else { left_ns(words) };
        if left > 0 {
            WAITED.during(|| {
                look_after(now_ns());
                let timeout = futex::Timespec { tv_sec: 0, tv_nsec: left.min(WAIT_NS) as _ };
                let _ = futex::wait(&words.room, futex::Flags::empty(), seen, Some(&timeout));
            });
        }
        words.waiting.fetch_sub(1, Ordering::SeqCst);
        if let Ok(record) = reserved {
            return Ok(record);
        }
        if left == 0 {
            return Err(Cause::Full);
        }
    }
}
