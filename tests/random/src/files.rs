//! Bytes between sockets and files or pipes (sendfile(2), splice(2), tee(2), vmsplice(2)), libc's buffered files
//! (fdopen(3)), and descriptors taken from a process (pidfd_getfd(2)).

use std::ffi::{c_int, c_long, c_void};
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::event::PollFlags;
use rustix::fs::MemfdFlags;
use rustix::pipe::PipeFlags;

use crate::actor::{Actor, Socket, outcome};
use crate::log::{self, Moved};
use crate::rng::hash;
use crate::sending::is_ready;
use crate::undeclared::{__fpurge, pidfd_getfd};

fn memory_file(actor: &mut Actor, len: usize) -> (OwnedFd, Vec<u8>) {
    let file = rustix::fs::memfd_create("source", MemfdFlags::CLOEXEC).expect("a memfd");
    let data = actor.rng.bytes(len);
    assert_eq!(rustix::io::write(&file, &data), Ok(len), "a memfd takes what memory there is");
    (file, data)
}

fn full_pipe(actor: &mut Actor, len: usize) -> (OwnedFd, Vec<u8>) {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).expect("a pipe");
    let data = actor.rng.bytes(len);
    assert_eq!(rustix::io::write(&writer, &data), Ok(len), "a new pipe takes 64 KiB");
    (reader, data)
}

/// A socket that a call without MSG_DONTWAIT can send to.
fn writable(actor: &mut Actor) -> Option<usize> {
    actor.pick(|socket| is_ready(socket.fds[0], PollFlags::OUT))
}

/// Accounts for what moved without ever having been in this program's memory.
fn moved(socket: &Socket, direction: &'static str, call: &'static str, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    let path = if socket.kind == libc::SOCK_DGRAM { None } else { socket.path.as_deref() };
    log::moved(&Moved { inode: socket.inode, direction, call, data, path, by_number: true, ..Moved::default() });
}

fn count(value: isize) -> usize {
    usize::try_from(value).unwrap_or(0)
}

/// sendfile(2) from a file to a socket, from an offset or the file's position.
pub fn send_file(actor: &mut Actor) {
    let Some(at) = writable(actor) else { return };
    let (fd, socket) = (actor.pick_fd(at), actor.sockets[at].clone());
    let len = 1 + actor.rng.below(6000);
    let (file, data) = memory_file(actor, len);
    let mut offset = actor.rng.below(len) as libc::off_t;
    let start = offset as usize;
    let from_position = actor.rng.one_in(3);
    if from_position {
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(start as u64)).expect("a position in a memfd");
    }
    let offset_at = if from_position { std::ptr::null_mut() } else { &raw mut offset };
    let wanted = len - start + actor.rng.below(20);
    let how = actor.rng.of(&["sendfile", "sendfile64", "syscall:sendfile"]);
    let source = file.as_raw_fd();
    // SAFETY: the offset is this function's.
    let outcome = outcome(|| unsafe {
        match how {
            "sendfile" => libc::sendfile(fd, source, offset_at, wanted),
            "sendfile64" => libc::sendfile64(fd, source, offset_at, wanted),
            _ => libc::syscall(libc::SYS_sendfile, fd as c_long, source as c_long, offset_at, wanted) as isize,
        }
    });
    moved(&socket, "out", how, &data[start..start + count(outcome.value)]);
    actor.result(format_args!("{how} {wanted} {outcome} {offset}"));
}

/// splice(2) from a pipe to a socket; the pipe was filled by tee(2) or vmsplice(2), perhaps.
pub fn splice_out(actor: &mut Actor) {
    let Some(at) = writable(actor) else { return };
    let (fd, socket) = (actor.pick_fd(at), actor.sockets[at].clone());
    let len = 1 + actor.rng.below(6000);
    let (mut pipe, mut data) = full_pipe(actor, len);
    match actor.rng.below(3) {
        0 => {
            let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).expect("a pipe");
            // SAFETY: takes numbers.
            let outcome = outcome(|| unsafe { libc::tee(pipe.as_raw_fd(), writer.as_raw_fd(), len, 0) });
            actor.result(format_args!("tee {len} {outcome}"));
            data.truncate(count(outcome.value));
            pipe = reader;
        }
        1 => {
            let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).expect("a pipe");
            // The pipe, and then the socket's queue, refer to this memory for as long as they like.
            let lasting = Box::leak(data.clone().into_boxed_slice());
            let buffer = libc::iovec { iov_base: lasting.as_mut_ptr().cast(), iov_len: lasting.len() };
            // SAFETY: the memory is never freed.
            let outcome = outcome(|| unsafe { libc::vmsplice(writer.as_raw_fd(), &raw const buffer, 1, 0) });
            actor.result(format_args!("vmsplice {len} {outcome}"));
            data.truncate(count(outcome.value));
            pipe = reader;
        }
        _ => {}
    }
    if data.is_empty() {
        return;
    }
    let how = actor.rng.of(&["splice", "splice", "syscall:splice"]);
    let (source, flags) = (pipe.as_raw_fd(), libc::SPLICE_F_NONBLOCK);
    let none = std::ptr::null_mut::<libc::loff_t>();
    // SAFETY: null offsets, as pipes and sockets take.
    let outcome = outcome(|| unsafe {
        match how {
            "splice" => libc::splice(source, none, fd, none, data.len(), flags),
            _ => {
                let (source, fd, flags) = (source as c_long, fd as c_long, flags as c_long);
                libc::syscall(libc::SYS_splice, source, none, fd, none, data.len(), flags) as isize
            }
        }
    });
    moved(&socket, "out", how, &data[..count(outcome.value)]);
    actor.result(format_args!("{how} {} {outcome}", data.len()));
}

