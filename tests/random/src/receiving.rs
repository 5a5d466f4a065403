//! The calls that receive.

use std::ffi::{c_int, c_long};

use libc::{iovec, mmsghdr, msghdr};
use rustix::event::PollFlags;

use crate::actor::{Actor, Outcome, Socket, no_address, outcome};
use crate::ancillary::{self, Arrived, arrived};
use crate::log::{self, Moved};
use crate::rng::hash;
use crate::sending::{has_error, is_hung_up, is_nonblocking, is_ready, scatter, some_len};
use crate::undeclared::{__read_chk, __recv_chk, __recvfrom_chk};

/// Every call that receives bytes into memory.
pub const CALLS: [&str; 17] = [
    "recv",
    "recvfrom",
    "recvmsg",
    "recvmsg",
    "recvmmsg",
    "read",
    "readv",
    "preadv2",
    "__read_chk",
    "__recv_chk",
    "__recvfrom_chk",
    "syscall:recvfrom",
    "syscall:recvmsg",
    "syscall:recvmmsg",
    "syscall:read",
    "syscall:readv",
    "syscall:preadv2",
];

/// Receives something by some call from some socket.
pub fn receive(actor: &mut Actor) {
    let ready = |socket: &Socket| is_ready(socket.fds[0], PollFlags::IN);
    let at = if actor.rng.one_in(6) { actor.pick(|_| true) } else { actor.pick(ready) };
    let Some(at) = at else { return };
    let call = actor.rng.of(&CALLS);
    receive_by(actor, at, call);
}

/// A call to receive with, its flags and where to.
struct Request {
    fd: c_int,
    socket: Socket,
    call: &'static str,
    flags: c_int,
    /// Bytes that there is room for.
    room: usize,
}

/// Receives by this call.
pub fn receive_by(actor: &mut Actor, at: usize, call: &'static str) {
    let fd = actor.pick_fd(at);
    let socket = actor.sockets[at].clone();
    let len = some_len(actor);
    let may_wait =
        (is_ready(fd, PollFlags::IN) && !actor.may_be_urgent() && !call.contains("mmsg")) || is_nonblocking(fd);
    let mut flags = if may_wait && actor.rng.one_in(2) { 0 } else { libc::MSG_DONTWAIT };
    for (flag, one_in) in [(libc::MSG_PEEK, 10), (libc::MSG_TRUNC, 8), (libc::MSG_OOB, 30), (libc::MSG_WAITALL, 10)] {
        // Urgent data without room for it is taken and given to nobody.
        if actor.rng.one_in(one_in) && !(flag == libc::MSG_OOB && len == 0) {
            flags |= flag;
        }
    }
    if flags & (libc::MSG_WAITALL | libc::MSG_OOB) != 0 {
        flags |= libc::MSG_DONTWAIT;
    }
    let mut buffer = vec![0; len];
    let request = Request { fd, socket, call, flags, room: len };
    match call.strip_prefix("syscall:").unwrap_or(call) {
        "recv" | "__recv_chk" => {
            let bytes = buffer.as_mut_ptr();
            let cut = request.will_be_cut(len);
            // SAFETY: the memory is `buffer`'s.
            let outcome = outcome(|| unsafe {
                match call {
                    "recv" => libc::recv(fd, bytes.cast(), len, flags),
                    _ => __recv_chk(fd, bytes, len, len, flags),
                }
            });
            request.received(actor, &buffer, outcome, cut, None);
        }
        "recvfrom" | "__recvfrom_chk" => request.recvfrom(actor, &mut buffer),
        "recvmsg" => request.recvmsg(actor, &mut buffer),
        "recvmmsg" => request.recvmmsg(actor, &mut buffer),
        _ if may_wait => Request { flags: 0, ..request }.read_family(actor, &mut buffer),
        // It might wait for ever.
        _ => {}
    }
}

