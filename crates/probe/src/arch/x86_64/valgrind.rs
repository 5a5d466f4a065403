//! Requests to valgrind, should the program run under it: instructions that do nothing elsewhere (valgrind/valgrind.h).

use core::arch::asm;

/// What valgrind gives for a request; 0 elsewhere.
pub(crate) fn request(request: [usize; 6]) -> usize {
    let mut result = 0_usize;
    // SAFETY: turns a register twice around, and exchanges one with itself.
    unsafe {
        asm!(
            "rol rdi, 3", "rol rdi, 13", "rol rdi, 61", "rol rdi, 51", "xchg rbx, rbx",
            inout("rdx") result, in("rax") request.as_ptr(), inout("rdi") 0_usize => _,
            options(nostack),
        );
    }
    result
}
