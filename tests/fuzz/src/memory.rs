//! A ring whose writer keeps to no rule.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use socktrace_ring::{HEADER_LEN, MIN_RING_LEN, Memory, PAGE_LEN, RING_MAGIC, Words, create, unmap};

use crate::input::Input;

/// Where the tail is, in bytes from the beginning of the memory.
const TAIL_AT: usize = 64;
/// Words of the page that mean something, and some more.
const PAGE_WORDS: usize = 40;
/// Bits of a record's first word.
const COMMITTED: u64 = 1 << 63;
const VOID: u64 = 1 << 62;

/// A ring of the smallest length, as its hostile writer has it.
#[derive(Debug)]
pub(crate) struct Hostile {
    pub(crate) fd: OwnedFd,
    memory: Memory,
    /// Where an honest writer would go on.
    tail: u64,
}

impl Hostile {
    /// A ring that is fresh, or, where the input says so, one that holds an image: up to 256 bytes of the page, and the
    /// ring's first ones.
    pub(crate) fn new(input: &mut Input<'_>) -> Self {
        let (fd, memory) = create(MIN_RING_LEN).expect("there is memory");
        let mut hostile = Self { fd, memory, tail: 0 };
        let image = input.text();
        if !image.is_empty() {
            let (page, ring) = image.split_at(image.len().min(256));
            hostile.write(0, page);
            hostile.write(PAGE_LEN, ring);
            // Else most images would be no ring at all, which ends the matter.
            hostile.store(0, u64::from_le_bytes(RING_MAGIC));
            hostile.store(8, MIN_RING_LEN as u64);
            hostile.tail = hostile.word(TAIL_AT).load(Ordering::Relaxed) & !(HEADER_LEN as u64 - 1);
        }
        hostile
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// As a server maps it.
    pub(crate) fn map(&self) -> Option<Memory> {
        socktrace_ring::map(self.fd.as_fd()).ok()
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at + 8 <= PAGE_LEN + MIN_RING_LEN);
        let base: *const Words = self.memory.words();
        // SAFETY: a word of the mapping, which lives as long as this does; all who use it use atomics.
        unsafe { AtomicU64::from_ptr(base.cast_mut().cast::<u8>().add(at).cast()) }
    }

    fn store(&self, at: usize, word: u64) {
        self.word(at).store(word, Ordering::Relaxed);
    }

    /// Writes bytes from a word on; what is beyond the end goes nowhere.
    fn write(&self, at: usize, bytes: &[u8]) {
        for (index, chunk) in bytes.chunks(8).enumerate() {
            let at = at + 8 * index;
            if at + 8 > PAGE_LEN + MIN_RING_LEN {
                break;
            }
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.store(at, u64::from_le_bytes(word));
        }
    }

    /// What is at a position, in bytes from the beginning of the memory.
    fn at(position: u64) -> usize {
        PAGE_LEN + (position as usize & (MIN_RING_LEN - 8))
    }

    /// Does the next thing that the input says.
    pub(crate) fn scribble(&mut self, input: &mut Input<'_>) {
        match input.u8() % 4 {
            0 => {
                let at = 8 * (usize::from(input.u8()) % PAGE_WORDS);
                self.store(at, self.any_word(input));
            }
            1 => {
                let at = Self::at(u64::from(input.u16()) * 8);
                self.store(at, self.any_word(input));
            }
            2 => self.put(input, COMMITTED),
            _ => {
                let state = [0, VOID, COMMITTED | VOID, COMMITTED][usize::from(input.u8() % 4)];
                self.put(input, state);
            }
        }
    }

    fn any_word(&self, input: &mut Input<'_>) -> u64 {
        match input.u8() % 5 {
            0 => input.u64(),
            1 => u64::from(input.u16()) * HEADER_LEN as u64,
            2 => self.tail.wrapping_add_signed(i64::from(input.u8() as i8) * HEADER_LEN as i64),
            3 => COMMITTED | u64::from(input.u16()) << 32 | 1,
            _ => u64::from(input.u32()) << 32 | 1,
        }
    }

    /// A record as an honest writer has it, or nearly so.
    fn put(&mut self, input: &mut Input<'_>, state: u64) {
        let oddity = input.u8();
        let frame = input.text();
        let len = if oddity & 1 == 0 { frame.len() as u64 } else { input.u32().into() };
        // This thread, none, and one that nobody has.
        let tid = [std::process::id(), 0, u32::MAX, 1][usize::from(oddity >> 1 & 3)];
        let state = state | (len & 0x1fff_ffff) << 32 | u64::from(tid);
        let record_len = (HEADER_LEN as u64 + len).next_multiple_of(HEADER_LEN as u64);
        if oddity & 8 == 0 {
            self.store(Self::at(self.tail), state);
        }
        let body = Self::at(self.tail.wrapping_add(HEADER_LEN as u64));
        self.write(body, frame);
        self.tail = self.tail.wrapping_add(record_len);
        if oddity & 16 == 0 {
            self.store(TAIL_AT + 8, state);
        }
        if oddity & 32 == 0 {
            self.store(TAIL_AT, self.tail);
        }
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        // SAFETY: only this had it; readers have mappings of their own.
        unsafe { unmap(self.memory) };
    }
}
