//! Calls of the send(2) and recv(2) family, which only sockets answer.

use core::ffi::{CStr, c_int, c_uint, c_void};

use super::entry::hooks;
use crate::observe::ancillary::Ancillary;
use crate::observe::capture::{Buffers, Call, Details, IoVec, Message, Peer, Truncated};
use crate::process::stack;
use crate::sys;
use crate::sys::libc::{errno, set_errno};

/// Flags of recv(2).
const MSG_OOB: c_int = 0x1;
const MSG_PEEK: c_int = 0x2;
const MSG_CTRUNC: c_int = 0x8;
const MSG_TRUNC: c_int = 0x20;
const MSG_EOR: c_int = 0x80;
/// What a message's flags say of the message; the others are the call's.
const MESSAGE_FLAGS: c_int = MSG_OOB | MSG_CTRUNC | MSG_TRUNC | MSG_EOR;

/// `struct msghdr` of recvmsg(2).
#[derive(Debug)]
#[repr(C)]
pub(super) struct MessageHeader {
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

    /// A message that was sent with these flags.
    fn sent(&self, flags: c_int) -> Message {
        let details = Details { ancillary: self.ancillary(), ..Details::sent(flags) };
        Message { buffers: self.buffers(), peer: self.peer(), details }
    }

    /// Where the bytes of a message that was sent with these flags are, if they are in one piece and all there is to it.
    unsafe fn plain(&self, flags: c_int) -> Option<IoVec> {
        let is_plain = flags & MSG_OOB == 0 && self.ancillary().is_empty() && self.iov_len == 1;
        // SAFETY: the kernel has just read this array of one.
        is_plain.then(|| unsafe { *self.iov })
    }

    fn ancillary(&self) -> Ancillary {
        Ancillary { control: self.control, len: self.control_len }
    }

    /// The same of a message that was received.
    unsafe fn plain_received(&self, flags: c_int) -> Option<IoVec> {
        const NOT_PLAIN: c_int = MSG_OOB | MSG_PEEK | MSG_TRUNC;
        let is_plain = flags & NOT_PLAIN == 0 && self.flags & MESSAGE_FLAGS == 0 && self.ancillary().is_empty();
        // SAFETY: the kernel has just read this array of one.
        (is_plain && self.iov_len == 1).then(|| unsafe { *self.iov })
    }

    /// Reports this message, received with these flags into a header with room for an address of `address_room` bytes,
    /// and takes note of the descriptors that came with it.
    #[inline(never)]
    unsafe fn received(&self, call: &Call, result: isize, flags: c_int, address_room: usize) {
        // SAFETY: the kernel has just read the array of buffers and written the ancillary data, at these lengths.
        unsafe {
            let moved = taken(result, flags, room(self.iov, self.iov_len));
            let details = Details {
                flags: self.flags & MESSAGE_FLAGS | flags & MSG_OOB,
                truncated: if self.flags & MSG_TRUNC == 0 { Truncated::No } else { Truncated::Yes },
                ancillary: self.ancillary(),
            };
            // Even of a peek: it makes descriptors too.
            details.ancillary.arrive(call.fd());
            let peer = Peer { address: self.name, len: address_room.min(self.name_len as usize) };
            call.received(moved, || Message { buffers: self.buffers(), peer, details });
        }
    }
}

/// `struct mmsghdr` of recvmmsg(2).
#[derive(Debug)]
#[repr(C)]
pub(super) struct CountedMessage {
    header: MessageHeader,
    /// Bytes that were moved.
    len: c_uint,
}

impl Details {
    fn sent(flags: c_int) -> Self {
        Self { flags: flags & MSG_OOB, truncated: Truncated::No, ancillary: Ancillary::NONE }
    }

    /// Of a receive that says how many bytes it moved and no more; with MSG_TRUNC, how many there were.
    fn received(result: isize, flags: c_int, room: usize) -> Self {
        let truncated = match flags & MSG_TRUNC {
            0 => Truncated::Maybe,
            _ if result.unsigned_abs() > room => Truncated::Yes,
            _ => Truncated::No,
        };
        Self { flags: flags & MSG_OOB, truncated, ancillary: Ancillary::NONE }
    }
}

