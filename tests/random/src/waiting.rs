//! Calls that wait: for another thread, until a signal, until they are cancelled.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};
use std::time::Duration;

use crate::actor::{Actor, Socket, outcome};
use crate::log::{self, Moved};
use crate::rng::hash;
use crate::sending::account_sent;
use crate::{signals, twice};

/// How often, and how many times, is looked whether a thread waits.
const LOOK: Duration = Duration::from_micros(50);
const LOOKS: usize = 100;

fn gettid() -> c_int {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// Waits until a thread sleeps, or for a while: no result depends on it.
fn until_asleep(tid: &AtomicI32) {
    for _ in 0..LOOKS {
        let path = format!("/proc/self/task/{}/stat", tid.load(SeqCst));
        let stat = std::fs::read_to_string(path).unwrap_or_default();
        if stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S')) {
            return;
        }
        std::thread::sleep(LOOK);
    }
}

/// A pair for one operation, closed at its end.
fn own_pair(actor: &mut Actor, kind: c_int) -> [Socket; 2] {
    let mut pair = [-1; 2];
    // SAFETY: `pair` has room for two.
    let made = outcome(|| unsafe { libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0, pair.as_mut_ptr()) });
    actor.result(format_args!("socketpair {made}"));
    pair.map(|fd| {
        let at = actor.adopt(fd, kind);
        actor.sockets[at].path = Some(String::new());
        actor.sockets[at].clone()
    })
}

fn close_pair(actor: &mut Actor, pair: &[Socket; 2]) {
    for socket in pair {
        actor.close(socket.fds[0]);
    }
}

fn send_all(socket: &Socket, data: &[u8]) -> bool {
    // SAFETY: the memory is `data`'s.
    let sent = unsafe { libc::send(socket.fds[0], data.as_ptr().cast(), data.len(), libc::MSG_NOSIGNAL) };
    account_sent(socket, "send", data, sent, None, 0, &[]);
    sent == data.len() as isize
}

fn account_received(socket: &Socket, call: &'static str, data: &[u8]) {
    if !data.is_empty() {
        let path = if socket.kind == libc::SOCK_DGRAM { None } else { socket.path.as_deref() };
        log::moved(&Moved { inode: socket.inode, direction: "in", call, data, path, ..Moved::default() });
    }
}

/// recv(2) waits, with MSG_WAITALL for three messages; a signal may come meanwhile, whose handler writes elsewhere.
pub fn for_data(actor: &mut Actor) {
    let pair = own_pair(actor, libc::SOCK_STREAM);
    let outlet = own_pair(actor, libc::SOCK_STREAM);
    let (all, signalled) = (actor.rng.one_in(2), actor.rng.one_in(2) && actor.is_alone);
    let data = actor.rng.bytes(60);
    let (waiting, own) = (AtomicI32::new(0), gettid());
    if signalled {
        signals::set_outlet(outlet[0].fds[0]);
    }
    // SAFETY: the process's own thread.
    let this = unsafe { libc::pthread_self() };
    let (mut buffer, mut outcome_of) = (vec![0u8; 60], None);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            waiting.store(own, SeqCst);
            until_asleep(&waiting);
            if signalled {
                // SAFETY: the thread waits for this one's end.
                unsafe { libc::pthread_kill(this, signals::WRITES_AND_RESTARTS) };
                // A signal that came later than the first bytes would end the call with these.
                while !signals::has_written() {
                    std::thread::sleep(LOOK);
                }
            }
            if all {
                data.chunks(20).for_each(|part| assert!(send_all(&pair[0], part), "a pair takes 60 bytes"));
            } else {
                assert!(send_all(&pair[0], &data), "a pair takes 60 bytes");
            }
        });
        let flags = if all { libc::MSG_WAITALL } else { 0 };
        // SAFETY: the memory is `buffer`'s.
        let outcome = outcome(|| unsafe { libc::recv(pair[1].fds[0], buffer.as_mut_ptr().cast(), 60, flags) });
        account_received(&pair[1], "recv", &buffer[..usize::try_from(outcome.value).unwrap_or(0)]);
        outcome_of = Some(outcome);
    });
    signals::set_outlet(-1);
    let outcome = outcome_of.expect("set in the scope");
    actor.result(format_args!("waiting recv {outcome} {:x}", hash(&buffer)));
    close_pair(actor, &pair);
    close_pair(actor, &outlet);
}

