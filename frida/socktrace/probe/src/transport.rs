//! Frames to the server: one socket, never a wait without an end, and a count of what could not be delivered.
//!
//! The traced program may close or reuse our descriptor's number; every send checks that it still is our socket
//! before a byte goes out on it.

mod lock;
mod outbox;
mod stall;

use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};

use rustix::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use rustix::io::{Errno, IoSlice};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, sendmsg,
    socket_with,
};

use crate::emit::MAX_FRAME_PARTS;
use crate::params::{self, Complaint, Transport};
use crate::process;

/// How long an absent server is left alone before the next try to connect, in nanoseconds: short enough for a
/// restarted server to miss little, long enough to cost nothing.
const RETRY_NS: u64 = 100_000_000;
/// The highest number asked for our descriptor. High, to be out of the way of programs that number theirs; below
/// 1024, because the kernel's table of descriptors is copied by fork as far as the highest one.
const HIGHEST_FD: u64 = 1000;
/// Bytes of a datagram that are the kernel's (unix_dgram_sendmsg keeps 32 of SO_SNDBUF) or the frame's own.
const FRAME_OVERHEAD: usize = 4096;
/// Payload bytes of one frame, at the most.
const MAX_CHUNK: usize = 65536;
const MIN_CHUNK: usize = 256;

/// Our descriptor, -1 without one.
static FD: AtomicI32 = AtomicI32::new(-1);
/// Inode number of our socket.
static INODE: AtomicU64 = AtomicU64::new(0);
/// Counts connections to a server, from 1; frames of an earlier one are not known to the server of now.
static SESSION: AtomicU32 = AtomicU32::new(0);
/// Whether the next connection is a forked child's own to the server that its parent talks to: the same session.
static IS_SAME_SESSION: AtomicBool = AtomicBool::new(false);
/// When the last try to connect was, nanoseconds.
static TRIED_NS: AtomicU64 = AtomicU64::new(0);
static CHUNK: AtomicU32 = AtomicU32::new(MAX_CHUNK as u32);

/// Why a frame was not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Undelivered {
    /// Nobody listens at the server's path.
    Absent,
    /// The server is there and does not read.
    Stalled,
}

pub(crate) fn init() -> Result<(), Complaint> {
    match params::get().transport {
        Transport::Dgram => Ok(()),
        Transport::Stream => outbox::init(),
    }
}

/// Closes our socket. A thread in the middle of a send finds it gone.
pub(crate) fn stop() {
    if let Some(fd) = current() {
        close(fd);
    }
    outbox::clear();
    TRIED_NS.store(0, Ordering::Relaxed);
    stall::end();
}

/// Payload bytes that fit one frame.
pub(crate) fn chunk() -> u64 {
    u64::from(CHUNK.load(Ordering::Relaxed))
}

/// The session that frames go out in now; 0: none yet.
pub(crate) fn session() -> u32 {
    SESSION.load(Ordering::Relaxed)
}

/// Our descriptor's number, to keep it from the program.
pub(crate) fn own_fd() -> Option<i32> {
    Some(FD.load(Ordering::Relaxed)).filter(|&fd| fd >= 0)
}

/// A forked child shares its parent's datagram socket, but a stream needs a writer of its own.
pub(crate) fn after_fork() {
    lock::after_fork();
    stall::end();
    TRIED_NS.store(0, Ordering::Relaxed);
    if params::get().transport == Transport::Stream {
        outbox::clear();
        if let Some(fd) = current() {
            close(fd);
            IS_SAME_SESSION.store(true, Ordering::Relaxed);
        }
    }
}

/// Our socket, if the number still leads to it.
fn current() -> Option<BorrowedFd<'static>> {
    let fd = own_fd()?;
    // SAFETY: not -1; whether it is open at all is what fstat tells.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    if process::is_confined() {
        return Some(borrowed);
    }
    let ours = rustix::fs::fstat(borrowed).is_ok_and(|stat| stat.st_ino == INODE.load(Ordering::Relaxed));
    if !ours {
        // The program closed or reused the number: it is not ours to close.
        let _ = FD.compare_exchange(fd, -1, Ordering::Relaxed, Ordering::Relaxed);
    }
    ours.then_some(borrowed)
}

fn close(fd: BorrowedFd<'_>) {
    FD.store(-1, Ordering::Relaxed);
    // SAFETY: ours, as `current` has just made sure, and out of use from here on.
    unsafe { rustix::io::close(fd.as_raw_fd()) };
}

/// The program closes our descriptor's number: whether it is not ours any more, so that the close is the program's
/// own business. A vforked child has a copy of our descriptor that is its to close.
pub(crate) fn gives_up(fd: i32) -> bool {
    process::who().is_guest || current().is_none_or(|own| own.as_raw_fd() != fd)
}

/// The program is about to take our descriptor's number for itself (dup2(2)): go elsewhere.
pub(crate) fn make_way(fd: i32) {
    if own_fd() != Some(fd) || process::who().is_guest {
        return;
    }
    let Some(old) = current() else { return };
    if let Ok(elsewhere) = move_high(old, fd) {
        FD.store(elsewhere.into_raw_fd(), Ordering::Relaxed);
        // The old number stays open for dup2 to close: freeing it first would let another thread have it.
    } else {
        FD.store(-1, Ordering::Relaxed);
    }
}