/// splice(2) from a socket to a pipe.
pub fn splice_in(actor: &mut Actor) {
    if actor.may_be_urgent() {
        return;
    }
    // What a stream has ready does not wait; a message read by pieces would be lost.
    let ready = |socket: &Socket| socket.kind == libc::SOCK_STREAM && is_ready(socket.fds[0], PollFlags::IN);
    let Some(at) = actor.pick(ready) else { return };
    let (fd, socket) = (actor.pick_fd(at), actor.sockets[at].clone());
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).expect("a pipe");
    let len = 1 + actor.rng.below(3000);
    let none = std::ptr::null_mut::<libc::loff_t>();
    // SAFETY: null offsets, as pipes and sockets take.
    let outcome = outcome(|| unsafe { libc::splice(fd, none, writer.as_raw_fd(), none, len, libc::SPLICE_F_NONBLOCK) });
    let mut data = vec![0; count(outcome.value)];
    if !data.is_empty() {
        assert_eq!(rustix::io::read(&reader, &mut data), Ok(count(outcome.value)), "what went into the pipe");
    }
    moved(&socket, "in", "splice", &data);
    actor.result(format_args!("splice in {len} {outcome} {:x}", hash(&data)));
}

/// fdopen(3) on a copy of a stream socket, and what goes through it: libc writes and closes by itself.
pub fn buffered(actor: &mut Actor) {
    let Some(at) = actor.pick(|socket| socket.kind == libc::SOCK_STREAM && is_ready(socket.fds[0], PollFlags::OUT))
    else {
        return;
    };
    let socket = actor.sockets[at].clone();
    // SAFETY: takes numbers.
    let copy = outcome(|| unsafe { libc::dup(socket.fds[0]) });
    actor.result_fd("dup", copy);
    let fd = copy.value as c_int;
    actor.adopt(fd, socket.kind);
    // SAFETY: the mode is a text; the FILE is closed below.
    let file = unsafe { libc::fdopen(fd, c"w".as_ptr()) };
    assert!(!file.is_null(), "fdopen of an open descriptor");
    let account = |call: &'static str, data: &[u8]| {
        let path = socket.path.as_deref();
        log::moved(&Moved { inode: socket.inode, direction: "out", call, data, path, ..Moved::default() });
    };
    let mut waiting: Vec<u8> = Vec::new();
    for _ in 0..1 + actor.rng.below(3) {
        let len = 1 + actor.rng.below(200);
        let text: Vec<u8> = actor.rng.bytes(len).iter().map(|byte| 1 + byte % 100).collect();
        // SAFETY: `file` is open, and the memory is `text`'s.
        let written = unsafe { libc::fwrite(text.as_ptr().cast::<c_void>(), 1, len, file) };
        actor.result(format_args!("fwrite {len} = {written}"));
        waiting.extend_from_slice(&text);
        if actor.rng.one_in(2) {
            // SAFETY: `file` is open.
            let outcome = outcome(|| unsafe { libc::fflush(file) });
            actor.result(format_args!("fflush {outcome}"));
            if outcome.value == 0 {
                account("fflush", &waiting);
            }
            // What could not be written is discarded with the error, or kept for the next try: not tried here.
            waiting.clear();
            if outcome.value != 0 {
                // SAFETY: `file` is open.
                unsafe { __fpurge(file) };
            }
        }
    }
    actor.before_end(fd, "fclose");
    // SAFETY: `file` is open.
    let outcome = outcome(|| unsafe { libc::fclose(file) });
    if outcome.value == 0 && !waiting.is_empty() {
        account("fclose", &waiting);
    }
    actor.result(format_args!("fclose {outcome}"));
}

/// pidfd_getfd(2) of a socket of this very process: one more descriptor of it.
pub fn take_by_pidfd(actor: &mut Actor) {
    let Some(at) = actor.pick(|_| true) else { return };
    let (fd, kind) = (actor.pick_fd(at), actor.sockets[at].kind);
    let own = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty());
    let own = own.expect("a pidfd of this process");
    let (pidfd, wanted) = (own.as_raw_fd(), fd);
    // SAFETY: takes numbers.
    let outcome = outcome(|| unsafe {
        if actor.op.is_multiple_of(2) {
            pidfd_getfd(pidfd, wanted, 0)
        } else {
            libc::syscall(libc::SYS_pidfd_getfd, pidfd as c_long, wanted as c_long, 0 as c_long) as c_int
        }
    });
    actor.result_fd("pidfd_getfd", outcome);
    if outcome.value >= 0 {
        actor.adopt(outcome.value as c_int, kind);
    }
}
