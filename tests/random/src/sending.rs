//! The calls that send.

use std::ffi::{c_int, c_long, c_void};

use libc::{iovec, mmsghdr, msghdr};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::actor::{Actor, Name, Outcome, Socket, outcome, unseen};
use crate::ancillary::{Control, rights_and_credentials};
use crate::log::{self, Moved, Passed};

/// Every call that sends bytes from memory, by the number that chooses it.
pub const CALLS: [&str; 14] = [
    "send",
    "sendto",
    "sendmsg",
    "sendmmsg",
    "write",
    "writev",
    "pwritev2",
    "syscall:sendto",
    "syscall:sendmsg",
    "syscall:sendmmsg",
    "syscall:write",
    "syscall:writev",
    "syscall:pwritev2",
    "sendmsg",
];

/// Whether poll(2) says that a call would not wait.
pub fn is_ready(fd: c_int, events: PollFlags) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(unseen(fd), events)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|n| n == 1)
}

/// Whether nothing more will come.
pub fn is_hung_up(fd: c_int) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(unseen(fd), PollFlags::RDHUP)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok()
        && fds[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP)
}

/// Whether an error waits for the next call to take it.
pub fn has_error(fd: c_int) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(unseen(fd), PollFlags::empty())];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok() && fds[0].revents().contains(PollFlags::ERR)
}

/// Whether its reads and writes fail rather than wait.
pub fn is_nonblocking(fd: c_int) -> bool {
    rustix::fs::fcntl_getfl(unseen(fd)).is_ok_and(|flags| flags.contains(rustix::fs::OFlags::NONBLOCK))
}

/// A length, most often a small one.
pub fn some_len(actor: &mut Actor) -> usize {
    match actor.rng.below(300) {
        0..8 => 0,
        8..16 => 1,
        16..220 => 1 + actor.rng.below(64),
        220..290 => 65 + actor.rng.below(1000),
        290..299 => 1000 + actor.rng.below(8000),
        // More than a frame takes.
        _ => 70_000,
    }
}

/// Cuts memory into up to five buffers, empty ones among them.
pub fn scatter(actor: &mut Actor, base: *mut u8, len: usize) -> Vec<iovec> {
    let mut buffers = Vec::new();
    let mut at = 0;
    for _ in 0..actor.rng.below(5) {
        let part = actor.rng.below(len - at + 1);
        // SAFETY: `at` is within the memory.
        buffers.push(iovec { iov_base: unsafe { base.add(at) }.cast(), iov_len: part });
        at += part;
    }
    // SAFETY: as above.
    buffers.push(iovec { iov_base: unsafe { base.add(at) }.cast(), iov_len: len - at });
    buffers
}

/// Sends something by some call over some socket.
pub fn send(actor: &mut Actor) {
    let Some(at) = actor.pick(|_| true) else { return };
    let call = actor.rng.of(&CALLS);
    send_by(actor, at, call);
}

/// Sends by this call.
pub fn send_by(actor: &mut Actor, at: usize, call: &'static str) {
    let fd = actor.pick_fd(at);
    let socket = actor.sockets[at].clone();
    let len = some_len(actor);
    let mut data = actor.rng.bytes(len);
    let may_wait = (is_ready(fd, PollFlags::OUT) && !call.contains("mmsg")) || is_nonblocking(fd);
    let mut flags = if may_wait && actor.rng.one_in(2) { 0 } else { libc::MSG_DONTWAIT };
    let to = address_for(actor, &socket);
    if to.is_some() {
        // The queue that may be full is another's than the one poll(2) looks at.
        flags |= libc::MSG_DONTWAIT;
    }
    if actor.rng.one_in(3) {
        flags |= libc::MSG_NOSIGNAL;
    }
    if actor.may_be_urgent() && actor.rng.one_in(8) {
        flags |= libc::MSG_OOB;
    }
    match call.strip_prefix("syscall:").unwrap_or(call) {
        "send" => {
            // SAFETY: the memory is `data`'s.
            let outcome = outcome(|| unsafe { libc::send(fd, data.as_ptr().cast(), len, flags) });
            sent(actor, &socket, call, &data, outcome, None, flags, &[]);
        }
        "sendto" => sendto(actor, fd, &socket, call, &data, to.as_ref(), flags),
        "sendmsg" => sendmsg(actor, fd, &socket, call, &mut data, to, flags),
        "sendmmsg" => sendmmsg(actor, fd, &socket, call, &mut data, to.as_ref(), flags),
        _ if may_wait => write_family(actor, fd, &socket, call, &mut data),
        // It might wait for ever.
        _ => {}
    }
}