/// A write larger than the queue waits until another thread has read enough.
pub fn for_room(actor: &mut Actor) {
    const LEN: usize = 30_000;
    let pair = own_pair(actor, libc::SOCK_STREAM);
    // As small as it can be (unix(7)).
    rustix::net::sockopt::set_socket_send_buffer_size(crate::actor::unseen(pair[0].fds[0]), 1)
        .expect("a socket's option");
    let data = actor.rng.bytes(LEN);
    let mut got = Vec::new();
    let written = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = vec![0u8; 65_536];
            while got.len() < LEN {
                // SAFETY: the memory is `buffer`'s.
                let n = unsafe { libc::read(pair[1].fds[0], buffer.as_mut_ptr().cast(), buffer.len()) };
                let Ok(n @ 1..) = usize::try_from(n) else { break };
                account_received(&pair[1], "read", &buffer[..n]);
                got.extend_from_slice(&buffer[..n]);
            }
        });
        let mut written = 0;
        while written < LEN {
            let rest = &data[written..];
            // SAFETY: the memory is `data`'s.
            let outcome = outcome(|| unsafe { libc::write(pair[0].fds[0], rest.as_ptr().cast(), rest.len()) });
            account_sent(&pair[0], "write", rest, outcome.value, None, 0, &[]);
            let Ok(n @ 1..) = usize::try_from(outcome.value) else { break };
            written += n;
        }
        // SAFETY: takes numbers. Whatever the reader has not got will not come.
        unsafe { libc::shutdown(pair[0].fds[0], libc::SHUT_WR) };
        log::closed(pair[0].inode, pair[0].fds[0], libc::SOCK_STREAM, "shutdown:SHUT_WR");
        written
    });
    actor.result(format_args!("waiting write {written} {:x}", hash(&got)));
    close_pair(actor, &pair);
}

/// recv(2) fails with EINTR: handlers without SA_RESTART write in the middle of it.
pub fn interrupted(actor: &mut Actor) {
    left_by(actor, signals::WRITES_AND_INTERRUPTS, |pair| {
        let mut buffer = [0u8; 8];
        // SAFETY: the memory is `buffer`'s.
        let outcome = outcome(|| unsafe { libc::recv(pair[1].fds[0], buffer.as_mut_ptr().cast(), 8, 0) });
        outcome.to_string()
    });
}

/// recv(2) is left by siglongjmp(3) out of a handler.
pub fn jumped_out(actor: &mut Actor) {
    unsafe extern "C" fn blocked(fd: *mut c_void) {
        let mut buffer = [0u8; 8];
        // SAFETY: a number, and the memory is `buffer`'s.
        unsafe { libc::recv(fd.addr() as c_int, buffer.as_mut_ptr().cast(), 8, 0) };
    }
    left_by(actor, signals::JUMPS, |pair| {
        let fd = std::ptr::without_provenance_mut(pair[1].fds[0] as usize);
        // SAFETY: `blocked` has nothing to drop.
        let jumped = unsafe { twice::leave_by_jump(blocked, fd) };
        format!("jumped {jumped}")
    });
}

/// Sends a signal to this thread until `call` has come to its end.
fn left_by(actor: &mut Actor, signal: c_int, call: impl FnOnce(&[Socket; 2]) -> String) {
    let pair = own_pair(actor, libc::SOCK_SEQPACKET);
    let outlet = own_pair(actor, libc::SOCK_STREAM);
    if actor.is_alone {
        signals::set_outlet(outlet[0].fds[0]);
    }
    let (waiting, own, done) = (AtomicI32::new(0), gettid(), AtomicBool::new(false));
    // SAFETY: the process's own thread.
    let this = unsafe { libc::pthread_self() };
    let text = std::thread::scope(|scope| {
        scope.spawn(|| {
            waiting.store(own, SeqCst);
            until_asleep(&waiting);
            while !done.load(SeqCst) {
                // SAFETY: the thread waits for this one's end.
                unsafe { libc::pthread_kill(this, signal) };
                std::thread::sleep(20 * LOOK);
            }
        });
        let text = call(&pair);
        done.store(true, SeqCst);
        text
    });
    signals::set_outlet(-1);
    actor.result(format_args!("left by signal {signal}: {text}"));
    // The socket still works.
    assert!(send_all(&pair[0], b"after"), "a pair takes five bytes");
    let mut buffer = [0u8; 8];
    // SAFETY: the memory is `buffer`'s.
    let outcome = outcome(|| unsafe { libc::recv(pair[1].fds[0], buffer.as_mut_ptr().cast(), 8, 0) });
    account_received(&pair[1], "recv", &buffer[..usize::try_from(outcome.value).unwrap_or(0)]);
    actor.result(format_args!("recv {outcome}"));
    close_pair(actor, &pair);
    close_pair(actor, &outlet);
}

