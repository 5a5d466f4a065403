//! Calls that move bytes on any descriptor.

use core::ffi::{CStr, c_int, c_long, c_uint, c_void};

use gttr::Direction::{In, Out};

use super::entry::hooks;
use super::messages::receive;
use crate::observe::capture::{Buffers, Call, Details, IoVec, Message, Peer, Source};

fn count_of(count: c_int) -> usize {
    count.max(0).cast_unsigned() as usize
}

/// Reports what was read into scattered buffers: also a message without bytes, unless there was no room for one, when
/// the socket is not asked.
unsafe fn report_read(call: &Call, result: isize, iov: *const IoVec, count: c_int) {
    let buffers = Buffers::Many(iov, count_of(count));
    if result == 0 && call.keeps_messages_apart(1) && buffers.room() > 0 {
        call.received(result, || Message { buffers, peer: Peer::NONE, details: Details::NONE });
    } else {
        call.moved(In, result, buffers);
    }
}

hooks! {
    fn read[READ](fd: c_int, buffer: *mut c_void, len: usize) -> isize |libc, fd| {
        let call = Call::of_bytes("read", fd);
        // Without room for a byte, read(2) does not ask the socket.
        if len > 0 && call.keeps_messages_apart(len) {
            return receive(&call, IoVec::new(buffer, len), 0, move || libc(fd, buffer, len));
        }
        let result = libc(fd, buffer, len);
        call.moved(In, result, Buffers::one(buffer, len));
        result
    }

    /// What glibc's own functions read by where a thread must not be cancelled.
    fn __read_nocancel(fd: c_int, buffer: *mut c_void, len: usize) -> isize |libc| {
        read(libc, fd, buffer, len)
    }

    fn write[WRITE](fd: c_int, buffer: *const c_void, len: usize) -> isize |libc, fd| {
        let call = Call::of_bytes("write", fd);
        let result = libc(fd, buffer, len);
        if result == 0 && call.keeps_messages_apart(1) {
            // A message without bytes, which writev(2) does not send.
            let buffers = Buffers::one(buffer, len);
            call.sent(result, None, || Message { buffers, peer: Peer::NONE, details: Details::NONE });
        } else {
            call.moved(Out, result, Buffers::one(buffer, len));
        }
        result
    }

    /// As `__read_nocancel`.
    fn __write_nocancel(fd: c_int, buffer: *const c_void, len: usize) -> isize |libc| {
        write(libc, fd, buffer, len)
    }

    fn readv[READV](fd: c_int, iov: *const IoVec, count: c_int) -> isize |libc, fd| {
        let call = Call::of_bytes("readv", fd);
        let result = libc(fd, iov, count);
        report_read(&call, result, iov, count);
        result
    }

    fn writev[WRITEV](fd: c_int, iov: *const IoVec, count: c_int) -> isize |libc, fd| {
        let call = Call::of_bytes("writev", fd);
        let result = libc(fd, iov, count);
        call.moved(Out, result, Buffers::Many(iov, count_of(count)));
        result
    }

    fn preadv2[PREADV2](fd: c_int, iov: *const IoVec, count: c_int, offset: c_long, flags: c_int) -> isize |libc| {
        let call = Call::of_bytes("preadv2", fd);
        let result = libc(fd, iov, count, offset, flags);
        report_read(&call, result, iov, count);
        result
    }

    fn pwritev2[PWRITEV2](fd: c_int, iov: *const IoVec, count: c_int, offset: c_long, flags: c_int) -> isize |libc| {
        let call = Call::of_bytes("pwritev2", fd);
        let result = libc(fd, iov, count, offset, flags);
        call.moved(Out, result, Buffers::Many(iov, count_of(count)));
        result
    }

    /// preadv2 for programs with 64-bit offsets (feature_test_macros(7)).
    fn preadv64v2(fd: c_int, iov: *const IoVec, count: c_int, offset: c_long, flags: c_int) -> isize |libc| {
        preadv2(libc, fd, iov, count, offset, flags)
    }

    /// As preadv64v2.
    fn pwritev64v2(fd: c_int, iov: *const IoVec, count: c_int, offset: c_long, flags: c_int) -> isize |libc| {
        pwritev2(libc, fd, iov, count, offset, flags)
    }

    fn sendfile[SENDFILE](to: c_int, from: c_int, offset: *mut c_long, count: usize) -> isize |libc| {
        let call = Call::of_bytes("sendfile", to);
        let source = Source::before(&call, from, offset);
        let result = libc(to, from, offset, count);
        call.sent_file(result, &source);
        result
    }

    /// sendfile for programs with 64-bit offsets.
    fn sendfile64(to: c_int, from: c_int, offset: *mut c_long, count: usize) -> isize |libc| {
        sendfile(libc, to, from, offset, count)
    }

    /// tee(2) and vmsplice(2), its relatives, take pipes only.
    fn splice[SPLICE](
        from: c_int, from_offset: *mut c_long, to: c_int, to_offset: *mut c_long, len: usize, flags: c_uint
    ) -> isize |libc| {
        let (out, into) = (Call::of_bytes("splice", from), Call::of_bytes("splice", to));
        let result = libc(from, from_offset, to, to_offset, len, flags);
        out.counted(In, result);
        into.counted(Out, result);
        result
    }
}