/// The room for an address that a program says it has, where a receive will replace it by the address's own length. Asked
/// of the kernel: only a call that succeeds shows that the pointer is good. 0 where it does not matter, or is not told.
fn address_room(call: &Call, len: *const c_uint) -> usize {
    if call.is_of_datagrams() { sys::read_u32(len).unwrap_or(0) as usize } else { 0 }
}

/// Where a header of recvmsg(2) has that room.
fn room_in(message: *const MessageHeader) -> *const c_uint {
    message.cast::<u8>().wrapping_add(core::mem::offset_of!(MessageHeader, name_len)).cast()
}

/// The address that recvfrom(2) filled in; its length is where the program put it.
unsafe fn filled_in(address: *const c_void, len: *const c_uint, room: usize) -> Peer {
    if address.is_null() || len.is_null() {
        return Peer::NONE;
    }
    // SAFETY: the kernel has just written it.
    Peer { address, len: room.min(unsafe { *len } as usize) }
}

/// Bytes that a receive moved: MSG_PEEK moves none, and MSG_TRUNC makes the result more than what there was room for.
fn taken(result: isize, flags: c_int, room: usize) -> isize {
    match result {
        _ if flags & MSG_PEEK != 0 => -1,
        n if flags & MSG_TRUNC != 0 => n.min(isize::try_from(room).unwrap_or(isize::MAX)),
        n => n,
    }
}

/// Bytes that an array of buffers has room for.
unsafe fn room(iov: *const IoVec, count: usize) -> usize {
    // SAFETY: the kernel has just read this array for the program.
    (0..count).map(|index| unsafe { (*iov.add(index)).len() }).fold(0, usize::saturating_add)
}

/// A receive from a socket that keeps messages apart, by a call that tells neither who sent the message nor whether all
/// of it was taken: made as recvmsg(2), which does the same and tells. `plain` is the call itself, for what turns out to
/// be no socket.
///
/// # Safety
///
/// As of recvmsg(2).
#[inline(never)]
pub(super) unsafe fn receive(call: &Call, only: IoVec, flags: c_int, plain: impl FnOnce() -> isize) -> isize {
    /// `struct sockaddr_storage`.
    const MAX_ADDRESS_LEN: usize = 128;
    const ENOTSOCK: c_int = 88;
    let mut name = [0_u8; MAX_ADDRESS_LEN];
    let mut message = MessageHeader {
        name: (&raw mut name).cast(),
        name_len: MAX_ADDRESS_LEN as c_uint,
        iov: &raw const only,
        iov_len: 1,
        control: core::ptr::null(),
        control_len: 0,
        flags: 0,
    };
    let before = errno();
    // SAFETY: the program's buffers, as it gave them; the header is ours.
    let result = unsafe { libc_recvmsg(call.fd(), &raw mut message, flags) };
    if result < 0 && errno() == ENOTSOCK {
        set_errno(before);
        return plain();
    }
    if result >= 0 {
        // SAFETY: the kernel has just filled them in.
        stack::on_own(|| unsafe { message.received(call, result, flags, MAX_ADDRESS_LEN) });
    } else {
        call.failed(Peer::NONE);
    }
    result
}

/// Reports what send(2) or sendto(2) sent.
#[inline]
unsafe fn report_sent(
    call: &Call,
    result: isize,
    buffer: *const c_void,
    len: usize,
    flags: c_int,
    address: *const c_void,
    address_len: c_uint,
) {
    /// Apart, so that the common way has a small frame on the stack.
    #[inline(never)]
    #[allow(clippy::too_many_arguments, reason = "those of the call")]
    unsafe fn report(
        call: &Call,
        result: isize,
        buffer: *const c_void,
        len: usize,
        flags: c_int,
        address: *const c_void,
        address_len: c_uint,
    ) {
        call.sent(result, None, || Message {
            buffers: Buffers::one(buffer, len),
            peer: Peer { address, len: address_len as usize },
            details: Details::sent(flags),
        });
    }
    let only = (flags & MSG_OOB == 0).then_some(IoVec::new(buffer, len));
    if result < 0 {
        call.failed(Peer { address, len: address_len as usize });
    } else if !call.sent_plain(result, only) {
        // SAFETY: the caller's promise.
        unsafe { report(call, result, buffer, len, flags, address, address_len) };
    }
}

