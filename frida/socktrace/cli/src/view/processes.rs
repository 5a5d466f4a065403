//! Names of processes.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use socktrace_server::{Event, EventType};

/// A command's name in the kernel, less its NUL (TASK_COMM_LEN, proc_pid_comm(5)).
const MAX_COMM: usize = 15;

#[derive(Debug, Default)]
struct Process {
    name: String,
    ended: bool,
}

/// The traced processes, and others that they speak to.
#[derive(Debug)]
pub struct Processes {
    /// Whether the processes are those of this machine and this moment, so that /proc can be asked.
    live: bool,
    traced: HashMap<u32, Process>,
    /// The one that was noted last.
    last: Option<u32>,
    /// Names of others, by the pid and executable that an open event gives.
    others: HashMap<(u32, Option<String>), String>,
}

impl Processes {
    pub fn new(live: bool) -> Self {
        Self { live, traced: HashMap::new(), last: None, others: HashMap::new() }
    }

    /// Learns from an event.
    pub fn note(&mut self, event: &Event<'_>) {
        let Some(pid) = event.pid else { return };
        match event.kind {
            EventType::HostInit | EventType::HostShutdown => {}
            EventType::Start | EventType::Fork => {
                let name = self.name_of(pid, event.exe.as_deref());
                self.traced.insert(pid, Process { name: name.unwrap_or_default(), ended: false });
            }
            EventType::Exit => self.traced.entry(pid).or_default().ended = true,
            _ => self.note_pid(pid),
        }
    }

    /// Learns that there is such a process.
    pub fn note_pid(&mut self, pid: u32) {
        if self.last != Some(pid) {
            self.traced.entry(pid).or_default();
            self.last = Some(pid);
        }
    }

    /// `name[pid]`
    pub fn show(&self, pid: u32) -> String {
        let name = self.traced.get(&pid).map(|process| &*process.name).unwrap_or_default();
        format!("{}[{pid}]", if name.is_empty() { "?" } else { name })
    }

    pub fn is_traced(&self, pid: u32) -> bool {
        self.traced.contains_key(&pid)
    }

    /// How many have been seen.
    pub fn count(&self) -> usize {
        self.traced.len()
    }

    /// Those that have neither said that they end nor are gone.
    pub fn running(&self) -> Vec<u32> {
        let runs = |pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // The state stands behind the name, which may itself hold anything (proc_pid_stat(5)).
            let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.bytes().next());
            !matches!(state, None | Some(b'Z' | b'X'))
        };
        let mut pids: Vec<u32> = self.traced.iter().filter(|(_, p)| !p.ended).map(|(&pid, _)| pid).collect();
        pids.retain(|&pid| runs(pid));
        pids.sort_unstable();
        pids
    }

    /// `name[pid]` of the other end.
    pub fn show_peer(&mut self, pid: u32, exe: Option<&str>) -> String {
        if self.is_traced(pid) {
            return self.show(pid);
        }
        let key = (pid, exe.map(str::to_owned));
        if let Some(name) = self.others.get(&key) {
            return format!("{name}[{pid}]");
        }
        let name = self.name_of(pid, exe).unwrap_or_else(|| "?".into());
        let shown = format!("{name}[{pid}]");
        self.others.insert(key, name);
        shown
    }

    /// A process's name: as ps shows it while it can be asked, else its executable's.
    ///
    /// They differ where one executable has many names, as busybox and redis-server do.
    fn name_of(&self, pid: u32, exe: Option<&str>) -> Option<String> {
        let base = exe.and_then(|exe| Path::new(exe).file_name()?.to_str()).filter(|name| !name.is_empty());
        let comm = if self.live { comm_of(pid, exe) } else { None };
        match (comm, base) {
            // Cut off in the kernel.
            (Some(comm), Some(base)) if comm.len() >= MAX_COMM && base.starts_with(&comm) => Some(base.to_owned()),
            (Some(comm), _) => Some(comm),
            (None, base) => base.map(str::to_owned),
        }
    }
}

/// The name of a process of ours, unless the pid is another process's here than where the event comes from.
fn comm_of(pid: u32, exe: Option<&str>) -> Option<String> {
    let here = fs::read_link(format!("/proc/{pid}/exe"));
    if let (Ok(here), Some(exe)) = (here, exe)
        && here.to_str() != Some(exe)
    {
        return None;
    }
    let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
    let comm = String::from_utf8_lossy(comm.strip_suffix(b"\n").unwrap_or(&comm)).into_owned();
    (!comm.is_empty()).then_some(comm)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(pid: u32, exe: &str) -> Event<'_> {
        Event { kind: EventType::Start, pid: Some(pid), exe: Some(exe.into()), ..Event::default() }
    }

    #[test]
    fn recorded_ones_are_named_by_their_executable() {
        let mut processes = Processes::new(false);
        processes.note(&start(7, "/usr/bin/curl"));
        processes.note(&Event { pid: Some(8), kind: EventType::Data, ..Event::default() });
        assert_eq!((processes.show(7), processes.show(8)), ("curl[7]".into(), "?[8]".into()));
        assert_eq!(processes.show_peer(9, Some("/usr/bin/redis-server")), "redis-server[9]");
        assert_eq!(processes.show_peer(10, None), "?[10]");
    }

    #[test]
    fn running_ones() {
        let mut processes = Processes::new(true);
        let own = std::process::id();
        processes.note(&start(own, ""));
        assert_eq!(processes.running(), [own]);
        processes.note(&Event { kind: EventType::Exit, pid: Some(own), ..Event::default() });
        assert!(processes.running().is_empty());
    }
}
