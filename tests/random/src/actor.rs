//! One thread of the workload, and the sockets that it alone uses.
//!
//! What a call gives must not depend on when it is made: whoever uses a socket has both its ends, and every choice
//! comes from the seed and from what the kernel said before.

use std::ffi::c_int;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use rustix::fs::fstat;

use crate::log;
use crate::rng::Rng;
use crate::signals;

/// What errno is before each call: a call that succeeds leaves it (errno(3)), traced or not.
const UNTOUCHED: c_int = 4321;

/// A call's result, and errno behind it.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// What it returned.
    pub value: isize,
    /// errno.
    pub errno: c_int,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "= {} errno {}", self.value, self.errno)
    }
}

/// Makes a call, with errno known before.
pub fn outcome<T: TryInto<isize>>(call: impl FnOnce() -> T) -> Outcome {
    // SAFETY: the thread's own errno.
    unsafe { *libc::__errno_location() = UNTOUCHED };
    let value = call();
    // SAFETY: as above.
    let errno = unsafe { *libc::__errno_location() };
    Outcome { value: value.try_into().unwrap_or(-2), errno }
}

/// A socket of this process, by all its descriptors.
#[derive(Clone, Debug)]
pub struct Socket {
    /// Never empty.
    pub fds: Vec<c_int>,
    /// Names it.
    pub inode: u64,
    /// SOCK_STREAM and so on.
    pub kind: c_int,
    /// Whether it listens.
    pub listens: bool,
    /// What the events' path has to be, where it is known.
    pub path: Option<String>,
    /// What other sockets reach it by.
    pub name: Option<Name>,
}

/// An address of a socket.
#[derive(Clone, Debug)]
pub struct Name {
    /// As bind(2) takes it.
    pub address: libc::sockaddr_un,
    /// Its length.
    pub len: u32,
    /// As events show it.
    pub shown: String,
}

/// A thread's state.
#[derive(Debug)]
pub struct Actor {
    /// The seed.
    pub seed: u64,
    /// Which thread or process this is, by how it came about: `0`, its thread `0.t1`, its child of operation 7 `0.7`.
    pub key: String,
    /// Decides.
    pub rng: Rng,
    /// The operation's number.
    pub op: usize,
    /// Its sockets.
    pub sockets: Vec<Socket>,
    /// Whether no other thread of the process opens descriptors, so that their numbers are known.
    pub is_alone: bool,
    /// Where sockets are made; the working directory.
    pub dir: PathBuf,
    /// The whole run's process, for names that must be unique on the machine.
    pub run: u32,
    /// How many processes deep.
    pub depth: usize,
    /// Names made so far.
    names: usize,
    /// Children that run beside this process, with their operation's number.
    pub children: Vec<(c_int, usize)>,
}

/// As many sockets as a thread keeps.
const MAX_SOCKETS: usize = 14;

impl Actor {
    /// A thread without sockets.
    pub fn new(seed: u64, key: &str, dir: PathBuf, run: u32) -> Self {
        Self {
            seed,
            key: key.into(),
            rng: Rng::new(&[seed]),
            op: 0,
            sockets: Vec::new(),
            is_alone: true,
            dir,
            run,
            depth: 0,
            names: 0,
            children: Vec::new(),
        }
    }

    /// The numbers for an operation: independent of those before it, so that a list of operations can be shortened.
    pub fn seed_op(&mut self, op: usize) {
        self.op = op;
        self.rng = Rng::new(&[self.seed, crate::rng::hash(self.key.as_bytes()), op as u64]);
    }

    /// Whether urgent data may be on the seed's way (MSG_OOB), which poll(2) takes for data that can be read.
    pub fn may_be_urgent(&self) -> bool {
        self.seed % 4 == 1
    }

    /// Logs a result.
    pub fn result(&self, what: fmt::Arguments<'_>) {
        match signals::take_broken_pipes() {
            0 => log::result(&self.key, format_args!("{} {what}", self.op)),
            n => log::result(&self.key, format_args!("{} {what} SIGPIPE {n}", self.op)),
        }
    }

    /// A descriptor's number as the results have it.
    pub fn shown(&self, fd: isize) -> String {
        if fd < 0 {
            return fd.to_string();
        }
        if self.is_alone { fd.to_string() } else { "fd".into() }
    }

    /// Logs the result of a call that returns a descriptor.
    pub fn result_fd(&self, call: &str, outcome: Outcome) {
        self.result(format_args!("{call} = {} errno {}", self.shown(outcome.value), outcome.errno));
    }

    /// Takes a descriptor that the process has got as its own.
    pub fn adopt(&mut self, fd: c_int, kind: c_int) -> usize {
        let inode = inode_of(fd);
        if let Some(at) = self.sockets.iter().position(|socket| socket.inode == inode) {
            self.sockets[at].fds.push(fd);
            return at;
        }
        let (listens, path, name) = (false, None, None);
        self.sockets.push(Socket { fds: vec![fd], inode, kind, listens, path, name });
        self.sockets.len() - 1
    }

