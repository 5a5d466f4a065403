//! The socket to the server.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::io::{Errno, IoSlice};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, sendmsg,
    socket_with,
};

use super::own::Own;
use super::{Undelivered, outbox, stall};
use crate::emit::MAX_FRAME_PARTS;
use crate::params::{self, Transport};
use crate::process;

/// How long an absent server is left alone before the next try to connect, in nanoseconds: short enough for a
/// restarted server to miss little, long enough to cost nothing.
const RETRY_NS: u64 = 100_000_000;
/// Bytes of a datagram that are the kernel's (unix_dgram_sendmsg keeps 32 of SO_SNDBUF) or the frame's own.
pub(super) const FRAME_OVERHEAD: usize = 4096;
/// Payload bytes of one frame, at the most.
pub(crate) const MAX_CHUNK: usize = 65536;
const MIN_CHUNK: usize = 256;

/// Our socket.
pub(super) static OWN: Own = Own::none();
/// Counts connections to a server, from 1; frames of an earlier one are not known to the server of now.
static SESSION: AtomicU32 = AtomicU32::new(0);
/// Whether the next connection is a forked child's own to the server that its parent talks to: the same session.
static IS_SAME_SESSION: AtomicBool = AtomicBool::new(false);
/// When the last try to connect was, nanoseconds.
static TRIED_NS: AtomicU64 = AtomicU64::new(0);
static CHUNK: AtomicU32 = AtomicU32::new(MAX_CHUNK as u32);

/// Payload bytes that fit one frame.
pub(crate) fn chunk() -> u64 {
    u64::from(CHUNK.load(Ordering::Relaxed))
}

/// The session that frames go out in now; 0: none yet.
#[inline]
pub(crate) fn session() -> u32 {
    SESSION.load(Ordering::Relaxed)
}

/// What goes into a ring stays known to whoever reads it.
pub(super) fn begin_session() {
    SESSION.fetch_add(1, Ordering::Relaxed);
}

pub(super) fn stop() {
    OWN.close();
    outbox::clear();
    TRIED_NS.store(0, Ordering::Relaxed);
    stall::end();
}

/// A forked child shares its parent's datagram socket, but a stream needs a writer of its own.
pub(super) fn after_fork() {
    TRIED_NS.store(0, Ordering::Relaxed);
    if params::get().transport == Transport::Stream {
        outbox::clear();
        if OWN.current().is_some() {
            OWN.close();
            IS_SAME_SESSION.store(true, Ordering::Relaxed);
        }
    }
}

/// Our socket, connected and made sure of for the frames of one event.
#[derive(Debug)]
pub(crate) struct Socket(BorrowedFd<'static>);

pub(super) fn reach(now_ns: u64) -> Result<Socket, Undelivered> {
    reach_fd(now_ns).map(Socket).ok_or(Undelivered::Absent)
}

fn reach_fd(now_ns: u64) -> Option<BorrowedFd<'static>> {
    if let Some(fd) = OWN.current() {
        return Some(fd);
    }
    if process::is_confined() {
        return None;
    }
    let tried = TRIED_NS.load(Ordering::Relaxed);
    // One try at a time: TRIED_NS lets one thread through.
    if now_ns.wrapping_sub(tried) < RETRY_NS
        || TRIED_NS.compare_exchange(tried, now_ns, Ordering::Relaxed, Ordering::Relaxed).is_err()
    {
        return None;
    }
    let kind = match params::get().transport {
        Transport::Dgram => SocketType::DGRAM,
        _ => SocketType::STREAM,
    };
    let fd = OWN.keep(open(kind).ok()?).ok()?;
    stall::end();
    if !IS_SAME_SESSION.swap(false, Ordering::Relaxed) {
        begin_session();
    }
    Some(fd)
}

/// A socket that is connected to the server's.
pub(super) fn open(kind: SocketType) -> rustix::io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    let address = match params::get().out_socket_path {
        [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
        path => SocketAddrUnix::new(path)?,
    };
    connect(&socket, &address)?;
    if kind == SocketType::DGRAM {
        let room = rustix::net::sockopt::socket_send_buffer_size(&socket).unwrap_or(MAX_CHUNK);
        let chunk = room.saturating_sub(FRAME_OVERHEAD).clamp(MIN_CHUNK, MAX_CHUNK);
        CHUNK.store(chunk as u32, Ordering::Relaxed);
    }
    Ok(socket)
}

/// Sends one frame, whole or not at all.
pub(super) fn send(socket: &Socket, frame: &[&[u8]], now_ns: u64) -> Result<(), Undelivered> {
    let sent = match params::get().transport {
        Transport::Dgram => send_datagram(socket.0, frame, now_ns),
        _ => outbox::send(socket.0, frame),
    };
    if sent.is_ok() {
        stall::end();
    }
    sent
}

/// What to do about a send that failed.
pub(super) enum Failure {
    Again,
    Full,
    /// Not the server's doing.
    Unmapped,
    Gone,
}

pub(super) fn failure(errno: Errno) -> Failure {
    match errno {
        Errno::INTR => Failure::Again,
        Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM => Failure::Full,
        Errno::FAULT => Failure::Unmapped,
        _ => Failure::Gone,
    }
}

pub(super) fn send_once(fd: BorrowedFd<'_>, frame: &[&[u8]]) -> Result<usize, Errno> {
    send_with(fd, frame, &mut SendAncillaryBuffer::default())
}

pub(super) fn send_with(
    fd: BorrowedFd<'_>,
    frame: &[&[u8]],
    ancillary: &mut SendAncillaryBuffer<'_, '_, '_>,
) -> Result<usize, Errno> {
    let mut parts = [IoSlice::new(&[]); MAX_FRAME_PARTS];
    for (to, part) in parts.iter_mut().zip(frame) {
        *to = IoSlice::new(part);
    }
    sendmsg(fd, &parts[..frame.len()], ancillary, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
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
            Failure::Unmapped => return Err(Undelivered::Unmapped),
            Failure::Gone => {
                // A server that was started anew is at the same path: worth one look at once.
                OWN.close();
                if reconnected {
                    return Err(Undelivered::Absent);
                }
                reconnected = true;
                fd = reach_fd(now_ns).ok_or(Undelivered::Absent)?;
            }
        }
    }
}
