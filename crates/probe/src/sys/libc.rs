//! What a shared object needs that stands alone: it links to no library, so that it loads into programs of any libc.

use core::arch::global_asm;
use core::ffi::{CStr, c_char, c_int, c_void};

/// dlsym(3)'s handle for "the next one behind the caller".
const RTLD_NEXT: *mut c_void = usize::MAX as *mut c_void;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // A mistake of ours; going on with it could only do more harm.
    crate::sys::exit_group(127)
}

// Weak, so that a program without one of these can still load the probe; hidden memory functions, because rustc calls
// them by name and the program's own must not be replaced by ours. Machines since 2013 move bytes fastest this way
// from some hundred bytes up (ERMS); shorter moves in the probe are inlined by the compiler.
#[cfg(target_arch = "x86_64")]
global_asm!(
    ".weak dlsym",
    ".weak __libc_dlopen_mode",
    ".weak __libc_dlsym",
    ".hidden socktrace_libc_dlopen",
    ".globl socktrace_libc_dlopen",
    "socktrace_libc_dlopen: mov rax, qword ptr [rip + __libc_dlopen_mode@GOTPCREL]",
    "ret",
    ".hidden socktrace_libc_dlsym",
    ".globl socktrace_libc_dlsym",
    "socktrace_libc_dlsym: mov rax, qword ptr [rip + __libc_dlsym@GOTPCREL]",
    "ret",
    ".weak __errno_location",
    ".weak dl_iterate_phdr",
    ".hidden socktrace_dl_iterate_phdr",
    ".globl socktrace_dl_iterate_phdr",
    "socktrace_dl_iterate_phdr: mov rax, qword ptr [rip + dl_iterate_phdr@GOTPCREL]",
    "ret",
    ".weak environ",
    ".hidden socktrace_environ",
    ".globl socktrace_environ",
    "socktrace_environ: mov rax, qword ptr [rip + environ@GOTPCREL]",
    "ret",
    ".hidden socktrace_dlsym",
    ".globl socktrace_dlsym",
    "socktrace_dlsym: mov rax, qword ptr [rip + dlsym@GOTPCREL]",
    "ret",
    ".hidden socktrace_errno_location",
    ".globl socktrace_errno_location",
    "socktrace_errno_location: mov rax, qword ptr [rip + __errno_location@GOTPCREL]",
    "ret",
    ".hidden memcpy",
    ".globl memcpy",
    "memcpy: mov rax, rdi",
    "cmp rdx, 16",
    "jb 7f",
    "cmp rdx, 512",
    "ja 9f",
    // The last 16 bytes, which overlap with the others, and then 16 at a time.
    "movups xmm1, xmmword ptr [rsi + rdx - 16]",
    "lea r8, [rdi + rdx - 16]",
    "20: movups xmm0, xmmword ptr [rsi]",
    "movups xmmword ptr [rdi], xmm0",
    "add rsi, 16",
    "add rdi, 16",
    "cmp rdi, r8",
    "jb 20b",
    "movups xmmword ptr [r8], xmm1",
    "ret",
    "9: mov rcx, rdx",
    "rep movsb",
    "ret",
    // Of a short one, both ends, which overlap.
    "7: cmp edx, 8",
    "jb 8f",
    "mov rcx, qword ptr [rsi]",
    "mov r8, qword ptr [rsi + rdx - 8]",
    "mov qword ptr [rdi], rcx",
    "mov qword ptr [rdi + rdx - 8], r8",
    "ret",
    "8: cmp edx, 4",
    "jb 21f",
    "mov ecx, dword ptr [rsi]",
    "mov r8d, dword ptr [rsi + rdx - 4]",
    "mov dword ptr [rdi], ecx",
    "mov dword ptr [rdi + rdx - 4], r8d",
    "ret",
    "21: test edx, edx",
    "je 22f",
    "movzx ecx, byte ptr [rsi]",
    "mov byte ptr [rdi], cl",
    "cmp edx, 2",
    "jb 22f",
    "movzx ecx, word ptr [rsi + rdx - 2]",
    "mov word ptr [rdi + rdx - 2], cx",
    "22: ret",
    ".hidden memmove",
    ".globl memmove",
    "memmove: mov rax, rdi",
    "mov rcx, rdx",
    "mov r8, rdi",
    "sub r8, rsi",
    "cmp r8, rdx",
    "jb 2f",
    "rep movsb",
    "ret",
    "2: lea rdi, [rdi + rdx - 1]",
    "lea rsi, [rsi + rdx - 1]",
    "std",
    "rep movsb",
    "cld",
    "ret",
    ".hidden memset",
    ".globl memset",
    "memset: mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    ".hidden memcmp",
    ".globl memcmp",
    ".hidden bcmp",
    ".globl bcmp",
    "memcmp:",
    "bcmp: xor ecx, ecx",
    "3: cmp rcx, rdx",
    "je 4f",
    "movzx eax, byte ptr [rdi + rcx]",
    "movzx r8d, byte ptr [rsi + rcx]",
    "inc rcx",
    "sub eax, r8d",
    "je 3b",
    "ret",
    "4: xor eax, eax",
    "ret",
    ".hidden strlen",
    ".globl strlen",
    "strlen: xor eax, eax",
    "5: cmp byte ptr [rdi + rax], 0",
    "je 6f",
    "inc rax",
    "jmp 5b",
    "6: ret",
    // Frames of core's own name it as their handler. Ours is the answer of a frame without one: _URC_CONTINUE_UNWIND.
    ".hidden rust_eh_personality",
    ".globl rust_eh_personality",
    "rust_eh_personality: mov eax, 8",
    "ret",
);

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the probe has been built for x86_64 only: src/sys/libc.rs has what another architecture needs");

