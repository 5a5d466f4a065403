//! What a record begins with, and how long it is.

/// Bytes of a record's header, and what records are aligned to.
pub const HEADER_LEN: usize = 16;

/// Bytes of the record for a frame of this length.
pub(super) const fn record_len(frame_len: usize) -> usize {
    (HEADER_LEN + frame_len).next_multiple_of(HEADER_LEN)
}

/// The first word of a record's header: 0 where no record was begun.
pub(super) mod state {
    /// The frame is complete.
    pub(crate) const COMMITTED: u64 = 1 << 63;
    /// The record is to be left out.
    pub(crate) const VOID: u64 = 1 << 62;

    /// The length of the frame and the thread that writes it.
    pub(crate) const fn new(frame_len: u32, tid: u32) -> u64 {
        // Never 0: no frame is empty. Frames are below 2^29 bytes, and thread ids below 2^22 (proc(5), pid_max).
        (frame_len as u64 & 0x1fff_ffff) << 32 | tid as u64
    }

    pub(crate) const fn frame_len(state: u64) -> usize {
        (state >> 32 & 0x1fff_ffff) as usize
    }

    pub(crate) const fn tid(state: u64) -> u32 {
        state as u32
    }
}

/// What the second word of a header is while nothing was written at a position: it tells a writer that was held up for
/// a whole round that the place it meant is another's now.
pub(super) const fn stamp(position: u64, ring_len: usize) -> u64 {
    // Of the first round, what the kernel fills a new memory with.
    if position < ring_len as u64 { 0 } else { position.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
}
