//! Frames to the server: never a wait without an end, and a count of what could not be delivered.
//!
//! By `dgram` and `stream` a frame goes out on one socket; by `shm` into a ring that the server reads.

mod in_use;
mod limits;
mod lock;
mod outbox;
mod own;
mod ring;
mod sendmsg;
mod shared;
mod socket;
mod stall;
mod unfinished;

use core::sync::atomic::{AtomicBool, Ordering};

use crate::process::losses::Cause;
use crate::process::{self, aside, clock, stack};
use crate::sys::confined::{is_confined, is_strict};
use crate::sys::params::{self, Complaint, Transport};

pub(crate) use in_use::get as in_use;
pub(crate) use ring::{MAPPED_LEN, Writing, ring};
pub(crate) use sendmsg::{MAX_CHUNK, MAX_FRAME_PARTS};
pub(crate) use shared::{note_loss, told_losses};
pub(crate) use socket::{chunk, session};

pub(crate) fn init() -> Result<(), Complaint> {
    aside::init()?;
    // What was lost of an earlier recording, at its end, is none of this one's.
    let lost = &process::own().lost;
    let _ = lost.take();
    lost.keep_number(None);
    let asked_for = params::get().transport;
    in_use::set(asked_for);
    own::set_starting(true);
    if asked_for == Transport::Shm && !shared::init() {
        in_use::set(Transport::Stream);
    }
    let ready = if in_use::get() == Transport::Stream { outbox::init() } else { Ok(()) };
    if in_use::get() != Transport::Shm {
        // Now, while nobody sees which number the socket has for a moment. A server that is not there yet is looked for again.
        let _ = socket::reach(clock::now_ns());
    }
    own::set_starting(false);
    ready
}

/// Closes what is ours. A thread in the middle of a send finds it gone.
pub(crate) fn stop() {
    shared::stop();
    socket::stop();
}

/// A forked child begins: the number under which it has announced itself to the server, if it had to.
pub(crate) fn after_fork() -> Option<u64> {
    aside::after_fork();
    lock::after_fork();
    stall::end();
    socket::after_fork();
    if params::get().transport != Transport::Shm {
        return None;
    }
    unfinished::after_fork();
    shared::after_fork()
}

/// After a fork: a number for the frames of this process, if it has to share its parent's ring with another of its number.
pub(crate) fn number_apart() -> u64 {
    if in_use::get() == Transport::Shm { shared::number_apart() } else { 0 }
}

/// Whether a vforked child's number may be another one where the server is.
pub(crate) fn guests_announce_themselves() -> bool {
    params::get().transport == Transport::Shm && shared::guests_announce_themselves()
}

/// A vforked child announces itself to the server: the number under which it has, if it had to.
pub(crate) fn announce_guest(pid: u32) -> Option<u64> {
    if params::get().transport == Transport::Shm { shared::announce_guest(pid) } else { None }
}

/// What comes now may be the last that is sent: a server that was out of reach a moment ago is tried again for it.
pub(crate) fn before_last() {
    socket::try_again();
}

/// The process is about to end, or to become another program.
pub(crate) fn leave() {
    stack::on_own(shared::leave);
}

/// Whether the server has said that it reads no more.
pub(crate) fn is_stopped() -> bool {
    shared::is_stopped()
}

/// Whether a vforked child can send: through a ring, or by its parent's socket, if it has not closed that. A socket of its
/// own would be noted in memory that is the parent's.
pub(crate) fn reaches_guests() -> bool {
    params::get().transport == Transport::Shm || socket::OWN.if_there().is_some()
}

/// Whether the process has a way to the server that stays, should it be unable to connect from here on.
pub(crate) fn keeps_connection() -> bool {
    in_use::get() == Transport::Shm || socket::OWN.if_there().is_some()
}

/// Whether a forked child has a way to the server: the ring, its parent's socket of datagrams, or a stream of its own.
pub(crate) fn reaches_children() -> bool {
    match in_use::get() {
        Transport::Shm => true,
        Transport::Dgram if socket::OWN.if_there().is_some() => true,
        _ => !is_confined() && socket::is_within_reach(),
    }
}

