//! Names of processes, as they are recorded: whatever has a number here and now may be somebody else.

use std::collections::HashMap;
use std::sync::Arc;

use socktrace_event::{Event, ProcessId, Stat, What, printable, process_name};

/// So many processes are told apart.
const MAX_PROCESSES: usize = 1 << 20;
/// NAME_MAX, each byte written `\xNN`: more of a name is not shown.
const MAX_NAME_LEN: usize = 4 * 255;

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
    /// None is known yet. `live`: they are those of this machine and of now.
    pub fn new(live: bool) -> Self {
        Self { live, traced: HashMap::new(), former: 0, last: None, sockets: 0 }
    }

    /// Learns from an event.
    pub fn note(&mut self, event: &Event<'_>) {
        let Some(process) = event.process() else { return };
        if !self.has_room_for(process) {
            return;
        }
        match &event.what {
            What::HostInit(_) | What::HostShutdown(_) => {}
            What::Start(begun) | What::Fork(begun) => {
                let name = process_name(begun.comm.as_deref(), begun.exe.as_deref()).unwrap_or_default();
                let name = printable::beginning(name, MAX_NAME_LEN).into();
                let started = self.started(process);
                let introduced_ns = event.time_ns();
                let before =
                    self.traced.insert(process, Process { name, started, introduced_ns, ..Process::default() });
                self.sockets += before.as_ref().map_or(0, |before| u64::from(before.sockets));
                // A process that executes another program starts again.
                self.former += usize::from(before.is_some() && matches!(event.what, What::Fork(_)));
            }
            What::Exit(exit) => {
                self.note_process(process);
                let known = self.traced.entry(process).or_default();
                known.ended = true;
                known.sockets = exit.sockets.unwrap_or(0);
            }
            // One that a child executes (posix_spawn(3)) is not this process's own end.
            What::Exec(exec) if exec.raw.is_none() => {
                self.note_process(process);
                let known = self.traced.entry(process).or_default();
                // By streams, the program's own first words may be there sooner.
                if event.time_ns() < known.introduced_ns {
                    return;
                }
                known.ended = exec.untraced.is_some();
                known.becomes = match exec.untraced {
                    Some(_) => None,
                    None => Some(exec.program.as_deref().unwrap_or_default().to_owned()),
                };
                known.sockets = exec.sockets.unwrap_or(0);
            }
            // It goes on as what it was.
            What::Fail(fail) if fail.program.is_some() => {
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
    use socktrace_event::{Begun, Data, Exec, Exit, Fail};

    use super::*;

    fn of(pid: u32, what: What<'_>) -> Event<'_> {
        Event { pid: Some(pid), what, ..Event::default() }
    }

    fn begun<'a>(exe: &'a str, comm: Option<&'a str>) -> Begun<'a> {
        Begun { exe: Some(exe.into()), comm: comm.map(Into::into), ppid: None }
    }

    fn start(pid: u32, exe: &str) -> Event<'_> {
        of(pid, What::Start(begun(exe, None)))
    }

    #[test]
    fn names_are_what_was_recorded() {
        let mut processes = Processes::new(true);
        let own = std::process::id();
        processes.note(&start(7, "/usr/bin/curl"));
        processes.note(&of(8, What::Data(Data::default())));
        processes.note(&of(own, What::Start(begun("/usr/bin/redis-check-rdb", Some("redis-server")))));
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
        processes.note(&of(7, What::Fork(begun("/bin/b", None))));
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
        processes.note(&of(own, What::Exit(Exit::default())));
        assert!(processes.running().is_empty());
    }

    #[test]
    fn programs_that_are_executed() {
        let mut processes = Processes::new(false);
        let exec = |untraced: Option<&'static str>| {
            let (program, untraced) = (Some("/bin/x".into()), untraced.map(Into::into));
            of(7, What::Exec(Exec { program, untraced, sockets: Some(2), raw: None }))
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
        processes.note(&Event { ts_ns: after, ..start(8, "/bin/x") });
        let late = Exec { program: Some("/bin/x".into()), ..Exec::default() };
        processes.note(&Event { ts_ns: before, ..of(8, What::Exec(late)) });
        assert_eq!(processes.missing(), [""; 0]);
        // It could not be executed after all, is tried again, and goes on.
        processes.note(&exec(None));
        processes.note(&of(7, What::Fail(Fail { program: Some("/bin/x".into()), ..Fail::default() })));
        assert_eq!((processes.missing(), processes.sockets_made()), (vec![], 4));
        processes.note(&of(7, What::Exit(Exit { sockets: Some(3), ..Exit::default() })));
        assert_eq!(processes.sockets_made(), 5);
    }
}
