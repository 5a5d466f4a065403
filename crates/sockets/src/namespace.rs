//! Network namespaces (network_namespaces(7)): each has sockets of its own.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fd::AsFd;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::diag;
use crate::socket::Socket;

/// Where ip-netns(8) keeps those that no process need be in.
const KEPT: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// This thread's own, by inode number.
pub(crate) fn own() -> io::Result<u64> {
    fs::metadata("/proc/thread-self/ns/net").map(|namespace| namespace.ino())
}

/// Files that lead into each namespace there is, by inode number.
pub(crate) fn all(pids: &[u32]) -> BTreeMap<u64, PathBuf> {
    let of_processes = pids.iter().map(|pid| Path::new("/proc").join(pid.to_string()).join("ns/net"));
    let kept = KEPT.into_iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    let mut found = BTreeMap::new();
    // Files that ip-netns(8) has made and bound nothing to are of another device.
    let device = fs::metadata("/proc/self/ns/net").map(|namespace| namespace.dev()).ok();
    for path in of_processes.chain(kept.map(|entry| entry.path())) {
        let namespace = fs::metadata(&path).ok().filter(|namespace| Some(namespace.dev()) == device);
        if let Some(namespace) = namespace {
            found.entry(namespace.ino()).or_insert(path);
        }
    }
    found
}

/// The sockets of another namespace: a thread goes in, asks, and ends.
pub(crate) fn sockets_in(network: u64, path: &Path) -> io::Result<Vec<Socket>> {
    let namespace = File::open(path)?;
    let ask = move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        // A process may have ended meanwhile, and another one have its number.
        diag::sockets(own().unwrap_or(network))
    };
    let thread = thread::Builder::new().name("namespace".into()).spawn(ask)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that was in it has failed")))
}
