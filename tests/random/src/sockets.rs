//! Making, naming, connecting, shutting, duplicating and closing sockets.

use std::ffi::{c_int, c_long, c_uint, c_void};

use rustix::event::PollFlags;

use crate::actor::{Actor, Name, no_address, outcome};
use crate::sending::is_ready;
use crate::undeclared::{close_range, closefrom};

const KINDS: [c_int; 3] = [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET];

/// Flags of socket(2) and accept4(2), which are the same.
fn some_flags(actor: &mut Actor) -> c_int {
    actor.rng.of(&[0, libc::SOCK_NONBLOCK]) | actor.rng.of(&[0, libc::SOCK_CLOEXEC])
}

/// socketpair(2).
pub fn pair(actor: &mut Actor) {
    let kind = actor.rng.of(&KINDS);
    let flags = some_flags(actor);
    let mut pair = [-1; 2];
    // SAFETY: `pair` has room for two.
    let outcome = outcome(|| unsafe { libc::socketpair(libc::AF_UNIX, kind | flags, 0, pair.as_mut_ptr()) });
    actor.result(format_args!(
        "socketpair {outcome} {} {}",
        actor.shown(pair[0] as isize),
        actor.shown(pair[1] as isize)
    ));
    for fd in pair {
        let at = actor.adopt(fd, kind);
        actor.sockets[at].path = Some(String::new());
    }
}

fn socket(actor: &mut Actor, kind: c_int, flags: c_int) -> usize {
    // SAFETY: takes numbers.
    let outcome = outcome(|| unsafe { libc::socket(libc::AF_UNIX, kind | flags, 0) });
    actor.result_fd("socket", outcome);
    actor.adopt(outcome.value as c_int, kind)
}

fn bind(actor: &mut Actor, fd: c_int, name: &Name) -> bool {
    // SAFETY: the name's length is its own.
    let outcome = outcome(|| unsafe { libc::bind(fd, name.as_ptr(), name.len) });
    actor.result(format_args!("bind {outcome}"));
    outcome.value == 0
}

/// A socket that listens: socket(2), bind(2), listen(2), which is sometimes called again.
pub fn listener(actor: &mut Actor) {
    let kind = actor.rng.of(&[libc::SOCK_STREAM, libc::SOCK_STREAM, libc::SOCK_SEQPACKET]);
    let flags = some_flags(actor);
    let at = socket(actor, kind, flags);
    let (fd, name) = (actor.sockets[at].fds[0], actor.new_name());
    if !bind(actor, fd, &name) {
        return;
    }
    for _ in 0..1 + actor.rng.below(2) {
        let backlog = actor.rng.of(&[0, 1, 5]);
        // SAFETY: takes numbers.
        let outcome = outcome(|| unsafe { libc::listen(fd, backlog) });
        actor.result(format_args!("listen {backlog} {outcome}"));
    }
    let socket = &mut actor.sockets[at];
    (socket.listens, socket.path, socket.name) = (true, Some(name.shown.clone()), Some(name));
}

/// A datagram socket: with a name, one that the kernel chooses, or none; connected to another, or not.
pub fn datagram(actor: &mut Actor) {
    let flags = some_flags(actor);
    let at = socket(actor, libc::SOCK_DGRAM, flags);
    let fd = actor.sockets[at].fds[0];
    match actor.rng.below(4) {
        0 => {}
        1 => {
            let unnamed = Name { address: no_address(), len: 2, shown: String::new() };
            bind(actor, fd, &unnamed);
        }
        _ => {
            let name = actor.new_name();
            if bind(actor, fd, &name) {
                actor.sockets[at].name = Some(name);
            }
        }
    }
    if actor.rng.one_in(2) {
        connect_datagram(actor, at);
    }
}

