//! Functions of the probe that are called in a libc's stead and have to leave registers and stack as they are: what such a
//! naked function consists of.

/// Jumps to what lies at a static.
macro_rules! jump_through {
    ($slot:path) => {
        core::arch::naked_asm!("jmp qword ptr [rip + {slot}]", slot = sym $slot)
    };
}

/// Jumps to a function of [`go_where`]'s, which is told of the static. The register is one that the dynamic linker's own stubs
/// use.
macro_rules! resolve {
    ($slot:path, $resolve:path) => {
        core::arch::naked_asm!(
            "lea r11, [rip + {slot}]",
            "jmp {resolve}",
            slot = sym $slot,
            resolve = sym $resolve,
        )
    };
}

/// Jumps to what a function gives for a static, which r11 leads to, and a caller. Whatever else may hold an argument is kept.
macro_rules! go_where {
    ($destination:path) => {
        core::arch::naked_asm!(
            ".cfi_startproc",
            "push rbp",
            ".cfi_def_cfa_offset 16",
            ".cfi_offset rbp, -16",
            "mov rbp, rsp",
            ".cfi_def_cfa_register rbp",
            "push rdi",
            "push rsi",
            "push rdx",
            "push rcx",
            "push r8",
            "push r9",
            "push rax",
            "push r10",
            "sub rsp, 128",
            "movups [rsp], xmm0",
            "movups [rsp + 16], xmm1",
            "movups [rsp + 32], xmm2",
            "movups [rsp + 48], xmm3",
            "movups [rsp + 64], xmm4",
            "movups [rsp + 80], xmm5",
            "movups [rsp + 96], xmm6",
            "movups [rsp + 112], xmm7",
            "mov rdi, r11",
            "mov rsi, [rbp + 8]",
            "call {destination}",
            "mov r11, rax",
            "movups xmm0, [rsp]",
            "movups xmm1, [rsp + 16]",
            "movups xmm2, [rsp + 32]",
            "movups xmm3, [rsp + 48]",
            "movups xmm4, [rsp + 64]",
            "movups xmm5, [rsp + 80]",
            "movups xmm6, [rsp + 96]",
            "movups xmm7, [rsp + 112]",
            "add rsp, 128",
            "pop r10",
            "pop rax",
            "pop r9",
            "pop r8",
            "pop rcx",
            "pop rdx",
            "pop rsi",
            "pop rdi",
            "pop rbp",
            ".cfi_def_cfa rsp, 8",
            "jmp r11",
            ".cfi_endproc",
            destination = sym $destination,
        )
    };
}

/// vfork(2), as libc has it: the return address goes into a register that the kernel keeps, and comes back from there for each
/// of the two processes. Each is shown to a function, which gives the result.
macro_rules! vfork {
    ($returned:path) => {
        core::arch::naked_asm!(
            ".cfi_startproc",
                "pop rdi",
            ".cfi_adjust_cfa_offset -8",
            ".cfi_register rip, rdi",
                "mov eax, 58",
                "syscall",
                "push rdi",
            ".cfi_adjust_cfa_offset 8",
            ".cfi_offset rip, -8",
                "push rax",
            ".cfi_adjust_cfa_offset 8",
                "mov edi, eax",
                "call {returned}",
                "pop rcx",
            ".cfi_adjust_cfa_offset -8",
                "ret",
            ".cfi_endproc",
            returned = sym $returned,
        )
    };
}

pub(crate) use {go_where, jump_through, resolve, vfork};
