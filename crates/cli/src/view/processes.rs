//! Names of processes, as they are recorded: whatever has a number here and now may be somebody else.

use std::collections::HashMap;
use std::sync::Arc;

use socktrace_collect::{Event, EventType, ProcessId, Stat, printable, process_name};

/// So many processes are told apart.
const MAX_PROCESSES: usize = 1 << 20;
/// NAME_MAX, each byte written `\xNN`: more of a name is not shown.
const MAX_NAME_LEN: usize = 4 * 255;

use super::clock::time_of;

#[derive(Debug, Default)]
struct Process {
    name: Arc<str>,
    ended: bool,
    /// When it was started, in clock ticks since boot (proc_pid_stat(5)): by this and its number it is told from others.
    started: Option<u64>,
    /// When the program introduced itself, nanoseconds since the Unix epoch.
    introduced_ns: u64,
    /// The program that it is about to become; it will introduce itself, if it is traced.
    becomes: Option<String>,
    /// UNIX sockets that it has made, as far as it has said.
    sockets: u32,
}

/// The traced processes, and others that they speak to.
#[derive(Debug)]
pub struct Processes {
    /// Whether the processes are those of this machine and this moment, so that /proc can be asked.
    live: bool,
    traced: HashMap<ProcessId, Process>,
    /// How many there were before the kernel gave their numbers out again.
    former: usize,
    /// The one that was noted last.
    last: Option<ProcessId>,
    /// UNIX sockets made by programs that are no more.
    sockets: u64,
}

impl Processes {
    pub fn new(live: bool) -> Self {
        Self { live, traced: HashMap::new(), former: 0, last: None, sockets: 0 }
    }

    /// Learns from an event.
    pub fn note(&mut self, event: &Event<'_>) {
        let Some(process) = event.process() else { return };
        if !self.has_room_for(process) {
            return;
        }
        match event.kind {
            EventType::HostInit | EventType::HostShutdown => {}
            EventType::Start | EventType::Fork => {
                let name = process_name(event.comm.as_deref(), event.exe.as_deref()).unwrap_or_default();
                let name = printable::beginning(name, MAX_NAME_LEN).into();
                let started = self.started(process);
                let before = self
                    .traced
                    .insert(process, Process { name, started, introduced_ns: time_of(event), ..Process::default() });
                self.sockets += before.as_ref().map_or(0, |before| u64::from(before.sockets));
                // A process that executes another program starts again.
                self.former += usize::from(before.is_some() && event.kind == EventType::Fork);
            }
            EventType::Exit => {
                self.note_process(process);
                let known = self.traced.entry(process).or_default();
                known.ended = true;
                known.sockets = event.sockets.unwrap_or(0);
            }
            // One that a child executes (posix_spawn(3)) is not this process's own end.
            EventType::Exec if event.raw.is_none() => {
                self.note_process(process);
                let known = self.traced.entry(process).or_default();
                // By streams, the program's own first words may be there sooner.
                if time_of(event) < known.introduced_ns {
                    return;
                }
                known.ended = event.untraced.is_some();
                known.becomes = match event.untraced {
                    Some(_) => None,
                    None => Some(event.program.as_deref().unwrap_or_default().to_owned()),
                };
                known.sockets = event.sockets.unwrap_or(0);
            }
            // It goes on as what it was.
            EventType::Fail if event.program.is_some() => {
                let known = self.traced.entry(process).or_default();
                (known.ended, known.becomes) = (false, None);
            }
            _ => self.note_process(process),
        }
    }

    /// Learns that there is such a process.
    pub fn note_process(&mut self, process: ProcessId) {
        if self.last != Some(process) && self.has_room_for(process) {
            if !self.traced.contains_key(&process) {
                let started = self.started(process);
                self.traced.insert(process, Process { started, ..Process::default() });
            }
            self.last = Some(process);
        }
    }

    fn has_room_for(&self, process: ProcessId) -> bool {
        self.traced.len() < MAX_PROCESSES || self.traced.contains_key(&process)
    }

    fn started(&self, process: ProcessId) -> Option<u64> {
        process.here().filter(|_| self.live).and_then(Stat::of).map(|stat| stat.started)
    }

    /// A traced process's name; empty: it is not known.
    pub fn name(&self, process: ProcessId) -> Arc<str> {
        self.traced.get(&process).map(|known| Arc::clone(&known.name)).unwrap_or_default()
    }

    /// `name[pid]`
    pub fn show(&self, process: ProcessId) -> String {
        label(&self.name(process), process)
    }

    /// How many have been seen.
    pub fn count(&self) -> usize {
        self.traced.len() + self.former
    }

    /// UNIX sockets that were made, as far as is known: a process that is killed does not say.
    pub fn sockets_made(&self) -> u64 {
        self.sockets + self.traced.values().map(|process| u64::from(process.sockets)).sum::<u64>()
    }

    /// Programs that should have been traced and have not introduced themselves.
    pub fn missing(&self) -> Vec<String> {
        let name = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
        let missing = |(process, known): (&ProcessId, &Process)| {
            // One whose number here was not known when it said so may have introduced itself under that.
            process.here()?;
            Some(label(&name(known.becomes.as_deref()?), *process))
        };
        let mut all: Vec<_> = self.traced.iter().filter_map(missing).collect();
        all.sort_unstable();
        all
    }