impl Request {
    /// Whether the next message, of a socket that keeps messages apart, is longer than this: a look that is not seen.
    fn will_be_cut(&self, room: usize) -> Option<bool> {
        if self.socket.kind == libc::SOCK_STREAM || has_error(self.fd) {
            return None;
        }
        let flags = rustix::net::RecvFlags::from_bits_retain(
            (libc::MSG_PEEK | libc::MSG_TRUNC | libc::MSG_DONTWAIT).cast_unsigned(),
        );
        let mut nothing = [0; 1];
        let (_, len) = rustix::net::recv(crate::actor::unseen(self.fd), &mut nothing[..], flags).ok()?;
        Some(len > room)
    }

    /// Reports a receive's result, and accounts for what it moved.
    fn received(&self, actor: &Actor, buffer: &[u8], outcome: Outcome, cut: Option<bool>, from: Option<&Source>) {
        let got = usize::try_from(outcome.value).unwrap_or(0).min(buffer.len());
        if outcome.value >= 0 {
            self.account(&buffer[..got], cut, from, 0, &Arrived::default());
        }
        let shown = from.map_or_else(String::new, |from| from.shown(actor));
        actor.result(format_args!("{} {} {outcome} {:x} {shown}", self.call, buffer.len(), hash(&buffer[..got])));
    }

    fn account(&self, data: &[u8], cut: Option<bool>, from: Option<&Source>, flags: c_int, arrived: &Arrived) {
        // A message without bytes looks like the end; but nothing follows that.
        let is_end =
            data.is_empty() && cut != Some(true) && (self.socket.kind == libc::SOCK_STREAM || is_hung_up(self.fd));
        // A read(2) of no bytes does not ask the socket.
        let is_nothing = self.room == 0 && self.call.contains("read");
        if self.flags & libc::MSG_PEEK != 0 || is_end || is_nothing {
            return;
        }
        let sender = from.and_then(Source::sender);
        let is_datagram = self.socket.kind == libc::SOCK_DGRAM;
        let path = if is_datagram { sender.as_deref() } else { self.socket.path.as_deref() };
        log::moved(&Moved {
            inode: self.socket.inode,
            direction: "in",
            call: self.call,
            data,
            path,
            cut,
            flags: (flags & libc::MSG_CTRUNC) | (self.flags & libc::MSG_OOB),
            fds: &arrived.fds,
            credentials: arrived.credentials,
            pidfd: arrived.pidfd,
            ..Moved::default()
        });
    }

    fn recvfrom(&self, actor: &mut Actor, buffer: &mut [u8]) {
        // Without room for a byte and with an address, the call does not tell a message from the end.
        if buffer.is_empty() {
            return;
        }
        let mut from = Source::new(actor.rng.of(&[110, 110, 110, 20, 2]));
        let (fd, bytes, len, flags) = (self.fd, buffer.as_mut_ptr(), buffer.len(), self.flags);
        let cut = self.will_be_cut(len);
        let (address, address_len) =
            if actor.rng.one_in(3) { (std::ptr::null_mut(), std::ptr::null_mut()) } else { from.as_mut_ptrs() };
        // SAFETY: the memory is `buffer`'s and `from`'s.
        let outcome = outcome(|| unsafe {
            match self.call {
                "recvfrom" => libc::recvfrom(fd, bytes.cast(), len, flags, address.cast(), address_len),
                "__recvfrom_chk" => __recvfrom_chk(fd, bytes, len, len, flags, address, address_len),
                _ => {
                    let (fd, flags) = (fd as c_long, flags as c_long);
                    libc::syscall(libc::SYS_recvfrom, fd, bytes, len, flags, address, address_len) as isize
                }
            }
        });
        let asked = !address.is_null() && outcome.value >= 0;
        self.received(actor, buffer, outcome, cut, asked.then_some(&from));
    }

