//! The traced process's side.

use core::sync::atomic::Ordering;

use super::{HEADER_LEN, Memory, record_len, stamp, state};

/// Puts frames into a ring; as many as there are threads and forked processes.
#[derive(Clone, Copy, Debug)]
pub struct Writer {
    memory: Memory,
}

/// There is no room for the record now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// A record that has its place and no frame yet.
#[derive(Debug)]
#[must_use = "a record that is not committed holds up the reader"]
pub struct Record {
    memory: Memory,
    position: u64,
    state: u64,
    written: usize,
}

impl Writer {
    /// A writer of a ring.
    pub fn new(memory: Memory) -> Self {
        Self { memory }
    }

    /// The ring's memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The longest frame.
    pub fn max_frame_len(&self) -> usize {
        self.memory.ring_len() / 2
    }

    /// Takes the place for a frame of a length, at most [`Writer::max_frame_len`], for a thread.
    ///
    /// # Errors
    ///
    /// [`Full`].
    #[inline(always)]
    pub fn reserve(&self, frame_len: usize, tid: u32) -> Result<Record, Full> {
        self.reserve_noting(frame_len, tid, |_| {})
    }

    /// The same, calling `note` with each position that it tries to take, before it does: what [`Writer::abandon`]
    /// takes, should the thread not come back to commit the record.
    ///
    /// # Errors
    ///
    /// [`Full`].
    #[inline(always)]
    pub fn reserve_noting(&self, frame_len: usize, tid: u32, note: impl Fn(u64)) -> Result<Record, Full> {
        let words = self.memory.words();
        // Within 2^29: half of MAX_RING_LEN.
        let state = state::new(frame_len as u32, tid);
        let len = record_len(frame_len) as u64;
        let mut tail = words.tail.read();
        loop {
            let [position, last] = tail;
            let end = position.wrapping_add(len);
            let used = end.wrapping_sub(words.head.load(Ordering::Acquire));
            if used > self.memory.ring_len() as u64 {
                return Err(Full);
            }
            self.see_to_header(position, last);
            note(position);
            match words.tail.exchange(tail, [end, state]) {
                Ok(()) => return Ok(Record { memory: self.memory, position, state, written: 0 }),
                Err(found) => tail = found,
            }
        }
    }

    /// Makes sure that the header of the last record that was taken, up to `end`, says what it is.
    #[inline]
    fn see_to_header(&self, end: u64, last: u64) {
        let position = end.wrapping_sub(record_len(state::frame_len(last)) as u64);
        if last == 0 || !position.is_multiple_of(HEADER_LEN as u64) {
            return;
        }
        let header = self.memory.header(position);
        if header.first() == 0 {
            let nothing = stamp(position, self.memory.ring_len());
            // Either this one, or the thread whose record it is, or another that saw to it.
            let _ = header.exchange([0, nothing], [last, nothing]);
        }
    }
}

impl Record {
    /// Appends to the frame.
    ///
    /// # Panics
    ///
    /// If it is more than there was room asked for.
    #[inline]
    pub fn push(&mut self, bytes: &[u8]) {
        let to = self.room(bytes.len());
        // SAFETY: in the record, which is this one's alone.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// [`Record::push`] of a number of bytes that the compiler knows: it becomes a few stores.
    ///
    /// # Panics
    ///
    /// As it does.
    #[inline(always)]
    pub fn push_array<const N: usize>(&mut self, bytes: [u8; N]) {
        let to = self.room(N);
        // SAFETY: as above.
        unsafe { to.cast::<[u8; N]>().write_unaligned(bytes) };
    }

    /// Appends a number of bytes that the compiler knows and `write` writes, all of them: into the ring and not onto the
    /// stack first.
    ///
    /// # Panics
    ///
    /// As [`Record::push`] does.
    #[inline(always)]
    pub fn push_with<const N: usize>(&mut self, write: impl FnOnce(&mut [u8; N])) {
        let to = self.room(N);
        // SAFETY: in the record, which is this one's alone until it is committed; any bytes are valid.
        write(unsafe { &mut *to.cast::<[u8; N]>() });
    }

    /// Appends a number of bytes that `write` puts where it is told to. If it says that it could not, the frame is not
    /// complete, and is left out.
    ///
    /// # Panics
    ///
    /// As [`Record::push`] does.
    pub fn push_by(&mut self, len: usize, write: impl FnOnce(*mut u8) -> bool) -> bool {
        let to = self.room(len);
        let written = write(to);
        if !written {
            self.written = 0;
        }
        written
    }

    /// Where the next bytes go, so many.
    #[inline(always)]
    fn room(&mut self, len: usize) -> *mut u8 {
        let start = self.written;
        self.written += len;
        assert!(self.written <= state::frame_len(self.state), "a frame is as long as was said");
        // SAFETY: in the mapping, which has a whole record in one piece.
        unsafe { self.memory.at(self.position).add(HEADER_LEN + start) }
    }

    /// The frame is complete; one that is shorter than was said is not, and is left out.
    #[inline]
    pub fn commit(self) {
        let whole = self.written == state::frame_len(self.state);
        let what = if whole { state::COMMITTED } else { state::VOID };
        self.memory.header(self.position).set_first(self.state | what);
    }
}

impl Writer {
    /// Whose the record at a position is, if it is neither committed nor given up.
    pub fn unfinished(&self, position: u64) -> Option<u32> {
        self.unfinished_state(position).map(state::tid)
    }

    /// Gives up the record at a position that was not committed, and whose thread, the caller's, has gone elsewhere: a
    /// signal handler jumped out of it. Whether there was one.
    pub fn abandon(&self, position: u64, tid: u32) -> bool {
        let Some(state) = self.unfinished_state(position).filter(|state| state::tid(*state) == tid) else {
            return false;
        };
        self.memory.header(position).set_first(state | state::VOID);
        true
    }

    fn unfinished_state(&self, position: u64) -> Option<u64> {
        let words = self.memory.words();
        // An exchange that changes nothing tells both words as they are at one moment.
        let [tail, last] = match words.tail.exchange([0, 0], [0, 0]) {
            Ok(()) => return None,
            Err(found) => found,
        };
        let head = words.head.load(Ordering::Acquire);
        if position.wrapping_sub(head) >= tail.wrapping_sub(head) || !position.is_multiple_of(HEADER_LEN as u64) {
            return None;
        }
        let state = match self.memory.header(position).first() {
            // Only the last record may be without.
            0 if position.wrapping_add(record_len(state::frame_len(last)) as u64) == tail => last,
            state => state,
        };
        (state != 0 && state & (state::COMMITTED | state::VOID) == 0).then_some(state)
    }
}
