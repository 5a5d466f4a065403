//! The socket to the server.
//!
//! It is kept under a number that the program cannot have. Where there is none, each frame goes out on a socket of its own,
//! which is made aside: that takes its time, but none of the program's numbers.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Access, AtFlags, CWD, accessat, fstat, statat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, connect_unspec, socket_with};
use rustix::process::{geteuid, getuid};

use super::own::{NotKept, Own, out_of_sight};
use super::sendmsg::{FRAME_OVERHEAD, Failure, MAX_CHUNK, failure, send_once};
use super::{in_use, outbox, stall};
use crate::process;
use crate::process::aside::aside;
use crate::process::losses::Cause;
use crate::sys::confined::is_confined;
use crate::sys::params::{self, Transport};
use crate::sys::{listener, sock_diag};

/// How long an absent server is left alone before the next try to connect, in nanoseconds: short enough for a
/// restarted server to miss little, long enough to cost nothing.
const RETRY_NS: u64 = 100_000_000;
const MIN_CHUNK: usize = 256;

/// Our socket.
pub(super) static OWN: Own = Own::none();
/// What is known of the server.
struct Server {
    /// Whether our socket is connected, to one that may have what we know.
    is_connected: AtomicBool,
    /// Whether there is one for sockets that are made aside.
    is_aside: AtomicBool,
    /// Whether who listens at its path is neither our user nor root.
    is_stranger: AtomicBool,
    /// Counts connections to it, from 1; frames of an earlier one are not known to the server of now.
    session: AtomicU32,
    /// Whether the next connection is a forked child's own to the server that its parent talks to: the same session.
    is_same_session: AtomicBool,
    /// When the last try to connect was, nanoseconds.
    tried_ns: AtomicU64,
    /// Payload bytes that fit one frame.
    chunk: AtomicU32,
}

static SERVER: Server = Server::unknown();

impl Server {
    const fn unknown() -> Self {
        Self {
            is_connected: AtomicBool::new(false),
            is_aside: AtomicBool::new(false),
            is_stranger: AtomicBool::new(false),
            session: AtomicU32::new(0),
            is_same_session: AtomicBool::new(false),
            tried_ns: AtomicU64::new(0),
            chunk: AtomicU32::new(MAX_CHUNK as u32),
        }
    }

