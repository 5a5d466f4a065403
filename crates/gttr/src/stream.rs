//! Frames in a byte stream that may be cut anywhere and may hold garbage.

use crate::frame::{Error, Frame, HEADER_LEN, Header, MAGIC, decode_datagram};

/// What the front of a buffer holds.
#[derive(Debug, PartialEq, Eq)]
pub enum StreamStep<'a> {
    /// A frame of the first `len` bytes; take them off and go on.
    Frame {
        /// The frame.
        frame: Frame<'a>,
        /// Bytes to take off.
        len: usize,
    },
    /// `skip` bytes that are no frame; take them off and go on. The decoder adds up what it skips.
    Garbage {
        /// Bytes to take off.
        skip: usize,
    },
    /// A frame, or garbage, has begun and is not all there: read more, up to `needed` bytes in the buffer.
    Incomplete {
        /// Bytes the buffer must hold before another look is worth while.
        needed: usize,
    },
}

/// Finds frames in a stream, and counts what lies between them.
///
/// It holds no bytes: the caller owns the buffer and takes off what a step says. After garbage the next
/// [`StreamStep::Frame`] is preceded by one report from [`StreamDecoder::take_garbage`].
#[derive(Debug, Default)]
pub struct StreamDecoder {
    garbage: usize,
    first_error: Option<Error>,
}

impl StreamDecoder {
    /// A decoder at the start of a stream.
    pub const fn new() -> Self {
        Self { garbage: 0, first_error: None }
    }

    /// Looks at the front of `buffer`.
    pub fn step<'a>(&mut self, buffer: &'a [u8]) -> StreamStep<'a> {
        match decode_datagram(buffer) {
            Ok(frame) => StreamStep::Frame { frame, len: frame.encoded_len() },
            Err(Error::Truncated { needed }) => StreamStep::Incomplete { needed },
            Err(Error::Extension) => {
                // The header is sound, so the frame's end is known: what follows it needs no search.
                let len = Header::from_bytes(buffer).map_or(HEADER_LEN, |h| h.frame_len());
                self.skip(len, Error::Extension)
            }
            Err(error) => self.skip(next_magic(buffer), error),
        }
    }

    fn skip<'a>(&mut self, skip: usize, error: Error) -> StreamStep<'a> {
        self.garbage += skip;
        self.first_error.get_or_insert(error);
        StreamStep::Garbage { skip }
    }

    /// What was skipped since this was last asked: how many bytes, and what was wrong with the first of them.
    pub fn take_garbage(&mut self) -> Option<(usize, Error)> {
        let error = self.first_error.take()?;
        Some((core::mem::take(&mut self.garbage), error))
    }
}

/// Where the next frame may begin, past the first byte: at the next magic, or at an end that may be the start of one.
fn next_magic(buffer: &[u8]) -> usize {
    (1..buffer.len())
        .find(|&at| {
            let rest = &buffer[at..];
            let known = rest.len().min(MAGIC.len());
            rest[..known] == MAGIC[..known]
        })
        .unwrap_or(buffer.len())
}
