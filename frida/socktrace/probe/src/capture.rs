//! From a call's result to the bytes it moved: on which connection, which of them, and the events that say so.

use core::ffi::c_void;

use gttr::{Direction, Ext, FrameType};
use rustix::fd::BorrowedFd;

use crate::address::Address;
use crate::connection::{Connection, Description, Handle, Kind};
use crate::control::EXE_EXT_LEN;
use crate::descriptors::{self, Slot};
use crate::emit::{Cause, Event, MAX_PARTS, count_loss, emit, emit_sized, now_ns};
use crate::name::SocketPath;
use crate::{params, peer, process, scan, transport};

/// A buffer of readv(2) and writev(2).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct IoVec {
    base: *const u8,
    len: usize,
}

impl IoVec {
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

/// Where a call's bytes lie in the program's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Buffers {
    One(IoVec),
    Many(*const IoVec, usize),
}

impl Buffers {
    pub(crate) fn one(base: *const c_void, len: usize) -> Self {
        Self::One(IoVec { base: base.cast(), len })
    }

    fn get(&self, index: usize) -> Option<IoVec> {
        match *self {
            Self::One(only) => (index == 0).then_some(only),
            // SAFETY: the kernel has just read this array of `count` elements for the program.
            Self::Many(first, count) => (index < count).then(|| unsafe { *first.add(index) }),
        }
    }
}

/// Goes through the bytes that a call moved, a frame's worth at a time.
#[derive(Clone, Copy)]
struct Cursor<'a> {
    buffers: &'a Buffers,
    index: usize,
    offset: usize,
    left: u64,
}

impl<'a> Cursor<'a> {
    /// Up to `max` bytes in up to `MAX_PARTS` parts; how many parts.
    fn next(&mut self, max: u64, parts: &mut [&'a [u8]; MAX_PARTS]) -> usize {
        let (mut room, mut count) = (max, 0);
        while self.left > 0 && room > 0 && count < MAX_PARTS {
            let Some(buffer) = self.buffers.get(self.index) else {
                self.left = 0;
                break;
            };
            let rest = buffer.len - self.offset;
            if rest == 0 {
                (self.index, self.offset) = (self.index + 1, 0);
                continue;
            }
            // At most `rest`, so it fits.
            let len = (rest as u64).min(self.left).min(room) as usize;
            // SAFETY: the kernel has just read or written these bytes for the program. They only go to the kernel
            // again, which answers with EFAULT, not with a signal, should another thread have unmapped them.
            parts[count] = unsafe { core::slice::from_raw_parts(buffer.base.add(self.offset), len) };
            count += 1;
            self.offset += len;
            self.left -= len as u64;
            room -= len as u64;
        }
        count
    }
}

/// A call that may move bytes, as known when it is entered.
pub(crate) struct Call {
    name: &'static str,
    fd: i32,
    slot: Slot,
}

impl Call {
    /// Notes what the descriptor is before the call, while it cannot have been closed and reused in its course.
    #[inline]
    pub(crate) fn enter(name: &'static str, fd: i32) -> Self {
        Self { name, fd, slot: descriptors::get(fd) }
    }

    /// Whether there is nothing to report, in as few instructions as can be.
    #[inline]
    fn is_idle(&self, answered_by_sockets_only: bool) -> bool {
        match self.slot {
            Slot::Other | Slot::Foreign => true,
            Slot::Unknown => !answered_by_sockets_only,
            Slot::Arrived | Slot::Traced(_) => false,
        }
    }

    /// Reports bytes that a call of the read(2) family moved.
    #[inline]
    pub(crate) fn moved(&self, direction: Direction, result: isize, buffers: Buffers) {
        if result > 0 && !self.is_idle(false) {
            self.report(direction, result, buffers, None);
        }
    }

