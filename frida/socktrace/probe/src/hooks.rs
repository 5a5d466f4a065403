//! The table of hooks: one entry a call.
//!
//! An entry is the call's signature and what happens around it; `libc` in an entry is the function that the hook
//! stands in for. To add a call, add its entry: the loader and the dynamic linker find it by its name.
//!
//! Hooks are `extern "C-unwind"`: pthread_cancel(3) ends a thread that is blocked in a call by unwinding through the
//! hook's frame, so nothing that needs to be undone may be held across `libc(…)`.

use core::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use core::sync::atomic::{AtomicPtr, Ordering};

use gttr::Direction::{In, Out};

use crate::capture::{Buffers, Call, IoVec, Peer};
use crate::descriptors::Slot;
use crate::{calls, control, exec, process, transport};

/// One row of the table, as the loader reads it: three pointers.
#[derive(Debug)]
#[repr(C)]
pub struct Hook {
    /// The function's name in libc, NUL-terminated.
    name: *const c_char,
    /// What stands in for it.
    replacement: *const c_void,
    /// Where to put the address of the function itself.
    libc: &'static AtomicPtr<c_void>,
}

// SAFETY: its pointers lead to statics and functions.
unsafe impl Sync for Hook {}

macro_rules! hooks {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $type:ty),*) -> $result:ty |$libc:ident| $body:block)+) => {
        mod libc_functions {
            #![allow(non_upper_case_globals)]
            use super::*;
            $(pub(super) static $name: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());)+
        }

        $($(#[$meta])*
        #[cfg_attr(feature = "standalone", unsafe(no_mangle))]
        unsafe extern "C-unwind" fn $name($($arg: $type),*) -> $result {
            const NAME: &CStr = match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                Ok(name) => name,
                Err(_) => unreachable!(),
            };
            let address = libc_function(&libc_functions::$name, NAME);
            // SAFETY: the address is libc's function of this name, whose signature this is.
            let $libc = unsafe {
                core::mem::transmute::<*mut c_void, unsafe extern "C-unwind" fn($($type),*) -> $result>(address)
            };
            // SAFETY: libc's function is called as the program called it; pointers are read after the kernel did.
            unsafe { $body }
        })+

        /// Every hook.
        pub(crate) static TABLE: &[Hook] = &[$(Hook {
            name: concat!(stringify!($name), "\0").as_ptr().cast(),
            replacement: $name as *const c_void,
            libc: &libc_functions::$name,
        },)+];
    };
}

/// The function a hook stands in for, looked up on first use: hooks of a preloaded probe run before its constructor.
#[inline]
fn libc_function(slot: &AtomicPtr<c_void>, name: &CStr) -> *mut c_void {
    let address = slot.load(Ordering::Relaxed);
    if address.is_null() { find_libc_function(slot, name) } else { address }
}

#[cold]
fn find_libc_function(slot: &AtomicPtr<c_void>, name: &CStr) -> *mut c_void {
    let address = control::next_function(name);
    slot.store(address, Ordering::Relaxed);
    address
}

/// Looks every function up, for hooks that run where dlsym(3) must not: in signal handlers, between vfork and exec.
#[cfg(feature = "standalone")]
pub(crate) fn find_all_libc_functions() {
    for hook in TABLE {
        // SAFETY: made by `concat!` with a NUL at its end.
        libc_function(hook.libc, unsafe { CStr::from_ptr(hook.name) });
    }
}

/// Flags of recv(2).
const MSG_PEEK: c_int = 0x2;
const MSG_TRUNC: c_int = 0x20;
/// Commands of fcntl(2).
const F_DUPFD: c_int = 0;
const F_DUPFD_CLOEXEC: c_int = 1030;
/// Flag of close_range(2): mark, do not close.
const CLOSE_RANGE_CLOEXEC: c_int = 4;

