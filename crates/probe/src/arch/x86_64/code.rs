//! Writing to code that is run meanwhile.

use core::arch::asm;

/// What is written at once is within one of these.
pub(crate) const CACHE_LINE_LEN: usize = 64;
/// Bytes that one store writes.
const WORD_LEN: usize = 8;

/// Writes a few bytes by one locked store of eight, which processors make at once within a cache line, aligned or not
/// (Intel SDM, volume 3, "Guaranteed Atomic Operations"). Bytes across lines, which are padding that nothing runs in yet,
/// are written one by one.
///
/// # Safety
///
/// There is code that may be written to.
pub(crate) unsafe fn store(at: usize, bytes: &[u8]) {
    let line_end = (at & !(CACHE_LINE_LEN - 1)) + CACHE_LINE_LEN;
    if at + bytes.len() > line_end || bytes.len() > WORD_LEN {
        for (offset, byte) in bytes.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { ((at + offset) as *mut u8).write_volatile(*byte) };
        }
        return;
    }
    let word_at = at.min(line_end - WORD_LEN);
    // SAFETY: the caller's promise: within a cache line, and so on a page that is writable.
    unsafe {
        let mut word = (word_at as *const [u8; WORD_LEN]).read_volatile();
        word[at - word_at..][..bytes.len()].copy_from_slice(bytes);
        let word = u64::from_le_bytes(word);
        asm!("xchg qword ptr [{}], {}", in(reg) word_at, inout(reg) word => _, options(nostack, preserves_flags));
    }
}
