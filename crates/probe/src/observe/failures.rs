//! Calls that failed, and the ends of connections: what is said of them.
//!
//! A program that tries again at once fails many thousand times a second. So a failure that is like one before (the same
//! call, error, and name) is told the first, second, fourth, eighth … time, and besides when the last was told long ago.

use core::ffi::c_void;
use core::sync::atomic::{AtomicU64, Ordering};

use gttr::{Direction, Ext, ExtWriter, FrameType};

use crate::emit::{Event, emit};
use crate::process::clock::now_ns;
use crate::process::{self, stack};
use crate::sys::address::{AF_UNIX, Address};
use crate::sys::libc::{errno, set_errno};
use crate::table::connection::{Connection, Kind, SOCK_DGRAM};
use crate::table::descriptors::{self, Slot};
use crate::table::name::SocketPath;

/// Numbers of errno(3).
const EINTR: i32 = 4;
const EBADF: i32 = 9;
const EAGAIN: i32 = 11;
const EFAULT: i32 = 14;
const ENOTSOCK: i32 = 88;
const EALREADY: i32 = 114;
const EINPROGRESS: i32 = 115;

/// Failures of so many kinds are counted at one time; one more takes the place of one of them.
const MAX_KINDS: usize = 16;
/// After so many nanoseconds, a failure is told again however often it has been.
const QUIET_NS: u64 = 100_000_000;
/// Bits of a word that count; the others say which failure it is.
const COUNT_BITS: u32 = 24;
/// Bytes of a path that an event of an execution shows.
const MAX_PROGRAM_LEN: usize = 256;

struct Repeated {
    /// Which failure, and how often it has been.
    failure: AtomicU64,
    told_ns: AtomicU64,
}

static REPEATED: [Repeated; MAX_KINDS] =
    [const { Repeated { failure: AtomicU64::new(0), told_ns: AtomicU64::new(0) } }; MAX_KINDS];

/// How often this has failed, if that is to be told now.
fn times(call: &str, errno: i32, name: &[u8], now_ns: u64) -> Option<u32> {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for &byte in errno.to_le_bytes().iter().chain(call.as_bytes()).chain(name) {
        // FNV-1a.
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    }
    let repeated = &REPEATED[hash as usize % MAX_KINDS];
    let is_it = |word: u64| word >> COUNT_BITS == hash >> COUNT_BITS;
    let most = (1 << COUNT_BITS) - 1;
    let next = |word: u64| Some(if is_it(word) { word + u64::from(word & most != most) } else { (hash & !most) | 1 });
    let before = repeated.failure.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or(0);
    let count = if is_it(before) { (before & most).min(most - 1) + 1 } else { 1 };
    let is_due = now_ns.wrapping_sub(repeated.told_ns.load(Ordering::Relaxed)) >= QUIET_NS;
    if !count.is_power_of_two() && !is_due {
        return None;
    }
    repeated.told_ns.store(now_ns, Ordering::Relaxed);
    Some(count as u32)
}

/// Whether the call that has just failed is one to tell of.
#[cold]
pub(crate) fn is_told(call: &str) -> bool {
    process::is_started() && is_telling(call, errno())
}

/// Whether an error says something of the socket: not that there is nothing yet, or that the arguments are wrong.
fn is_telling(call: &str, errno: i32) -> bool {
    match errno {
        // The queue of a listener is full: connect(2) has no other way to wait for it.
        EAGAIN => call == "connect",
        EINTR | EBADF | EFAULT | ENOTSOCK | EALREADY | EINPROGRESS => false,
        _ => errno > 0,
    }
}

/// Tells of a call on a socket that has just failed, with its error in `errno`; `address` is the one that it was given, of
/// `len` bytes. `errno` is left as it is.
#[cold]
#[inline(never)]
pub(crate) fn of_call(call: &'static str, fd: i32, address: *const c_void, len: usize) {
    let errno = errno();
    // Of a descriptor that is not known nothing is asked: a failed call says no more of it than that it failed.
    let connection = match descriptors::get(fd) {
        Slot::Traced(handle) => handle.get(),
        _ => None,
    };
    if let Some(connection) = connection.filter(|_| is_telling(call, errno) && process::is_started()) {
        stack::on_own(|| of_socket(call, errno, fd, connection, address, len));
    }
    set_errno(errno);
}

