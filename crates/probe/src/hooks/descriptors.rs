//! Duplicating and closing descriptors.

use core::ffi::{CStr, c_int, c_uint, c_ulong};

use super::entry::hooks;
use crate::observe::{calls, records};
use crate::sys::libc::{errno, set_errno};
use crate::table::descriptors::Slot;
use crate::transport;

/// Commands of fcntl(2).
const F_DUPFD: c_int = 0;
const F_DUPFD_CLOEXEC: c_int = 1030;
/// Flag of close_range(2): mark, do not close.
const CLOSE_RANGE_CLOEXEC: c_int = 4;

/// The result of a function that has none.
type Nothing = ();

hooks! {
    fn close[CLOSE](fd: c_int) -> c_int |libc| {
        if transport::is_own(fd) {
            // It has found it somewhere (/proc/self/fd), and hears what it would of one of its own. We go on.
            return 0;
        }
        let slot = calls::before_close(fd);
        let result = libc(fd);
        records::ended(slot, fd, "close");
        result
    }

    /// What fclose(3) and others of glibc's own functions close by.
    fn __close_nocancel(fd: c_int) -> c_int |libc| {
        close(libc, fd)
    }

    fn dup[DUP](fd: c_int) -> c_int |libc| {
        let copy = libc(fd);
        calls::duplicated(fd, copy);
        copy
    }

    fn dup2[DUP2](from: c_int, to: c_int) -> c_int |libc| {
        transport::make_way(to);
        let slot = if from == to { Slot::Unknown } else { calls::before_close(to) };
        let result = libc(from, to);
        finish_dup(slot, from, to, result, "dup2");
        result
    }

    fn dup3[DUP3](from: c_int, to: c_int, flags: c_int) -> c_int |libc| {
        transport::make_way(to);
        let slot = if from == to { Slot::Unknown } else { calls::before_close(to) };
        let result = libc(from, to, flags);
        finish_dup(slot, from, to, result, "dup3");
        result
    }

    fn fcntl[FCNTL](fd: c_int, command: c_int, argument: c_ulong) -> c_int |libc| {
        let result = libc(fd, command, argument);
        if matches!(command, F_DUPFD | F_DUPFD_CLOEXEC) {
            calls::duplicated(fd, result);
        }
        result
    }

    fn fcntl64(fd: c_int, command: c_int, argument: c_ulong) -> c_int |libc| {
        fcntl(libc, fd, command, argument)
    }

    fn pidfd_getfd[PIDFD_GETFD](pidfd: c_int, fd: c_int, flags: c_uint) -> c_int |libc| {
        let result = libc(pidfd, fd, flags);
        calls::fetched(result);
        result
    }

    fn close_range[CLOSE_RANGE](first: c_uint, last: c_uint, flags: c_int) -> c_int |libc| {
        let result = transport::around_own(first, last, |first, last| libc(first, last, flags));
        if result == 0 && flags & CLOSE_RANGE_CLOEXEC == 0 {
            calls::closed_range(first, last, "close_range");
        }
        result
    }

    /// Which has no result: glibc's ends the program where it cannot do it.
    fn closefrom(first: c_int) -> Nothing |libc| {
        let from = first.max(0).cast_unsigned();
        // Before close_range's own hook tells of it.
        calls::closed_range(from, c_uint::MAX, "closefrom");
        let errno = errno();
        // Where there is no close_range(2), Linux before 5.9, ours go with the others.
        if transport::around_own(from, c_uint::MAX, |first, last| super::close_range::<0>(first, last, 0)) != 0 {
            set_errno(errno);
            libc(first);
        }
    }
}

/// After dup2 or dup3: `to` was closed if the call succeeded, and is still what it was if not.
fn finish_dup(slot: Slot, from: c_int, to: c_int, result: c_int, how: &'static str) {
    if result < 0 {
        calls::restore(slot, to);
    } else {
        records::ended(slot, to, how);
        calls::duplicated(from, result);
    }
}