/// An address to send to: mostly for datagram sockets, where it is needed.
fn address_for(actor: &mut Actor, socket: &Socket) -> Option<Name> {
    let wanted = if socket.kind == libc::SOCK_DGRAM { !actor.rng.one_in(3) } else { actor.rng.one_in(20) };
    if !wanted {
        return None;
    }
    if actor.rng.one_in(12) {
        // Nobody is there.
        return Some(actor.new_name());
    }
    let kind = socket.kind;
    let at = actor.pick(|other| other.name.is_some() && other.kind == kind)?;
    actor.sockets[at].name.clone()
}

/// Reports a send's result, and accounts for what it moved.
#[expect(clippy::too_many_arguments, reason = "one place for all that a message is")]
fn sent(
    actor: &Actor,
    socket: &Socket,
    call: &'static str,
    data: &[u8],
    outcome: Outcome,
    to: Option<&Name>,
    flags: c_int,
    fds: &[Passed],
) {
    account_sent(socket, call, data, outcome.value, to, flags, fds);
    actor.result(format_args!("{call} {} {outcome}", data.len()));
}

/// Accounts for a message sent, of which the kernel took `moved` bytes.
pub fn account_sent(
    socket: &Socket,
    call: &'static str,
    data: &[u8],
    moved: isize,
    to: Option<&Name>,
    flags: c_int,
    fds: &[Passed],
) {
    let Ok(moved) = usize::try_from(moved) else { return };
    // writev(2) and pwritev2(2) of nothing do not ask the socket; write(2) does.
    if moved == 0 && (socket.kind == libc::SOCK_STREAM || call.contains("writev")) {
        return;
    }
    // A stream's peer is who it is connected to, whatever is asked for.
    let is_datagram = socket.kind == libc::SOCK_DGRAM;
    let path = if is_datagram { to.map(|name| &*name.shown) } else { socket.path.as_deref() };
    log::moved(&Moved {
        inode: socket.inode,
        direction: "out",
        call,
        data: &data[..moved],
        path,
        flags: flags & libc::MSG_OOB,
        fds,
        ..Moved::default()
    });
}

fn sendto(actor: &Actor, fd: c_int, socket: &Socket, call: &'static str, data: &[u8], to: Option<&Name>, flags: c_int) {
    let (address, address_len) = to.map_or((std::ptr::null(), 0), |name| (name.as_ptr(), name.len));
    let (bytes, len) = (data.as_ptr().cast::<c_void>(), data.len());
    // SAFETY: the memory is `data`'s and `to`'s.
    let outcome = outcome(|| unsafe {
        if call == "sendto" {
            libc::sendto(fd, bytes, len, flags, address, address_len)
        } else {
            libc::syscall(libc::SYS_sendto, fd as c_long, bytes, len, flags as c_long, address, address_len as c_long)
                as isize
        }
    });
    sent(actor, socket, call, data, outcome, to, flags, &[]);
}

fn header(to: Option<&Name>, buffers: &mut [iovec], control: &mut Control) -> msghdr {
    // SAFETY: zeroes are a valid msghdr.
    let mut message: msghdr = unsafe { std::mem::zeroed() };
    if let Some(name) = to {
        message.msg_name = name.as_ptr().cast_mut().cast();
        message.msg_namelen = name.len;
    }
    message.msg_iov = buffers.as_mut_ptr();
    message.msg_iovlen = buffers.len();
    control.put_into(&mut message);
    message
}

