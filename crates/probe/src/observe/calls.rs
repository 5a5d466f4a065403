//! What the calls do that make, name, duplicate and close sockets.
//!
//! Each function here is called after its call with the call's result, but for those named `before_…`.

use core::ffi::c_void;
use core::sync::atomic::Ordering;

use crate::observe::records::{Change, VANISHED, ended, inode, install, redescribe, report_close, report_listening};
use crate::observe::{announce, notices, scan};
use crate::process::clock::now_ns;
use crate::process::{self, stack};
use crate::sys::address::{AF_UNIX, Address};
use crate::sys::confined::{is_confined, set_confined};
use crate::sys::params;
use crate::table::connection::{self, Connection, Handle, Kind, New, SOCK_DGRAM};
use crate::table::descriptors::{self, Slot};
use crate::table::name::SocketPath;
use crate::transport;

/// The type's bits in socket(2)'s second argument; the others are flags.
const SOCK_TYPE_MASK: i32 = 0xf;

/// socket(2).
pub(crate) fn socket(fd: i32, domain: i32, socket_type: i32) {
    if fd < 0 || !descriptors::owns_descriptors() || scan::is_beyond_table(fd) {
        return;
    }
    if domain != i32::from(AF_UNIX) {
        return install(fd, Slot::Other);
    }
    stack::on_own(|| made(fd, socket_type, "socket", inode(fd), 0));
}

/// socketpair(2). Open from the start, but announced with its first bytes: most pairs are a program's own plumbing.
pub(crate) fn socketpair(pair: [i32; 2], domain: i32, socket_type: i32) {
    if domain != i32::from(AF_UNIX) || !descriptors::owns_descriptors() {
        return;
    }
    stack::on_own(|| {
        let [one, other] = pair.map(inode);
        for (fd, inode, mate) in [(pair[0], one, other), (pair[1], other, one)] {
            if !scan::is_beyond_table(fd) {
                made(fd, socket_type, "socketpair", inode, mate);
            }
        }
    });
}

fn made(fd: i32, socket_type: i32, how: &'static str, inode: u64, mate: u64) {
    process::own().sockets.fetch_add(1, Ordering::Relaxed);
    let new = New {
        kind: Kind::Idle,
        inode,
        socket_type: (socket_type & SOCK_TYPE_MASK).cast_unsigned(),
        mate,
        fd,
        how,
        // Which path it will have, bind or connect will tell.
        wanted: !params::get().has_filter(),
        path: b"",
        ts_ns: now_ns(),
    };
    install(fd, connection::allocate(&new).map_or(Slot::Unknown, Slot::Traced));
}

/// The socket that a call named, asking the kernel for one that is not known.
fn known(fd: i32) -> Option<Handle> {
    match descriptors::get(fd) {
        Slot::Traced(handle) => Some(handle),
        Slot::Other | Slot::Foreign => None,
        Slot::Unknown | Slot::Arrived => match scan::discover(fd) {
            Slot::Traced(handle) => Some(handle),
            _ => None,
        },
    }
}

/// bind(2).
pub(crate) fn bind(result: i32, fd: i32, address: *const c_void, len: usize) {
    if result == 0 && descriptors::owns_descriptors() {
        stack::on_own(|| bound(fd, address, len));
    }
}

fn bound(fd: i32, address: *const c_void, len: usize) {
    // SAFETY: the kernel has just read it for the program at this length.
    let Some(given) = (unsafe { Address::read(address, len) }) else { return };
    let Some(handle) = known(fd) else { return };
    let Some(connection) = handle.get() else { return };
    // An autobound socket (unix(7)) gets its name from the kernel.
    let mut path = match given {
        Address::Unnamed => scan::own_path(fd),
        _ => SocketPath::of(&given, c"/proc/thread-self/cwd"),
    };
    let is_datagram = connection.description().socket_type == SOCK_DGRAM;
    if connection.kind() == Kind::Open && !is_datagram {
        // A client that takes a name after it has connected: the connection has its path.
        return;
    }
    let wanted = path.is_wanted();
    if !wanted && !is_datagram {
        // What it will accept or connect under this name is not asked for; a client's own name is not what counts.
        let path = path.shown.as_bytes();
        let change = Change { kind: Kind::Idle, how: "bind", wanted: false, path, ts_ns: now_ns() };
        let handle = redescribe(handle, fd, &change);
        debug_assert!(handle.is_some());
        return;
    }
    let ts_ns = now_ns();
    let change = Change { kind: Kind::Idle, how: "bind", wanted, path: path.shown.as_bytes(), ts_ns };
    let Some(handle) = redescribe(handle, fd, &change) else { return };
    if let (true, true, Some(connection)) = (is_datagram, wanted, handle.get()) {
        report_listening(connection, ts_ns);
        // The frame said that it is bound; that it is open, the first bytes will say.
        connection.set_announced_in(0);
    }
}

/// listen(2), which programs also call again to change the backlog.
pub(crate) fn listen(result: i32, fd: i32) {
    if result == 0 && descriptors::owns_descriptors() {
        stack::on_own(|| listening(fd));
    }
}

