//! System calls that no hook sees: not libc's functions, nor its syscall(2).

use core::arch::asm;
use std::ffi::c_long;
use std::io;

/// Makes a system call; the result, or the error that it is.
///
/// # Safety
///
/// The arguments are what the call takes, pointers as integers.
#[inline(always)]
pub unsafe fn call(number: c_long, [a, b, c, d]: [usize; 4]) -> io::Result<usize> {
    let result: isize;
    // SAFETY: the caller's promise; the kernel changes rcx and r11 only.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    if result < 0 { Err(io::Error::from_raw_os_error(-result as i32)) } else { Ok(result.cast_unsigned()) }
}

/// `readv(2)` into one buffer, and not read(2): strace and bpftrace are not told to look at it, so that they, like
/// socktrace, see one end of a connection only.
///
/// # Errors
///
/// The call's.
#[inline(always)]
pub fn read(fd: i32, buffer: &mut [u8]) -> io::Result<usize> {
    let iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: one buffer, writable at its length.
    unsafe { call(libc::SYS_readv, [fd as usize, &raw const iov as usize, 1, 0]) }
}

/// `writev(2)` of one buffer, as [`read`].
///
/// # Errors
///
/// The call's.
#[inline(always)]
pub fn write(fd: i32, buffer: &[u8]) -> io::Result<usize> {
    let iov = libc::iovec { iov_base: buffer.as_ptr().cast_mut().cast(), iov_len: buffer.len() };
    // SAFETY: one buffer, readable at its length.
    unsafe { call(libc::SYS_writev, [fd as usize, &raw const iov as usize, 1, 0]) }
}