/// The program's limits may have changed: a ring that they leave no room for is given back, for a smaller one or none.
pub(crate) fn fit_limits() {
    if in_use::get() != Transport::Shm || shared::fit_limits() {
        return;
    }
    in_use::set(Transport::Stream);
    if outbox::init().is_ok() {
        let _ = socket::reach(clock::now_ns());
    }
}

/// What is ready to take the frames of one event.
pub(crate) enum Link {
    Socket(socket::Socket),
    Ring,
}

/// Makes sure of the server; an error if it is not to be had now. `now_ns` paces the tries, so that an absent server
/// costs one system call in a while.
#[inline]
pub(crate) fn reach(now_ns: u64) -> Result<Link, Cause> {
    if in_use::get() == Transport::Shm {
        shared::look_after(now_ns);
        return Ok(Link::Ring);
    }
    if is_strict() {
        return Err(Cause::Absent);
    }
    socket::reach(now_ns).map(Link::Socket)
}

/// Sends one frame, whole or not at all.
#[inline]
pub(crate) fn send(link: &Link, frame: &[&[u8]], from: Writing, now_ns: u64) -> Result<(), Cause> {
    match link {
        Link::Ring => ring::ring().map_or(Err(Cause::Absent), |ring| ring.put(frame, from)),
        Link::Socket(socket) => socket::send(*socket, frame, now_ns),
    }
}

/// How often a descriptor is looked at whether it still leads to what it did, in nanoseconds; 0: at every call.
///
/// A call that goes into the ring makes no system call, and this would be one. What libc closes and opens is seen
/// without it; numbers closed and reused by system calls of the program's own may be mistaken for as long, until that has
/// been noticed once.
#[inline]
pub(crate) fn check_interval_ns() -> u64 {
    const SHM: u64 = 1_000_000;
    if may_mistake() && !IS_DISTRUSTED.load(Ordering::Relaxed) { SHM } else { 0 }
}

/// Whether the program has closed a descriptor in a way that is not hooked.
static IS_DISTRUSTED: AtomicBool = AtomicBool::new(false);

/// It has: from here on each call is looked at.
pub(crate) fn distrust() {
    IS_DISTRUSTED.store(true, Ordering::Relaxed);
}

/// Whether not every call's descriptor is, or was, looked at.
#[inline]
pub(crate) fn may_mistake() -> bool {
    in_use::get() == Transport::Shm
}

/// Whether a descriptor is ours and not the program's, for which it is closed.
pub(crate) fn is_own(fd: i32) -> bool {
    own_numbers().contains(&Some(fd)) && !gives_up(fd)
}

fn own_numbers() -> [Option<i32>; 2] {
    [socket::OWN.number(), shared::OWN.number()]
}

fn gives_up(fd: i32) -> bool {
    [&socket::OWN, &shared::OWN].iter().all(|own| own.number() != Some(fd) || own.gives_up(fd))
}

/// Calls a function for each part of a range of descriptors that has none of ours in it, until one fails; the last
/// result.
pub(crate) fn around_own(first: u32, last: u32, mut call: impl FnMut(u32, u32) -> i32) -> i32 {
    let mut numbers = own_numbers();
    numbers.sort_unstable();
    let mut from = first;
    let mut result = 0;
    let mut is_done = false;
    for own in numbers.into_iter().flatten() {
        let number = own.cast_unsigned();
        if !(from..=last).contains(&number) || gives_up(own) {
            continue;
        }
        if from < number {
            result = call(from, number - 1);
            is_done = true;
        }
        if result != 0 {
            return result;
        }
        from = number + 1;
    }
    // A range that is ours alone is done with as well.
    if from <= last || (!is_done && from == first) { call(from, last) } else { result }
}

/// The program is about to take a number for itself (dup2(2)).
pub(crate) fn make_way(fd: i32) {
    socket::OWN.make_way(fd);
    shared::OWN.make_way(fd);
}
