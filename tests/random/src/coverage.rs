//! Every operation once, with known bytes: what docs/coverage.md is made of.
//!
//! The account's `seed` is the operation's number, and the results name it. What an operation is to be seen by is in
//! the account: bytes, the beginning or the end of a connection.

use std::ffi::{c_int, c_long, c_void};
use std::os::fd::AsRawFd as _;

use libc::{iovec, mmsghdr, msghdr};
use rustix::pipe::PipeFlags;

use crate::actor::{Actor, Socket, unseen};
use crate::log::{self, Moved, Passed};
use crate::undeclared::{
    __close, __connect, __dup2, __fcntl, __read, __read_chk, __recv, __recv_chk, __recvfrom_chk, __send, __sendmmsg,
    __write, close_range, closefrom, dprintf, fcntl64, pidfd_getfd,
};
use crate::{ancillary, ring};

/// An operation, under the heading that it has in the table.
struct Case {
    group: &'static str,
    operation: &'static str,
    /// Why it is not seen, if it is not.
    reason: &'static str,
    run: fn(&mut Actor) -> bool,
}

const LEN: usize = 24;
const TEXT: &[u8; LEN] = b"a text without a NUL ...";
type Sender = fn(c_int, &mut [u8]) -> isize;

/// Sends by a call on one end of a pair; what the kernel took is what has to be recorded.
fn sends(actor: &mut Actor, kind: c_int, by_number: bool, call: Sender) -> bool {
    let (at, _) = pair(actor, kind);
    let socket = actor.sockets[at].clone();
    let mut data = actor.rng.bytes(LEN);
    let moved = usize::try_from(call(socket.fds[0], &mut data)).unwrap_or(0);
    account(&socket, "out", &data[..moved], by_number);
    moved == LEN
}

/// Receives by a call on one end of a pair what was sent, unseen, on the other.
fn receives(actor: &mut Actor, kind: c_int, by_number: bool, call: Sender) -> bool {
    let (at, other) = pair(actor, kind);
    let socket = actor.sockets[at].clone();
    let sent = actor.rng.bytes(LEN);
    let peer = unseen(actor.sockets[other].fds[0]);
    assert_eq!(rustix::io::write(peer, &sent), Ok(LEN), "a new pair takes a few bytes");
    let mut buffer = vec![0; LEN];
    let moved = usize::try_from(call(socket.fds[0], &mut buffer)).unwrap_or(0);
    account(&socket, "in", &sent[..moved.min(LEN)], by_number);
    moved == LEN && (by_number || buffer == sent)
}

fn pair(actor: &mut Actor, kind: c_int) -> (usize, usize) {
    let mut fds = [-1; 2];
    // SAFETY: `fds` has room for two.
    let made = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) };
    assert_eq!(made, 0, "a pair");
    (actor.adopt(fds[0], kind), actor.adopt(fds[1], kind))
}

fn account(socket: &Socket, direction: &'static str, data: &[u8], by_number: bool) {
    log::moved(&Moved { inode: socket.inode, direction, call: "-", data, by_number, ..Moved::default() });
}

fn one(bytes: &mut [u8]) -> iovec {
    iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}

fn message(buffer: &mut iovec) -> msghdr {
    // SAFETY: zeroes are a valid msghdr.
    let mut message: msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (buffer, 1);
    message
}

/// A stream to which `write` is given libc's buffered file.
fn buffered(fd: c_int, mode: &std::ffi::CStr, call: impl FnOnce(*mut libc::FILE) -> isize) -> isize {
    // SAFETY: a copy of an open descriptor, which fclose closes.
    unsafe {
        let file = libc::fdopen(libc::dup(fd), mode.as_ptr());
        let moved = call(file);
        libc::fclose(file);
        moved
    }
}

type Connect = unsafe fn(c_int, *const libc::sockaddr, u32) -> c_int;

/// connect(2).
unsafe fn connect(fd: c_int, address: *const libc::sockaddr, len: u32) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { libc::connect(fd, address, len) }
}

