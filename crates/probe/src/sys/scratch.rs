//! Memory for a moment: hooks run on whatever stack the program gives a signal handler.

use core::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::confined::is_confined;

/// Zeroed bytes of a mapping of their own.
pub(crate) struct Scratch {
    at: NonNull<u8>,
    len: usize,
}

impl Scratch {
    /// `None` where there is no memory, or where the program's sandbox might forbid asking for it.
    pub(crate) fn map(len: usize) -> Option<Self> {
        if is_confined() {
            return None;
        }
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping at an address of the kernel's choice touches nobody's memory.
        let at = unsafe { mmap_anonymous(core::ptr::null_mut(), len, protection, flags) }.ok()?;
        NonNull::new(at.cast()).map(|at| Self { at, len })
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped with this length, zeroed, and ours alone.
        unsafe { core::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and `self` was the only way to it.
        let _ = unsafe { munmap(self.at.as_ptr().cast(), self.len) };
    }
}