fn listening(fd: i32) {
    let Some(handle) = known(fd) else { return };
    let Some(connection) = handle.get() else { return };
    if connection.kind() == Kind::Listening {
        return;
    }
    let description = connection.description();
    if !description.wanted {
        return descriptors::move_all(handle, Slot::Other, fd);
    }
    let ts_ns = now_ns();
    let path = description.path.as_bytes();
    let listening = redescribe(handle, fd, &Change { kind: Kind::Listening, how: "listen", wanted: true, path, ts_ns });
    if let Some(connection) = listening.and_then(Handle::get) {
        report_listening(connection, ts_ns);
    }
}

/// connect(2).
pub(crate) fn connect(result: i32, fd: i32, address: *const c_void, len: usize) {
    if result == 0 && descriptors::owns_descriptors() {
        stack::on_own(|| connected(fd, address, len));
    }
}

fn connected(fd: i32, address: *const c_void, len: usize) {
    let Some(handle) = known(fd) else { return };
    let Some(connection) = handle.get() else { return };
    let ts_ns = now_ns();
    // SAFETY: the kernel has just read it for the program at this length.
    let Some(peer) = (unsafe { Address::read(address, len) }) else {
        // AF_UNSPEC takes a datagram socket's peer away.
        let wanted = connection.description().wanted;
        redescribe(handle, fd, &Change { kind: Kind::Idle, how: "connect", wanted, path: b"", ts_ns });
        if connection.kind() == Kind::Open {
            report_close(connection, fd, "connect");
        }
        return;
    };
    let mut path = SocketPath::of(&peer, c"/proc/thread-self/cwd");
    let wanted = path.is_wanted();
    if !wanted && connection.description().socket_type != SOCK_DGRAM {
        return descriptors::move_all(handle, Slot::Other, fd);
    }
    // A datagram socket that changes its peer begins a new conversation.
    if connection.kind() == Kind::Open {
        report_close(connection, fd, "connect");
    }
    let change = Change { kind: Kind::Open, how: "connect", wanted, path: path.shown.as_bytes(), ts_ns };
    let opened = redescribe(handle, fd, &change);
    if let (true, Some(connection)) = (wanted, opened.and_then(Handle::get)) {
        announce::announce(connection, ts_ns);
    }
}

/// accept(2) and accept4(2).
pub(crate) fn accept(fd: i32, listener: i32, how: &'static str) {
    if fd >= 0 && descriptors::owns_descriptors() && !scan::is_beyond_table(fd) {
        stack::on_own(|| accepted(fd, listener, how));
    }
}

fn accepted(fd: i32, listener: i32, how: &'static str) {
    // Asked first: the listener may be one that is not known yet.
    let Some(listening) = known(listener).and_then(Handle::get) else {
        return install(fd, Slot::Other);
    };
    let ts_ns = now_ns();
    let description = listening.description();
    let new = New {
        kind: Kind::Open,
        inode: inode(fd),
        socket_type: description.socket_type,
        mate: 0,
        fd,
        how,
        wanted: true,
        path: description.path.as_bytes(),
        ts_ns,
    };
    let slot = connection::allocate(&new).map_or(Slot::Unknown, Slot::Traced);
    install(fd, slot);
    if let Some(connection) = slot.connection() {
        announce::announce(connection, ts_ns);
    }
}

/// Takes a descriptor out of the table before the call that closes it: its number may be another's as soon as that
/// call is done, even before it returns here.
pub(crate) fn before_close(fd: i32) -> Slot {
    let slot = descriptors::get(fd);
    if slot == Slot::Unknown || matches!(slot, Slot::Traced(_)) && !descriptors::owns_descriptors() {
        return Slot::Unknown;
    }
    // One beyond the table is `Other`, and stays so.
    if matches!(slot, Slot::Other | Slot::Foreign) {
        return drop_other(fd, slot);
    }
    if slot.connection().is_some_and(|connection| is_another(fd, connection)) {
        ended(descriptors::replace(fd, Slot::Unknown), fd, VANISHED);
        return Slot::Unknown;
    }
    descriptors::replace(fd, Slot::Unknown)
}

/// Whether a descriptor leads elsewhere by now.
fn is_another(fd: i32, connection: &Connection) -> bool {
    let found = inode(fd);
    found != 0 && found != connection.description().inode
}

/// Forgets a descriptor that was not traced. A vforked child's close must not make its parent ask again; asking is
/// all that a wrong guess costs, so nobody asks for the pid here.
fn drop_other(fd: i32, slot: Slot) -> Slot {
    descriptors::replace_if(fd, slot, Slot::Unknown);
    Slot::Unknown
}