/// Reports what recv(2) or recvfrom(2) received. `address_len` is where the program has the address's length, and what it said
/// before the call.
#[inline]
unsafe fn report_received(
    call: &Call,
    result: isize,
    buffer: *mut c_void,
    len: usize,
    flags: c_int,
    address: *const c_void,
    address_len: (*const c_uint, usize),
) {
    /// As in `report_sent`.
    #[inline(never)]
    #[allow(clippy::too_many_arguments, reason = "those of the call")]
    unsafe fn report(
        call: &Call,
        result: isize,
        buffer: *mut c_void,
        len: usize,
        flags: c_int,
        address: *const c_void,
        (address_len, room): (*const c_uint, usize),
    ) {
        call.received(taken(result, flags, len), || Message {
            buffers: Buffers::one(buffer, len),
            // SAFETY: the caller's promise: the call has succeeded.
            peer: unsafe { filled_in(address, address_len, room) },
            details: Details::received(result, flags, len),
        });
    }
    let only = (flags & (MSG_OOB | MSG_PEEK | MSG_TRUNC) == 0).then_some(IoVec::new(buffer, len));
    if result < 0 {
        call.failed(Peer::NONE);
    } else if !call.received_plain(result, only) {
        // SAFETY: the caller's promise.
        unsafe { report(call, result, buffer, len, flags, address, address_len) };
    }
}

/// libc's own recvmsg(2).
unsafe fn libc_recvmsg(fd: c_int, message: *mut MessageHeader, flags: c_int) -> isize {
    type Function = unsafe extern "C-unwind" fn(c_int, *mut MessageHeader, c_int) -> isize;
    let address = super::entry::libc_function(&libc_functions::recvmsg.call[0], c"recvmsg");
    // SAFETY: the address is libc's function of this name, whose signature this is.
    unsafe { core::mem::transmute::<*mut c_void, Function>(address)(fd, message, flags) }
}

/// Messages of one recvmmsg(2) whose senders are recorded; those behind have the connection's path.
const MAX_ROOMS: usize = 64;

