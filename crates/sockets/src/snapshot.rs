//! All sockets at a moment.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::error::{Error, Unseen};
use crate::process::{self, Process, Users};
use crate::socket::{Holder, Peer, Socket};
use crate::{Address, diag, namespace};

/// The sockets there are, and the processes that hold them.
#[derive(Debug)]
pub struct Snapshot {
    /// By inode number, which is one for all namespaces.
    pub sockets: BTreeMap<u32, Socket>,
    /// Those that hold at least one, by their numbers.
    pub processes: BTreeMap<u32, Process>,
    /// Inode number of this process's own network namespace.
    pub network: u64,
    /// What could not be looked at.
    pub unseen: Unseen,
    /// Names of the users who made sockets.
    users: BTreeMap<u32, String>,
}

impl Snapshot {
    /// Looks at every network namespace that this process may enter, and at every process.
    ///
    /// # Errors
    ///
    /// The kernel tells nothing of sockets, or /proc cannot be read.
    pub fn take() -> Result<Self, Error> {
        let network = namespace::own().map_err(Error::Diag)?;
        let pids = process::processes()?;
        let mut snapshot = Self {
            sockets: BTreeMap::new(),
            processes: BTreeMap::new(),
            network,
            unseen: Unseen::default(),
            users: BTreeMap::new(),
        };
        let own = diag::sockets(network).map_err(Error::Diag)?;
        let mut others = namespace::all(&pids);
        others.remove(&network);
        snapshot.add(own);
        for (&inode, path) in &others {
            match namespace::sockets_in(inode, path) {
                Ok(sockets) => snapshot.add(sockets),
                // The last process in it has ended.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => snapshot.unseen.namespaces.push((inode, error)),
            }
        }
        snapshot.look_at(&pids);
        snapshot.forget_closed(&others)?;
        snapshot.resolve();
        Ok(snapshot)
    }

    fn add(&mut self, sockets: Vec<Socket>) {
        self.sockets.extend(sockets.into_iter().map(|socket| (socket.inode, socket)));
    }

    fn look_at(&mut self, pids: &[u32]) {
        let mut users = Users::default();
        for &pid in pids {
            let Ok(found) = process::sockets_of(pid) else {
                self.unseen.processes += usize::from(process::has_memory(pid));
                continue;
            };
            let mut holds = false;
            for (inode, fd) in found {
                let Some(socket) = self.sockets.get_mut(&inode) else { continue };
                holds = true;
                match socket.holders.last_mut().filter(|holder| holder.pid == pid) {
                    Some(holder) => holder.fds.push(fd),
                    None => socket.holders.push(Holder { pid, fds: vec![fd] }),
                }
            }
            if holds && let Some(process) = Process::of(pid, &mut users) {
                self.processes.insert(pid, process);
            }
        }
        let processes = &self.processes;
        for socket in self.sockets.values_mut() {
            // One that has ended meanwhile.
            socket.holders.retain(|holder| processes.contains_key(&holder.pid));
            socket.holders.iter_mut().for_each(|holder| holder.fds.sort_unstable());
        }
        let owners: BTreeSet<_> = self.sockets.values().filter_map(|socket| socket.owner).collect();
        self.users = owners.into_iter().filter_map(|uid| Some((uid, users.name(uid)?))).collect();
    }

    /// Sockets that nobody holds may have been closed before processes were looked at.
    fn forget_closed(&mut self, others: &BTreeMap<u64, PathBuf>) -> Result<(), Error> {
        let unheld = self.sockets.values().filter(|socket| socket.holders.is_empty());
        let networks: BTreeSet<_> = unheld.map(|socket| socket.network).collect();
        let mut there = BTreeSet::new();
        for network in networks {
            let sockets = match others.get(&network) {
                None => diag::sockets(self.network).map_err(Error::Diag)?,
                // When it is gone, its sockets are.
                Some(path) => namespace::sockets_in(network, path).unwrap_or_default(),
            };
            there.extend(sockets.iter().map(|socket| socket.inode));
        }
        self.sockets.retain(|inode, socket| !socket.holders.is_empty() || there.contains(inode));
        Ok(())
    }

    /// Makes relative paths absolute where the file that they lead to is the socket's.
    fn resolve(&mut self) {
        for socket in self.sockets.values_mut() {
            let Some((relative, file)) = socket.address.relative().zip(socket.file) else { continue };
            let found = socket.holders.iter().find_map(|holder| process::absolute(holder.pid, relative, file));
            if let Some(path) = found {
                socket.address = Address::Path(path.into_os_string().into_vec());
            }
        }
    }

    /// The other end of a socket. Of one that waits to be accepted, the listening socket.
    pub fn peer(&self, socket: &Socket) -> Option<&Socket> {
        match socket.peer {
            Peer::Socket(inode) | Peer::Waiting(Some(inode)) => self.sockets.get(&inode),
            _ => None,
        }
    }

    /// A socket and, where it is known, its other end.
    pub fn ends<'a>(&'a self, socket: &'a Socket) -> impl Iterator<Item = &'a Socket> {
        std::iter::once(socket).chain(self.peer(socket))
    }

    /// The name of a user who made a socket.
    pub fn user(&self, uid: u32) -> Option<&str> {
        self.users.get(&uid).map(String::as_str)
    }
}

/// The file at a path, as [`Socket::file`] has it, if there is one: whatever path its socket was bound by.
pub fn file_at(path: &OsStr) -> Option<(u64, u32)> {
    if path.as_bytes().is_empty() {
        return None;
    }
    std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino() as u32))
}