/// A call that would have closed a descriptor failed, and left it as it was.
pub(crate) fn restore(slot: Slot, fd: i32) {
    if slot == Slot::Unknown {
        return;
    }
    if !descriptors::replace_if(fd, Slot::Unknown, slot) {
        return ended(slot, fd, VANISHED);
    }
    // Another thread may have closed it meanwhile, whose close found nothing in the table.
    let is_gone = slot.connection().is_some_and(|connection| inode(fd) != connection.description().inode);
    if is_gone && !is_confined() && descriptors::replace_if(fd, slot, Slot::Unknown) {
        ended(slot, fd, "close");
    }
}

/// dup(2), dup2(2), dup3(2) and fcntl(2) with F_DUPFD: `to` is now what `from` is.
pub(crate) fn duplicated(from: i32, to: i32) {
    if to < 0 || from == to || !descriptors::owns_descriptors() {
        return;
    }
    let slot = match descriptors::get(from) {
        // Now, so that both lead to one record: found one by one, the end of either would be the connection's.
        Slot::Arrived => stack::on_own(|| scan::discover(from)),
        slot => slot,
    };
    if scan::is_beyond_table(to) {
        return;
    }
    if let Some(connection) = slot.connection() {
        connection.add_descriptor();
    }
    install(to, slot);
    descriptors::catch_up(to, slot);
}

/// shutdown(2).
pub(crate) fn shutdown(result: i32, fd: i32, which: i32) {
    if result == 0 && !descriptors::is_other(fd) {
        stack::on_own(|| shut(fd, which));
    }
}

fn shut(fd: i32, which: i32) {
    let Some(connection) = known(fd).and_then(Handle::get) else { return };
    if connection.kind() != Kind::Open || !connection.description().wanted {
        return;
    }
    report_close(
        connection,
        fd,
        match which {
            0 => "shutdown:SHUT_RD",
            1 => "shutdown:SHUT_WR",
            _ => "shutdown:SHUT_RDWR",
        },
    );
}

/// close_range(2) and closefrom(3): every traced descriptor of the range is closed.
pub(crate) fn closed_range(first: u32, last: u32, how: &str) {
    if !descriptors::owns_descriptors() {
        return;
    }
    // At most LAST, which is an i32.
    let bound = |fd: u32| fd.min(descriptors::LAST.cast_unsigned()).cast_signed();
    if first > descriptors::LAST.cast_unsigned() {
        return;
    }
    descriptors::for_each_known(bound(first), bound(last), |fd, _| {
        ended(descriptors::replace(fd, Slot::Unknown), fd, how);
    });
}

/// recvmsg(2): a descriptor that came with a message.
pub(crate) fn arrived(fd: i32, slot: Slot) {
    if fd >= 0 && !scan::is_beyond_table(fd) {
        install(fd, slot);
        if slot == Slot::Arrived {
            scan::join(fd);
        }
    }
}

/// pidfd_getfd(2): a descriptor that was another process's.
pub(crate) fn fetched(fd: i32) {
    if fd >= 0 && descriptors::owns_descriptors() && !scan::is_beyond_table(fd) {
        install(fd, Slot::Arrived);
        stack::on_own(|| scan::join(fd));
    }
}

/// prctl(2)'s operation that puts the thread under a seccomp filter.
pub(crate) const PR_SET_SECCOMP: i32 = 22;

/// The program is about to put itself under a seccomp filter, under which the kernel may not be asked any more: asks now
/// what the descriptors are that have come in messages and were not used yet.
pub(crate) fn before_filter() {
    if is_confined() || !descriptors::owns_descriptors() {
        return;
    }
    say_if_mute("it asks for a seccomp(2) filter, under which no connection to the collector can be made");
    // Of what is limited no more is taken than is surely needed.
    let (stacks, records) = if process::is_memory_limited() { (1, 32) } else { (stack::STACKS, 256) };
    stack::open_some(stacks);
    connection::make_room(records);
    descriptors::for_each_known(0, descriptors::LAST, |fd, slot| {
        if slot == Slot::Arrived {
            stack::on_own(|| scan::discover(fd));
        }
    });
}

/// The program is about to get another root directory, from which the collector may be out of reach.
pub(crate) fn before_another_root() {
    if !is_confined() && descriptors::owns_descriptors() {
        say_if_mute("it asks for another root directory, from which no connection to the collector may be made");
    }
}

/// Says that nothing more may come of this process, if it has no connection that it keeps.
fn say_if_mute(why: &str) {
    if !transport::keeps_connection() {
        stack::on_own(|| notices::say_mute(why));
    }
}

/// The program is about to be forked: says of a child that cannot reach the collector that nothing will come of it.
pub(crate) fn before_fork() {
    if !process::is_started() || !descriptors::owns_descriptors() || transport::reaches_children() {
        return;
    }
    stack::on_own(|| notices::say_mute("it forks a child, which cannot connect to the collector"));
}

/// The program has set limits, perhaps its own.
pub(crate) fn limits_changed() {
    if descriptors::owns_descriptors() && !is_confined() {
        stack::on_own(transport::fit_limits);
    }
}

/// prctl(2): notes that a filter is in force.
pub(crate) fn prctl(result: i32, operation: i32) {
    if result == 0 && operation == PR_SET_SECCOMP {
        set_confined();
    }
}