fn sendmsg(
    actor: &mut Actor,
    fd: c_int,
    socket: &Socket,
    call: &'static str,
    data: &mut [u8],
    to: Option<Name>,
    flags: c_int,
) {
    let mut buffers = scatter(actor, data.as_mut_ptr(), data.len());
    let (mut control, kept) = if actor.rng.one_in(2) { rights_and_credentials(actor) } else { Default::default() };
    let message = header(to.as_ref(), &mut buffers, &mut control);
    // SAFETY: everything that the message points to is alive.
    let outcome = outcome(|| unsafe {
        if call == "sendmsg" {
            libc::sendmsg(fd, &raw const message, flags)
        } else {
            libc::syscall(libc::SYS_sendmsg, fd as c_long, &raw const message, flags as c_long) as isize
        }
    });
    sent(actor, socket, call, data, outcome, to.as_ref(), flags, &control.passed());
    kept.close(actor);
}

/// Bytes of a sendmmsg(2): less than what may wait in a queue, so that each message is sent whole or not at all.
const MAX_TOGETHER: usize = 2000;

fn sendmmsg(
    actor: &mut Actor,
    fd: c_int,
    socket: &Socket,
    call: &'static str,
    data: &mut [u8],
    to: Option<&Name>,
    flags: c_int,
) {
    let len = data.len().min(MAX_TOGETHER);
    let data = &mut data[..len];
    let count = 1 + actor.rng.below(4);
    let len = data.len() / count;
    let mut parts: Vec<Vec<iovec>> = Vec::new();
    for part in data.chunks_mut(len.max(1)).take(count) {
        let (base, part_len) = (part.as_mut_ptr(), part.len());
        parts.push(scatter(actor, base, part_len));
    }
    let mut messages: Vec<mmsghdr> = parts
        .iter_mut()
        .map(|buffers| mmsghdr { msg_hdr: header(to, buffers, &mut Control::default()), msg_len: 0 })
        .collect();
    let count = messages.len() as u32;
    // SAFETY: everything that the messages point to is alive.
    let outcome = outcome(|| unsafe {
        if call == "sendmmsg" {
            libc::sendmmsg(fd, messages.as_mut_ptr(), count, flags)
        } else {
            libc::syscall(libc::SYS_sendmmsg, fd as c_long, messages.as_mut_ptr(), count as c_long, flags as c_long)
                as c_int
        }
    });
    let mut lens = Vec::new();
    for (number, part) in data.chunks(len.max(1)).take(usize::try_from(outcome.value).unwrap_or(0)).enumerate() {
        let moved = messages[number].msg_len as isize;
        lens.push(moved);
        account_sent(socket, call, part, moved, to, flags, &[]);
    }
    actor.result(format_args!("{call} {count} {outcome} {lens:?}"));
}

fn write_family(actor: &mut Actor, fd: c_int, socket: &Socket, call: &'static str, data: &mut [u8]) {
    let (bytes, len) = (data.as_mut_ptr(), data.len());
    let buffers = scatter(actor, bytes, len);
    let (iov, count) = (buffers.as_ptr(), buffers.len() as c_int);
    /// The high half of a position, which x86_64 does not need.
    const HIGH: c_long = 0;
    // SAFETY: the memory is `data`'s.
    let outcome = outcome(|| unsafe {
        match call {
            "write" => libc::write(fd, bytes.cast(), len),
            "writev" => libc::writev(fd, iov, count),
            "pwritev2" => libc::pwritev2(fd, iov, count, -1, 0),
            "syscall:write" => libc::syscall(libc::SYS_write, fd as c_long, bytes, len) as isize,
            "syscall:writev" => libc::syscall(libc::SYS_writev, fd as c_long, iov, count as c_long) as isize,
            _ => libc::syscall(libc::SYS_pwritev2, fd as c_long, iov, count as c_long, -1 as c_long, HIGH, 0) as isize,
        }
    });
    sent(actor, socket, call, data, outcome, None, 0, &[]);
}