    /// Reports bytes that a call of the send(2) family moved, to or from `peer` where the call names one. A message
    /// without bytes is one for datagrams only.
    #[inline]
    pub(crate) fn message(&self, direction: Direction, result: isize, buffers: Buffers, peer: Peer) {
        if result >= 0 && !self.is_idle(true) {
            self.report(direction, result, buffers, Some(peer));
        }
    }

    #[inline(never)]
    fn report(&self, direction: Direction, result: isize, buffers: Buffers, peer: Option<Peer>) {
        let ts_ns = now_ns();
        let total = result.unsigned_abs() as u64;
        let Some(handle) = self.connection(ts_ns, total) else { return };
        let Some(connection) = handle.get() else {
            return count_loss(total, ts_ns, Cause::Unattributed);
        };
        if total == 0 && !may_be_empty(connection.description(), direction) {
            return;
        }
        // Relative names are rare in messages, so the look-up is for those only.
        let peer = peer.and_then(|peer| peer.address()).filter(Address::is_named);
        let mut path = peer.map(|address| SocketPath::of(&address, c"/proc/self/cwd"));
        if !connection.description().wanted && !path.as_mut().is_some_and(SocketPath::is_wanted) {
            return;
        }
        let Some(handle) = ensure_open(handle, self.fd, self.name, path.as_ref(), ts_ns) else { return };
        let Some(connection) = handle.get() else {
            return count_loss(total, ts_ns, Cause::Unattributed);
        };
        let offset = connection.add_moved(direction, total);
        announce(connection, ts_ns);
        let max_bytes = params::get().max_bytes;
        let start = Cursor { buffers: &buffers, index: 0, offset: 0, left: total.min(max_bytes) };
        let data = Data { call: self, connection, direction, total, offset, ts_ns };
        data.emit(start, path.as_ref().map(|path| path.shown.as_bytes()));
    }

    /// Whose bytes these are. A number may have been closed behind libc's back and reused, so the socket itself is
    /// looked at.
    fn connection(&self, ts_ns: u64, total: u64) -> Option<Handle> {
        let Slot::Traced(handle) = self.slot else {
            return match scan::discover(self.fd) {
                Slot::Traced(handle) => Some(handle),
                _ => None,
            };
        };
        if process::is_confined() {
            return Some(handle);
        }
        // SAFETY: a call on it has just succeeded; should it be closed by now, fstat says so.
        let fd = unsafe { BorrowedFd::borrow_raw(self.fd) };
        let found = rustix::fs::fstat(fd).ok().map(|stat| stat.st_ino);
        let known = handle.get().map(|connection| connection.description().inode);
        if found == known && found.is_some() {
            return Some(handle);
        }
        if descriptors::get(self.fd) != self.slot {
            // Closed through libc while the call went on, as we know: the bytes are the old connection's.
            return Some(handle);
        }
        if found.is_none() {
            count_loss(total, ts_ns, Cause::Unattributed);
            return None;
        }
        if process::owns_descriptors() && descriptors::replace_if(self.fd, self.slot, Slot::Arrived) {
            crate::calls::ended(self.slot, self.fd, "vanished");
        }
        match scan::discover(self.fd) {
            Slot::Traced(handle) => Some(handle),
            _ => None,
        }
    }
}

/// The other end's address, where a call names it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) address: *const c_void,
    pub(crate) len: usize,
}

impl Peer {
    pub(crate) const NONE: Self = Self { address: core::ptr::null(), len: 0 };

    fn address(&self) -> Option<Address> {
        // SAFETY: null, or the kernel has just read or written it for the program at this length.
        unsafe { Address::read(self.address, self.len) }
    }
}

const SOCK_DGRAM: u32 = 2;
const SOCK_SEQPACKET: u32 = 5;

