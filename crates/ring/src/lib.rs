//! Frames in shared memory: many writers, one reader, no locks (docs/gttr.md, "Rings").
//!
//! The memory is a memfd of a page that both sides keep their positions in, and the ring itself, a power of two of
//! bytes. Positions count bytes from 0 on and never wrap. A record is a header of 16 bytes, then one frame, filled up
//! to 16 bytes.
//!
//! A writer takes its place by one exchange of 16 bytes: where the next record begins, with the length and the thread of
//! the last one taken. Before it does, it makes sure that the last one's header says as much. So whatever thread ends
//! in the middle of a record, the reader can tell how long the record was meant to be and whose it is.

#![warn(missing_docs)]
#![cfg_attr(not(test), no_std)]

mod map;
mod memory;
mod reader;
mod writer;

pub use map::{Untrusted, create, map, unmap};
pub use memory::{Memory, Pair, Words, numbers};
pub use reader::{Reader, Step};
pub use writer::{Full, Record, Writer};

/// Bytes of the page of positions, at the front of the memory.
pub const PAGE_LEN: usize = 4096;
/// Bytes of a record's header, and what records are aligned to.
pub const HEADER_LEN: usize = 16;
/// The first eight bytes of the memory.
pub const RING_MAGIC: [u8; 8] = *b"GTTRring";
/// The smallest and the largest ring, in bytes.
pub const MIN_RING_LEN: usize = 1 << 16;
/// See [`MIN_RING_LEN`].
pub const MAX_RING_LEN: usize = 1 << 30;

/// Whether a ring may have this length.
pub const fn is_ring_len(len: usize) -> bool {
    len.is_power_of_two() && len >= MIN_RING_LEN && len <= MAX_RING_LEN
}

/// Bytes of the record for a frame of this length.
const fn record_len(frame_len: usize) -> usize {
    (HEADER_LEN + frame_len).next_multiple_of(HEADER_LEN)
}

/// The first word of a record's header: 0 where no record was begun.
mod state {
    /// The frame is complete.
    pub(super) const COMMITTED: u64 = 1 << 63;
    /// The record is to be left out.
    pub(super) const VOID: u64 = 1 << 62;

    /// The length of the frame and the thread that writes it.
    pub(super) const fn new(frame_len: u32, tid: u32) -> u64 {
        // Never 0: no frame is empty. Frames are below 2^29 bytes, and thread ids below 2^22 (proc(5), pid_max).
        (frame_len as u64 & 0x1fff_ffff) << 32 | tid as u64
    }

    pub(super) const fn frame_len(state: u64) -> usize {
        (state >> 32 & 0x1fff_ffff) as usize
    }

    pub(super) const fn tid(state: u64) -> u32 {
        state as u32
    }
}

/// What the second word of a header is while nothing was written at a position: it tells a writer that was held up for
/// a whole round that the place it meant is another's now.
const fn stamp(position: u64, ring_len: usize) -> u64 {
    // Of the first round, what the kernel fills a new memory with.
    if position < ring_len as u64 { 0 } else { position.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
}

#[cfg(test)]
mod tests;
