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

mod layout;
mod map;
mod memory;
mod reader;
mod writer;

pub use layout::HEADER_LEN;
use layout::{record_len, stamp, state};
pub use map::{Untrusted, create, map, unmap};
pub use memory::{Memory, Pair, Words, numbers};
pub use reader::{Reader, Step};
pub use writer::{Full, Record, Writer};

/// Bytes of the page of positions, at the front of the memory.
pub const PAGE_LEN: usize = 4096;
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

#[cfg(test)]
mod tests;