/// A second descriptor for our socket, high and other than `avoid`.
fn move_high(fd: BorrowedFd<'_>, avoid: i32) -> rustix::io::Result<OwnedFd> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    // Within the range by the bound above.
    let highest = limit.min(HIGHEST_FD) as i32;
    let mut result = Err(Errno::MFILE);
    for below in [16, 64, 256] {
        let min = highest.saturating_sub(below);
        if min > 2 && min != avoid {
            result = rustix::io::fcntl_dupfd_cloexec(fd, min);
            if result.is_ok() {
                break;
            }
        }
    }
    result
}

/// Our socket, connected and made sure of for the frames of one event.
pub(crate) struct Link(BorrowedFd<'static>);

/// Our socket, connecting it if need be; an error if the server is not to be had now. `now_ns` paces the tries, so that
/// an absent server costs one system call in a while.
pub(crate) fn reach(now_ns: u64) -> Result<Link, Undelivered> {
    reach_fd(now_ns).map(Link).ok_or(Undelivered::Absent)
}

fn reach_fd(now_ns: u64) -> Option<BorrowedFd<'static>> {
    if let Some(fd) = current() {
        return Some(fd);
    }
    if process::is_confined() {
        return None;
    }
    let tried = TRIED_NS.load(Ordering::Relaxed);
    if now_ns.wrapping_sub(tried) < RETRY_NS
        || TRIED_NS.compare_exchange(tried, now_ns, Ordering::Relaxed, Ordering::Relaxed).is_err()
    {
        return None;
    }
    let socket = open().ok()?;
    let inode = rustix::fs::fstat(&socket).ok()?.st_ino;
    // SAFETY: `socket` is open; only its number is remembered below.
    let fd = match move_high(unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) }, -1) {
        Ok(high) => high.into_raw_fd(),
        Err(_) => socket.into_raw_fd(),
    };
    INODE.store(inode, Ordering::Relaxed);
    // A loser of this race (none: TRIED_NS lets one try at a time) would only leave a descriptor open.
    FD.store(fd, Ordering::Release);
    stall::end();
    if !IS_SAME_SESSION.swap(false, Ordering::Relaxed) {
        SESSION.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: open, and ours until `FD` says otherwise.
    Some(unsafe { BorrowedFd::borrow_raw(fd) })
}

fn open() -> rustix::io::Result<OwnedFd> {
    let params = params::get();
    let (kind, flags) = match params.transport {
        Transport::Dgram => (SocketType::DGRAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK),
        Transport::Stream => (SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK),
    };
    let socket = socket_with(AddressFamily::UNIX, kind, flags, None)?;
    let address = match params.out_socket_path {
        [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
        path => SocketAddrUnix::new(path)?,
    };
    connect(&socket, &address)?;
    if params.transport == Transport::Dgram {
        let room = rustix::net::sockopt::socket_send_buffer_size(&socket).unwrap_or(MAX_CHUNK);
        let chunk = room.saturating_sub(FRAME_OVERHEAD).clamp(MIN_CHUNK, MAX_CHUNK);
        CHUNK.store(chunk as u32, Ordering::Relaxed);
    }
    Ok(socket)
}

/// Sends one frame, whole or not at all.
pub(crate) fn send(link: &Link, frame: &[&[u8]], now_ns: u64) -> Result<(), Undelivered> {
    let sent = match params::get().transport {
        Transport::Dgram => send_datagram(link.0, frame, now_ns),
        Transport::Stream => outbox::send(link.0, frame),
    };
    if sent.is_ok() {
        stall::end();
    }
    sent
}

/// What to do about a send that failed.
enum Failure {
    Again,
    Full,
    Gone,
}

fn failure(errno: Errno) -> Failure {
    match errno {
        Errno::INTR => Failure::Again,
        Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM => Failure::Full,
        _ => Failure::Gone,
    }
}

fn send_once(fd: BorrowedFd<'_>, frame: &[&[u8]]) -> Result<usize, Errno> {
    let mut parts = [IoSlice::new(&[]); MAX_FRAME_PARTS];
    for (to, part) in parts.iter_mut().zip(frame) {
        *to = IoSlice::new(part);
    }
    sendmsg(fd, &parts[..frame.len()], &mut SendAncillaryBuffer::default(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
}

fn send_datagram(fd: BorrowedFd<'_>, frame: &[&[u8]], now_ns: u64) -> Result<(), Undelivered> {
    let mut fd = fd;
    let mut reconnected = false;
    loop {
        let errno = match send_once(fd, frame) {
            Ok(_) => return Ok(()),
            Err(errno) => errno,
        };
        match failure(errno) {
            Failure::Again => {}
            Failure::Full => stall::wait_for_room(fd)?,
            Failure::Gone => {
                // A server that was started anew is at the same path: worth one look at once.
                if let Some(old) = current() {
                    close(old);
                }
                if reconnected {
                    return Err(Undelivered::Absent);
                }
                reconnected = true;
                fd = reach(now_ns)?.0;
            }
        }
    }
}