    fn recvmsg(&self, actor: &mut Actor, buffer: &mut [u8]) {
        let cut = self.will_be_cut(buffer.len());
        let mut place = Place::new(actor, buffer);
        let message = &raw mut place.message;
        // SAFETY: everything that the message points to is alive.
        let outcome = outcome(|| unsafe {
            match self.call {
                "recvmsg" => libc::recvmsg(self.fd, message, self.flags),
                _ => libc::syscall(libc::SYS_recvmsg, self.fd as c_long, message, self.flags as c_long) as isize,
            }
        });
        let arrived = place.take(self, buffer, outcome.value, cut);
        actor.result(format_args!(
            "{} {} {outcome} {}",
            self.call,
            buffer.len(),
            place.shown(actor, buffer, outcome.value, &arrived)
        ));
        ancillary::take(actor, &arrived);
    }

    fn recvmmsg(&self, actor: &mut Actor, buffer: &mut [u8]) {
        let count = 1 + actor.rng.below(3);
        let mut buffers: Vec<Vec<u8>> = (0..count).map(|_| vec![0; buffer.len() / count]).collect();
        let mut places: Vec<Place> = buffers.iter_mut().map(|buffer| Place::new(actor, buffer)).collect();
        let mut messages: Vec<mmsghdr> =
            places.iter().map(|place| mmsghdr { msg_hdr: place.message, msg_len: 0 }).collect();
        let (first, flags) = (messages.as_mut_ptr(), self.flags);
        // SAFETY: everything that the messages point to is alive.
        let outcome = outcome(|| unsafe {
            match self.call {
                "recvmmsg" => libc::recvmmsg(self.fd, first, count as u32, flags, std::ptr::null_mut()),
                _ => libc::syscall(
                    libc::SYS_recvmmsg,
                    self.fd as c_long,
                    first,
                    count as c_long,
                    flags as c_long,
                    std::ptr::null_mut::<libc::timespec>(),
                ) as c_int,
            }
        });
        let mut shown = String::new();
        for number in 0..usize::try_from(outcome.value).unwrap_or(0) {
            let place = &mut places[number];
            place.message = messages[number].msg_hdr;
            let len = messages[number].msg_len as isize;
            // recvmmsg(2) says of each message what recvmsg(2) would.
            let cut = (self.socket.kind != libc::SOCK_STREAM).then_some(place.message.msg_flags & libc::MSG_TRUNC != 0);
            let arrived = place.take(self, &buffers[number], len, cut);
            shown += &format!(" [{len} {}]", place.shown(actor, &buffers[number], len, &arrived));
            ancillary::take(actor, &arrived);
        }
        actor.result(format_args!("{} {count} {outcome}{shown}", self.call));
    }

    fn read_family(&self, actor: &mut Actor, buffer: &mut [u8]) {
        let (fd, bytes, len) = (self.fd, buffer.as_mut_ptr(), buffer.len());
        let buffers = scatter(actor, bytes, len);
        let (iov, count) = (buffers.as_ptr(), buffers.len() as c_int);
        let cut = if len == 0 { None } else { self.will_be_cut(len) };
        /// The high half of a position, which x86_64 does not need.
        const HIGH: c_long = 0;
        // SAFETY: the memory is `buffer`'s.
        let outcome = outcome(|| unsafe {
            match self.call {
                "read" => libc::read(fd, bytes.cast(), len),
                "__read_chk" => __read_chk(fd, bytes, len, len),
                "readv" => libc::readv(fd, iov, count),
                "preadv2" => libc::preadv2(fd, iov, count, -1, 0),
                "syscall:read" => libc::syscall(libc::SYS_read, fd as c_long, bytes, len) as isize,
                "syscall:readv" => libc::syscall(libc::SYS_readv, fd as c_long, iov, count as c_long) as isize,
                _ => {
                    let (fd, count) = (fd as c_long, count as c_long);
                    libc::syscall(libc::SYS_preadv2, fd, iov, count, -1 as c_long, HIGH, 0) as isize
                }
            }
        });
        self.received(actor, buffer, outcome, cut, None);
    }
}