unsafe extern "C" {
    fn socktrace_dlsym() -> Option<unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void>;
    fn socktrace_libc_dlopen() -> Option<unsafe extern "C" fn(*const c_char, c_int) -> *mut c_void>;
    fn socktrace_libc_dlsym() -> Option<unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void>;
    fn socktrace_dl_iterate_phdr() -> *const c_void;
    fn socktrace_environ() -> *const *const *const c_char;
    fn socktrace_errno_location() -> Option<unsafe extern "C" fn() -> *mut c_int>;
}

/// The function of this name behind ours, null if there is none.
pub(crate) fn next_symbol(name: &CStr) -> *mut c_void {
    // SAFETY: dlsym(3), if this program has it.
    unsafe { socktrace_dlsym().map_or_else(|| libc_symbol(name), |dlsym| dlsym(RTLD_NEXT, name.as_ptr())) }
}

/// The same where the program has no dlsym(3): before glibc 2.34 that was in libdl, and libc had it under other names.
#[cold]
fn libc_symbol(name: &CStr) -> *mut c_void {
    /// RTLD_NOW, and that the caller is dlopen(3) itself.
    const MODE: c_int = 2 | i32::MIN;
    // SAFETY: libc's own functions, if they are there, as its iconv and name service call them.
    unsafe {
        let (Some(dlopen), Some(dlsym)) = (socktrace_libc_dlopen(), socktrace_libc_dlsym()) else {
            return core::ptr::null_mut();
        };
        let libc = dlopen(c"libc.so.6".as_ptr(), MODE);
        if libc.is_null() { libc } else { dlsym(libc, name.as_ptr()) }
    }
}

/// dl_iterate_phdr(3); null if this program does not have it.
pub(crate) fn iterate_phdr() -> *const c_void {
    // SAFETY: gives an address.
    unsafe { socktrace_dl_iterate_phdr() }
}

/// libc's function that gives the calling thread's `errno`.
pub(crate) fn errno_location() -> Option<unsafe extern "C" fn() -> *mut c_int> {
    // SAFETY: gives an address.
    unsafe { socktrace_errno_location() }
}

/// The program's environment as it is now, `environ` of environ(7); null: it has none, as after clearenv(3).
pub(crate) fn own_environment() -> *const *const c_char {
    // SAFETY: the address of libc's variable, if this program has it.
    unsafe { socktrace_environ().as_ref().copied() }.unwrap_or(core::ptr::null())
}

/// The program's `errno`.
pub(crate) fn errno() -> c_int {
    // SAFETY: as in `set_errno`.
    unsafe { socktrace_errno_location().map_or(0, |location| *location()) }
}

/// Sets the program's `errno`.
pub(crate) fn set_errno(value: c_int) {
    // SAFETY: glibc and musl both have this function, which gives the calling thread's `errno`.
    unsafe {
        if let Some(location) = socktrace_errno_location() {
            *location() = value;
        }
    }
    crate::start::install::set_other_errnos(value);
}
