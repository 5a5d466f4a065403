//! Ancillary data (unix(7), cmsg(3)): descriptors and credentials that go and come with messages.

use std::ffi::{c_int, c_void};
use std::os::fd::IntoRawFd as _;

use libc::msghdr;
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, openat};

use crate::actor::{Actor, escaped, outcome, unseen};
use crate::log::Passed;

/// SO_PASSPIDFD (Linux 6.5).
pub const SO_PASSPIDFD: c_int = 76;
const SCM_PIDFD: c_int = 4;
const SCM_SECURITY: c_int = 3;
/// `struct cmsghdr`.
const HEADER_LEN: usize = size_of::<libc::cmsghdr>();

/// A message's control buffer, for sending.
#[derive(Debug, Default)]
pub struct Control {
    bytes: Vec<u64>,
    len: usize,
    fds: Vec<c_int>,
}

impl Control {
    fn push(&mut self, kind: c_int, data: &[u8]) {
        let mut record = Vec::new();
        record.extend_from_slice(&(HEADER_LEN + data.len()).to_ne_bytes());
        record.extend_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
        record.extend_from_slice(&kind.to_ne_bytes());
        record.extend_from_slice(data);
        record.resize(record.len().next_multiple_of(size_of::<usize>()), 0);
        self.len += record.len();
        for word in record.chunks_exact(8) {
            self.bytes.push(u64::from_ne_bytes(*word.first_chunk().expect("eight bytes")));
        }
    }

    /// With these descriptors.
    pub fn rights(fds: &[c_int]) -> Self {
        let mut control = Self { fds: fds.to_vec(), ..Self::default() };
        control.push(libc::SCM_RIGHTS, &fds.iter().flat_map(|fd| fd.to_ne_bytes()).collect::<Vec<_>>());
        control
    }

    /// Points a message at it.
    pub fn put_into(&mut self, message: &mut msghdr) {
        if self.len != 0 {
            message.msg_control = self.bytes.as_mut_ptr().cast();
            message.msg_controllen = self.len;
        }
    }

    /// The descriptors in it, as events name them.
    pub fn passed(&self) -> Vec<Passed> {
        self.fds.iter().map(|fd| Passed { fd: *fd, what: what(*fd) }).collect()
    }
}

/// Descriptors made for passing: some are closed after they were sent.
#[derive(Debug, Default)]
pub struct Kept(Vec<c_int>);

impl Kept {
    /// Closes them.
    pub fn close(self, actor: &mut Actor) {
        for fd in self.0 {
            actor.close(fd);
        }
    }
}

/// Descriptors of every kind, and sometimes the sender's credentials.
///
/// Sockets that are passed are new ones: one that waits in its own queue would be for the kernel's garbage collector,
/// which runs when it likes.
pub fn rights_and_credentials(actor: &mut Actor) -> (Control, Kept) {
    let (mut control, mut kept) = (Control::default(), Kept::default());
    if !actor.rng.one_in(4) {
        let count = if actor.rng.one_in(10) { 20 } else { 1 + actor.rng.below(3) };
        for _ in 0..count {
            let fd = something(actor);
            control.fds.push(fd);
            kept.0.push(fd);
        }
        if actor.rng.one_in(15) {
            // No descriptor: EBADF, and nothing is sent.
            control.fds.push(999_999);
        }
        control = Control::rights(&control.fds);
    }
    if actor.rng.one_in(3) {
        let own = [std::process::id(), rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()];
        let data: Vec<u8> = own.iter().flat_map(|id| id.to_ne_bytes()).collect();
        control.push(libc::SCM_CREDENTIALS, &data);
    }
    (control, kept)
}

/// A new descriptor of some kind.
pub fn something(actor: &mut Actor) -> c_int {
    match actor.rng.below(6) {
        0 => {
            // The program's own file: it is there, whoever runs the tests.
            openat(CWD, "/proc/self/exe", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .expect("a file")
                .into_raw_fd()
        }
        1 => {
            let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
            if actor.rng.one_in(2) { reader.into_raw_fd() } else { writer.into_raw_fd() }
        }
        2 => rustix::fs::memfd_create("memory", MemfdFlags::CLOEXEC).expect("a memfd").into_raw_fd(),
        3 => openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).expect("a device").into_raw_fd(),
        _ => {
            let kind = actor.rng.of(&[libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET]);
            let mut pair = [-1; 2];
            // SAFETY: `pair` has room for two.
            let outcome =
                outcome(|| unsafe { libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0, pair.as_mut_ptr()) });
            actor.result(format_args!("socketpair {outcome}"));
            let at = actor.adopt(pair[0], kind);
            actor.sockets[at].path = Some(String::new());
            let at = actor.adopt(pair[1], kind);
            actor.sockets[at].path = Some(String::new());
            pair[1]
        }
    }
}

