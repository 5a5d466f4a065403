//! The socket that agents send to: made without taking anything from anybody, and removed by its owner only.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind as bind_to, connect, listen, socket_with,
};
use socktrace_event::{Origin, PathError};

use crate::door::Door;
use crate::family::Family;
use crate::sender::Sender;

/// Only the user who runs the server may send to it.
const SOCKET_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// Of a socket where whoever connects is looked at ([`Bound::admits`]).
const ADMITTING_MODE: u32 = 0o666;
/// Agents that may wait to be accepted; the kernel cuts this to net.core.somaxconn (listen(2)).
const BACKLOG: i32 = 4096;
/// The longest path an address holds beside its final NUL (unix(7)).
const MAX_PATH_LEN: usize = 107;

/// How agents send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SockType {
    /// One frame a datagram. An agent that is faster than the server finds the queue full and counts what it lost.
    ///
    /// How many datagrams wait is the system's `net.unix.max_dgram_qlen`; SO_RCVBUF has no effect here (unix(7)).
    #[default]
    Dgram,
    /// Frames one after the other, a connection per agent.
    Stream,
}

impl SockType {
    /// As on the command line and in `host_init`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dgram => "dgram",
            Self::Stream => "stream",
        }
    }

    const fn to_kernel(self) -> SocketType {
        match self {
            Self::Dgram => SocketType::DGRAM,
            Self::Stream => SocketType::STREAM,
        }
    }
}

impl fmt::Display for SockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for SockType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "dgram" => Ok(Self::Dgram),
            "stream" => Ok(Self::Stream),
            _ => Err(format!("a socket type is dgram or stream, not {text}")),
        }
    }
}

/// A bound socket. Dropping it removes the socket file, unless another has taken its place.
#[derive(Debug)]
pub struct Bound {
    socket: OwnedFd,
    sock_type: SockType,
    path: PathBuf,
    /// Device and inode of the socket file; none of an abstract address.
    identity: Option<(u64, u64)>,
    /// Users who may send, beside those who may write to the socket file by its mode; none: nobody else.
    admitted: Vec<u32>,
    /// Processes that may, whatever user they are.
    family: Family,
    /// Another way in, for rings.
    door: Option<Door>,
}

impl Bound {
    /// The type it was bound with.
    pub fn sock_type(&self) -> SockType {
        self.sock_type
    }