fn of_socket(call: &'static str, errno: i32, fd: i32, socket: &Connection, address: *const c_void, len: usize) {
    let description = socket.description();
    /// `struct sockaddr_storage`: the kernel refuses a longer address without a look at it.
    const MAX_ADDRESS_LEN: usize = 128;
    let len = if len > MAX_ADDRESS_LEN { 0 } else { len };
    // SAFETY: null, or the kernel has read it: an address that it could not read is another error (EFAULT).
    let given = unsafe { Address::read(address, len) }.filter(Address::is_named);
    let mut path = given.as_ref().map(|address| SocketPath::of(address, c"/proc/thread-self/cwd"));
    let is_wanted = path.as_mut().map_or(description.wanted, SocketPath::is_wanted);
    if !is_wanted {
        return;
    }
    let path = path.as_ref().map_or(description.path.as_bytes(), |path| path.shown.as_bytes());
    let ts_ns = now_ns();
    let Some(times) = times(call, errno, path, ts_ns) else { return };
    let values = [Ext::Call(call.as_bytes()), Ext::Errno(errno.cast_unsigned()), Ext::Times(times)];
    let is_heard_of = socket.kind() == Kind::Open && !socket.is_announced_in(0);
    let event = Event {
        fd,
        path,
        conn: [if is_heard_of { description.id.as_bytes() } else { b"" }, b"", b""],
        values: if times == 1 { &values[..2] } else { &values },
        ..Event::new(FrameType::Fail, ts_ns)
    };
    emit(&event, &[]);
}

/// Tells of a socket that could not be made.
#[cold]
#[inline(never)]
pub(crate) fn of_making(call: &'static str, domain: i32) {
    let errno = errno();
    let ts_ns = now_ns();
    if domain == i32::from(AF_UNIX)
        && process::is_started()
        && descriptors::is_tracing()
        && is_telling(call, errno)
        && let Some(times) = times(call, errno, b"", ts_ns)
    {
        stack::on_own(|| {
            let values = [Ext::Call(call.as_bytes()), Ext::Errno(errno.cast_unsigned()), Ext::Times(times)];
            let values = if times == 1 { &values[..2] } else { &values };
            emit(&Event { values, ..Event::new(FrameType::Fail, ts_ns) }, &[]);
        });
    }
    set_errno(errno);
}

/// Tells of a program that was not executed.
#[cold]
#[inline(never)]
pub(crate) fn of_exec(call: &'static str, program: &[u8], errno: i32) {
    let mut buffer = [0; MAX_PROGRAM_LEN + 8];
    let mut program_value = ExtWriter::new(&mut buffer);
    program_value.put(Ext::Program(&program[..program.len().min(MAX_PROGRAM_LEN)]));
    let values = [Ext::Call(call.as_bytes()), Ext::Errno(errno.cast_unsigned())];
    let event = Event { values: &values, more: program_value.bytes(), ..Event::new(FrameType::Fail, now_ns()) };
    emit(&event, &[]);
}

/// Tells that nothing more can be received on a connection, the first time that a receive has said so.
#[cold]
#[inline(never)]
pub(crate) fn of_end(connection: &Connection, fd: i32) {
    let description = connection.description();
    let is_connection = description.socket_type != SOCK_DGRAM && description.wanted && !connection.is_announced_in(0);
    if !is_connection || connection.kind() != Kind::Open || !connection.claim_end() {
        return;
    }
    let event = Event {
        direction: Direction::In,
        fd,
        path: description.path.as_bytes(),
        conn: [description.id.as_bytes(), b"", b""],
        ..Event::new(FrameType::Eof, now_ns())
    };
    emit(&event, &[]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_again_and_again_is_told_now_and_then() {
        let told: Vec<_> = (0..1000).filter_map(|_| times("connect", 2, b"/tests/again", QUIET_NS)).collect();
        assert_eq!(told, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]);
        assert_eq!(times("connect", 2, b"/tests/again", 2 * QUIET_NS), Some(1001));
        assert_eq!(times("connect", 2, b"/tests/other", 2 * QUIET_NS), Some(1));
    }

    #[test]
    fn what_says_nothing() {
        assert!(is_telling("connect", EAGAIN) && !is_telling("send", EAGAIN) && !is_telling("connect", EINPROGRESS));
        assert!(is_telling("send", 32) && !is_telling("send", EINTR) && !is_telling("send", 0));
    }
}