/// Whether a result of 0 is a message without bytes, not the end of the stream.
fn may_be_empty(description: &Description, direction: Direction) -> bool {
    match description.socket_type {
        SOCK_DGRAM => true,
        SOCK_SEQPACKET => direction == Direction::Out,
        _ => false,
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
    if !process::owns_descriptors() {
        return Some(handle);
    }
    let opened = crate::calls::redescribe(handle, fd, Kind::Open, how, connection.description().wanted, path, ts_ns);
    open_since(fd, connection).or(opened)
}

/// The open record that a descriptor leads to by now, if it is of the same socket.
fn open_since(fd: i32, before: &Connection) -> Option<Handle> {
    let Slot::Traced(now) = descriptors::get(fd) else { return None };
    let connection = now.get()?;
    let same = connection.description().inode == before.description().inode;
    (same && connection.kind() == Kind::Open).then_some(now)
}

/// Makes sure that the server has heard of a connection before it hears of its bytes.
pub(crate) fn announce(connection: &Connection, ts_ns: u64) {
    let session = transport::session();
    if !connection.is_announced_in(session) || session == 0 {
        let resumed = connection.is_announced_in(0);
        announce_as(connection, ts_ns, if resumed { "" } else { "resumed:" });
    }
}

/// Sends a connection's open frame.
pub(crate) fn announce_as(connection: &Connection, ts_ns: u64, prefix: &str) {
    let description = connection.description();
    let (mut how, mut len) = ([0; 64], 0);
    for part in ["|", prefix, description.how] {
        how[len..len + part.len()].copy_from_slice(part.as_bytes());
        len += part.len();
    }
    let peer = peer::Peer::of(description.fd, description.inode);
    /// Inode, type, and five values of the peer.
    const MAX_VALUES: usize = 7;
    let mut values = [Ext::Inode(description.inode); MAX_VALUES];
    let mut count = 1;
    let mut put = |value| {
        values[count] = value;
        count += 1;
    };
    put(Ext::SocketType(description.socket_type as u8));
    if let Some(peer) = &peer {
        if peer.pid != 0 {
            put(Ext::PeerPid(peer.pid));
            put(Ext::PeerUid(peer.uid));
            put(Ext::PeerGid(peer.gid));
            put(Ext::PeerExe(peer.exe.as_bytes()));
        }
        if peer.inode != 0 {
            put(Ext::PeerInode(u64::from(peer.inode)));
        }
    }
    let event = Event {
        fd: description.fd,
        path: description.path.as_bytes(),
        conn: [description.id.as_bytes(), &how[..len], b""],
        values: &values[..count],
        ..Event::new(FrameType::Open, ts_ns)
    };
    if emit_sized::<EXE_EXT_LEN>(&event, &[]) {
        connection.set_announced_in(transport::session());
    }
}

/// One call's bytes.
struct Data<'a> {
    call: &'a Call,
    connection: &'a Connection,
    direction: Direction,
    total: u64,
    offset: u64,
    ts_ns: u64,
}

impl Data<'_> {
    fn emit(&self, start: Cursor<'_>, path: Option<&[u8]>) {
        let chunk = transport::chunk();
        let mut iov = [&[][..]; MAX_PARTS];
        let mut count = start;
        let mut parts = 0;
        while {
            count.next(chunk, &mut iov);
            parts += 1;
            count.left > 0
        } {}
        let mut cursor = start;
        for part in 0..parts {
            let len = cursor.next(chunk, &mut iov);
            self.emit_part(&iov[..len], part, parts, path);
        }
    }

    fn emit_part(&self, payload: &[&[u8]], part: u32, parts: u32, path: Option<&[u8]>) {
        let description = self.connection.description();
        let values = [
            Ext::Call(self.call.name.as_bytes()),
            Ext::Total(self.total),
            Ext::Offset(self.offset),
            Ext::Part(part),
            Ext::Parts(parts),
        ];
        let event = Event {
            direction: self.direction,
            fd: self.call.fd,
            path: path.unwrap_or(description.path.as_bytes()),
            conn: [description.id.as_bytes(), b"", b""],
            values: if parts == 1 { &values[..3] } else { &values },
            ..Event::new(FrameType::Data, self.ts_ns)
        };
        emit(&event, payload);
    }
}