/// A connection of two descriptors of this process, by name.
fn connection(actor: &mut Actor, connect: Connect, accept: fn(c_int) -> c_int, how: &str) -> bool {
    let kind = libc::SOCK_STREAM;
    let name = actor.new_name();
    // SAFETY: the name's length is its own.
    unsafe {
        let listener = libc::socket(libc::AF_UNIX, kind, 0);
        assert_eq!((libc::bind(listener, name.as_ptr(), name.len), libc::listen(listener, 5)), (0, 0), "a listener");
        log::began("listen", crate::actor::inode_of(listener), listener, kind, "listen", &name.shown);
        let client = libc::socket(libc::AF_UNIX, kind, 0);
        assert_eq!(connect(client, name.as_ptr(), name.len), 0, "a listener listens");
        log::began("open", crate::actor::inode_of(client), client, kind, "connect", &name.shown);
        let server = accept(listener);
        log::began("open", crate::actor::inode_of(server), server, kind, how, &name.shown);
        server >= 0
    }
}

/// Makes one more descriptor of a socket; what is sent by it is the socket's.
fn copies(actor: &mut Actor, copy: fn(c_int) -> c_int) -> bool {
    let (at, _) = pair(actor, libc::SOCK_STREAM);
    let mut socket = actor.sockets[at].clone();
    let original = socket.fds[0];
    send(&socket, b"original");
    socket.fds[0] = copy(original);
    // SAFETY: this process's; the connection lives on in the copy.
    unsafe { libc::close(original) };
    send(&socket, b"copy");
    // SAFETY: as above.
    unsafe { libc::close(socket.fds[0]) };
    log::closed(socket.inode, socket.fds[0], socket.kind, "close");
    true
}

fn send(socket: &Socket, data: &[u8]) {
    // SAFETY: the memory is `data`'s.
    let sent = unsafe { libc::send(socket.fds[0], data.as_ptr().cast(), data.len(), libc::MSG_NOSIGNAL) };
    account(socket, "out", &data[..usize::try_from(sent).unwrap_or(0)], false);
}

/// Ends a connection by a call.
fn ends(actor: &mut Actor, how: &str, end: fn(c_int)) -> bool {
    let (at, _) = pair(actor, libc::SOCK_STREAM);
    let socket = actor.sockets[at].clone();
    // At the top of what is open, for calls that close everything from there.
    // SAFETY: takes numbers; the copy's original is closed.
    let fd = unsafe {
        let fd = libc::fcntl(socket.fds[0], libc::F_DUPFD, 500);
        libc::close(socket.fds[0]);
        fd
    };
    send(&Socket { fds: vec![fd], ..socket.clone() }, b"before");
    end(fd);
    log::closed(socket.inode, fd, socket.kind, how);
    true
}