/// `struct msghdr` of recvmsg(2).
#[derive(Debug)]
#[repr(C)]
struct MessageHeader {
    name: *const c_void,
    /// glibc and musl both give it 32 bits and pad.
    name_len: c_uint,
    iov: *const IoVec,
    iov_len: usize,
    control: *const c_void,
    control_len: usize,
    flags: c_int,
}

impl MessageHeader {
    fn buffers(&self) -> Buffers {
        Buffers::Many(self.iov, self.iov_len)
    }

    fn peer(&self) -> Peer {
        Peer { address: self.name, len: self.name_len as usize }
    }
}

/// `struct mmsghdr` of recvmmsg(2).
#[derive(Debug)]
#[repr(C)]
struct CountedMessage {
    header: MessageHeader,
    /// Bytes that were moved.
    len: c_uint,
}

/// Reports a message that recvmsg(2) or recvmmsg(2) received, and the descriptors that came with it.
unsafe fn received_message(call: &Call, fd: c_int, message: &MessageHeader, result: isize, flags: c_int) {
    // SAFETY: the kernel has just read the array of buffers and written the ancillary data, at these lengths.
    unsafe {
        let moved = taken(result, flags, room(message.iov, message.iov_len));
        call.message(In, moved, message.buffers(), message.peer());
        calls::arrived(fd, message.control, message.control_len);
    }
}

/// The address that recvfrom(2) filled in; its length is where the program put it.
unsafe fn filled_in(address: *const c_void, len: *const c_uint) -> Peer {
    if address.is_null() || len.is_null() {
        return Peer::NONE;
    }
    // SAFETY: the kernel has just written it.
    Peer { address, len: unsafe { *len } as usize }
}

/// Bytes that a receive moved: MSG_PEEK moves none, and MSG_TRUNC makes the result more than what there was room for.
fn taken(result: isize, flags: c_int, room: usize) -> isize {
    match result {
        _ if flags & MSG_PEEK != 0 => -1,
        n if flags & MSG_TRUNC != 0 => n.min(isize::try_from(room).unwrap_or(isize::MAX)),
        n => n,
    }
}

