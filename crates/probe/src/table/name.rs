//! What a connection is called: its path, its id, and whether `socket_paths` asks for it.
//!
//! Every look-up in the file system is here, and happens once per connection.

use core::ffi::CStr;
use core::fmt::Write as _;

use gttr::MAX_CONN_ID_LEN;
use rustix::fs::{AtFlags, CWD, FileType, Stat, readlinkat_raw, statat};

use crate::sys::address::Address;
use crate::sys::params;
use crate::sys::scratch::Scratch;
use crate::sys::text::Text;

/// PATH_MAX of limits.h, the kernel's bound on any path.
const PATH_MAX: usize = 4096;
/// The longest path an event shows, in bytes; a relative name whose directory makes it longer is shown as given.
pub(crate) const MAX_PATH_LEN: usize = 1024;
/// Bytes of a connection id left to what follows the path: five numbers with their names.
const ID_TAIL_LEN: usize = 96;

/// Paths at their full length, to ask the file system about.
struct Files {
    /// The socket's.
    socket: Text<PATH_MAX>,
    /// One that it is compared with.
    other: Text<PATH_MAX>,
    directory: Text<PATH_MAX>,
}

/// [`Files`] in memory of their own, which most connections need none of.
struct Paths(Scratch);

impl Paths {
    fn map() -> Option<Self> {
        Scratch::map(size_of::<Files>()).map(Self)
    }

    fn files(&mut self) -> &mut Files {
        // SAFETY: of this length, aligned to a page, zeroed at first (three empty texts), and ours alone.
        unsafe { &mut *self.0.bytes().as_mut_ptr().cast() }
    }
}

/// A socket's path: where it is, and how events show it.
pub(crate) struct SocketPath {
    /// As events show it: absolute, or `@name`, printable ASCII.
    pub(crate) shown: Text<MAX_PATH_LEN>,
    /// The path at full length, where it takes part in look-ups.
    paths: Option<Paths>,
}

impl SocketPath {
    /// No path.
    pub(crate) const fn unnamed() -> Self {
        Self { shown: Text::new(), paths: None }
    }

    /// The path behind an address; a relative one is taken to be relative to the directory that the link
    /// `directory` leads to (`/proc/self/cwd`, say).
    pub(crate) fn of(address: &Address, directory: &CStr) -> Self {
        let mut path = Self::unnamed();
        match address {
            Address::Unnamed => {}
            Address::Abstract(name) => {
                path.shown.push(b"@");
                path.shown.push_escaped(name.as_bytes());
            }
            Address::Path(name) => path.set_file(name.as_bytes(), directory),
        }
        path
    }

    fn set_file(&mut self, name: &[u8], directory: &CStr) {
        let relative = name.first() != Some(&b'/');
        if relative || params::get().has_filter() {
            self.paths = Paths::map();
        }
        if let Some(paths) = &mut self.paths {
            let socket = &mut paths.files().socket;
            if relative {
                push_directory(socket, directory);
            }
            let mut plain = name;
            while let (true, Some(rest)) = (!socket.as_bytes().is_empty(), plain.strip_prefix(b"./")) {
                plain = rest;
            }
            socket.push(plain);
            if self.shown.push_escaped(socket.as_bytes()) {
                return;
            }
            self.shown.clear();
        }
        self.shown.push_escaped(name);
    }

    /// Shows a path as it is.
    pub(crate) fn set_shown(&mut self, path: &[u8]) {
        self.shown.clear();
        self.shown.push_escaped(path);
    }

    /// Whether there is a socket at the path now.
    pub(crate) fn is_socket(&mut self) -> bool {
        let Some(paths) = &mut self.paths else { return false };
        let stat = paths.files().socket.as_c_str().and_then(stat);
        stat.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket)
    }

    /// Whether `socket_paths` asks for this socket: it is empty, or one of its paths is this one or leads to the
    /// same file, or to the same name in the same directory.
    pub(crate) fn is_wanted(&mut self) -> bool {
        let params = params::get();
        !params.has_filter() || params.socket_paths().any(|wanted| self.is(wanted))
    }

    fn is(&mut self, wanted: &[u8]) -> bool {
        // As it is, or as events show it.
        if gttr::is_escaped_path(self.shown.as_bytes(), wanted) || wanted == self.shown.as_bytes() {
            return true;
        }
        let Some(paths) = &mut self.paths else { return false };
        let Files { socket, other, directory } = paths.files();
        other.clear();
        if wanted.first() == Some(&b'@') || !other.push(wanted) {
            return false;
        }
        let same = identity(socket);
        if same.is_some() && same == identity(other) {
            return true;
        }
        let (Some((here, name)), Some((there, other_name))) = (split(socket), split(other)) else {
            return false;
        };
        let mut directory_of = |path: &[u8]| {
            directory.clear();
            directory.push(path);
            identity(directory)
        };
        let same = directory_of(here);
        name == other_name && same.is_some() && same == directory_of(there)
    }
}