/// What a thread is cancelled in.
#[repr(C)]
struct Cancelled {
    fd: c_int,
    call: c_int,
    tid: AtomicI32,
}

// As libc's, but declared as what unwinds when it is cancelled (pthreads(7)).
unsafe extern "C-unwind" {
    fn recv(fd: c_int, buffer: *mut c_void, len: usize, flags: c_int) -> isize;
    fn read(fd: c_int, buffer: *mut c_void, len: usize) -> isize;
    fn recvfrom(
        fd: c_int,
        buffer: *mut c_void,
        len: usize,
        flags: c_int,
        address: *mut c_void,
        address_len: *mut u32,
    ) -> isize;
    fn accept(fd: c_int, address: *mut c_void, address_len: *mut u32) -> c_int;
}

/// pthread_cancel(3) of a thread that waits.
pub fn cancelled(actor: &mut Actor) {
    extern "C-unwind" fn wait_for_ever(argument: *mut c_void) -> *mut c_void {
        // SAFETY: what `cancelled` passes, which outlives this thread. Nothing here is to be dropped.
        unsafe {
            let cancelled = &*argument.cast::<Cancelled>();
            let mut buffer = [0u8; 8];
            let at = (&raw mut buffer).cast();
            cancelled.tid.store(gettid(), SeqCst);
            match cancelled.call {
                0 => recv(cancelled.fd, at, 8, 0),
                1 => read(cancelled.fd, at, 8),
                2 => recvfrom(cancelled.fd, at, 8, 0, std::ptr::null_mut(), std::ptr::null_mut()),
                _ => accept(cancelled.fd, std::ptr::null_mut(), std::ptr::null_mut()) as isize,
            };
        }
        std::ptr::null_mut()
    }
    let pair = own_pair(actor, libc::SOCK_STREAM);
    let call = actor.rng.below(4) as c_int;
    let mut fd = pair[1].fds[0];
    if call == 3 {
        // SAFETY: takes numbers.
        let made = outcome(|| unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0) });
        fd = made.value as c_int;
        actor.result_fd("socket", made);
        actor.adopt(fd, libc::SOCK_STREAM);
        let name = actor.new_name();
        // SAFETY: the name's length is its own.
        let bound = outcome(|| unsafe { libc::bind(fd, name.as_ptr(), name.len) });
        // SAFETY: takes numbers.
        let listens = outcome(|| unsafe { libc::listen(fd, 1) });
        actor.result(format_args!("bind {bound} listen {listens}"));
    }
    let argument = Cancelled { fd, call, tid: AtomicI32::new(0) };
    let start = wait_for_ever as extern "C-unwind" fn(*mut c_void) -> *mut c_void;
    let (mut thread, mut result) = (0, std::ptr::null_mut());
    // SAFETY: the thread has ended when this function goes on; pthread_create takes the same function whether or not
    // it may unwind.
    let (cancel, join) = unsafe {
        let start: extern "C" fn(*mut c_void) -> *mut c_void = std::mem::transmute(start);
        let argument_at = (&raw const argument).cast_mut().cast();
        assert_eq!(libc::pthread_create(&raw mut thread, std::ptr::null(), start, argument_at), 0, "a thread");
        while argument.tid.load(SeqCst) == 0 {
            std::thread::sleep(LOOK);
        }
        until_asleep(&argument.tid);
        (libc::pthread_cancel(thread), libc::pthread_join(thread, &raw mut result))
    };
    /// PTHREAD_CANCELED of pthread.h.
    const CANCELED: usize = usize::MAX;
    actor.result(format_args!("cancelled {call} {cancel} {join} {}", result.addr() == CANCELED));
    if call == 3 {
        actor.close(fd);
    }
    assert!(send_all(&pair[0], b"after"), "a pair takes five bytes");
    close_pair(actor, &pair);
}

/// A timer's signals, while bytes go to and fro.
pub fn among_signals(actor: &mut Actor) {
    if !actor.is_alone {
        return;
    }
    let pair = own_pair(actor, libc::SOCK_SEQPACKET);
    let outlet = own_pair(actor, libc::SOCK_STREAM);
    signals::set_outlet(outlet[0].fds[0]);
    let often = libc::timeval { tv_sec: 0, tv_usec: 150 };
    let never = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let set = |interval: libc::timeval| {
        let timer = libc::itimerval { it_interval: interval, it_value: interval };
        // SAFETY: the timer is this function's.
        unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
    };
    set(often);
    let mut buffer = [0u8; 64];
    let mut exact = true;
    for round in 0..20u8 {
        let data = [round; 40];
        exact &= send_all(&pair[0], &data);
        // SAFETY: the memory is `buffer`'s.
        let n = unsafe { libc::recv(pair[1].fds[0], buffer.as_mut_ptr().cast(), 64, 0) };
        account_received(&pair[1], "recv", &buffer[..usize::try_from(n).unwrap_or(0)]);
        exact &= n == 40 && buffer[..40] == data;
    }
    set(never);
    signals::set_outlet(-1);
    actor.result(format_args!("among signals {exact}"));
    close_pair(actor, &pair);
    close_pair(actor, &outlet);
}

