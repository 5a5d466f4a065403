//! From one stack to another.

use core::arch::naked_asm;
use core::ffi::c_void;

/// Calls `run` with `job` with the stack pointer at `top`, where it leaves the program's; where it is if `top` is null.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn switch_stack(job: *mut c_void, run: unsafe extern "C" fn(*mut c_void), top: *mut u8) {
    naked_asm!(
        ".cfi_startproc",
        "push rbp",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_offset rbp, -16",
        "mov rbp, rsp",
        ".cfi_def_cfa_register rbp",
        "test rdx, rdx",
        "jz 2f",
        "mov qword ptr [rdx], rsp",
        "mov rsp, rdx",
        "2: call rsi",
        "mov rsp, rbp",
        "pop rbp",
        ".cfi_def_cfa rsp, 8",
        "ret",
        ".cfi_endproc",
    )
}