    /// Whether it is time to try to connect, and this thread's turn: one try at a time.
    fn may_try(&self, now_ns: u64) -> bool {
        let tried = self.tried_ns.load(Ordering::Relaxed);
        now_ns.wrapping_sub(tried) >= RETRY_NS
            && self.tried_ns.compare_exchange(tried, now_ns, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// It is there, at the other end of our socket or of those that are made aside.
    fn found(&self, place: Place) {
        if !self.is_same_session.swap(false, Ordering::Relaxed) {
            self.session.fetch_add(1, Ordering::Relaxed);
        }
        match place {
            Place::Ours => self.is_connected.store(true, Ordering::Release),
            Place::Aside => self.is_aside.store(true, Ordering::Relaxed),
        }
    }

    fn is_gone(&self) {
        self.is_connected.store(false, Ordering::Relaxed);
        self.is_aside.store(false, Ordering::Relaxed);
    }

    /// How much a socket takes at once, with what is not payload.
    fn note_room(&self, room: usize) {
        let chunk = room.saturating_sub(FRAME_OVERHEAD).clamp(MIN_CHUNK, MAX_CHUNK);
        self.chunk.store(chunk as u32, Ordering::Relaxed);
    }
}

/// Payload bytes that fit one frame.
pub(crate) fn chunk() -> u64 {
    u64::from(SERVER.chunk.load(Ordering::Relaxed))
}

/// The session that frames go out in now; 0: none yet.
#[inline]
pub(crate) fn session() -> u32 {
    SERVER.session.load(Ordering::Relaxed)
}

/// What goes into a ring stays known to whoever reads it.
pub(super) fn begin_session() {
    SERVER.session.fetch_add(1, Ordering::Relaxed);
}

pub(super) fn stop() {
    disconnected();
    OWN.close();
    try_again();
    stall::end();
}

/// The server is gone, or takes no more from us.
pub(super) fn disconnected() {
    SERVER.is_gone();
    outbox::clear();
    // A socket of datagrams can be connected again, under the number that it has.
    if in_use::get() != Transport::Dgram {
        OWN.close();
    }
}

/// A server that was not to be reached is tried again with the next frame, although that was a moment ago.
pub(super) fn try_again() {
    SERVER.tried_ns.store(0, Ordering::Relaxed);
}

/// A forked child shares its parent's datagram socket, but a stream needs a writer of its own.
pub(super) fn after_fork() {
    try_again();
    if in_use::get() == Transport::Stream && OWN.current().is_some() {
        disconnected();
        SERVER.is_same_session.store(true, Ordering::Relaxed);
    }
}

/// What to send the frames of one event by, connected and made sure of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Socket {
    Ours(BorrowedFd<'static>),
    /// One that is made for each.
    Aside,
}

pub(super) fn reach(now_ns: u64) -> Result<Socket, Cause> {
    ready()
        .or_else(|| connect_anew(now_ns))
        .ok_or_else(|| if SERVER.is_stranger.load(Ordering::Relaxed) { Cause::Stranger } else { Cause::Absent })
}

fn ready() -> Option<Socket> {
    if SERVER.is_aside.load(Ordering::Relaxed) && !is_confined() {
        return Some(Socket::Aside);
    }
    if SERVER.is_connected.load(Ordering::Acquire) { OWN.current().map(Socket::Ours) } else { None }
}

fn connect_anew(now_ns: u64) -> Option<Socket> {
    if is_confined() || process::who().is_guest {
        return None;
    }
    if !SERVER.may_try(now_ns) {
        return None;
    }
    let found = find_server();
    SERVER.is_stranger.store(found == Err(Errno::PERM), Ordering::Relaxed);
    let found = found.ok()?;
    stall::end();
    SERVER.found(found);
    ready()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Ours,
    Aside,
}

/// Connects our socket, or sees that one that is made aside can be.
fn find_server() -> Result<Place, Errno> {
    let found = match OWN.current().map_or_else(|| OWN.keep(|| make(kind())), Ok) {
        Ok(fd) => connect_ours(fd).map(|()| Place::Ours),
        Err(NotKept::NotMade(errno)) => Err(errno),
        Err(NotKept::NoNumber) => {
            let opened = out_of_sight(|| open(kind()).map(|_| ())).unwrap_or(Err(Errno::MFILE));
            opened.map(|()| Place::Aside)
        }
    };
    // A ring is handed over by either type of socket, and what stands in for one goes the same way.
    let stands_in = params::get().transport == Transport::Shm && in_use::get() != Transport::Dgram;
    if found == Err(Errno::PROTOTYPE) && stands_in {
        OWN.close();
        in_use::set(Transport::Dgram);
        return find_server();
    }
    found
}

fn kind() -> SocketType {
    if in_use::get() == Transport::Dgram { SocketType::DGRAM } else { SocketType::STREAM }
}

/// Connects our own socket, and looks who listens before anything is sent. After an error it can be tried again.
fn connect_ours(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    connect(fd, &address()?)?;
    let user = match kind() {
        SocketType::DGRAM => {
            note_room(fd);
            let inode = fstat(fd)?.st_ino;
            out_of_sight(|| datagram_listener(inode)).flatten()
        }
        _ => listener(fd).map(|(_, user)| user),
    };
    if is_friend(user) {
        return Ok(());
    }
    if kind() == SocketType::DGRAM {
        let _ = connect_unspec(fd);
    } else {
        OWN.close();
    }
    Err(Errno::PERM)
}

/// Whether the server's path leads somewhere that this process may connect to, as far as can be seen without doing so.
pub(super) fn is_within_reach() -> bool {
    match params::get().out_socket_path {
        [b'@', ..] => true,
        path => accessat(CWD, path, Access::WRITE_OK, AtFlags::empty()).is_ok(),
    }
}

fn address() -> Result<SocketAddrUnix, Errno> {
    match params::get().out_socket_path {
        [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name),
        path => SocketAddrUnix::new(path),
    }
}

fn make(kind: SocketType) -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

/// A socket that is connected to the server's. Made aside, or where nobody can see its number.
///
/// # Errors
///
/// Those of socket(2) and connect(2); EPERM if who listens is another user and not root.
pub(super) fn open(kind: SocketType) -> Result<OwnedFd, Errno> {
    let socket = make(kind)?;
    connect(&socket, &address()?)?;
    let user = match kind {
        SocketType::DGRAM => {
            note_room(socket.as_fd());
            datagram_listener(fstat(&socket)?.st_ino)
        }
        // Who called listen(2), which is what the kernel says of the other end.
        _ => listener(socket.as_fd()).map(|(_, user)| user),
    };
    if is_friend(user) { Ok(socket) } else { Err(Errno::PERM) }
}

/// Whether this user may hear what the program says.
fn is_friend(user: Option<u32>) -> bool {
    user.is_some_and(|user| user == 0 || user == geteuid().as_raw() || user == getuid().as_raw())
}

/// Whose the socket is that our socket of datagrams is connected to. The kernel keeps no credentials of it, but says whose
/// it is (sock_diag(7)); where it does not, as of a socket in another network namespace, the file does.
fn datagram_listener(inode: u64) -> Option<u32> {
    if let Some(user) = sock_diag::peer_inode(inode).and_then(sock_diag::owner) {
        return Some(user);
    }
    match params::get().out_socket_path {
        [b'@', ..] => None,
        path => statat(CWD, path, AtFlags::empty()).ok().map(|stat| stat.st_uid),
    }
}

fn note_room(socket: BorrowedFd<'_>) {
    let room = rustix::net::sockopt::socket_send_buffer_size(socket).unwrap_or(MAX_CHUNK);
    SERVER.note_room(room);
}

/// Sends one frame, whole or not at all.
pub(super) fn send(socket: Socket, frame: &[&[u8]], now_ns: u64) -> Result<(), Cause> {
    match (socket, in_use::get()) {
        (Socket::Aside, _) => send_aside(frame),
        (Socket::Ours(fd), Transport::Dgram) => send_datagram(fd, frame, now_ns),
        (Socket::Ours(fd), _) => outbox::send(fd, frame, disconnected),
    }
}

fn send_datagram(fd: BorrowedFd<'_>, frame: &[&[u8]], now_ns: u64) -> Result<(), Cause> {
    let mut fd = fd;
    let mut reconnected = false;
    loop {
        let errno = match send_once(fd, frame) {
            Ok(_) => {
                stall::went_through(fd);
                return Ok(());
            }
            Err(errno) => errno,
        };
        match failure(errno) {
            Failure::Again => {}
            Failure::Full => stall::wait_for_room(fd)?,
            Failure::Unmapped => return Err(Cause::Unmapped),
            Failure::Gone => {
                // A server that was started anew is at the same path: worth one look at once.
                disconnected();
                if reconnected {
                    return Err(Cause::Absent);
                }
                reconnected = true;
                match reach(now_ns)? {
                    Socket::Ours(anew) => fd = anew,
                    Socket::Aside => return send_aside(frame),
                }
            }
        }
    }
}

/// Sends a frame by a socket of its own, which has room for it.
fn send_aside(frame: &[&[u8]]) -> Result<(), Cause> {
    let sent = aside(|| {
        let socket = open(kind())?;
        let len: usize = frame.iter().map(|part| part.len()).sum();
        match send_once(socket.as_fd(), frame) {
            Ok(sent) if sent < len => Err(Errno::NOBUFS),
            sent => sent.map(|_| ()),
        }
    });
    match sent {
        Some(Ok(())) => Ok(()),
        // A queue of connections that is full, too: the server does not read.
        Some(Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM)) => Err(Cause::Stalled),
        Some(Err(Errno::FAULT)) => Err(Cause::Unmapped),
        // No thread now, or no number in its table, which says nothing of the server.
        None | Some(Err(Errno::MFILE | Errno::NFILE)) => Err(Cause::Absent),
        Some(Err(errno)) => {
            disconnected();
            SERVER.is_stranger.store(errno == Errno::PERM, Ordering::Relaxed);
            Err(if errno == Errno::PERM { Cause::Stranger } else { Cause::Absent })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_server_is_tried_by_one_thread_now_and_then() {
        let server = Server::unknown();
        let tries: Vec<_> = (0..4).map(|step| server.may_try(RETRY_NS + step * RETRY_NS / 2)).collect();
        assert_eq!(tries, [true, false, true, false]);
        let tried = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| tried.fetch_add(server.may_try(9 * RETRY_NS).into(), Ordering::Relaxed));
            }
        });
        assert_eq!(tried.into_inner(), 1);
    }

    #[test]
    fn each_connection_is_a_session_but_a_childs_to_its_parents_server() {
        let server = Server::unknown();
        let session = || server.session.load(Ordering::Relaxed);
        server.found(Place::Ours);
        assert_eq!((session(), server.is_connected.load(Ordering::Relaxed)), (1, true));
        server.is_gone();
        server.is_same_session.store(true, Ordering::Relaxed);
        server.found(Place::Ours);
        assert_eq!(session(), 1);
        server.is_gone();
        server.found(Place::Aside);
        assert_eq!((session(), server.is_connected.load(Ordering::Relaxed)), (2, false));
    }

    #[test]
    fn a_frame_fits_what_the_socket_takes() {
        let server = Server::unknown();
        let chunk = |room| {
            server.note_room(room);
            server.chunk.load(Ordering::Relaxed) as usize
        };
        assert_eq!([0, 8192, 1 << 30].map(chunk), [MIN_CHUNK, 8192 - FRAME_OVERHEAD, MAX_CHUNK]);
    }
}
