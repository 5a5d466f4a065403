//! The server's side. The writers may be hostile, and change anything at any time: every word is read once and checked.

use core::sync::atomic::{AtomicU64, Ordering};

use super::{HEADER_LEN, Memory, Words, record_len, stamp, state};

/// No ring gets so far, in bytes; positions beyond it are no honest ones, and would wrap.
const MAX_HEAD: u64 = 1 << 62;

/// Takes frames out of a ring; there is one.
#[derive(Debug)]
pub struct Reader {
    memory: Memory,
    /// Up to where records have been taken.
    position: u64,
    /// Up to where they have been given back.
    freed: u64,
    /// Up to where records were taken by writers when that was last looked at: their processor need not hand that word
    /// over for each record.
    tail: u64,
}

/// What is next in a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A frame of this length, copied to the front of the buffer.
    Frame(usize),
    /// A record that its writer gave up.
    Void,
    /// Nothing.
    Empty,
    /// A record that this thread has not finished.
    Unfinished {
        /// As its process sees it.
        tid: u32,
    },
    /// No ring that a writer of ours made: it is not to be read on.
    Corrupt,
}

impl Reader {
    /// A reader that begins where the last one left off: with what that had not given back, whether or not it had put it on
    /// record. `None` if this is no ring.
    pub fn new(memory: Memory) -> Option<Self> {
        let head = memory.words().head.load(Ordering::Acquire);
        let is_position = head.is_multiple_of(HEADER_LEN as u64) && head <= MAX_HEAD;
        (memory.is_ring() && is_position).then_some(Self { memory, position: head, freed: head, tail: head })
    }

    /// The page of positions.
    pub fn words(&self) -> &Words {
        self.memory.words()
    }

    /// Up to where records have been taken.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Bytes that were taken and not given back.
    pub fn held(&self) -> u64 {
        self.position - self.freed
    }

    /// Bytes of the ring.
    pub fn ring_len(&self) -> usize {
        self.memory.ring_len()
    }

    /// Takes the next record. `buffer` has room for the longest frame, half of the ring.
    pub fn next(&mut self, buffer: &mut [u8]) -> Step {
        let mut left = self.tail.wrapping_sub(self.position);
        let mut state = 0;
        if left != 0 {
            state = self.memory.header(self.position).first();
        }
        if state == 0 {
            let [tail, last] = self.words().tail.read();
            left = tail.wrapping_sub(self.position);
            if left == 0 {
                return Step::Empty;
            }
            if left > self.memory.ring_len() as u64 - self.held() || !tail.is_multiple_of(HEADER_LEN as u64) {
                return Step::Corrupt;
            }
            self.tail = tail;
            state = self.memory.header(self.position).first();
            if state == 0 {
                // Only the last record may be without; its writer, or the next, is at it, or is gone.
                if record_len(state::frame_len(last)) as u64 != left {
                    return Step::Unfinished { tid: 0 };
                }
                state = last;
            }
        }
        let (frame_len, tid) = (state::frame_len(state), state::tid(state));
        let len = record_len(frame_len);
        // One that was given up is no longer than others: what is given back is written to.
        if frame_len == 0 || len as u64 > left || frame_len > buffer.len() {
            return Step::Corrupt;
        }
        if state & state::VOID != 0 {
            self.position += len as u64;
            return Step::Void;
        }
        if state & state::COMMITTED == 0 {
            return Step::Unfinished { tid };
        }
        let Some(frame) = buffer.get_mut(..frame_len) else { return Step::Corrupt };
        // SAFETY: within the mapping: `len` is at most `left`, at most the ring. The bytes may change meanwhile, which is
        // why they are copied before they are looked at, and by words that are atomics.
        unsafe { copy(self.memory.at(self.position).add(HEADER_LEN), frame) };
        self.position += len as u64;
        Step::Frame(frame_len)
    }

    /// Puts the frame of this length back that was taken last, and not given back: it is next again.
    pub fn put_back(&mut self, frame_len: usize) {
        self.position = self.position.saturating_sub(record_len(frame_len) as u64).max(self.freed);
    }

    /// Steps over the record that is next, whose thread is gone; whether there was one.
    pub fn step_over(&mut self) -> bool {
        let tail = &self.words().tail;
        // An exchange that changes nothing tells both words as they are at one moment.
        let [tail, last] = match tail.exchange([0, 0], [0, 0]) {
            Ok(()) => return false,
            Err(found) => found,
        };
        let left = tail.wrapping_sub(self.position);
        let state = match self.memory.header(self.position).first() {
            0 => last,
            state => state,
        };
        let len = record_len(state::frame_len(state)) as u64;
        let is_one = left > 0 && len <= left && left <= self.memory.ring_len() as u64 - self.held();
        if is_one {
            self.position += len;
            self.tail = tail;
        }
        is_one
    }

    /// Whether there is nothing that the reader has not taken.
    pub fn is_empty(&self) -> bool {
        self.words().tail_position() == self.position
    }

    /// Gives back what was taken: it is on record.
    pub fn free(&mut self) {
        let mut at = self.freed;
        while at != self.position {
            let ring_len = self.memory.ring_len();
            self.memory.header(at).reset(stamp(at + ring_len as u64, ring_len));
            at += HEADER_LEN as u64;
        }
        self.freed = self.position;
        self.words().head.store(self.position, Ordering::Release);
    }
}

/// Copies bytes that others may write to: in words, each read once, or by an instruction that the compiler cannot look
/// behind.
///
/// # Safety
///
/// `from` is aligned to a word, and has as many readable bytes, up to the end of the last word.
#[inline]
unsafe fn copy(from: *mut u8, to: &mut [u8]) {
    const WORD: usize = size_of::<u64>();
    /// From here on `rep movsb` is faster, though it takes some time to begin.
    const LONG: usize = 512;
    if to.len() >= LONG {
        // SAFETY: the caller's promise; the direction flag is clear by the ABI's rules.
        unsafe {
            core::arch::asm!(
                "rep movsb", inout("rcx") to.len() => _, inout("rdi") to.as_mut_ptr() => _, inout("rsi") from => _,
                options(nostack, preserves_flags),
            );
        }
        return;
    }
    // SAFETY: the caller's promise.
    let word = |index| unsafe { AtomicU64::from_ptr(from.cast::<u64>().add(index)) }.load(Ordering::Relaxed);
    let whole = to.len() / WORD;
    let (words, rest) = to.as_chunks_mut::<WORD>();
    for (index, to) in words.iter_mut().enumerate() {
        *to = word(index).to_ne_bytes();
    }
    if !rest.is_empty() {
        rest.copy_from_slice(&word(whole).to_ne_bytes()[..rest.len()]);
    }
}
