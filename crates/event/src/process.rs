//! Which process an event is of, and what it is called.

use std::fmt;
use std::fs;

/// The longest name that the kernel keeps of a process, less its NUL (TASK_COMM_LEN, proc_pid_comm(5)).
const MAX_COMM_LEN: usize = 15;

/// A process as the collector tells it from others. Its own number says little: every pid namespace
/// (pid_namespaces(7)) has a process 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProcessId {
    /// The number that it has where the collector is.
    Here(u32),
    /// The number that it sees itself; the collector cannot see it, or could not learn which one it is.
    Elsewhere(u32),
}

impl ProcessId {
    /// The number that the collector's ps(1) shows.
    pub fn here(self) -> Option<u32> {
        match self {
            Self::Here(pid) => Some(pid),
            Self::Elsewhere(_) => None,
        }
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here(pid) => pid.fmt(f),
            // Its own number is most likely that of a stranger here.
            Self::Elsewhere(_) => f.write_str("?"),
        }
    }
}

/// What the kernel says of a process or thread that has not ended (proc_pid_stat(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// As ps(1) shows it: `R`, `S`, `D`, `T`, …
    pub state: char,
    /// Process id of the parent.
    pub parent: u32,
    /// When it was started, in clock ticks since boot.
    pub started: u64,
}

impl Stat {
    /// `None`: none has this number, or the one that had it has ended and nobody has waited for it yet.
    pub fn of(pid: u32) -> Option<Self> {
        /// The fields behind the name, as proc_pid_stat(5) numbers them.
        const STATE: usize = 3;
        const PPID: usize = 4;
        const STARTTIME: usize = 22;
        let stat = proc_text(&format!("/proc/{pid}/stat"))?;
        // The name before may have any character in it.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let field = |number: usize| fields.get(number - STATE);
        let state = field(STATE)?.chars().next()?;
        let stat = Self { state, parent: field(PPID)?.parse().ok()?, started: field(STARTTIME)?.parse().ok()? };
        (!matches!(state, 'Z' | 'X')).then_some(stat)
    }
}

/// What a file of proc(5) says; None: it cannot be read. A process's name in it may be any bytes, and the kernel cuts names
/// within characters: what is no UTF-8 is replaced.
pub fn proc_text(path: &str) -> Option<String> {
    fs::read(path).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// What people call a process of this name in the kernel and this executable: as ps(1) shows it, but whole where the
/// kernel has cut it off. They differ where one executable has many names, as busybox and redis-server do.
pub fn process_name<'a>(comm: Option<&'a str>, exe: Option<&'a str>) -> Option<&'a str> {
    let base = exe.and_then(|exe| exe.rsplit('/').next()).unwrap_or_default();
    let base = base.strip_suffix(" (deleted)").unwrap_or(base);
    let name = match comm.unwrap_or_default() {
        "" => base,
        comm if comm.len() >= MAX_COMM_LEN && base.starts_with(comm) => base,
        comm => comm,
    };
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_and_none() {
        let own = Stat::of(std::process::id()).unwrap();
        assert_eq!(own.parent, std::os::unix::process::parent_id());
        assert!(Stat::of(own.parent).is_none_or(|parent| parent.started <= own.started));
        assert_eq!(Stat::of(0), None);
    }

    #[test]
    fn a_name_that_the_kernel_has_cut_within_a_character() {
        let read = || {
            let own = fs::read_link("/proc/thread-self").unwrap();
            Stat::of(own.file_name().unwrap().to_str().unwrap().parse().unwrap())
        };
        let named = std::thread::Builder::new().name("é".repeat(8)).spawn(read).unwrap();
        assert_eq!(named.join().unwrap().unwrap().state, 'R');
    }

    #[test]
    fn names() {
        assert_eq!(process_name(Some("redis-server"), Some("/usr/bin/redis-check-rdb")), Some("redis-server"));
        assert_eq!(process_name(Some("a-name-that-is-"), Some("/x/a-name-that-is-long")), Some("a-name-that-is-long"));
        assert_eq!(process_name(None, Some("/usr/bin/cat (deleted)")), Some("cat"));
        assert_eq!(process_name(Some(""), Some("")), None);
    }
}
