//! Calls that fail: untraced and traced in the same way.

use std::ffi::c_int;

use crate::actor::{Actor, Name, no_address, outcome};

/// A descriptor that nobody has.
const NOBODYS: c_int = 54_321;
/// An address that nothing is mapped at.
const NOWHERE: usize = 8;

fn bad(actor: &mut Actor) -> c_int {
    actor.rng.of(&[-1, NOBODYS, c_int::MIN])
}

/// A descriptor that is none.
pub fn bad_descriptor(actor: &mut Actor) {
    let fd = bad(actor);
    let mut buffer = [0u8; 4];
    let bytes = buffer.as_mut_ptr().cast();
    let which = actor.rng.below(14);
    let name = actor.new_name();
    // SAFETY: the memory is `buffer`'s; a null message is what some of these are to fail with, after EBADF.
    let outcome = outcome(|| unsafe {
        match which {
            0 => libc::send(fd, bytes, 4, 0),
            1 => libc::recv(fd, bytes, 4, 0),
            2 => libc::read(fd, bytes, 4),
            3 => libc::write(fd, bytes, 4),
            4 => libc::close(fd) as isize,
            5 => libc::dup(fd) as isize,
            6 => libc::shutdown(fd, libc::SHUT_WR) as isize,
            7 => libc::bind(fd, name.as_ptr(), name.len) as isize,
            8 => libc::connect(fd, name.as_ptr(), name.len) as isize,
            9 => libc::listen(fd, 1) as isize,
            10 => libc::accept(fd, std::ptr::null_mut(), std::ptr::null_mut()) as isize,
            11 => libc::fcntl(fd, libc::F_DUPFD, 0) as isize,
            12 => libc::sendto(fd, bytes, 4, 0, name.as_ptr(), name.len),
            _ => libc::recvfrom(fd, bytes, 4, 0, std::ptr::null_mut(), std::ptr::null_mut()),
        }
    });
    actor.result(format_args!("bad descriptor {which} {outcome}"));
}

/// Memory that is not there. The bytes sent from it, or received into it, do not move; a datagram received is gone.
pub fn bad_memory(actor: &mut Actor) {
    let Some(at) = actor.pick(|_| true) else { return };
    let fd = actor.pick_fd(at);
    let nowhere = std::ptr::without_provenance_mut::<u8>(NOWHERE);
    let which = match actor.rng.below(9) {
        // A message without bytes needs no memory: it would be received.
        1 if actor.sockets[at].kind != libc::SOCK_STREAM => 3,
        which => which,
    };
    // SAFETY: the kernel answers with EFAULT.
    let outcome = outcome(|| unsafe {
        match which {
            0 => libc::send(fd, nowhere.cast(), 10, libc::MSG_DONTWAIT),
            1 => libc::recv(fd, nowhere.cast(), 10, libc::MSG_DONTWAIT),
            2 => libc::sendmsg(fd, nowhere.cast(), libc::MSG_DONTWAIT),
            3 => libc::recvmsg(fd, nowhere.cast(), libc::MSG_DONTWAIT),
            4 => libc::connect(fd, nowhere.cast(), 30) as isize,
            5 => libc::bind(fd, nowhere.cast(), 30) as isize,
            6 => libc::sendmmsg(fd, nowhere.cast(), 2, libc::MSG_DONTWAIT) as isize,
            7 => libc::recvmmsg(fd, nowhere.cast(), 2, libc::MSG_DONTWAIT, std::ptr::null_mut()) as isize,
            _ => libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, nowhere.cast()) as isize,
        }
    });
    actor.result(format_args!("bad memory {which} {outcome}"));
}

/// What the socket, as it is, does not do.
pub fn wrong_state(actor: &mut Actor) {
    let Some(at) = actor.pick(|_| true) else { return };
    let fd = actor.pick_fd(at);
    let socket = actor.sockets[at].clone();
    let name = actor.new_name();
    let taken = actor.pick(|other| other.name.is_some()).and_then(|other| actor.sockets[other].name.clone());
    let large = vec![7u8; 400_000];
    let which = actor.rng.below(8);
    // SAFETY: names have their own lengths, and the memory is `large`'s.
    let outcome = outcome(|| unsafe {
        match which {
            0 => libc::connect(fd, name.as_ptr(), name.len) as isize,
            1 if !socket.listens => libc::accept(fd, std::ptr::null_mut(), std::ptr::null_mut()) as isize,
            2 => libc::bind(fd, name.as_ptr(), 1) as isize,
            3 if socket.kind != libc::SOCK_STREAM => libc::send(fd, large.as_ptr().cast(), 400_000, libc::MSG_DONTWAIT),
            4 => libc::dup2(-1, fd) as isize,
            5 => libc::dup3(fd, fd, 0) as isize,
            6 => libc::shutdown(fd, 77) as isize,
            _ => match &taken {
                // A file: a name in the abstract namespace is another's for each type of socket.
                Some(taken) if socket.kind != libc::SOCK_DGRAM && taken.address.sun_path[0] != 0 => {
                    libc::bind(fd, taken.as_ptr(), taken.len) as isize
                }
                _ => libc::socket(libc::AF_UNIX, 99, 0) as isize,
            },
        }
    });
    actor.result(format_args!("wrong state {which} {outcome}"));
}

/// connect(2) where there is nobody, or somebody of another type.
pub fn nobody_there(actor: &mut Actor) {
    let kind = actor.rng.of(&[libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET]);
    // SAFETY: takes numbers.
    let made = outcome(|| unsafe { libc::socket(libc::AF_UNIX, kind | libc::SOCK_NONBLOCK, 0) });
    actor.result_fd("socket", made);
    let fd = made.value as c_int;
    let somebody = actor.pick(|other| other.name.is_some() && other.kind != kind);
    let to = match actor.rng.below(3) {
        0 => actor.new_name(),
        1 => Name { address: no_address(), len: 110, shown: String::new() },
        _ => match somebody.and_then(|other| actor.sockets[other].name.clone()) {
            Some(name) => name,
            None => actor.new_name(),
        },
    };
    // SAFETY: the name's length is its own.
    let outcome = outcome(|| unsafe { libc::connect(fd, to.as_ptr(), to.len) });
    actor.result(format_args!("connect to nobody {outcome}"));
    actor.close(fd);
}
