//! Sockets that the probe has not seen being made: what the kernel says of them.

use core::fmt::Write as _;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, Ordering};

use rustix::fd::{AsRawFd, BorrowedFd};
use rustix::fs::{CWD, FileType, Mode, OFlags, RawDir, openat};
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketAddrAny, getpeername, getsockname};

use crate::observe::{announce, notices, records};
use crate::process::clock::now_ns;
use crate::sys::address::Address;
use crate::sys::confined::is_confined;
use crate::sys::params;
use crate::sys::text::Text;
use crate::table::connection::{self, Kind, New};
use crate::table::descriptors::{self, Slot};
use crate::table::name::SocketPath;
use crate::{process, transport};

/// Bytes of `/proc/PID/fd/N`.
const MAX_FD_PATH_LEN: usize = 32;

/// How a socket became known, by which of its ends has a path: own, peer, none.
struct How([&'static str; 3]);

/// Open when the probe was loaded.
const PREEXISTING: How = How(["preexisting:getsockname", "preexisting:getpeername", "preexisting:getsockname"]);
/// Come later, by a way that no hook sees.
const FOUND: How = How(["found:getsockname", "found:getpeername", "found:getsockname"]);

/// What a scan found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Found {
    pub(crate) connections: u32,
    pub(crate) listeners: u32,
}

/// Looks at every descriptor below `max_fds`.
pub(crate) fn all() -> Found {
    if !for_each_open(look_at) {
        // At most MAX_MAX_FDS.
        (0..params::get().max_fds.cast_signed()).for_each(look_at);
    }
    DONE.store(true, Ordering::Relaxed);
    let mut found = Found::default();
    descriptors::for_each_known(0, descriptors::LAST, |_, slot| {
        match slot.connection().map(|connection| connection.kind()) {
            Some(Kind::Listening) => found.listeners += 1,
            Some(_) => found.connections += 1,
            None => {}
        }
    });
    found
}

/// Before the probe starts anew.
pub(crate) fn reset() {
    DONE.store(false, Ordering::Relaxed);
}

/// Whether [`all`] has been through: what is found before was there before, also if a call on it was faster.
static DONE: AtomicBool = AtomicBool::new(false);

/// Calls a function for every descriptor that the process has open; whether it could find out.
fn for_each_open(mut call: impl FnMut(i32)) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(folder) = openat(CWD, c"/proc/thread-self/fd", flags, Mode::empty()) else { return false };
    let mut buffer = [MaybeUninit::<u8>::uninit(); 1024];
    let mut entries = RawDir::new(&folder, &mut buffer);
    while let Some(entry) = entries.next() {
        let Ok(entry) = entry else { return false };
        let fd = entry.file_name().to_str().ok().and_then(|name| name.parse().ok());
        if let Some(fd) = fd.filter(|&fd: &i32| fd.cast_unsigned() < params::get().max_fds && fd != folder.as_raw_fd())
        {
            call(fd);
        }
    }
    true
}

fn look_at(fd: i32) {
    if descriptors::get(fd) != Slot::Unknown {
        return;
    }
    if transport::is_own(fd) {
        descriptors::replace(fd, Slot::Foreign);
        return;
    }
    discover(fd);
}

fn address(of: rustix::io::Result<SocketAddrAny>) -> Option<Address> {
    let of = of.ok()?;
    // SAFETY: the kernel's answer, of that length.
    unsafe { Address::read(of.as_ptr().cast(), of.addr_len() as usize) }
}

/// Asks the kernel what a descriptor is, and traces it if it is a UNIX socket that is asked for.
#[cold]
pub(crate) fn discover(fd: i32) -> Slot {
    let before = descriptors::get(fd);
    if fd < 0 || is_beyond_table(fd) {
        return Slot::Other;
    }
    if matches!(before, Slot::Other | Slot::Foreign | Slot::Traced(_)) || is_confined() {
        return before;
    }
    // SAFETY: not -1; a closed one only makes the questions below fail.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    if !descriptors::owns_descriptors() && !is_owners(socket) {
        return Slot::Other;
    }
    match socket_domain(socket) {
        Ok(AddressFamily::UNIX) => {}
        // Not open: whatever takes the number next is a new thing.
        Err(rustix::io::Errno::BADF) => return Slot::Unknown,
        _ => {
            descriptors::replace_if(fd, before, Slot::Other);
            return Slot::Other;
        }
    }
    if before == Slot::Unknown && is_frida(socket) {
        descriptors::replace_if(fd, before, Slot::Foreign);
        return Slot::Foreign;
    }
    if let Some(slot) = join(fd) {
        return slot;
    }
    let how = if DONE.load(Ordering::Relaxed) { &FOUND } else { &PREEXISTING };
    let Some(slot) = examine(fd, socket, how) else { return Slot::Unknown };
    if !descriptors::replace_if(fd, before, slot) {
        // Another thread was first.
        if let Some(connection) = slot.connection() {
            connection.remove_descriptor();
        }
        return descriptors::get(fd);
    }
    if let Some(connection) = slot.connection() {
        match connection.kind() {
            Kind::Listening => records::report_listening(connection, now_ns()),
            Kind::Open => announce::announce(connection, now_ns()),
            Kind::Idle => {}
        }
    }
    slot
}

