//! System calls (syscall(2)).

use core::arch::asm;
use core::ffi::{c_long, c_void};
use core::sync::atomic::AtomicU32;

use super::number;

/// The vDSO's function that does what clock_gettime(2) does (vdso(7)).
pub(crate) const VDSO_CLOCK_GETTIME: &[u8] = b"__vdso_clock_gettime";

/// The system call with a number, and what the kernel gives for it: a result, or an error below 0.
///
/// # Safety
///
/// What the call does with these arguments is the caller's to answer for.
pub(crate) unsafe fn syscall(number: c_long, [a, b, c, d, e, f]: [usize; 6]) -> usize {
    let result;
    // SAFETY: the kernel keeps every register but these; what the call does is the caller's to answer for.
    unsafe {
        asm!(
            "syscall", inlateout("rax") number as usize => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
            in("r9") f,
            lateout("rcx") _, lateout("r11") _, options(nostack),
        );
    }
    result
}

/// `clone(2)`: a thread or process with a stack of its own runs `entry(argument)` and ends. What the kernel gives: its id, which is in `tid`,
/// too, before it runs, and is taken away there (and waked, futex(2)) when it has ended, with the flags for that.
///
/// # Safety
///
/// The stack is large enough and nobody else's, `entry` keeps to what the flags leave it, and `argument` is what it takes.
pub(crate) unsafe fn clone(
    flags: usize,
    stack_end: *mut u8,
    tid: &AtomicU32,
    entry: unsafe extern "C" fn(*mut c_void),
    argument: *mut c_void,
) -> usize {
    let result;
    // SAFETY: the child goes on with our registers and its own stack, and never comes out of this; the caller's promise.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "xor edi, edi",
            "mov eax, {exit}",
            "syscall",
            "ud2",
            "2:",
            exit = const number::EXIT,
            inlateout("rax") number::CLONE as usize => result,
            in("rdi") flags, in("rsi") stack_end, in("rdx") tid, in("r10") tid, in("r8") 0,
            in("r12") argument, in("r13") entry,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    result
}
