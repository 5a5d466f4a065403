//! From a call's result to the bytes it moved: on which connection, which of them, and the events that say so.

mod buffers;
mod call;
mod data;
mod fast;
mod file;
mod message;

use gttr::Direction;
use rustix::fd::BorrowedFd;

use crate::emit::count_loss;
use crate::observe::announce::announce;
use crate::observe::records::{self, Change, VANISHED};
use crate::observe::{failures, scan};
use crate::process::clock::{self, monotonic_ns};
use crate::process::losses::Cause;
use crate::process::stack;
use crate::sys::address::Address;
use crate::sys::confined::is_confined;
use crate::sys::{self};
use crate::table::connection::{Connection, Handle, Kind, SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM};
use crate::table::descriptors::{self, Slot};
use crate::table::name::SocketPath;
use crate::transport;

pub(crate) use buffers::{Buffers, IoVec};
pub(crate) use call::Call;
pub(crate) use file::Source;
pub(crate) use message::{Details, Message, Peer, Truncated};

use data::Data;
use message::Moved;

impl Call {
    /// Whether the socket is one of datagrams or seqpackets, of which a receive with room for `room` bytes should tell
    /// more than their bytes, and may.
    #[inline]
    pub(crate) fn keeps_messages_apart(&self, room: usize) -> bool {
        /// MAX_RW_COUNT of the kernel: beyond it, read(2) and recvmsg(2) are not alike.
        const MAX_ROOM: usize = 0x7fff_f000;
        let Slot::Traced(handle) = self.slot() else { return false };
        handle.get().is_some_and(|connection| connection.description().socket_type != SOCK_STREAM)
            && room <= MAX_ROOM
            && !is_confined()
    }

    /// Whether messages may have addresses of their own; of a socket that is not known yet, they may.
    pub(crate) fn is_of_datagrams(&self) -> bool {
        match self.slot() {
            Slot::Traced(handle) => handle.get().is_some_and(|it| it.description().socket_type == SOCK_DGRAM),
            _ => !self.is_idle(true),
        }
    }

    /// Reports bytes that a call of the read(2) family moved.
    #[inline(always)]
    pub(crate) fn moved(&self, direction: Direction, result: isize, buffers: Buffers) {
        if result > 0 {
            if !self.is_idle(false) && !self.reported_fast(direction, result, buffers.only()) {
                self.report_bytes(direction, result, buffers);
            }
        } else if !self.is_idle(false) {
            self.moved_nothing(direction, result, &buffers);
        }
    }

    /// A call of the read(2) family that moved nothing: it failed, or there is nothing more to come.
    #[cold]
    #[inline(never)]
    fn moved_nothing(&self, direction: Direction, result: isize, buffers: &Buffers) {
        if result < 0 {
            self.failed(Peer::NONE);
        } else if direction == Direction::In && buffers.room() > 0 {
            self.report_end();
        }
    }

    /// Reports that the call has failed; `peer` is the address that it named.
    #[cold]
    #[inline(never)]
    pub(crate) fn failed(&self, peer: Peer) {
        if let Slot::Traced(_) = self.slot() {
            failures::of_call(self.name, self.fd, peer.address, peer.len);
        }
    }

    /// Whether it has failed in a way that is reported.
    #[cold]
    #[inline(never)]
    pub(crate) fn has_failed(&self) -> bool {
        matches!(self.slot(), Slot::Traced(_)) && failures::is_told(self.name)
    }

    /// A receive with room for bytes got none, and no message.
    fn report_end(&self) {
        if let (Some(connection), true) = (self.slot().connection(), descriptors::owns_descriptors()) {
            stack::on_own(|| failures::of_end(connection, self.fd));
        }
    }

    /// Apart, as all that takes another way than the common one, which so has a small frame on the stack.
    #[inline(never)]
    fn report_bytes(&self, direction: Direction, result: isize, buffers: Buffers) {
        self.report(&Moved::bytes(direction, result.unsigned_abs() as u64), |data| data.emit(&buffers));
    }

    /// Reports bytes that are in one buffer, if that can be done in the common way; whether it was.
    #[inline]
    fn reported_fast(&self, direction: Direction, result: isize, only: Option<IoVec>) -> bool {
        // The clock is read here, because the kernel's code for that wants room on the stack, too.
        only.filter(|_| self.entered_ns != 0)
            .is_some_and(|buffer| fast::report(self, direction, result.unsigned_abs() as u64, buffer, monotonic_ns()))
    }

    /// Reports a message that a call of the send(2) family sent. `buffer` is where its bytes are, if they are in one piece and
    /// nothing else is to be said of it; `message` gives all there is, and is not called if that suffices.
    #[inline]
    pub(crate) fn sent(&self, result: isize, buffer: Option<IoVec>, message: impl FnOnce() -> Message) {
        if result >= 0 && !self.is_idle(true) && !self.reported_fast(Direction::Out, result, buffer) {
            self.report_message(Direction::Out, result, message);
        }
    }

