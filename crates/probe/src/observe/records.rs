//! Descriptors and the records that they lead to: how they come to lead there, move to another record, and cease to.

use gttr::{Ext, FrameType};
use rustix::fd::BorrowedFd;

use crate::emit::{Event, emit};
use crate::process::clock::now_ns;
use crate::process::stack;
use crate::sys::confined::is_confined;
use crate::table::connection::{self, Connection, Description, Handle, Kind, New};
use crate::table::descriptors::{self, Slot};
use crate::transport;

/// Inode number of what a descriptor leads to; 0: not known.
pub(crate) fn inode(fd: i32) -> u64 {
    if is_confined() {
        return 0;
    }
    // SAFETY: a call has just returned this number as an open descriptor.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::fs::fstat(fd).map_or(0, |stat| stat.st_ino)
}

/// A descriptor has come into being under this number: whatever had it before was closed behind libc's back.
pub(crate) fn install(fd: i32, slot: Slot) {
    let before = descriptors::replace(fd, slot);
    ended(before, fd, VANISHED);
}

/// A descriptor led to `slot` and does no more; the connection's end is reported with its last one.
pub(crate) fn ended(slot: Slot, fd: i32, how: &str) {
    let Some(connection) = slot.connection() else { return };
    if how == VANISHED {
        transport::distrust();
    }
    if connection.remove_descriptor() && connection.kind() == Kind::Open {
        stack::on_own(|| report_close(connection, fd, how));
    }
}

pub(crate) fn report_close(connection: &Connection, fd: i32, how: &str) {
    // An end that nobody heard the beginning of says nothing.
    if connection.is_announced_in(0) {
        return;
    }
    // What was taken for its bytes since the last look may have been another's.
    let doubt = [Ext::LostSince(connection.description().since_ns.max(descriptors::checked_ns(fd)))];
    let event = Event {
        fd,
        conn: [connection.description().id.as_bytes(), b"|", how.as_bytes()],
        values: if how == VANISHED && transport::may_mistake() { &doubt } else { &[] },
        ..Event::new(FrameType::Close, now_ns())
    };
    emit(&event, &[]);
}

/// How a connection ended that was closed behind libc's back.
pub(crate) const VANISHED: &str = "vanished";

/// Reports that a socket can be reached at its path.
pub(crate) fn report_listening(connection: &Connection, ts_ns: u64) {
    let description = connection.description();
    let values = [Ext::SocketType(description.socket_type as u8), Ext::Inode(description.inode)];
    let event = Event {
        fd: description.fd,
        path: description.path.as_bytes(),
        conn: [description.how.as_bytes(), b"", b""],
        // An inode number that is not known, under a seccomp filter, is left out.
        values: &values[..if description.inode == 0 { 1 } else { 2 }],
        ..Event::new(FrameType::Listen, ts_ns)
    };
    if emit(&event, &[]) {
        connection.set_announced_in(transport::session());
    }
}

/// A socket's new description.
pub(crate) struct Change<'a> {
    pub(crate) kind: Kind,
    pub(crate) how: &'static str,
    pub(crate) wanted: bool,
    pub(crate) path: &'a [u8],
    pub(crate) ts_ns: u64,
}

/// Gives a socket a new description: a new record, for every descriptor that leads to the old one. Should another
/// thread do the same, it is done after that.
pub(crate) fn redescribe(old: Handle, fd: i32, change: &Change<'_>) -> Option<Handle> {
    /// Each further turn takes another thread that changes the same socket at the same time.
    const TURNS: usize = 16;
    let mut before = old;
    for _ in 0..TURNS {
        match succeed(before, fd, change)? {
            Ok(new) => return Some(new),
            Err(other) => before = other,
        }
    }
    None
}

/// The same, unless another thread has just done so: the record that it made.
pub(crate) fn succeed(old: Handle, fd: i32, change: &Change<'_>) -> Option<Result<Handle, Handle>> {
    let before = old.get()?;
    let Description { inode, socket_type, mate, .. } = *before.description();
    let Change { kind, how, wanted, path, ts_ns } = *change;
    let new = connection::allocate(&New { kind, inode, socket_type, mate, fd, how, wanted, path, ts_ns })?;
    descriptors::succeed(old, new, fd)
}