fn connect_datagram(actor: &mut Actor, at: usize) {
    let fd = actor.pick_fd(at);
    let other = actor.pick(|other| other.kind == libc::SOCK_DGRAM && other.name.is_some());
    let to = match other.and_then(|other| actor.sockets[other].name.clone()) {
        Some(name) if !actor.rng.one_in(6) => name,
        _ => {
            // AF_UNSPEC takes the peer away.
            let mut address = no_address();
            address.sun_family = libc::AF_UNSPEC as libc::sa_family_t;
            Name { address, len: 2, shown: String::new() }
        }
    };
    // SAFETY: the name's length is its own.
    let outcome = outcome(|| unsafe { libc::connect(fd, to.as_ptr(), to.len) });
    actor.result(format_args!("connect datagram {outcome}"));
}

/// A datagram socket's peer changes.
pub fn reconnect(actor: &mut Actor) {
    if let Some(at) = actor.pick(|socket| socket.kind == libc::SOCK_DGRAM) {
        connect_datagram(actor, at);
    }
}

/// connect(2) to a listener; it does not wait, and fails with EAGAIN when the backlog is full.
pub fn connect(actor: &mut Actor) {
    let Some(listener) = actor.pick(|socket| socket.listens) else { return };
    let Some(name) = actor.sockets[listener].name.clone() else { return };
    let kind = actor.sockets[listener].kind;
    let flags = some_flags(actor);
    let at = socket(actor, kind, flags | libc::SOCK_NONBLOCK);
    let fd = actor.sockets[at].fds[0];
    if actor.rng.one_in(4) {
        let own = actor.new_name();
        bind(actor, fd, &own);
    }
    // SAFETY: the name's length is its own.
    let outcome = outcome(|| unsafe { libc::connect(fd, name.as_ptr(), name.len) });
    actor.result(format_args!("connect {outcome}"));
    if outcome.value == 0 {
        actor.sockets[at].path = Some(name.shown.clone());
        if flags & libc::SOCK_NONBLOCK == 0 {
            set_blocking(actor, fd);
        }
    }
    if actor.rng.one_in(4) {
        return;
    }
    accept_from(actor, listener, &name);
}

/// accept(2) of what waits at some listener, or not.
pub fn accept(actor: &mut Actor) {
    let Some(listener) = actor.pick(|socket| socket.listens) else { return };
    let Some(name) = actor.sockets[listener].name.clone() else { return };
    accept_from(actor, listener, &name);
}

fn accept_from(actor: &mut Actor, listener: usize, name: &Name) {
    let (fd, kind) = (actor.pick_fd(listener), actor.sockets[listener].kind);
    if !is_ready(fd, PollFlags::IN) {
        return;
    }
    let (mut address, mut len) = (no_address(), 110);
    let (address_at, len_at): (*mut libc::sockaddr, *mut u32) = match actor.rng.below(2) {
        0 => (std::ptr::null_mut(), std::ptr::null_mut()),
        _ => ((&raw mut address).cast(), &raw mut len),
    };
    let flags = some_flags(actor);
    let how = actor.rng.of(&["accept", "accept4", "syscall:accept4"]);
    // SAFETY: the address has the room that its length says.
    let outcome = outcome(|| unsafe {
        match how {
            "accept" => libc::accept(fd, address_at, len_at),
            "accept4" => libc::accept4(fd, address_at, len_at, flags),
            _ => libc::syscall(libc::SYS_accept4, fd as c_long, address_at, len_at, flags as c_long) as c_int,
        }
    });
    actor.result_fd(how, outcome);
    if outcome.value >= 0 {
        let at = actor.adopt(outcome.value as c_int, kind);
        actor.sockets[at].path = Some(name.shown.clone());
    }
}

fn set_blocking(actor: &mut Actor, fd: c_int) {
    let mut on: c_int = 0;
    // SAFETY: FIONBIO takes an int.
    let outcome = outcome(|| unsafe { libc::ioctl(fd, libc::FIONBIO, &raw mut on) });
    actor.result(format_args!("ioctl FIONBIO {outcome}"));
}