/// A handler that writes, at once.
pub fn raised(actor: &mut Actor) {
    if !actor.is_alone {
        return;
    }
    let outlet = own_pair(actor, libc::SOCK_STREAM);
    signals::set_outlet(outlet[0].fds[0]);
    for _ in 0..3 {
        // SAFETY: the handler is installed.
        let outcome = outcome(|| unsafe { libc::raise(signals::WRITES_AND_RESTARTS) });
        actor.result(format_args!("raise {outcome}"));
    }
    signals::set_outlet(-1);
    let mut buffer = [0u8; 64];
    // SAFETY: the memory is `buffer`'s.
    let outcome = outcome(|| unsafe { libc::recv(outlet[1].fds[0], buffer.as_mut_ptr().cast(), 64, 0) });
    account_received(&outlet[1], "recv", &buffer[..usize::try_from(outcome.value).unwrap_or(0)]);
    actor.result(format_args!("recv {outcome} {:x}", hash(&buffer)));
    close_pair(actor, &outlet);
}

/// Threads that send and receive on the same two descriptors at once: each message goes to somebody whole.
pub fn contended(actor: &mut Actor) {
    const SENDERS: usize = 3;
    const RECEIVERS: usize = 2;
    const EACH: usize = 12;
    let kind = actor.rng.of(&[libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET]);
    let pair = own_pair(actor, kind);
    pair.iter().for_each(|socket| log::shared(socket.inode));
    let send_some = |sender: usize| {
        let mut done = 0;
        for number in 0..EACH {
            let data = [&[sender as u8, number as u8][..], &vec![sender as u8; 30 + number]].concat();
            let mut own = pair[0].clone();
            // SAFETY: takes numbers.
            let copy = if number % 3 == 0 { unsafe { libc::dup(own.fds[0]) } } else { -1 };
            if copy >= 0 {
                own.fds = vec![copy];
            }
            done += usize::from(send_all(&own, &data));
            if copy >= 0 {
                // SAFETY: this thread's.
                unsafe { libc::close(copy) };
            }
        }
        done
    };
    let receive_some = || {
        let (mut sum, mut bytes) = (0u64, 0);
        loop {
            let mut buffer = [0u8; 100];
            // SAFETY: the memory is `buffer`'s.
            let n = unsafe { libc::recv(pair[1].fds[0], buffer.as_mut_ptr().cast(), 100, 0) };
            let n = usize::try_from(n).unwrap_or(0);
            account_received(&pair[1], "recv", &buffer[..n]);
            if n == 0 || (n == 1 && kind != libc::SOCK_STREAM) {
                return (sum, bytes);
            }
            bytes += n;
            // On a stream what is received together differs from run to run; the sum of the bytes does not.
            sum += buffer[..n].iter().map(|byte| u64::from(*byte)).sum::<u64>();
        }
    };
    let (sent, received) = std::thread::scope(|scope| {
        let receivers: Vec<_> = (0..RECEIVERS).map(|_| scope.spawn(receive_some)).collect();
        let senders: Vec<_> = (0..SENDERS).map(|n| scope.spawn(move || send_some(n))).collect();
        let sent: usize = senders.into_iter().map(|thread| thread.join().expect("a thread that returns")).sum();
        if kind == libc::SOCK_STREAM {
            // SAFETY: takes numbers.
            unsafe { libc::shutdown(pair[0].fds[0], libc::SHUT_WR) };
            log::closed(pair[0].inode, pair[0].fds[0], kind, "shutdown:SHUT_WR");
        } else {
            // A message of one byte is the last for whoever gets it.
            (0..RECEIVERS).for_each(|_| assert!(send_all(&pair[0], b"."), "receivers make room"));
        }
        let received: Vec<_> =
            receivers.into_iter().map(|thread| thread.join().expect("a thread that returns")).collect();
        (sent, received)
    });
    let (sum, bytes) = received.iter().fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
    actor.result(format_args!("contended {kind} {sent} {sum} {bytes}"));
    close_pair(actor, &pair);
}