    /// Where its events come from.
    pub fn origin(&self) -> Origin<'_> {
        Origin { path: &self.path, kind: self.sock_type.name() }
    }

    /// The path it was bound to; `@` and a name, of an abstract address.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A way to hand rings over in this process. A socket of datagrams has none.
    ///
    /// # Errors
    ///
    /// eventfd(2) has failed.
    pub fn door(&mut self) -> Result<Door, PathError> {
        if self.door.is_none() {
            self.door = Some(Door::new().map_err(PathError::io(&self.path, "eventfd(2)"))?);
        }
        Ok(self.door.clone().expect("made just now"))
    }

    pub(crate) fn opened_door(&self) -> Option<&Door> {
        self.door.as_ref()
    }

    /// Lets processes of these users send, too. Whoever connects is asked for their user by `admits`, as the mode of the
    /// socket file then keeps nobody out.
    ///
    /// The folder is one that only we can write to.
    ///
    /// # Errors
    ///
    /// chmod(2) has failed.
    pub fn admit(&mut self, users: &[u32]) -> Result<(), PathError> {
        self.admitted = users.to_vec();
        self.let_all_connect()
    }

    /// Lets these processes send, too, and all that they start, whatever user they become.
    ///
    /// The folder is one that only we can write to.
    ///
    /// # Errors
    ///
    /// chmod(2) has failed.
    pub fn admit_family(&mut self, heads: &[u32]) -> Result<(), PathError> {
        self.family = Family::of(heads);
        self.let_all_connect()
    }

    fn let_all_connect(&self) -> Result<(), PathError> {
        if self.identity.is_some() {
            let mode = fs::Permissions::from_mode(ADMITTING_MODE);
            fs::set_permissions(&self.path, mode).map_err(PathError::io(&self.path, "chmod(2)"))?;
        }
        Ok(())
    }

    /// Whether whoever is at the other end of a connection may send: our user, root, or one who is admitted.
    pub(crate) fn admits(&self, sender: Sender) -> bool {
        // By the mode of its file.
        if self.admitted.is_empty() && self.family.is_empty() && self.identity.is_some() {
            return true;
        }
        // The family is asked first: whom it has seen belongs to it from then on, and so do its children.
        self.family.has(sender) || sender.is_own() || self.admitted.contains(&sender.uid)
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let Some(identity) = self.identity else { return };
        if fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds a non-blocking socket, with mode 0600 from its first moment, and listens on it if it is a stream socket.
///
/// A socket file that nobody serves any more is replaced.
///
/// # Errors
///
/// One line that names the path and what to do: too long, something else than a socket is there, another server
/// serves it, no such folder, not permitted.
pub fn bind(path: &Path, sock_type: SockType) -> Result<Bound, PathError> {
    let len = path.as_os_str().as_bytes().len();
    if len == 0 {
        return Err(PathError::unsuitable(path, "the socket path is empty: give the path that agents are to send to"));
    }
    if len > MAX_PATH_LEN {
        let why =
            format!("a socket path has at most {MAX_PATH_LEN} bytes and this one has {len}: choose a shorter one");
        return Err(PathError::unsuitable(path, why));
    }
    let address = SocketAddrUnix::new(path).map_err(PathError::io(path, "not a socket path"))?;
    remove_stale(path, &address, sock_type)?;

    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, sock_type.to_kernel(), flags, None)
        .map_err(PathError::io(path, "socket(2)"))?;
    // Which process sends is the kernel's to say; connections that are accepted inherit it.
    set_socket_passcred(&socket, true).map_err(PathError::io(path, "SO_PASSCRED on the socket"))?;
    // On Linux the socket file gets the mode that the socket itself has; unlike umask(2) this is not the process's.
    rustix::fs::fchmod(&socket, SOCKET_MODE).map_err(PathError::io(path, "fchmod(2) on the socket"))?;
    bind_to(&socket, &address).map_err(|e| explain(path, e))?;
    let metadata = fs::symlink_metadata(path).map_err(PathError::io(path, "gone again"))?;
    let identity = Some((metadata.dev(), metadata.ino()));
    let bound = Bound {
        socket,
        sock_type,
        path: path.to_owned(),
        identity,
        admitted: Vec::new(),
        family: Family::default(),
        door: None,
    };
    if sock_type == SockType::Stream {
        listen(&bound.socket, BACKLOG).map_err(PathError::io(path, "listen(2)"))?;
    }
    Ok(bound)
}

/// Binds a non-blocking stream socket to an abstract address, which has no file: processes reach it whatever root and mounts
/// they have. Only our user, root, and who is admitted may send to it.
///
/// # Errors
///
/// One line that has the name: it is in use, or too long.
pub fn bind_abstract(name: &str) -> Result<Bound, PathError> {
    let path = PathBuf::from(format!("@{name}"));
    let failed = |doing| PathError::io(&path, doing);
    let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).map_err(failed("too long"))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(failed("socket(2)"))?;
    bind_to(&socket, &address).map_err(failed("cannot bind the socket"))?;
    listen(&socket, BACKLOG).map_err(failed("listen(2)"))?;
    Ok(Bound {
        socket,
        sock_type: SockType::Stream,
        path,
        identity: None,
        admitted: Vec::new(),
        family: Family::default(),
        door: None,
    })
}

/// Makes room for a new socket if a dead one is in its place, and refuses whatever else is there.
fn remove_stale(path: &Path, address: &SocketAddrUnix, sock_type: SockType) -> Result<(), PathError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(explain(path, Errno::from_io_error(&e).unwrap_or(Errno::IO))),
    };
    if !metadata.file_type().is_socket() {
        return Err(PathError::unsuitable(path, "exists and is not a socket: remove it or choose another path"));
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = socket_with(AddressFamily::UNIX, sock_type.to_kernel(), flags, None)
        .map_err(PathError::io(path, "socket(2)"))?;
    match connect(&probe, address) {
        Err(Errno::CONNREFUSED) => {
            fs::remove_file(path).map_err(PathError::output(path, "a stale socket that cannot be removed"))
        }
        Err(Errno::NOENT) => Ok(()),
        Err(Errno::ACCESS) => Err(PathError::refused(path, "a socket of another user's: choose another path")),
        // Connected, or somebody is there with another type (EPROTOTYPE), a full queue (EAGAIN), another peer (EPERM).
        _ => Err(PathError::in_use(path, "already in use by another server: stop that one or choose another path")),
    }
}

fn explain(path: &Path, error: Errno) -> PathError {
    match error {
        Errno::ADDRINUSE => PathError::in_use(path, "already in use: another server was started at the same moment"),
        error => PathError::output(path, "cannot bind the socket")(error),
    }
}