/// Questions that change nothing, and flags: ioctl(2), getsockopt(2), getsockname(2), fcntl(2).
pub fn ask(actor: &mut Actor) {
    let Some(at) = actor.pick(|_| true) else { return };
    let fd = actor.pick_fd(at);
    let (mut number, mut len) = (0, size_of::<c_int>() as u32);
    match actor.rng.below(6) {
        0 => {
            // SAFETY: FIONREAD gives an int.
            let outcome = outcome(|| unsafe { libc::ioctl(fd, libc::FIONREAD, &raw mut number) });
            actor.result(format_args!("ioctl FIONREAD {outcome} {number}"));
        }
        1 => {
            let mut on = c_int::from(actor.rng.one_in(2));
            // SAFETY: FIONBIO takes an int.
            let outcome = outcome(|| unsafe { libc::ioctl(fd, libc::FIONBIO, &raw mut on) });
            actor.result(format_args!("ioctl FIONBIO {outcome}"));
        }
        2 => {
            let mut who = libc::ucred { pid: 0, uid: 0, gid: 0 };
            len = size_of_val(&who) as u32;
            let value = (&raw mut who).cast::<c_void>();
            // SAFETY: SO_PEERCRED gives a ucred.
            let outcome =
                outcome(|| unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, value, &raw mut len) });
            actor.result(format_args!("getsockopt SO_PEERCRED {outcome} {} {} {}", who.pid != 0, who.uid, who.gid));
        }
        3 | 4 => {
            let (mut address, mut len) = (no_address(), 110);
            let peer = actor.rng.one_in(2);
            let address_at = (&raw mut address).cast();
            // SAFETY: the address has the room that its length says.
            let outcome = outcome(|| unsafe {
                if peer {
                    libc::getpeername(fd, address_at, &raw mut len)
                } else {
                    libc::getsockname(fd, address_at, &raw mut len)
                }
            });
            actor.result(format_args!("getsockname {peer} {outcome} {}", actor.normal(&address, len)));
        }
        _ => {
            let value = (&raw mut number).cast::<c_void>();
            let option = actor.rng.of(&[libc::SO_TYPE, libc::SO_ERROR, libc::SO_ACCEPTCONN, libc::SO_SNDBUF]);
            // SAFETY: these options are ints.
            let outcome = outcome(|| unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, option, value, &raw mut len) });
            actor.result(format_args!("getsockopt {option} {outcome} {number}"));
        }
    }
}

/// shutdown(2).
pub fn shutdown(actor: &mut Actor) {
    let Some(at) = actor.pick(|_| true) else { return };
    let fd = actor.pick_fd(at);
    let which = actor.rng.of(&[libc::SHUT_RD, libc::SHUT_WR, libc::SHUT_WR, libc::SHUT_RDWR]);
    // SAFETY: takes numbers.
    let outcome = outcome(|| unsafe { libc::shutdown(fd, which) });
    let socket = &actor.sockets[at];
    if outcome.value == 0 && !socket.listens {
        let how = ["shutdown:SHUT_RD", "shutdown:SHUT_WR", "shutdown:SHUT_RDWR"][which as usize];
        crate::log::closed(socket.inode, fd, socket.kind, how);
    }
    actor.result(format_args!("shutdown {which} {outcome}"));
}

/// Descriptors from here on are for [`close_range`]; each thread has a hundred.
fn area(actor: &Actor) -> c_int {
    let thread = actor.key.rsplit_once(".t").and_then(|(_, number)| number.parse().ok()).unwrap_or(0);
    300 + 100 * thread
}