hooks! {
    fn send(fd: c_int, buffer: *const c_void, len: usize, flags: c_int) -> isize |libc, fd| {
        let call = Call::of_message("send", fd);
        let result = libc(fd, buffer, len, flags);
        report_sent(&call, result, buffer, len, flags, core::ptr::null(), 0);
        result
    }

    fn sendto[SENDTO](
        fd: c_int, buffer: *const c_void, len: usize, flags: c_int, address: *const c_void, address_len: c_uint
    ) -> isize |libc, fd| {
        let call = Call::of_message("sendto", fd);
        let result = libc(fd, buffer, len, flags, address, address_len);
        report_sent(&call, result, buffer, len, flags, address, address_len);
        result
    }

    fn sendmsg[SENDMSG](fd: c_int, message: *const MessageHeader, flags: c_int) -> isize |libc, fd| {
        let call = Call::of_message("sendmsg", fd);
        let result = libc(fd, message, flags);
        if result >= 0 {
            call.sent(result, (*message).plain(flags), || (*message).sent(flags));
        } else if call.has_failed() {
            // Not EFAULT: the kernel has read the header.
            call.failed((*message).peer());
        }
        result
    }

    fn recv(fd: c_int, buffer: *mut c_void, len: usize, flags: c_int) -> isize |libc, fd| {
        let call = Call::of_message("recv", fd);
        if call.keeps_messages_apart(len) {
            return receive(&call, IoVec::new(buffer, len), flags, move || libc(fd, buffer, len, flags));
        }
        let result = libc(fd, buffer, len, flags);
        report_received(&call, result, buffer, len, flags, core::ptr::null(), (core::ptr::null(), 0));
        result
    }

    fn recvfrom[RECVFROM](
        fd: c_int, buffer: *mut c_void, len: usize, flags: c_int, address: *mut c_void, address_len: *mut c_uint
    ) -> isize |libc, fd| {
        let call = Call::of_message("recvfrom", fd);
        if address.is_null() && call.keeps_messages_apart(len) {
            let plain = move || libc(fd, buffer, len, flags, address, address_len);
            return receive(&call, IoVec::new(buffer, len), flags, plain);
        }
        let room = address_room(&call, address_len);
        let result = libc(fd, buffer, len, flags, address, address_len);
        report_received(&call, result, buffer, len, flags, address, (address_len, room));
        result
    }

    fn recvmsg[RECVMSG](fd: c_int, message: *mut MessageHeader, flags: c_int) -> isize |libc| {
        let call = Call::of_message("recvmsg", fd);
        let room = address_room(&call, room_in(message));
        let result = libc(fd, message, flags);
        if result < 0 {
            call.failed(Peer::NONE);
        } else if !call.received_plain(result, (*message).plain_received(flags)) {
            (*message).received(&call, result, flags, room);
        }
        result
    }

    fn sendmmsg[SENDMMSG](
        fd: c_int, messages: *const CountedMessage, count: c_uint, flags: c_int
    ) -> c_int |libc| {
        let call = Call::of_message("sendmmsg", fd);
        let sent = libc(fd, messages, count, flags);
        for index in 0..sent.max(0).cast_unsigned() as usize {
            let CountedMessage { header, len } = &*messages.add(index);
            call.sent(*len as isize, header.plain(flags), || header.sent(flags));
        }
        if sent < 0 && count > 0 && call.has_failed() {
            call.failed((*messages).header.peer());
        }
        sent
    }

    fn recvmmsg[RECVMMSG](
        fd: c_int, messages: *const CountedMessage, count: c_uint, flags: c_int, timeout: *mut c_void
    ) -> c_int |libc| {
        let call = Call::of_message("recvmmsg", fd);
        let mut rooms = [0_u8; MAX_ROOMS];
        for (index, room) in rooms.iter_mut().enumerate().take(count as usize) {
            // No address of a UNIX socket is as long.
            *room = address_room(&call, room_in(messages.wrapping_add(index).cast())).min(u8::MAX.into()) as u8;
        }
        let received = libc(fd, messages, count, flags, timeout);
        for index in 0..received.max(0).cast_unsigned() as usize {
            let CountedMessage { header, len } = &*messages.add(index);
            if call.received_plain(*len as isize, header.plain_received(flags)) {
                continue;
            }
            header.received(&call, *len as isize, flags, rooms.get(index).map_or(0, |&room| room.into()));
        }
        received
    }

    /// What recv(2) is compiled to where the compiler knows the buffer's size (feature_test_macros(7)). Whether libc's
    /// goes on to a hooked recv(2) depends on the libc and on how it is hooked; so this goes there itself, and leaves
    /// to libc what it is for: to end a program whose buffer is too small.
    fn __recv_chk(fd: c_int, buffer: *mut c_void, len: usize, room: usize, flags: c_int) -> isize |libc| {
        if len > room { libc(fd, buffer, len, room, flags) } else { super::recv::<0>(fd, buffer, len, flags) }
    }

    /// As `__recv_chk`.
    fn __recvfrom_chk(
        fd: c_int, buffer: *mut c_void, len: usize, room: usize, flags: c_int, address: *mut c_void,
        address_len: *mut c_uint
    ) -> isize |libc| {
        if len > room {
            libc(fd, buffer, len, room, flags, address, address_len)
        } else {
            super::recvfrom::<0>(fd, buffer, len, flags, address, address_len)
        }
    }
}