    /// Closes sockets beyond what is kept.
    pub fn make_room(&mut self) {
        while self.sockets.len() > MAX_SOCKETS {
            let at = self.rng.below(self.sockets.len());
            for fd in self.sockets[at].fds.clone() {
                self.close(fd);
            }
        }
    }

    /// close(2), with what it means for the account.
    pub fn close(&mut self, fd: c_int) {
        self.before_end(fd, "close");
        // SAFETY: a descriptor of this thread's.
        let outcome = outcome(|| unsafe { libc::close(fd) });
        self.result(format_args!("close {outcome}"));
    }

    /// A descriptor is about to be closed by `how`. Accounted for before, because its number may then be another's.
    pub fn before_end(&mut self, fd: c_int, how: &str) {
        let Some(at) = self.sockets.iter().position(|socket| socket.fds.contains(&fd)) else { return };
        let socket = &mut self.sockets[at];
        socket.fds.retain(|own| *own != fd);
        if socket.fds.is_empty() {
            log::closed(socket.inode, fd, socket.kind, how);
            self.sockets.remove(at);
        }
    }

    /// One of the sockets for which `wanted` says yes.
    pub fn pick(&mut self, wanted: impl Fn(&Socket) -> bool) -> Option<usize> {
        let found: Vec<usize> = (0..self.sockets.len()).filter(|at| wanted(&self.sockets[*at])).collect();
        (!found.is_empty()).then(|| self.rng.of(&found))
    }

    /// One of a socket's descriptors.
    pub fn pick_fd(&mut self, at: usize) -> c_int {
        let fds = self.sockets[at].fds.clone();
        self.rng.of(&fds)
    }

    /// A name that nothing has.
    pub fn new_name(&mut self) -> Name {
        self.names += 1;
        let (key, op, n) = (&self.key, self.op, self.names);
        // Strange bytes in it, sometimes (docs/gttr.md, "Names").
        let strange = *self.rng.of(&[&b""[..], b"", b"\x01\xff", b" \\\"'"]).first_chunk::<2>().unwrap_or(b"ab");
        let mut file = format!("{key}-{op}-{n}").into_bytes();
        file.extend_from_slice(&strange);
        match self.rng.below(3) {
            0 => {
                let mut bytes = self.dir.as_os_str().as_encoded_bytes().to_vec();
                bytes.push(b'/');
                bytes.extend_from_slice(&file);
                Name::of(&bytes, &bytes)
            }
            1 => {
                let mut whole = self.dir.as_os_str().as_encoded_bytes().to_vec();
                whole.push(b'/');
                whole.extend_from_slice(&file);
                Name::of(&file, &whole)
            }
            _ => {
                let mut bytes = format!("\0socktrace-random-{}-{}-", self.run, self.seed).into_bytes();
                bytes.extend_from_slice(&file);
                let mut shown = bytes.clone();
                shown[0] = b'@';
                Name::of(&bytes, &shown)
            }
        }
    }

    /// A name as the results have it: without what differs between runs.
    pub fn normal(&self, address: &libc::sockaddr_un, len: u32) -> String {
        let head = size_of::<libc::sa_family_t>();
        let len = (len as usize).clamp(head, size_of::<libc::sockaddr_un>()) - head;
        let bytes: Vec<u8> = address.sun_path[..len].iter().map(|c| c.cast_unsigned()).collect();
        if bytes.is_empty() {
            return "unnamed".into();
        }
        if bytes[0] == 0 {
            let prefix = format!("\0socktrace-random-{}-", self.run).into_bytes();
            return match bytes.strip_prefix(prefix.as_slice()) {
                Some(rest) => format!("@{}", rest.escape_ascii()),
                // Autobound (unix(7)): the kernel chose.
                None => "@".into(),
            };
        }
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        let base = bytes[..end].rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        base.escape_ascii().to_string()
    }
}

impl Name {
    fn of(bytes: &[u8], shown: &[u8]) -> Self {
        let mut address = no_address();
        for (to, from) in address.sun_path.iter_mut().zip(bytes) {
            *to = from.cast_signed();
        }
        let terminator = usize::from(bytes[0] != 0);
        let len = size_of::<libc::sa_family_t>() + bytes.len() + terminator;
        // At most 110.
        Self { address, len: len as u32, shown: escaped(shown) }
    }

    /// As calls take it.
    pub fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.address).cast()
    }
}

/// An address without a name.
pub fn no_address() -> libc::sockaddr_un {
    libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; 108] }
}

/// Text as events show it (docs/gttr.md, "Names").
pub fn escaped(bytes: &[u8]) -> String {
    let mut shown = String::new();
    for byte in bytes {
        match byte {
            32..=126 if *byte != b'\\' => shown.push(char::from(*byte)),
            _ => shown += &format!("\\x{byte:02x}"),
        }
    }
    shown
}

/// An open descriptor, for calls that are not to be seen.
pub fn unseen<'a>(fd: c_int) -> BorrowedFd<'a> {
    // SAFETY: the caller has just got it from the kernel, and closes it later.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// The socket's name in `/proc/net/unix`.
pub fn inode_of(fd: c_int) -> u64 {
    fstat(unseen(fd)).map_or(0, |status| status.st_ino)
}