    /// Those that have neither said that they end nor are gone.
    pub fn running(&self) -> Vec<u32> {
        let runs = |(process, known): (&ProcessId, &Process)| {
            // Of one that was gone before it could be looked at, the number says nothing.
            let (pid, started) = (process.here()?, known.started?);
            (!known.ended && Stat::of(pid).map(|stat| stat.started) == Some(started)).then_some(pid)
        };
        let mut pids: Vec<u32> = self.traced.iter().filter_map(runs).collect();
        pids.sort_unstable();
        pids
    }

    /// `name[pid]` of the other end, of which an open event gives the executable.
    pub fn show_peer(&self, process: ProcessId, exe: Option<&str>) -> String {
        match self.traced.get(&process) {
            Some(known) => label(&known.name, process),
            None => label(printable::beginning(process_name(None, exe).unwrap_or_default(), MAX_NAME_LEN), process),
        }
    }
}

/// `name[pid]`
pub fn label(name: &str, process: ProcessId) -> String {
    format!("{}[{process}]", if name.is_empty() { "?" } else { name })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(pid: u32, exe: &str) -> Event<'_> {
        Event { kind: EventType::Start, pid: Some(pid), exe: Some(exe.into()), ..Event::default() }
    }

    #[test]
    fn names_are_what_was_recorded() {
        let mut processes = Processes::new(true);
        let own = std::process::id();
        processes.note(&start(7, "/usr/bin/curl"));
        processes.note(&Event { pid: Some(8), kind: EventType::Data, ..Event::default() });
        processes.note(&Event { comm: Some("redis-server".into()), ..start(own, "/usr/bin/redis-check-rdb") });
        let show = |pid| processes.show(ProcessId::Here(pid));
        assert_eq!([show(7), show(8)], ["curl[7]", "?[8]"]);
        assert_eq!(show(own), format!("redis-server[{own}]"));
        let show_peer = |pid, exe| processes.show_peer(ProcessId::Here(pid), exe);
        assert_eq!(show_peer(9, Some("/usr/bin/redis-server")), "redis-server[9]");
        assert_eq!(show_peer(10, None), "?[10]");
        assert_eq!(processes.show_peer(ProcessId::Elsewhere(7), Some("/usr/bin/cat")), "cat[?]");
    }

    #[test]
    fn processes_of_one_number_in_two_pid_namespaces() {
        let mut processes = Processes::new(false);
        processes.note(&Event { host_pid: Some(70), ..start(1, "/bin/alpha") });
        processes.note(&Event { host_pid: Some(80), ..start(1, "/bin/beta") });
        processes.note(&start(1, "/sbin/init"));
        let shown = [70, 80, 1].map(|pid| processes.show(ProcessId::Here(pid)));
        assert_eq!(shown, ["alpha[70]", "beta[80]", "init[1]"]);
        assert_eq!(processes.count(), 3);
    }

    #[test]
    fn a_number_that_is_given_out_again() {
        let mut processes = Processes::new(false);
        processes.note(&start(7, "/bin/a"));
        let name = processes.name(ProcessId::Here(7));
        processes.note(&Event { kind: EventType::Fork, ..start(7, "/bin/b") });
        assert_eq!((&*name, &*processes.show(ProcessId::Here(7)), processes.count()), ("a", "b[7]", 2));
    }

    #[test]
    fn running_ones() {
        let mut processes = Processes::new(true);
        let own = std::process::id();
        processes.note(&start(own, ""));
        assert_eq!(processes.running(), [own]);
        // Another process had the number when it was recorded.
        processes.traced.get_mut(&ProcessId::Here(own)).unwrap().started = Some(1);
        assert!(processes.running().is_empty());
        // Process 1 of another namespace is not this machine's.
        processes.note(&Event { host_pid: Some(0), ..start(1, "") });
        assert!(processes.running().is_empty());
        processes.note(&start(own, ""));
        processes.note(&Event { kind: EventType::Exit, pid: Some(own), ..Event::default() });
        assert!(processes.running().is_empty());
    }

    #[test]
    fn programs_that_are_executed() {
        let mut processes = Processes::new(false);
        let exec = |untraced: Option<&'static str>| Event {
            kind: EventType::Exec,
            pid: Some(7),
            program: Some("/bin/x".into()),
            untraced: untraced.map(Into::into),
            sockets: Some(2),
            ..Event::default()
        };
        processes.note(&start(7, "/bin/sh"));
        processes.note(&exec(None));
        assert_eq!((processes.missing(), processes.sockets_made()), (vec!["x[7]".to_owned()], 2));
        processes.note(&start(7, "/bin/x"));
        assert_eq!((processes.missing(), processes.sockets_made()), (vec![], 2));
        processes.note(&exec(Some("setuid")));
        assert_eq!((processes.missing(), processes.sockets_made()), (vec![], 4));
        // What arrives late is no news.
        let (before, after) = (Some(1_000_000_000), Some(2_000_000_000));
        processes.note(&Event { ts_ns: after, pid: Some(8), ..start(8, "/bin/x") });
        processes.note(&Event { ts_ns: before, pid: Some(8), sockets: None, ..exec(None) });
        assert_eq!(processes.missing(), [""; 0]);
        // It could not be executed after all, is tried again, and goes on.
        processes.note(&exec(None));
        processes.note(&Event {
            kind: EventType::Fail,
            pid: Some(7),
            program: Some("/bin/x".into()),
            ..Event::default()
        });
        assert_eq!((processes.missing(), processes.sockets_made()), (vec![], 4));
        processes.note(&Event { kind: EventType::Exit, pid: Some(7), sockets: Some(3), ..Event::default() });
        assert_eq!(processes.sockets_made(), 5);
    }
}