/// dup(2), dup2(2), dup3(2), fcntl(2).
pub fn duplicate(actor: &mut Actor) {
    let Some(at) = actor.pick(|_| true) else { return };
    let fd = actor.pick_fd(at);
    // Over another socket of the same thread, or itself.
    let over = actor.pick(|_| true).map_or(fd, |other| actor.sockets[other].fds[0]);
    let area = area(actor);
    let how = actor.rng.of(&["dup", "dup2", "dup3", "F_DUPFD", "F_DUPFD_CLOEXEC", "syscall:dup", "syscall:dup2"]);
    let replaces = matches!(how, "dup2" | "dup3" | "syscall:dup2") && over != fd;
    if replaces {
        actor.before_end(over, how.strip_prefix("syscall:").unwrap_or(how));
    }
    // SAFETY: takes numbers.
    let outcome = outcome(|| unsafe {
        match how {
            "dup" => libc::dup(fd),
            "dup2" => libc::dup2(fd, over),
            "dup3" => libc::dup3(fd, over, libc::O_CLOEXEC),
            "F_DUPFD" => libc::fcntl(fd, libc::F_DUPFD, area),
            "F_DUPFD_CLOEXEC" => libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, area),
            "syscall:dup" => libc::syscall(libc::SYS_dup, fd as c_long) as c_int,
            _ => libc::syscall(libc::SYS_dup2, fd as c_long, over as c_long) as c_int,
        }
    });
    actor.result_fd(how, outcome);
    let copy = outcome.value as c_int;
    if copy < 0 || copy == fd {
        return;
    }
    let kind = crate::ancillary::kind_of(copy);
    actor.adopt(copy, kind);
}

/// close(2) of some descriptor.
pub fn close(actor: &mut Actor) {
    let Some(at) = actor.pick(|_| true) else { return };
    let fd = actor.pick_fd(at);
    if actor.rng.one_in(6) {
        actor.before_end(fd, "close");
        // SAFETY: takes numbers.
        let outcome = outcome(|| unsafe { libc::syscall(libc::SYS_close, fd as c_long) });
        return actor.result(format_args!("syscall:close {outcome}"));
    }
    actor.close(fd);
}

/// Closes a descriptor by a system call of the program's own, which no hook of libc's functions can see; its number is
/// soon another's.
pub fn close_unseen(actor: &mut Actor) {
    let Some(at) = actor.pick(|socket| socket.fds.len() == 1) else { return };
    let socket = actor.sockets.remove(at);
    crate::log::closed(socket.inode, socket.fds[0], socket.kind, "unseen");
    // SAFETY: the descriptor was this thread's, and is no more.
    unsafe { rustix::io::close(socket.fds[0]) };
}

/// close_range(2), and closefrom(3) where no other thread has descriptors.
pub fn close_many(actor: &mut Actor) {
    let first = area(actor);
    for _ in 0..actor.rng.below(3) {
        let Some(at) = actor.pick(|_| true) else { break };
        let fd = actor.pick_fd(at);
        // SAFETY: takes numbers.
        let outcome = outcome(|| unsafe { libc::fcntl(fd, libc::F_DUPFD, first) });
        actor.result_fd("F_DUPFD", outcome);
        let kind = actor.sockets[at].kind;
        actor.adopt(outcome.value as c_int, kind);
    }
    let all = actor.is_alone && actor.rng.one_in(2);
    let how = if all { actor.rng.of(&["closefrom", "close_range"]) } else { "close_range" };
    let (first, last) = match all {
        true => (first - actor.rng.of(&[0, 0, 200]), c_int::MAX),
        false => (first, first + 99),
    };
    let mut ended: Vec<c_int> =
        actor.sockets.iter().flat_map(|socket| &socket.fds).copied().filter(|fd| (first..=last).contains(fd)).collect();
    ended.sort_unstable();
    for fd in ended {
        actor.before_end(fd, how);
    }
    // SAFETY: takes numbers; what is open in the range is this thread's.
    let outcome = outcome(|| unsafe {
        if how == "closefrom" {
            closefrom(first);
            0
        } else {
            close_range(first as c_uint, last as c_uint, 0)
        }
    });
    actor.result(format_args!("{how} {outcome}"));
}
