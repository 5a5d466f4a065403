//! Making, naming and connecting sockets.

use core::ffi::{CStr, c_int, c_uint, c_void};

use super::entry::hooks;
use crate::observe::{calls, failures};

hooks! {
    fn socket[SOCKET](domain: c_int, kind: c_int, protocol: c_int) -> c_int |libc| {
        let fd = libc(domain, kind, protocol);
        if fd < 0 {
            failures::of_making("socket", domain);
        }
        calls::socket(fd, domain, kind);
        fd
    }

    fn socketpair[SOCKETPAIR](domain: c_int, kind: c_int, protocol: c_int, pair: *mut [c_int; 2]) -> c_int |libc| {
        let result = libc(domain, kind, protocol, pair);
        if result == 0 {
            calls::socketpair(*pair, domain, kind);
        } else {
            failures::of_making("socketpair", domain);
        }
        result
    }

    fn bind[BIND](fd: c_int, address: *const c_void, len: c_uint) -> c_int |libc| {
        let result = libc(fd, address, len);
        if result < 0 {
            failures::of_call("bind", fd, address, len as usize);
        }
        calls::bind(result, fd, address, len as usize);
        result
    }

    fn listen[LISTEN](fd: c_int, backlog: c_int) -> c_int |libc| {
        let result = libc(fd, backlog);
        if result < 0 {
            failures::of_call("listen", fd, core::ptr::null(), 0);
        }
        calls::listen(result, fd);
        result
    }

    fn connect[CONNECT](fd: c_int, address: *const c_void, len: c_uint) -> c_int |libc| {
        let result = libc(fd, address, len);
        if result < 0 {
            failures::of_call("connect", fd, address, len as usize);
        }
        calls::connect(result, fd, address, len as usize);
        result
    }

    fn accept[ACCEPT](fd: c_int, address: *mut c_void, len: *mut c_uint) -> c_int |libc| {
        let accepted = libc(fd, address, len);
        if accepted < 0 {
            failures::of_call("accept", fd, core::ptr::null(), 0);
        }
        calls::accept(accepted, fd, "accept");
        accepted
    }

    fn accept4[ACCEPT4](fd: c_int, address: *mut c_void, len: *mut c_uint, flags: c_int) -> c_int |libc| {
        let accepted = libc(fd, address, len, flags);
        if accepted < 0 {
            failures::of_call("accept4", fd, core::ptr::null(), 0);
        }
        calls::accept(accepted, fd, "accept4");
        accepted
    }

    fn shutdown[SHUTDOWN](fd: c_int, how: c_int) -> c_int |libc| {
        let result = libc(fd, how);
        calls::shutdown(result, fd, how);
        result
    }
}