hooks! {
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int |libc| {
        let fd = libc(domain, kind, protocol);
        calls::socket(fd, domain, kind);
        fd
    }

    fn socketpair(domain: c_int, kind: c_int, protocol: c_int, pair: *mut [c_int; 2]) -> c_int |libc| {
        let result = libc(domain, kind, protocol, pair);
        if result == 0 {
            calls::socketpair(*pair, domain, kind);
        }
        result
    }

    fn bind(fd: c_int, address: *const c_void, len: c_uint) -> c_int |libc| {
        let result = libc(fd, address, len);
        calls::bind(result, fd, address, len as usize);
        result
    }

    fn listen(fd: c_int, backlog: c_int) -> c_int |libc| {
        let result = libc(fd, backlog);
        calls::listen(result, fd);
        result
    }

    fn connect(fd: c_int, address: *const c_void, len: c_uint) -> c_int |libc| {
        let result = libc(fd, address, len);
        calls::connect(result, fd, address, len as usize);
        result
    }

    fn accept(fd: c_int, address: *mut c_void, len: *mut c_uint) -> c_int |libc| {
        let accepted = libc(fd, address, len);
        calls::accept(accepted, fd, "accept");
        accepted
    }

    fn accept4(fd: c_int, address: *mut c_void, len: *mut c_uint, flags: c_int) -> c_int |libc| {
        let accepted = libc(fd, address, len, flags);
        calls::accept(accepted, fd, "accept4");
        accepted
    }

    fn close(fd: c_int) -> c_int |libc| {
        if transport::own_fd() == Some(fd) && !transport::gives_up(fd) {
            // The program opened nothing under this number, and hears what it would without us.
            return control::fail_with_ebadf();
        }
        let slot = calls::before_close(fd);
        let result = libc(fd);
        calls::ended(slot, fd, "close");
        result
    }

    fn dup(fd: c_int) -> c_int |libc| {
        let copy = libc(fd);
        calls::duplicated(fd, copy);
        copy
    }

    fn dup2(from: c_int, to: c_int) -> c_int |libc| {
        transport::make_way(to);
        let slot = if from == to { Slot::Unknown } else { calls::before_close(to) };
        let result = libc(from, to);
        finish_dup(slot, from, to, result, "dup2");
        result
    }

    fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int |libc| {
        transport::make_way(to);
        let slot = if from == to { Slot::Unknown } else { calls::before_close(to) };
        let result = libc(from, to, flags);
        finish_dup(slot, from, to, result, "dup3");
        result
    }

    fn fcntl(fd: c_int, command: c_int, argument: c_ulong) -> c_int |libc| {
        let result = libc(fd, command, argument);
        if matches!(command, F_DUPFD | F_DUPFD_CLOEXEC) {
            calls::duplicated(fd, result);
        }
        result
    }

    fn fcntl64(fd: c_int, command: c_int, argument: c_ulong) -> c_int |libc| {
        let result = libc(fd, command, argument);
        if matches!(command, F_DUPFD | F_DUPFD_CLOEXEC) {
            calls::duplicated(fd, result);
        }
        result
    }

    fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int |libc| {
        let result = match transport::own_fd().map(c_int::cast_unsigned) {
            Some(own) if (first..=last).contains(&own) && !transport::gives_up(own.cast_signed()) => {
                let below = if first < own { libc(first, own - 1, flags) } else { 0 };
                if below == 0 && own < last { libc(own + 1, last, flags) } else { below }
            }
            _ => libc(first, last, flags),
        };
        if result == 0 && flags & CLOSE_RANGE_CLOEXEC == 0 {
            calls::closed_range(first, last, "close_range");
        }
        result
    }

    fn shutdown(fd: c_int, how: c_int) -> c_int |libc| {
        let result = libc(fd, how);
        calls::shutdown(result, fd, how);
        result
    }

    fn send(fd: c_int, buffer: *const c_void, len: usize, flags: c_int) -> isize |libc| {
        let call = Call::enter("send", fd);
        let result = libc(fd, buffer, len, flags);
        call.message(Out, result, Buffers::one(buffer, len), Peer::NONE);
        result
    }

    fn sendto(
        fd: c_int, buffer: *const c_void, len: usize, flags: c_int, address: *const c_void, address_len: c_uint
    ) -> isize |libc| {
        let call = Call::enter("sendto", fd);
        let result = libc(fd, buffer, len, flags, address, address_len);
        call.message(Out, result, Buffers::one(buffer, len), Peer { address, len: address_len as usize });
        result
    }

    fn sendmsg(fd: c_int, message: *const MessageHeader, flags: c_int) -> isize |libc| {
        let call = Call::enter("sendmsg", fd);
        let result = libc(fd, message, flags);
        if result >= 0 {
            call.message(Out, result, (*message).buffers(), (*message).peer());
        }
        result
    }

    fn recv(fd: c_int, buffer: *mut c_void, len: usize, flags: c_int) -> isize |libc| {
        let call = Call::enter("recv", fd);
        let result = libc(fd, buffer, len, flags);
        call.message(In, taken(result, flags, len), Buffers::one(buffer, len), Peer::NONE);
        result
    }

    fn recvfrom(
        fd: c_int, buffer: *mut c_void, len: usize, flags: c_int, address: *mut c_void, address_len: *mut c_uint
    ) -> isize |libc| {
        let call = Call::enter("recvfrom", fd);
        let result = libc(fd, buffer, len, flags, address, address_len);
        if result >= 0 {
            let peer = filled_in(address, address_len);
            call.message(In, taken(result, flags, len), Buffers::one(buffer, len), peer);
        }
        result
    }

    fn recvmsg(fd: c_int, message: *mut MessageHeader, flags: c_int) -> isize |libc| {
        let call = Call::enter("recvmsg", fd);
        let result = libc(fd, message, flags);
        if result >= 0 {
            received_message(&call, fd, &*message, result, flags);
        }
        result
    }

    fn sendmmsg(fd: c_int, messages: *const CountedMessage, count: c_uint, flags: c_int) -> c_int |libc| {
        let call = Call::enter("sendmmsg", fd);
        let sent = libc(fd, messages, count, flags);
        for index in 0..sent.max(0).cast_unsigned() as usize {
            let CountedMessage { header, len } = &*messages.add(index);
            call.message(Out, *len as isize, header.buffers(), header.peer());
        }
        sent
    }

    fn recvmmsg(
        fd: c_int, messages: *const CountedMessage, count: c_uint, flags: c_int, timeout: *mut c_void
    ) -> c_int |libc| {
        let call = Call::enter("recvmmsg", fd);
        let received = libc(fd, messages, count, flags, timeout);
        for index in 0..received.max(0).cast_unsigned() as usize {
            let CountedMessage { header, len } = &*messages.add(index);
            received_message(&call, fd, header, *len as isize, flags);
        }
        received
    }

    fn read(fd: c_int, buffer: *mut c_void, len: usize) -> isize |libc| {
        let call = Call::enter("read", fd);
        let result = libc(fd, buffer, len);
        call.moved(In, result, Buffers::one(buffer, len));
        result
    }

    fn write(fd: c_int, buffer: *const c_void, len: usize) -> isize |libc| {
        let call = Call::enter("write", fd);
        let result = libc(fd, buffer, len);
        call.moved(Out, result, Buffers::one(buffer, len));
        result
    }

    fn readv(fd: c_int, iov: *const IoVec, count: c_int) -> isize |libc| {
        let call = Call::enter("readv", fd);
        let result = libc(fd, iov, count);
        call.moved(In, result, Buffers::Many(iov, count.max(0).cast_unsigned() as usize));
        result
    }

    fn preadv2(fd: c_int, iov: *const IoVec, count: c_int, offset: c_long, flags: c_int) -> isize |libc| {
        let call = Call::enter("preadv2", fd);
        let result = libc(fd, iov, count, offset, flags);
        call.moved(In, result, Buffers::Many(iov, count.max(0).cast_unsigned() as usize));
        result
    }

    fn pwritev2(fd: c_int, iov: *const IoVec, count: c_int, offset: c_long, flags: c_int) -> isize |libc| {
        let call = Call::enter("pwritev2", fd);
        let result = libc(fd, iov, count, offset, flags);
        call.moved(Out, result, Buffers::Many(iov, count.max(0).cast_unsigned() as usize));
        result
    }

    fn writev(fd: c_int, iov: *const IoVec, count: c_int) -> isize |libc| {
        let call = Call::enter("writev", fd);
        let result = libc(fd, iov, count);
        call.moved(Out, result, Buffers::Many(iov, count.max(0).cast_unsigned() as usize));
        result
    }

    /// What read(2) is compiled to where the compiler knows the buffer's size (feature_test_macros(7)). Whether libc's
    /// goes on to a hooked read(2) depends on the libc and on how it is hooked; so this goes there itself, and leaves
    /// to libc what it is for: to end a program whose buffer is too small.
    fn __read_chk(fd: c_int, buffer: *mut c_void, len: usize, room: usize) -> isize |libc| {
        if len > room { libc(fd, buffer, len, room) } else { read(fd, buffer, len) }
    }

    /// As `__read_chk`, of recv(2).
    fn __recv_chk(fd: c_int, buffer: *mut c_void, len: usize, room: usize, flags: c_int) -> isize |libc| {
        if len > room { libc(fd, buffer, len, room, flags) } else { recv(fd, buffer, len, flags) }
    }

    /// As `__read_chk`, of recvfrom(2).
    fn __recvfrom_chk(
        fd: c_int, buffer: *mut c_void, len: usize, room: usize, flags: c_int, address: *mut c_void,
        address_len: *mut c_uint
    ) -> isize |libc| {
        if len > room {
            libc(fd, buffer, len, room, flags, address, address_len)
        } else {
            recvfrom(fd, buffer, len, flags, address, address_len)
        }
    }

    fn fork() -> c_int |libc| {
        let pid = libc();
        if pid == 0 {
            process::notice_fork();
        }
        pid
    }

    fn execve(path: *const c_char, argv: *const *const c_char, envp: *const *const c_char) -> c_int |libc| {
        exec::with_probe(envp, |envp| libc(path, argv, envp))
    }

    fn execvpe(file: *const c_char, argv: *const *const c_char, envp: *const *const c_char) -> c_int |libc| {
        exec::with_probe(envp, |envp| libc(file, argv, envp))
    }

    fn fexecve(fd: c_int, argv: *const *const c_char, envp: *const *const c_char) -> c_int |libc| {
        exec::with_probe(envp, |envp| libc(fd, argv, envp))
    }

    fn execveat(
        directory: c_int, path: *const c_char, argv: *const *const c_char, envp: *const *const c_char, flags: c_int
    ) -> c_int |libc| {
        exec::with_probe(envp, |envp| libc(directory, path, argv, envp, flags))
    }

    /// Takes the program's own environment, which may have lost the probe since, or have to lose it.
    fn execv(path: *const c_char, argv: *const *const c_char) -> c_int |libc| {
        match exec::own_environment_to_change() {
            Some(envp) => execve(path, argv, envp),
            None => libc(path, argv),
        }
    }

    /// As execv.
    fn execvp(file: *const c_char, argv: *const *const c_char) -> c_int |libc| {
        match exec::own_environment_to_change() {
            Some(envp) => execvpe(file, argv, envp),
            None => libc(file, argv),
        }
    }

    fn posix_spawn(
        pid: *mut c_int, path: *const c_char, actions: *const c_void, attributes: *const c_void,
        argv: *const *const c_char, envp: *const *const c_char
    ) -> c_int |libc| {
        exec::with_probe(envp, |envp| libc(pid, path, actions, attributes, argv, envp))
    }

    fn posix_spawnp(
        pid: *mut c_int, file: *const c_char, actions: *const c_void, attributes: *const c_void,
        argv: *const *const c_char, envp: *const *const c_char
    ) -> c_int |libc| {
        exec::with_probe(envp, |envp| libc(pid, file, actions, attributes, argv, envp))
    }

    /// Every register passed through: how many arguments there are depends on the first.
    fn prctl(operation: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int |libc| {
        let result = libc(operation, a, b, c, d);
        calls::prctl(result, operation);
        result
    }

    /// As prctl: the number, and up to six arguments.
    fn syscall(
        number: c_long, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong, e: c_ulong, f: c_ulong
    ) -> c_long |libc| {
        let result = libc(number, a, b, c, d, e, f);
        calls::syscall(result, number);
        result
    }
}

/// After dup2 or dup3: `to` was closed if the call succeeded, and is still what it was if not.
fn finish_dup(slot: Slot, from: c_int, to: c_int, result: c_int, how: &'static str) {
    if result < 0 {
        calls::restore(slot, to);
    } else {
        calls::ended(slot, to, how);
        calls::duplicated(from, result);
    }
}

/// Bytes that an array of buffers has room for.
unsafe fn room(iov: *const IoVec, count: usize) -> usize {
    // SAFETY: the kernel has just read this array for the program.
    (0..count).map(|index| unsafe { (*iov.add(index)).len() }).fold(0, usize::saturating_add)
}

/// Tells rustc that variadic functions are hooked with fixed registers: on every 64-bit psABI here, integer arguments
/// of a variadic call go where those of a fixed one do.
const _: () = assert!(size_of::<c_long>() == size_of::<*const c_void>());