    /// Reports a message that is in one piece, and of which nothing else is to be said, if that can be done in the common
    /// way, or there is nothing to report; whether it was.
    #[inline]
    pub(crate) fn sent_plain(&self, result: isize, only: Option<IoVec>) -> bool {
        self.is_idle(true) || self.reported_fast(Direction::Out, result, only)
    }

    /// The same of one that was received.
    #[inline]
    pub(crate) fn received_plain(&self, result: isize, only: Option<IoVec>) -> bool {
        self.is_idle(true) || self.reported_fast(Direction::In, result, only)
    }

    /// Reports a message that a call of the recv(2) family received, where [`Call::received_plain`] did not.
    #[inline]
    pub(crate) fn received(&self, result: isize, message: impl FnOnce() -> Message) {
        if result >= 0 && !self.is_idle(true) {
            self.report_message(Direction::In, result, message);
        }
    }

    #[inline(never)]
    fn report_message(&self, direction: Direction, result: isize, message: impl FnOnce() -> Message) {
        let Message { buffers, peer, details } = message();
        let total = result.unsigned_abs() as u64;
        let had_room = total != 0 || buffers.room() > 0;
        let moved = Moved { had_room, peer, details, ..Moved::bytes(direction, total) };
        self.report(&moved, |data| data.emit(&buffers));
    }

    /// Reports bytes that a call moved past the program's memory.
    #[inline]
    pub(crate) fn counted(&self, direction: Direction, result: isize) {
        if result > 0 && !self.is_idle(false) {
            let total = result.unsigned_abs() as u64;
            self.report(&Moved::past_memory(direction, total), |data| data.emit_count());
        } else if result < 0 && direction == Direction::Out {
            self.failed(Peer::NONE);
        }
    }

    /// Reports bytes that sendfile(2) sent.
    #[inline]
    pub(crate) fn sent_file(&self, result: isize, source: &Source) {
        if result > 0 && !self.is_idle(false) {
            let total = result.unsigned_abs() as u64;
            self.report(&Moved::past_memory(Direction::Out, total), |data| data.emit_file(source));
        } else if result < 0 {
            self.failed(Peer::NONE);
        }
    }