/// Where recvfrom(2) puts the sender's address.
struct Source {
    address: libc::sockaddr_un,
    room: u32,
    len: u32,
}

impl Source {
    fn new(room: u32) -> Self {
        Self { address: no_address(), room, len: room }
    }

    fn as_mut_ptrs(&mut self) -> (*mut libc::sockaddr_un, *mut u32) {
        (&raw mut self.address, &raw mut self.len)
    }

    fn shown(&self, actor: &Actor) -> String {
        if self.room < 110 { "cut".into() } else { actor.normal(&self.address, self.len) }
    }

    /// Who sent it, if that is named and all of the name is here.
    fn sender(&self) -> Option<String> {
        let len = (self.len as usize).saturating_sub(2);
        if self.room < 110 || len == 0 || len > 108 {
            return None;
        }
        let bytes: Vec<u8> = self.address.sun_path[..len].iter().map(|c| c.cast_unsigned()).collect();
        if bytes[0] == 0 {
            return Some(format!("@{}", crate::actor::escaped(&bytes[1..])));
        }
        // What is relative is seen so by who bound it.
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(len);
        (bytes[0] == b'/').then(|| crate::actor::escaped(&bytes[..end]))
    }
}

/// Where recvmsg(2) puts a message.
struct Place {
    message: msghdr,
    source: Box<Source>,
    control: Vec<u64>,
    _buffers: Vec<iovec>,
}

impl Place {
    fn new(actor: &mut Actor, buffer: &mut [u8]) -> Self {
        let mut buffers = scatter(actor, buffer.as_mut_ptr(), buffer.len());
        let mut source = Box::new(Source::new(110));
        let mut control = vec![0; actor.rng.of(&[0, 3, 4, 5, 8, 16, 16, 16, 24])];
        // SAFETY: zeroes are a valid msghdr.
        let mut message: msghdr = unsafe { std::mem::zeroed() };
        if actor.rng.one_in(2) {
            message.msg_name = (&raw mut source.address).cast();
            message.msg_namelen = 110;
        }
        (message.msg_iov, message.msg_iovlen) = (buffers.as_mut_ptr(), buffers.len());
        if !control.is_empty() {
            (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), 8 * control.len());
        }
        Self { message, source, control, _buffers: buffers }
    }

    /// Accounts for a message that has come.
    fn take(&mut self, request: &Request, buffer: &[u8], len: isize, cut: Option<bool>) -> Arrived {
        let Ok(len) = usize::try_from(len) else { return Arrived::default() };
        let bytes: Vec<u8> = self.control.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let control_len = if self.message.msg_control.is_null() { 0 } else { self.message.msg_controllen };
        let arrived = arrived(&bytes[..control_len.min(bytes.len())]);
        let named = !self.message.msg_name.is_null();
        self.source.len = self.message.msg_namelen;
        let flags = self.message.msg_flags;
        let data = &buffer[..len.min(buffer.len())];
        request.account(data, cut, named.then_some(&*self.source), flags, &arrived);
        arrived
    }

    fn shown(&self, actor: &Actor, buffer: &[u8], len: isize, arrived: &Arrived) -> String {
        let Ok(len) = usize::try_from(len) else { return String::new() };
        let bytes = hash(&buffer[..len.min(buffer.len())]);
        let name = if self.message.msg_name.is_null() { String::new() } else { self.source.shown(actor) };
        let fds: Vec<String> = arrived.fds.iter().map(|passed| actor.shown(passed.fd as isize)).collect();
        let came = (arrived.credentials.map(|[_, uid, gid]| (uid, gid)), arrived.pidfd.is_some(), arrived.others);
        let flags = self.message.msg_flags;
        format!("{bytes:x} flags {flags:#x} {name} control {} {fds:?} {came:?}", self.message.msg_controllen)
    }
}