/// Appends the directory behind a link and a slash; nothing if it cannot be told.
fn push_directory(to: &mut Text<PATH_MAX>, link: &CStr) {
    to.fill(|buffer| readlinkat_raw(CWD, link, buffer).unwrap_or(0));
    match to.as_bytes() {
        b"/" => {}
        [b'/', ..] => drop(to.push(b"/")),
        // "(unreachable)/…" is what the kernel says of a directory outside our root.
        _ => to.clear(),
    }
}

fn stat(path: &CStr) -> Option<Stat> {
    statat(CWD, path, AtFlags::empty()).ok()
}

fn identity(path: &mut Text<PATH_MAX>) -> Option<(u64, u64)> {
    let stat = stat(path.as_c_str()?)?;
    Some((stat.st_dev, stat.st_ino))
}

/// A path's directory, with its slash, and last component.
fn split(path: &Text<PATH_MAX>) -> Option<(&[u8], &[u8])> {
    let bytes = path.as_bytes();
    let slash = bytes.iter().rposition(|&b| b == b'/')?;
    Some(bytes.split_at(slash + 1))
}

/// What tells one connection from every other that one server hears of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) fd: i32,
    pub(crate) ts_ms: u64,
    pub(crate) pid: u32,
    /// Inode number of the socket: machine-wide, so it tells containers with the same pids apart. 0: not known.
    pub(crate) inode: u64,
    /// Number of the connection within its process, for a datagram socket that is connected twice in a millisecond.
    pub(crate) count: u32,
    /// Inode number of the other end, of a socketpair(2); 0: it is none.
    pub(crate) mate: u64,
}

/// Makes a connection's id of its path (shown at its front, for people) and its identity.
pub(crate) fn connection_id(path: &[u8], identity: &Identity) -> Text<MAX_CONN_ID_LEN> {
    let mut id = Text::new();
    if let (true, Identity { inode: inode @ 1.., mate: mate @ 1.., .. }) = (path.is_empty(), identity) {
        // The same for both ends.
        let _ = write!(id, "socketpair={}+{}", inode.min(mate), inode.max(mate));
        return with_identity(id, identity);
    }
    let path = if path.is_empty() { b"unnamed" } else { path };
    // The end of a long path says more than its beginning.
    let path = &path[path.len().saturating_sub(MAX_CONN_ID_LEN - ID_TAIL_LEN)..];
    let mut safe = [0; MAX_CONN_ID_LEN - ID_TAIL_LEN];
    let len = gttr::sanitize(path, &mut safe);
    id.push(&safe[..len]);
    with_identity(id, identity)
}

fn with_identity(mut id: Text<MAX_CONN_ID_LEN>, identity: &Identity) -> Text<MAX_CONN_ID_LEN> {
    let Identity { fd, ts_ms, pid, inode, count, .. } = identity;
    // Cannot be cut: the numbers' longest forms are within ID_TAIL_LEN.
    let _ = write!(id, ":fd={fd}:t={ts_ms}:p={pid}");
    // Not known under a seccomp filter, where the kernel may not be asked.
    if *inode != 0 {
        let _ = write!(id, ":i={inode}");
    }
    let _ = write!(id, ":n={count}");
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_valid_however_long() {
        let longest =
            Identity { fd: i32::MAX, ts_ms: u64::MAX, pid: u32::MAX, inode: u64::MAX, count: u32::MAX, mate: 0 };
        let id = connection_id(&[b'/'; 1000], &longest);
        assert!(gttr::is_conn_id(id.as_bytes()), "{}", id.as_bytes().escape_ascii());
        assert!(id.as_bytes().ends_with(b":n=4294967295"));
        let id = connection_id(b"/tmp/demo.sock", &Identity { fd: 8, ts_ms: 1, pid: 2, inode: 3, count: 4, mate: 0 });
        assert_eq!(id.as_bytes(), b"_tmp_demo.sock:fd=8:t=1:p=2:i=3:n=4");
        let id = connection_id(b"", &Identity { fd: 8, ts_ms: 1, pid: 2, inode: 0, count: 4, mate: 0 });
        assert_eq!(id.as_bytes(), b"unnamed:fd=8:t=1:p=2:n=4");
    }

    #[test]
    fn both_ends_of_a_pair_are_named_after_the_pair() {
        let end = |inode, mate| connection_id(b"", &Identity { fd: 8, ts_ms: 1, pid: 2, inode, count: 4, mate });
        assert_eq!(end(30, 29).as_bytes(), b"socketpair=29+30:fd=8:t=1:p=2:i=30:n=4");
        assert_eq!(end(29, 30).as_bytes(), b"socketpair=29+30:fd=8:t=1:p=2:i=29:n=4");
    }
}