/// A message with a descriptor, by sendmsg(2) and recvmsg(2): of `kind`, and whatever the receiver asks for.
fn passes(actor: &mut Actor, kind: c_int, option: c_int, room: usize) -> bool {
    let (at, other) = pair(actor, kind);
    let (from, to) = (actor.sockets[at].clone(), actor.sockets[other].clone());
    if option != 0 {
        let on: c_int = 1;
        let value = (&raw const on).cast::<c_void>();
        // SAFETY: the option's value is an int.
        unsafe { libc::setsockopt(to.fds[0], libc::SOL_SOCKET, option, value, size_of::<c_int>() as u32) };
    }
    let memory = rustix::fs::memfd_create("passed", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
    let passed = [Passed { fd: memory.as_raw_fd(), what: "memfd:passed".into() }];
    let mut control = ancillary::Control::rights(&[memory.as_raw_fd()]);
    let mut data = actor.rng.bytes(LEN);
    let mut buffer = one(&mut data);
    let mut header = message(&mut buffer);
    control.put_into(&mut header);
    // SAFETY: everything that the message points to is alive.
    let sent = unsafe { libc::sendmsg(from.fds[0], &raw const header, 0) };
    let moved = |socket: &Socket, direction| Moved { inode: socket.inode, direction, call: "-", ..Moved::default() };
    log::moved(&Moved { data: &data, fds: &passed, ..moved(&from, "out") });
    let (mut got, mut control) = ([0; LEN], vec![0u64; room]);
    let mut buffer = one(&mut got);
    let mut header = message(&mut buffer);
    (header.msg_control, header.msg_controllen) = (control.as_mut_ptr().cast(), 8 * room);
    // SAFETY: as above.
    let received = unsafe { libc::recvmsg(to.fds[0], &raw mut header, 0) };
    let bytes: Vec<u8> = control.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let arrived = ancillary::arrived(&bytes[..header.msg_controllen.min(bytes.len())]);
    log::moved(&Moved {
        data: &got,
        fds: &arrived.fds,
        credentials: arrived.credentials,
        pidfd: arrived.pidfd,
        flags: header.msg_flags & libc::MSG_CTRUNC,
        ..moved(&to, "in")
    });
    (sent, received) == (LEN as isize, LEN as isize)
}

/// A message longer than the room for it.
fn cut(actor: &mut Actor, kind: c_int) -> bool {
    let (at, other) = pair(actor, kind);
    let (from, to) = (actor.sockets[at].clone(), actor.sockets[other].clone());
    send(&from, b"more than there is room for");
    let mut buffer = [0u8; 4];
    // SAFETY: the memory is `buffer`'s.
    let n = unsafe { libc::recv(to.fds[0], buffer.as_mut_ptr().cast(), 4, 0) };
    let (inode, cut) = (to.inode, Some(true));
    log::moved(&Moved { inode, direction: "in", call: "-", data: &buffer, cut, ..Moved::default() });
    n == 4
}

fn through_pipe(data: &mut [u8], call: impl FnOnce(c_int, c_int) -> isize) -> isize {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
    assert_eq!(rustix::io::write(&writer, data), Ok(data.len()), "a new pipe takes a few bytes");
    call(reader.as_raw_fd(), writer.as_raw_fd())
}

fn send_file(fd: c_int, data: &[u8], call: impl FnOnce(c_int, c_int, *mut libc::off_t) -> isize) -> isize {
    let file = rustix::fs::memfd_create("source", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
    assert_eq!(rustix::io::write(&file, data), Ok(data.len()), "a memfd takes what memory there is");
    let mut offset = 0;
    call(fd, file.as_raw_fd(), &raw mut offset)
}

const NO_OFFSET: *mut libc::loff_t = std::ptr::null_mut();
const NOT_LIBC: &str = "it is no call of a function of libc's";

macro_rules! cases {
    (@reason) => { "" };
    (@reason $reason:expr) => { $reason };
    ($($group:literal { $($operation:literal $(because $reason:expr)?, $actor:ident => $run:expr;)+ })+) => {
        #[allow(unused_unsafe, reason = "not every case makes a call of libc's")]
        const CASES: &[Case] = &[$($(Case {
            group: $group,
            operation: $operation,
            reason: cases!(@reason $($reason)?),
            // SAFETY: in all of these the kernel is given memory that is alive, and numbers.
            run: |$actor| unsafe { $run },
        },)+)+];
    };
}

cases! {
    "Connections" {
        "`socket`, `bind`, `listen`, `connect`, `accept`", a => connection(a, connect, |fd| {
            libc::accept(fd, std::ptr::null_mut(), std::ptr::null_mut())
        }, "accept");
        "`accept4`", a => connection(a, connect, |fd| {
            libc::accept4(fd, std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC)
        }, "accept4");
        "`__connect`", a => connection(a, |fd, address, len| __connect(fd, address, len), |fd| {
            libc::accept(fd, std::ptr::null_mut(), std::ptr::null_mut())
        }, "accept");
        "`syscall(SYS_connect, …)`, `syscall(SYS_accept4, …)`", a => connection(a, |fd, address, len| {
            libc::syscall(libc::SYS_connect, fd as c_long, address, len as c_long) as c_int
        }, |fd| {
            libc::syscall(libc::SYS_accept4, fd as c_long, std::ptr::null::<u8>(), std::ptr::null::<u8>(), 0 as c_long) as c_int
        }, "accept4");
        "`socketpair`, of streams", a => sends(a, libc::SOCK_STREAM, false, |fd, d| libc::send(fd, d.as_ptr().cast(), d.len(), 0));
        "`socketpair`, of datagrams", a => sends(a, libc::SOCK_DGRAM, false, |fd, d| libc::send(fd, d.as_ptr().cast(), d.len(), 0));
        "`socketpair`, of seqpackets", a => sends(a, libc::SOCK_SEQPACKET, false, |fd, d| libc::send(fd, d.as_ptr().cast(), d.len(), 0));
        "`dup`", a => copies(a, |fd| libc::dup(fd));
        "`dup2`", a => copies(a, |fd| libc::dup2(fd, 450));
        "`dup3`", a => copies(a, |fd| libc::dup3(fd, 451, libc::O_CLOEXEC));
        "`fcntl` (`F_DUPFD`, `F_DUPFD_CLOEXEC`)", a => copies(a, |fd| libc::fcntl(fd, libc::F_DUPFD, 452));
        "`__dup2`", a => copies(a, |fd| __dup2(fd, 453));
        "`__fcntl` (`F_DUPFD_CLOEXEC`)", a => copies(a, |fd| __fcntl(fd, libc::F_DUPFD_CLOEXEC, 454));
        "`fcntl64` (`F_DUPFD`)", a => copies(a, |fd| fcntl64(fd, libc::F_DUPFD, 455));
        "`syscall(SYS_dup, …)`", a => copies(a, |fd| libc::syscall(libc::SYS_dup, fd as c_long) as c_int);
        "`ioctl` (`FIONBIO`), `getsockopt` (`SO_PEERCRED`), then `send`", a => sends(a, libc::SOCK_STREAM, false, |fd, d| {
            let on: c_int = 1;
            let mut peer: libc::ucred = std::mem::zeroed();
            let mut len = size_of::<libc::ucred>() as u32;
            assert_eq!(libc::ioctl(fd, libc::FIONBIO, &raw const on), 0, "any socket may not wait");
            let asked = libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut peer).cast(), &raw mut len);
            assert_eq!((asked, peer.pid), (0, libc::getpid()), "a pair's other end is this process's");
            libc::send(fd, d.as_ptr().cast(), d.len(), 0)
        });
        "`pidfd_getfd`", a => copies(a, |fd| {
            let own = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty());
            pidfd_getfd(own.expect("a pidfd of this process").as_raw_fd(), fd, 0)
        });
        "`shutdown`", a => ends(a, "shutdown:SHUT_WR", |fd| { libc::shutdown(fd, libc::SHUT_WR); });
        "`close`", a => ends(a, "close", |fd| { libc::close(fd); });
        "`__close`", a => ends(a, "close", |fd| { __close(fd); });
        "`close_range`", a => ends(a, "close_range", |fd| { close_range(fd as u32, fd as u32, 0); });
        "`closefrom`", a => ends(a, "closefrom", |fd| closefrom(fd));
        "`fclose`", a => ends(a, "close", |fd| { libc::fclose(libc::fdopen(fd, c"w".as_ptr())); });
        "`syscall(SYS_close_range, …)`", a => ends(a, "close_range", |fd| {
            libc::syscall(libc::SYS_close_range, fd as c_long, fd as c_long, 0 as c_long);
        });
        "`syscall(SYS_close, …)`", a => ends(a, "close", |fd| { libc::syscall(libc::SYS_close, fd as c_long); });
        "system call without libc: close" because NOT_LIBC, a => ends(a, "close", |fd| rustix::io::close(fd));
    }
    "Sending" {
        "`send`", a => sends(a, libc::SOCK_STREAM, false, |fd, d| libc::send(fd, d.as_ptr().cast(), d.len(), 0));
        "`sendto`", a => sends(a, libc::SOCK_DGRAM, false, |fd, d| libc::sendto(fd, d.as_ptr().cast(), d.len(), 0, std::ptr::null(), 0));
        "`sendmsg`", a => sends(a, libc::SOCK_STREAM, false, |fd, d| libc::sendmsg(fd, std::ptr::from_ref(&message(&mut one(d))), 0));
        "`sendmmsg`", a => sends(a, libc::SOCK_DGRAM, false, |fd, d| {
            let mut messages = [mmsghdr { msg_hdr: message(&mut one(d)), msg_len: 0 }];
            libc::sendmmsg(fd, messages.as_mut_ptr(), 1, 0);
            messages[0].msg_len as isize
        });
        "`__sendmmsg`", a => sends(a, libc::SOCK_DGRAM, false, |fd, d| {
            let mut messages = [mmsghdr { msg_hdr: message(&mut one(d)), msg_len: 0 }];
            __sendmmsg(fd, messages.as_mut_ptr(), 1, 0);
            messages[0].msg_len as isize
        });
        "`__send`", a => sends(a, libc::SOCK_STREAM, false, |fd, d| __send(fd, d.as_ptr(), d.len(), 0));
        "`__write`", a => sends(a, libc::SOCK_STREAM, false, |fd, d| __write(fd, d.as_ptr(), d.len()));
        "`write`", a => sends(a, libc::SOCK_STREAM, false, |fd, d| libc::write(fd, d.as_ptr().cast(), d.len()));
        "`writev`", a => sends(a, libc::SOCK_STREAM, false, |fd, d| libc::writev(fd, std::ptr::from_ref(&one(d)), 1));
        "`pwritev2`", a => sends(a, libc::SOCK_STREAM, false, |fd, d| libc::pwritev2(fd, std::ptr::from_ref(&one(d)), 1, -1, 0));
        "`pwritev64v2`", a => sends(a, libc::SOCK_STREAM, false, |fd, d| libc::pwritev64v2(fd, std::ptr::from_ref(&one(d)), 1, -1, 0));
        "`sendfile`", a => sends(a, libc::SOCK_STREAM, false, |fd, d| send_file(fd, d, |to, from, offset| libc::sendfile(to, from, offset, LEN)));
        "`sendfile64`", a => sends(a, libc::SOCK_STREAM, false, |fd, d| send_file(fd, d, |to, from, offset| libc::sendfile64(to, from, offset, LEN)));
        "`splice`, from a pipe", a => sends(a, libc::SOCK_STREAM, true, |fd, d| through_pipe(d, |pipe, _| libc::splice(pipe, NO_OFFSET, fd, NO_OFFSET, LEN, 0)));
        "`tee` from one pipe to another, `splice` from there", a => sends(a, libc::SOCK_STREAM, true, |fd, d| through_pipe(d, |pipe, _| {
            let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
            assert_eq!(libc::tee(pipe, writer.as_raw_fd(), LEN, 0), LEN as isize, "an empty pipe takes a few bytes");
            libc::splice(reader.as_raw_fd(), NO_OFFSET, fd, NO_OFFSET, LEN, 0)
        }));
        "`vmsplice` into a pipe, `splice` from there", a => sends(a, libc::SOCK_STREAM, true, |fd, d| {
            let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
            assert_eq!(libc::vmsplice(writer.as_raw_fd(), std::ptr::from_ref(&one(d)), 1, 0), LEN as isize, "a new pipe takes a few bytes");
            libc::splice(reader.as_raw_fd(), NO_OFFSET, fd, NO_OFFSET, LEN, 0)
        });
        "`fwrite`, `fflush`", a => sends(a, libc::SOCK_STREAM, false, |fd, d| buffered(fd, c"w", |file| {
            libc::fwrite(d.as_ptr().cast(), 1, d.len(), file);
            if libc::fflush(file) == 0 { d.len() as isize } else { -1 }
        }));
        "`fwrite`, `fclose`", a => sends(a, libc::SOCK_STREAM, false, |fd, d| buffered(fd, c"w", |file| libc::fwrite(d.as_ptr().cast(), 1, d.len(), file) as isize));
        "`dprintf`", a => sends(a, libc::SOCK_STREAM, false, |fd, d| {
            d.iter_mut().zip(TEXT).for_each(|(to, from)| *to = *from);
            dprintf(fd, c"%.24s".as_ptr(), d.as_ptr()) as isize
        });
        "`syscall(SYS_sendto, …)`", a => sends(a, libc::SOCK_STREAM, false, |fd, d| libc::syscall(libc::SYS_sendto, fd as c_long, d.as_ptr(), d.len(), 0 as c_long, std::ptr::null::<u8>(), 0 as c_long) as isize);
        "`syscall(SYS_sendmsg, …)`", a => sends(a, libc::SOCK_STREAM, false, |fd, d| libc::syscall(libc::SYS_sendmsg, fd as c_long, std::ptr::from_ref(&message(&mut one(d))), 0 as c_long) as isize);
        "`syscall(SYS_write, …)`", a => sends(a, libc::SOCK_STREAM, false, |fd, d| libc::syscall(libc::SYS_write, fd as c_long, d.as_ptr(), d.len()) as isize);
        "`syscall(SYS_writev, …)`", a => sends(a, libc::SOCK_STREAM, false, |fd, d| libc::syscall(libc::SYS_writev, fd as c_long, std::ptr::from_ref(&one(d)), 1 as c_long) as isize);
        "`syscall(SYS_sendmmsg, …)`", a => sends(a, libc::SOCK_DGRAM, false, |fd, d| {
            let mut messages = [mmsghdr { msg_hdr: message(&mut one(d)), msg_len: 0 }];
            libc::syscall(libc::SYS_sendmmsg, fd as c_long, messages.as_mut_ptr(), 1 as c_long, 0 as c_long);
            messages[0].msg_len as isize
        });
        "`syscall(SYS_pwritev2, …)`", a => sends(a, libc::SOCK_STREAM, false, |fd, d| {
            libc::syscall(libc::SYS_pwritev2, fd as c_long, std::ptr::from_ref(&one(d)), 1 as c_long, -1 as c_long, 0 as c_long, 0 as c_long) as isize
        });
        "`syscall(SYS_sendfile, …)`", a => sends(a, libc::SOCK_STREAM, false, |fd, d| send_file(fd, d, |to, from, offset| libc::syscall(libc::SYS_sendfile, to as c_long, from as c_long, offset, LEN) as isize));
        "`syscall(SYS_splice, …)`", a => sends(a, libc::SOCK_STREAM, true, |fd, d| through_pipe(d, |pipe, _| libc::syscall(libc::SYS_splice, pipe as c_long, NO_OFFSET, fd as c_long, NO_OFFSET, LEN, 0 as c_long) as isize));
        "system call without libc: sendto" because NOT_LIBC, a => sends(a, libc::SOCK_STREAM, false, |fd, d| rustix::net::send(unseen(fd), d, rustix::net::SendFlags::empty()).map_or(-1, |n| n as isize));
        "system call without libc: write" because NOT_LIBC, a => sends(a, libc::SOCK_STREAM, false, |fd, d| rustix::io::write(unseen(fd), d).map_or(-1, |n| n as isize));
        "io_uring: `IORING_OP_SEND`" because NOT_LIBC, a => sends(a, libc::SOCK_STREAM, false, ring::send);
    }
    "Receiving" {
        "`recv`", a => receives(a, libc::SOCK_STREAM, false, |fd, d| libc::recv(fd, d.as_mut_ptr().cast(), d.len(), 0));
        "`recvfrom`", a => receives(a, libc::SOCK_DGRAM, false, |fd, d| libc::recvfrom(fd, d.as_mut_ptr().cast(), d.len(), 0, std::ptr::null_mut(), std::ptr::null_mut()));
        "`recvmsg`", a => receives(a, libc::SOCK_STREAM, false, |fd, d| libc::recvmsg(fd, std::ptr::from_mut(&mut message(&mut one(d))), 0));
        "`recvmmsg`", a => receives(a, libc::SOCK_DGRAM, false, |fd, d| {
            let mut messages = [mmsghdr { msg_hdr: message(&mut one(d)), msg_len: 0 }];
            libc::recvmmsg(fd, messages.as_mut_ptr(), 1, 0, std::ptr::null_mut());
            messages[0].msg_len as isize
        });
        "`read`", a => receives(a, libc::SOCK_STREAM, false, |fd, d| libc::read(fd, d.as_mut_ptr().cast(), d.len()));
        "`__recv`", a => receives(a, libc::SOCK_STREAM, false, |fd, d| __recv(fd, d.as_mut_ptr(), d.len(), 0));
        "`__read`", a => receives(a, libc::SOCK_STREAM, false, |fd, d| __read(fd, d.as_mut_ptr(), d.len()));
        "`readv`", a => receives(a, libc::SOCK_STREAM, false, |fd, d| libc::readv(fd, std::ptr::from_ref(&one(d)), 1));
        "`preadv2`", a => receives(a, libc::SOCK_STREAM, false, |fd, d| libc::preadv2(fd, std::ptr::from_ref(&one(d)), 1, -1, 0));
        "`preadv64v2`", a => receives(a, libc::SOCK_STREAM, false, |fd, d| libc::preadv64v2(fd, std::ptr::from_ref(&one(d)), 1, -1, 0));
        "`__read_chk`", a => receives(a, libc::SOCK_STREAM, false, |fd, d| __read_chk(fd, d.as_mut_ptr(), d.len(), d.len()));
        "`__recv_chk`", a => receives(a, libc::SOCK_STREAM, false, |fd, d| __recv_chk(fd, d.as_mut_ptr(), d.len(), d.len(), 0));
        "`__recvfrom_chk`", a => receives(a, libc::SOCK_STREAM, false, |fd, d| __recvfrom_chk(fd, d.as_mut_ptr(), d.len(), d.len(), 0, std::ptr::null_mut(), std::ptr::null_mut()));
        "`splice`, to a pipe", a => receives(a, libc::SOCK_STREAM, true, |fd, _| through_pipe(&mut [0], |_, pipe| libc::splice(fd, NO_OFFSET, pipe, NO_OFFSET, LEN, 0)));
        "`fread`", a => receives(a, libc::SOCK_STREAM, false, |fd, d| buffered(fd, c"r", |file| {
            libc::setvbuf(file, std::ptr::null_mut(), libc::_IOFBF, LEN);
            libc::fread(d.as_mut_ptr().cast(), 1, d.len(), file) as isize
        }));
        "`syscall(SYS_recvfrom, …)`", a => receives(a, libc::SOCK_STREAM, false, |fd, d| libc::syscall(libc::SYS_recvfrom, fd as c_long, d.as_mut_ptr(), d.len(), 0 as c_long, std::ptr::null::<u8>(), std::ptr::null::<u8>()) as isize);
        "`syscall(SYS_recvmsg, …)`", a => receives(a, libc::SOCK_STREAM, false, |fd, d| libc::syscall(libc::SYS_recvmsg, fd as c_long, std::ptr::from_mut(&mut message(&mut one(d))), 0 as c_long) as isize);
        "`syscall(SYS_read, …)`", a => receives(a, libc::SOCK_STREAM, false, |fd, d| libc::syscall(libc::SYS_read, fd as c_long, d.as_mut_ptr(), d.len()) as isize);
        "`syscall(SYS_readv, …)`", a => receives(a, libc::SOCK_STREAM, false, |fd, d| libc::syscall(libc::SYS_readv, fd as c_long, std::ptr::from_ref(&one(d)), 1 as c_long) as isize);
        "`syscall(SYS_recvmmsg, …)`", a => receives(a, libc::SOCK_DGRAM, false, |fd, d| {
            let mut messages = [mmsghdr { msg_hdr: message(&mut one(d)), msg_len: 0 }];
            libc::syscall(libc::SYS_recvmmsg, fd as c_long, messages.as_mut_ptr(), 1 as c_long, 0 as c_long, std::ptr::null::<u8>());
            messages[0].msg_len as isize
        });
        "`syscall(SYS_preadv2, …)`", a => receives(a, libc::SOCK_STREAM, false, |fd, d| {
            libc::syscall(libc::SYS_preadv2, fd as c_long, std::ptr::from_ref(&one(d)), 1 as c_long, -1 as c_long, 0 as c_long, 0 as c_long) as isize
        });
        "system call without libc: recvfrom" because NOT_LIBC, a => receives(a, libc::SOCK_STREAM, false, |fd, d| rustix::net::recv(unseen(fd), d, rustix::net::RecvFlags::empty()).map_or(-1, |(n, _)| n as isize));
        "system call without libc: read" because NOT_LIBC, a => receives(a, libc::SOCK_STREAM, false, |fd, d| rustix::io::read(unseen(fd), d).map_or(-1, |n| n as isize));
        "io_uring: `IORING_OP_RECV`" because NOT_LIBC, a => receives(a, libc::SOCK_STREAM, false, ring::receive);
    }
    "Messages" {
        "`SCM_RIGHTS`", a => passes(a, libc::SOCK_STREAM, 0, 8);
        "`SCM_RIGHTS`, with too little room (`MSG_CTRUNC`)", a => passes(a, libc::SOCK_STREAM, 0, 1);
        "`SCM_CREDENTIALS`", a => passes(a, libc::SOCK_DGRAM, libc::SO_PASSCRED, 12);
        "`SCM_PIDFD`", a => passes(a, libc::SOCK_SEQPACKET, ancillary::SO_PASSPIDFD, 12);
        "a datagram longer than the buffer", a => cut(a, libc::SOCK_DGRAM);
        "a seqpacket longer than the buffer", a => cut(a, libc::SOCK_SEQPACKET);
    }
}

/// Does everything once.
pub fn run(actor: &mut Actor) {
    for (number, case) in CASES.iter().enumerate() {
        log::set_seed(number as u64);
        actor.seed_op(number);
        let done = (case.run)(actor);
        log::result("-", format_args!("{}|{}|{}|{done}", case.group, case.operation, case.reason));
        actor.sockets.clear();
    }
}
