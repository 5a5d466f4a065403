//! Functions of glibc's that the libc crate does not declare.

use std::ffi::{c_char, c_int, c_uint};

unsafe extern "C" {
    /// closefrom(3).
    pub fn closefrom(first: c_int);
    /// close_range(2).
    pub fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int;
    /// pidfd_getfd(2).
    pub fn pidfd_getfd(pidfd: c_int, fd: c_int, flags: c_uint) -> c_int;
    /// quick_exit(3).
    pub fn quick_exit(status: c_int) -> !;
    /// stdio_ext(3).
    pub fn __fpurge(file: *mut libc::FILE);
    /// dprintf(3).
    pub fn dprintf(fd: c_int, format: *const c_char, ...) -> c_int;
    /// close(2), as glibc exports it, too; likewise those that follow.
    pub fn __close(fd: c_int) -> c_int;
    /// See [`__close`].
    pub fn __dup2(from: c_int, to: c_int) -> c_int;
    /// See [`__close`].
    pub fn __fcntl(fd: c_int, command: c_int, ...) -> c_int;
    /// What fcntl(2) is with 64-bit offsets.
    pub fn fcntl64(fd: c_int, command: c_int, ...) -> c_int;
    /// See [`__close`].
    pub fn __connect(fd: c_int, address: *const libc::sockaddr, len: u32) -> c_int;
    /// See [`__close`].
    pub fn __send(fd: c_int, buffer: *const u8, len: usize, flags: c_int) -> isize;
    /// See [`__close`].
    pub fn __sendmmsg(fd: c_int, messages: *mut libc::mmsghdr, count: c_uint, flags: c_int) -> c_int;
    /// See [`__close`].
    pub fn __write(fd: c_int, buffer: *const u8, len: usize) -> isize;
    /// See [`__close`].
    pub fn __recv(fd: c_int, buffer: *mut u8, len: usize, flags: c_int) -> isize;
    /// See [`__close`].
    pub fn __read(fd: c_int, buffer: *mut u8, len: usize) -> isize;
    /// What read(2) is compiled to under _FORTIFY_SOURCE.
    pub fn __read_chk(fd: c_int, buffer: *mut u8, len: usize, room: usize) -> isize;
    /// As `__read_chk`.
    pub fn __recv_chk(fd: c_int, buffer: *mut u8, len: usize, room: usize, flags: c_int) -> isize;
    /// As `__read_chk`.
    pub fn __recvfrom_chk(
        fd: c_int,
        buffer: *mut u8,
        len: usize,
        room: usize,
        flags: c_int,
        address: *mut libc::sockaddr_un,
        address_len: *mut u32,
    ) -> isize;
}
