//! Registers of the calling thread.

use core::arch::asm;

/// The thread pointer: what `%fs:0` holds, by the ABI's rules for thread-local storage.
#[inline]
pub(crate) fn thread_pointer() -> usize {
    let pointer;
    // SAFETY: reads one word that every thread of a libc has.
    unsafe { asm!("mov {}, qword ptr fs:[0]", out(reg) pointer, options(nostack, readonly, preserves_flags)) };
    pointer
}

/// Where the stack ends, as it is now.
#[inline]
pub(crate) fn stack_pointer() -> usize {
    let pointer;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rsp", out(reg) pointer, options(nomem, nostack, preserves_flags)) };
    pointer
}

/// The number at an offset from the thread pointer.
///
/// # Safety
///
/// The offset is within the libc's record of a thread.
#[inline]
pub(crate) unsafe fn in_thread(offset: usize) -> u32 {
    let value;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("mov {:e}, dword ptr fs:[{}]", out(reg) value, in(reg) offset, options(nostack, readonly, preserves_flags))
    };
    value
}

/// Where a libc keeps a thread's id, as an offset from the thread pointer: musl and glibc, in every version.
pub(crate) const TID_OFFSETS: [usize; 2] = [0x30, 0x2d0];
