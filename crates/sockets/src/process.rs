//! Processes, as /proc has them (proc(5)).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};
use socktrace_event::{PathError, Stat, proc_text, process_name};

use crate::address::escaped;
use crate::cgroup::Cgroups;
use crate::error::Error;

/// A process.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its number in this process's pid namespace.
    pub pid: u32,
    /// Its name in the kernel.
    pub comm: Vec<u8>,
    /// Its executable; None where that may not be seen.
    pub exe: Option<PathBuf>,
    /// Its effective user.
    pub uid: u32,
    /// That user's name.
    pub user: Option<String>,
    /// Where it is among cgroups.
    pub cgroups: Cgroups,
}

impl Process {
    /// None: it has ended.
    pub fn of(pid: u32, users: &mut Users) -> Option<Self> {
        let folder = folder(pid);
        let status = proc_text(&format!("/proc/{pid}/status"))?;
        let users_line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
        let uid = users_line.split_whitespace().nth(1)?.parse().ok()?;
        let mut comm = fs::read(folder.join("comm")).ok()?;
        if comm.last() == Some(&b'\n') {
            comm.pop();
        }
        let exe = fs::read_link(folder.join("exe")).ok();
        Some(Self { pid, comm, exe, uid, user: users.name(uid), cgroups: Cgroups::of(pid) })
    }

    /// What people call it, as events have names (docs/gttr.md, "Names").
    pub fn name(&self) -> String {
        let (comm, exe) = (escaped(&self.comm), self.exe.as_ref().map(|exe| escaped(exe.as_os_str().as_bytes())));
        process_name(Some(&comm), exe.as_deref()).unwrap_or("?").to_owned()
    }

    /// Whether it has this name, or its executable has.
    pub fn is_named(&self, name: &OsStr) -> bool {
        self.comm == name.as_bytes() || self.exe.as_deref().and_then(Path::file_name) == Some(name)
    }
}

/// Names of users by their numbers; each is asked for once.
#[derive(Debug, Default)]
pub struct Users(HashMap<u32, Option<String>>);

impl Users {
    /// None: there is no such user on this machine.
    pub fn name(&mut self, uid: u32) -> Option<String> {
        let ask = || User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name);
        self.0.entry(uid).or_insert_with(ask).clone()
    }
}

/// The numbers of all processes that can be seen, in order.
///
/// # Errors
///
/// /proc cannot be read.
pub fn processes() -> Result<Vec<u32>, Error> {
    let entries = fs::read_dir("/proc").map_err(PathError::io("/proc".as_ref(), "cannot be read"))?;
    let mut pids: Vec<_> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    Ok(pids)
}

/// The parents of a process, itself first.
pub fn line_of(pid: u32) -> Vec<u32> {
    let mut line = vec![pid];
    while let Some(parent) = line.last().and_then(|&pid| Stat::of(pid)).map(|stat| stat.parent) {
        if parent == 0 || line.contains(&parent) {
            break;
        }
        line.push(parent);
    }
    line
}

/// The sockets that a process has descriptors of, of any family: inode numbers and descriptors. Empty: it has none, or has
/// ended.
///
/// # Errors
///
/// It may not be looked at.
pub(crate) fn sockets_of(pid: u32) -> io::Result<Vec<(u32, i32)>> {
    let folder = folder(pid);
    let found = sockets_in(&folder.join("fd"))?;
    if !found.is_empty() {
        return Ok(found);
    }
    // Of a process whose first thread has ended, the others still have the descriptors.
    if Stat::of(pid).is_some() {
        return Ok(found);
    }
    let threads = fs::read_dir(folder.join("task")).into_iter().flatten().flatten();
    let mut lists = threads.map(|thread| sockets_in(&thread.path().join("fd")).unwrap_or_default());
    Ok(lists.find(|list| !list.is_empty()).unwrap_or_default())
}

/// Neither a thread of the kernel's nor one that has ended, which have no sockets.
pub(crate) fn has_memory(pid: u32) -> bool {
    proc_text(&format!("/proc/{pid}/status")).is_some_and(|status| status.contains("\nVmSize:"))
}

fn sockets_in(folder: &Path) -> io::Result<Vec<(u32, i32)>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return Err(error),
        Err(_) => return Ok(Vec::new()),
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let Ok(to) = fs::read_link(entry.path()) else { continue };
        let inode = to.to_str().and_then(|to| to.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
        let fd = entry.file_name().to_str().and_then(|name| name.parse().ok());
        found.extend(inode.zip(fd));
    }
    Ok(found)
}

fn folder(pid: u32) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

/// The path that a relative one leads to in a process, if it is that file.
pub(crate) fn absolute(pid: u32, relative: &Path, file: (u64, u32)) -> Option<PathBuf> {
    let cwd = folder(pid).join("cwd");
    let metadata = fs::metadata(cwd.join(relative)).ok()?;
    // sock_diag(7) has the lower half of an inode number.
    let is_it = (metadata.dev(), metadata.ino() as u32) == file;
    if !is_it {
        return None;
    }
    Some(fs::read_link(&cwd).ok()?.join(relative.strip_prefix(".").unwrap_or(relative)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process() {
        let own = std::process::id();
        let process = Process::of(own, &mut Users::default()).unwrap();
        let exe = std::env::current_exe().unwrap();
        assert!(process.is_named(exe.file_name().unwrap()) && !process.is_named("no such name".as_ref()));
        assert_eq!(process.uid, rustix::process::geteuid().as_raw());
        assert!(processes().unwrap().contains(&own));
        assert!(Process::of(u32::MAX, &mut Users::default()).is_none());
        assert_eq!(line_of(own)[..2], [own, std::os::unix::process::parent_id()]);
    }

    #[test]
    fn names_are_bytes() {
        let process =
            Process { pid: 1, comm: b"a\xff\n".into(), exe: None, uid: 0, user: None, cgroups: Cgroups::default() };
        assert_eq!(process.name(), r"a\xff\x0a");
    }
}