/// What a descriptor leads to, in the words of docs/gttr.md, "Passed descriptors".
pub fn what(fd: c_int) -> String {
    let link = rustix::fs::readlinkat(CWD, format!("/proc/self/fd/{fd}"), Vec::new());
    let Ok(link) = link else { return String::new() };
    let link = link.as_bytes();
    let text = String::from_utf8_lossy(link);
    if text.starts_with("socket:") {
        return format!("socket:{}", socket_name(fd));
    }
    if text.starts_with("pipe:") {
        return "pipe".into();
    }
    if let Some(name) = text.strip_prefix("/memfd:") {
        return format!("memfd:{}", name.trim_end_matches(" (deleted)"));
    }
    if text.starts_with("/dev/") {
        return format!("device:{text}");
    }
    format!("file:{}", escaped(link))
}

fn socket_name(fd: c_int) -> String {
    use rustix::net::{SocketAddrAny, getpeername, getsockname};
    let shown = |address: SocketAddrAny| {
        let address = rustix::net::SocketAddrUnix::try_from(address).ok()?;
        if let Some(name) = address.abstract_name().filter(|name| !name.is_empty()) {
            return Some(format!("@{}", escaped(name)));
        }
        address.path().filter(|path| !path.is_empty()).map(|path| escaped(path.to_bytes()))
    };
    let own = getsockname(unseen(fd)).ok().and_then(shown);
    let name = own.or_else(|| getpeername(unseen(fd)).ok().flatten().and_then(shown));
    name.unwrap_or_else(|| "unnamed".into())
}

/// What came with a message.
#[derive(Debug, Default)]
pub struct Arrived {
    /// Descriptors, open now.
    pub fds: Vec<Passed>,
    /// The sender's pid, uid and gid.
    pub credentials: Option<[u32; 3]>,
    /// The sender's pidfd, open now.
    pub pidfd: Option<c_int>,
    /// Values of other kinds.
    pub others: usize,
}

/// Reads what the kernel has put behind a message.
pub fn arrived(control: &[u8]) -> Arrived {
    let mut arrived = Arrived::default();
    let mut rest = control;
    while rest.len() >= HEADER_LEN {
        let number = |at: usize| i32::from_ne_bytes(*rest[at..].first_chunk().expect("four bytes of a header"));
        let len = usize::from_ne_bytes(*rest.first_chunk().expect("eight bytes of a header"));
        let kind = number(12);
        let Some(data) = rest.get(HEADER_LEN..len) else { break };
        let words: Vec<i32> =
            data.chunks_exact(4).map(|word| i32::from_ne_bytes(*word.first_chunk().expect("four bytes"))).collect();
        match kind {
            libc::SCM_RIGHTS => arrived.fds.extend(words.iter().map(|fd| Passed { fd: *fd, what: what(*fd) })),
            libc::SCM_CREDENTIALS => {
                arrived.credentials =
                    words.iter().map(|id| id.cast_unsigned()).collect::<Vec<_>>().first_chunk().copied();
            }
            SCM_PIDFD => arrived.pidfd = words.first().copied(),
            SCM_SECURITY => arrived.others += 1,
            _ => arrived.others += 1,
        }
        rest = rest.get(len.next_multiple_of(size_of::<usize>())..).unwrap_or_default();
    }
    arrived
}

/// Takes what came: sockets are used from now on, everything else is closed.
pub fn take(actor: &mut Actor, arrived: &Arrived) {
    for passed in &arrived.fds {
        let kind = rustix::net::sockopt::socket_type(unseen(passed.fd));
        match kind {
            Ok(kind) if actor.rng.one_in(2) => {
                actor.adopt(passed.fd, kind.as_raw().cast_signed());
            }
            Ok(kind) => {
                actor.adopt(passed.fd, kind.as_raw().cast_signed());
                actor.close(passed.fd);
            }
            Err(_) => actor.close(passed.fd),
        }
    }
    if let Some(pidfd) = arrived.pidfd {
        actor.close(pidfd);
    }
}

/// SO_PASSCRED or SO_PASSPIDFD of some socket, on or off.
pub fn ask_for_credentials(actor: &mut Actor) {
    let Some(at) = actor.pick(|socket| !socket.listens) else { return };
    let fd = actor.pick_fd(at);
    // It may take a name when it sends (unix(7), "Autobind").
    actor.sockets[at].path = actor.sockets[at].path.take().filter(|path| !path.is_empty());
    let (option, on) = (actor.rng.of(&[libc::SO_PASSCRED, SO_PASSPIDFD]), c_int::from(!actor.rng.one_in(4)));
    // SAFETY: the option's value is an int.
    let outcome = outcome(|| unsafe {
        let value = (&raw const on).cast::<c_void>();
        libc::setsockopt(fd, libc::SOL_SOCKET, option, value, size_of::<c_int>() as u32)
    });
    actor.result(format_args!("setsockopt {option} {outcome}"));
}

/// SOCK_STREAM and so on; -1 of what is no socket.
pub fn kind_of(fd: c_int) -> c_int {
    rustix::net::sockopt::socket_type(unseen(fd)).map_or(-1, |kind| kind.as_raw().cast_signed())
}