    /// Inline, because its frame would be one more on the program's stack.
    #[inline]
    fn report(&self, moved: &Moved, emit: impl FnOnce(&Data<'_>)) {
        stack::on_own(|| self.report_here(moved, emit));
    }

    fn report_here(&self, moved: &Moved, emit: impl FnOnce(&Data<'_>)) {
        let (entered_ns, now) = clock::since(self.entered_ns);
        // What is sent may arrive before the call returns; what is received was there before it did.
        let ts_ns = if moved.direction == Direction::Out { entered_ns } else { now };
        let total = moved.total;
        let Some(handle) = self.connection(ts_ns, moved) else { return };
        let Some(connection) = handle.get() else {
            return count_loss(total, ts_ns, Cause::Unattributed);
        };
        // Of a message that was cut there was more, also where no byte of it was received.
        let was_cut = moved.details.truncated == Truncated::Yes;
        if total == 0 && !was_cut && !self.is_message(connection, moved.direction) {
            if moved.direction == Direction::In && moved.had_room {
                self.report_end();
            }
            return;
        }
        // Relative names are rare in messages, so the look-up is for those only.
        // On a connection, a message's address is the other end's own, not what the connection is to.
        let has_own_address = connection.description().socket_type == SOCK_DGRAM;
        let address = if has_own_address { moved.peer.address().filter(Address::is_named) } else { None };
        let mut path = address.as_ref().map(|address| SocketPath::of(address, c"/proc/thread-self/cwd"));
        if !connection.description().wanted && !path.as_mut().is_some_and(SocketPath::is_wanted) {
            return;
        }
        let Some(handle) = ensure_open(handle, self.fd, self.name, path.as_ref(), ts_ns) else { return };
        let Some(connection) = handle.get() else {
            return count_loss(total, ts_ns, Cause::Unattributed);
        };
        let offset = connection.add_moved(moved.direction, total);
        announce(connection, ts_ns);
        let path = path.as_ref().map(|path| path.shown.as_bytes());
        let duration_ns = now.saturating_sub(entered_ns);
        emit(&Data { call: self, connection, moved, offset, ts_ns, entered_ns, duration_ns, path });
    }

    /// Whose bytes these are. A number may have been closed behind libc's back and reused, so the socket itself is
    /// looked at.
    fn connection(&self, ts_ns: u64, moved: &Moved) -> Option<Handle> {
        let Slot::Traced(handle) = self.slot() else {
            return match scan::discover(self.fd) {
                Slot::Traced(handle) => Some(handle),
                _ => None,
            };
        };
        if handle.get().is_none_or(Connection::is_of_former_start) {
            return self.connection_anew(handle, ts_ns, moved);
        }
        if is_confined() {
            return Some(handle);
        }
        let interval_ns = if moved.past_memory { 0 } else { transport::check_interval_ns() };
        if !descriptors::is_check_due(self.fd, ts_ns, interval_ns) && handle.get().is_some() {
            return Some(handle);
        }
        descriptors::set_checked(self.fd, ts_ns);
        // SAFETY: a call on it has just succeeded; should it be closed by now, fstat says so.
        let fd = unsafe { BorrowedFd::borrow_raw(self.fd) };
        let found = rustix::fs::fstat(fd).ok().map(|stat| stat.st_ino);
        let known = handle.get().map(|connection| connection.description().inode);
        if found == known && found.is_some() {
            return Some(handle);
        }
        if descriptors::get(self.fd) != self.slot() {
            // Closed through libc while the call went on, as we know: the bytes are the old connection's.
            return Some(handle);
        }
        if found.is_none() {
            count_loss(moved.total, ts_ns, Cause::Unattributed);
            return None;
        }
        if descriptors::owns_descriptors() && descriptors::replace_if(self.fd, self.slot(), Slot::Arrived) {
            records::ended(self.slot(), self.fd, VANISHED);
        }
        match scan::discover(self.fd) {
            Slot::Traced(handle) => Some(handle),
            _ => None,
        }
    }

    /// Whose bytes these are, if the record that was found when the call was entered is not in use any more: the probe was
    /// stopped and started anew while the call waited, or the connection was closed and its record taken for another.
    #[cold]
    fn connection_anew(&self, handle: Handle, ts_ns: u64, moved: &Moved) -> Option<Handle> {
        let before = handle.get().map(|connection| connection.description().inode);
        let now = match descriptors::get(self.fd) {
            Slot::Traced(now) => Some(now),
            Slot::Other | Slot::Foreign => None,
            Slot::Unknown | Slot::Arrived => match scan::discover(self.fd) {
                Slot::Traced(now) => Some(now),
                _ => None,
            },
        };
        let same = now.filter(|now| {
            let inode = now.get().map(|connection| connection.description().inode);
            before.is_some() && inode == before && before != Some(0)
        });
        if same.is_none() && descriptors::is_tracing() {
            count_loss(moved.total, ts_ns, Cause::Unattributed);
        }
        same
    }

    /// Whether a result of 0 is a message without bytes, not the end of what can be received or nothing at all.
    fn is_message(&self, connection: &Connection, direction: Direction) -> bool {
        match (connection.description().socket_type, direction) {
            (SOCK_DGRAM | SOCK_SEQPACKET, Direction::Out) => true,
            // The end looks the same, but nothing follows it.
            (SOCK_DGRAM | SOCK_SEQPACKET, Direction::In) => !is_confined() && !sys::is_hung_up(self.fd),
            _ => false,
        }
    }
}

/// A socket that bytes move on without a connect or accept of its own (a datagram socket, one end of a pair) is open
/// from its first bytes on.
fn ensure_open(handle: Handle, fd: i32, how: &'static str, peer: Option<&SocketPath>, ts_ns: u64) -> Option<Handle> {
    let connection = handle.get()?;
    if connection.kind() == Kind::Open {
        return Some(handle);
    }
    // An earlier message of the same call, or another thread, may have been here.
    if let Some(open) = open_since(fd, connection) {
        return Some(open);
    }
    let own = connection.description().path.as_bytes();
    let path = if own.is_empty() { peer.map_or(own, |peer| peer.shown.as_bytes()) } else { own };
    if !descriptors::owns_descriptors() {
        return Some(handle);
    }
    let change = Change { kind: Kind::Open, how, wanted: connection.description().wanted, path, ts_ns };
    match records::succeed(handle, fd, &change)? {
        Ok(opened) => Some(opened),
        // Another thread's first bytes, or its bind or connect meanwhile.
        Err(other) if other.get()?.kind() == Kind::Open => Some(other),
        Err(other) => records::redescribe(other, fd, &change),
    }
}

/// The open record that a descriptor leads to by now, if it is of the same socket.
fn open_since(fd: i32, before: &Connection) -> Option<Handle> {
    let Slot::Traced(now) = descriptors::get(fd) else { return None };
    let connection = now.get()?;
    let same = connection.description().inode == before.description().inode;
    (same && connection.kind() == Kind::Open).then_some(now)
}