/// Whether a vforked child's descriptor is, under this number, one of the process's that the table is of. So it is unless
/// the child has changed its own.
fn is_owners(fd: BorrowedFd<'_>) -> bool {
    let mut path = Text::<MAX_FD_PATH_LEN>::new();
    let _ = write!(path, "/proc/{}/fd/{}", process::own_pid(), fd.as_raw_fd());
    let (Some(path), Ok(own)) = (path.as_c_str(), rustix::fs::fstat(fd)) else { return false };
    descriptors::is_tracing() && rustix::fs::stat(path).is_ok_and(|owners| owners.st_ino == own.st_ino)
}

/// Makes a descriptor of a socket that another descriptor here leads to lead to its record, as dup(2) would: it came in a
/// message, or by pidfd_getfd(2), or was made before the probe was loaded.
///
/// At once when it comes: later the other may be closed, and its end taken for the connection's.
pub(crate) fn join(fd: i32) -> Option<Slot> {
    let before = descriptors::get(fd);
    if is_confined() {
        return None;
    }
    // SAFETY: not -1; a closed one only makes the question fail.
    let stat = rustix::fs::fstat(unsafe { BorrowedFd::borrow_raw(fd) }).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return None;
    }
    let inode = stat.st_ino;
    let mut known = None;
    descriptors::for_each_known(0, descriptors::LAST, |other, slot| {
        let same = slot.connection().filter(|connection| connection.description().inode == inode);
        if let (true, None, Some(connection)) = (other != fd, known, same) {
            known = Some((slot, connection));
        }
    });
    let (slot, connection) = known?;
    connection.add_descriptor();
    if descriptors::replace_if(fd, before, slot) {
        descriptors::catch_up(fd, slot);
        return Some(descriptors::get(fd));
    }
    // Another thread was first.
    connection.remove_descriptor();
    Some(descriptors::get(fd))
}

/// Whether a socket that no hook saw being made is Frida's, which talks to its part in this process over sockets
/// without names and makes them by system calls of its own, whenever it is called in again.
fn is_frida(socket: BorrowedFd<'_>) -> bool {
    let is_named = |of| address(of).is_some_and(|address| address.is_named());
    let found_late = params::get().by_frida && DONE.load(Ordering::Relaxed);
    found_late
        && !is_named(getsockname(socket))
        && !is_named(getpeername(socket).and_then(|peer| peer.ok_or(rustix::io::Errno::NOTCONN)))
}

fn examine(fd: i32, socket: BorrowedFd<'_>, how: &How) -> Option<Slot> {
    let socket_type = socket_type(socket).ok()?;
    let inode = rustix::fs::fstat(socket).ok()?.st_ino;
    let own = address(getsockname(socket)).unwrap_or(Address::Unnamed);
    let peer = address(getpeername(socket).and_then(|peer| peer.ok_or(rustix::io::Errno::NOTCONN)));
    let listens = socket_acceptconn(socket).unwrap_or(false);
    let (address, how) = match (&own, &peer) {
        (own, _) if own.is_named() => (own, how.0[0]),
        (_, Some(peer)) if peer.is_named() => (peer, how.0[1]),
        _ => (&own, how.0[2]),
    };
    let mut path = SocketPath::of(address, c"/proc/thread-self/cwd");
    if matches!(address, Address::Path(name) if name.as_bytes().first() != Some(&b'/')) && !path.is_socket() {
        // The program has changed directory since, or the path is relative to the peer's: what was bound says more
        // than a guess.
        if let Address::Path(name) = address {
            path.set_shown(name.as_bytes());
        }
    }
    let wanted = path.is_wanted();
    if !wanted && socket_type == rustix::net::SocketType::STREAM && (listens || peer.is_some()) {
        return Some(Slot::Other);
    }
    let kind = match (listens, peer.is_some()) {
        (true, _) => Kind::Listening,
        (_, true) => Kind::Open,
        _ => Kind::Idle,
    };
    let (socket_type, path) = (socket_type.as_raw(), path.shown.as_bytes());
    let handle =
        connection::allocate(&New { kind, inode, socket_type, mate: 0, fd, how, wanted, path, ts_ns: now_ns() })?;
    Some(Slot::Traced(handle))
}

/// The name of a UNIX socket, or else of its peer.
pub(crate) fn either_name(fd: i32) -> Option<Address> {
    // SAFETY: not -1; a closed one only makes the questions fail.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    let own = address(getsockname(socket)).filter(Address::is_named);
    let peer = || address(getpeername(socket).and_then(|peer| peer.ok_or(rustix::io::Errno::NOTCONN)));
    own.or_else(peer).filter(Address::is_named)
}

/// The path that the kernel gave a socket.
pub(crate) fn own_path(fd: i32) -> SocketPath {
    // SAFETY: bind(2) has just succeeded on it.
    let own = address(getsockname(unsafe { BorrowedFd::borrow_raw(fd) }));
    SocketPath::of(&own.unwrap_or(Address::Unnamed), c"/proc/thread-self/cwd")
}

/// Whether a descriptor is beyond what the table is made for, and so not traced; the first such is reported.
pub(crate) fn is_beyond_table(fd: i32) -> bool {
    static NOTED: AtomicBool = AtomicBool::new(false);
    let beyond = !descriptors::has_place(fd);
    if beyond && fd >= 0 && descriptors::is_tracing() && !NOTED.swap(true, Ordering::Relaxed) {
        notices::report_beyond_table(fd);
    }
    beyond
}
