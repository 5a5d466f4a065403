//! Where a call's bytes lie in the program's memory.

use core::ffi::c_void;

use crate::emit::MAX_PARTS;

/// `struct iovec` of readv(2) and writev(2).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct IoVec {
    base: *const u8,
    len: usize,
}

impl IoVec {
    pub(crate) fn new(base: *const c_void, len: usize) -> Self {
        Self { base: base.cast(), len }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The first `len` bytes, or as many as there are.
    ///
    /// # Safety
    ///
    /// The kernel has just read or written so many for the program.
    #[inline]
    pub(super) unsafe fn front<'a>(&self, len: usize) -> &'a [u8] {
        // SAFETY: the caller's promise.
        unsafe { core::slice::from_raw_parts(self.base, len.min(self.len)) }
    }
}

/// The buffers that a call was given.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Buffers {
    One(IoVec),
    Many(*const IoVec, usize),
}

impl Buffers {
    pub(crate) fn one(base: *const c_void, len: usize) -> Self {
        Self::One(IoVec::new(base, len))
    }

    /// The one buffer that there is; `None` if there are more, or none.
    #[inline]
    pub(crate) fn only(&self) -> Option<IoVec> {
        match *self {
            Self::One(only) => Some(only),
            Self::Many(..) => None,
        }
    }

    fn get(&self, index: usize) -> Option<IoVec> {
        match *self {
            Self::One(only) => (index == 0).then_some(only),
            // SAFETY: the kernel has just read this array of `count` elements for the program.
            Self::Many(first, count) => (index < count).then(|| unsafe { *first.add(index) }),
        }
    }

    /// Bytes that there is room for.
    pub(crate) fn room(&self) -> u64 {
        (0..).map_while(|index| self.get(index)).fold(0, |sum, buffer| sum.saturating_add(buffer.len as u64))
    }

    /// The first `len` bytes.
    pub(super) fn front(&self, len: u64) -> Cursor<'_> {
        Cursor { buffers: self, index: 0, offset: 0, left: len }
    }
}

/// Goes through the bytes that a call moved, a frame's worth at a time.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    buffers: &'a Buffers,
    index: usize,
    offset: usize,
    left: u64,
}

impl<'a> Cursor<'a> {
    pub(super) fn is_at_end(&self) -> bool {
        self.left == 0
    }

    /// Up to `max` bytes in up to `MAX_PARTS` parts; how many parts.
    pub(super) fn next(&mut self, max: u64, parts: &mut [&'a [u8]; MAX_PARTS]) -> usize {
        let (mut room, mut count) = (max, 0);
        while self.left > 0 && room > 0 && count < MAX_PARTS {
            let Some(buffer) = self.buffers.get(self.index) else {
                self.left = 0;
                break;
            };
            let rest = buffer.len - self.offset;
            if rest == 0 {
                (self.index, self.offset) = (self.index + 1, 0);
                continue;
            }
            // At most `rest`, so it fits.
            let len = (rest as u64).min(self.left).min(room) as usize;
            // SAFETY: the kernel has just read or written these bytes for the program. They only go to the kernel
            // again, which answers with EFAULT, not with a signal, should another thread have unmapped them.
            parts[count] = unsafe { core::slice::from_raw_parts(buffer.base.add(self.offset), len) };
            count += 1;
            self.offset += len;
            self.left -= len as u64;
            room -= len as u64;
        }
        count
    }
}
