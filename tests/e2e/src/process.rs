//! Processes that are not started by the test itself, but by Frida.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Once;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, set_child_subreaper, waitpid};

use crate::stage::{PATIENCE, until_within};

/// A program under test; killed if the test ends before it does.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    ended: bool,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
    /// It ended while Frida was its parent, so its status went there.
    Unseen,
}

/// Programs that Frida starts become our children when Frida ends (PR_SET_CHILD_SUBREAPER, prctl(2)).
pub(crate) fn adopt_orphans() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| set_child_subreaper(Some(rustix::process::getpid())).expect("PR_SET_CHILD_SUBREAPER"));
}

impl Process {
    /// A process that is a child of ours, or of a Frida that has ended.
    pub fn of_pid(pid: u32) -> Self {
        Self { pid: to_pid(pid), ended: false }
    }

    /// Starts a program without Frida.
    pub fn start(program: &Path, args: &[&str], input: Stdio, output: &Path) -> Self {
        Self::start_command(Command::new(program).args(args), input, output)
    }

    /// The same, of a command with an environment, say.
    pub fn start_command(command: &mut Command, input: Stdio, output: &Path) -> Self {
        let file = File::create(output).unwrap_or_else(|error| panic!("{}: {error}", output.display()));
        Self::spawn(command.stdin(input).stdout(file.try_clone().expect("a second descriptor")).stderr(file))
    }

    /// The same, of a command that has its input and output.
    #[expect(clippy::zombie_processes, reason = "waited for by pid, as those are that Frida has started")]
    pub fn spawn(command: &mut Command) -> Self {
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self::of_pid(child.id())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().cast_unsigned()
    }

    /// Whether its first thread sleeps, in a call say (the state of proc(5)'s stat).
    pub fn is_asleep(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
    }

    /// Whether it has not ended; whoever waits for it finds out how it did.
    pub fn is_running(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        send_signal(self.pid(), signal);
    }

    fn poll(&mut self) -> Option<Ending> {
        let ending = match waitpid(Some(self.pid), WaitOptions::NOHANG) {
            Ok(None) => return None,
            Ok(Some((_, status))) => ending(status),
            Err(Errno::CHILD) => Ending::Unseen,
            Err(error) => panic!("waitpid for process {}: {error}", self.pid()),
        };
        self.ended = true;
        Some(ending)
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self) -> Ending {
        self.wait_for(PATIENCE)
    }

    /// The same of a program that takes its time.
    #[track_caller]
    pub fn wait_for(&mut self, patience: Duration) -> Ending {
        until_within(patience, &format!("process {} ends", self.pid()), || self.poll())
    }

    /// Waits for its end, which must be with status 0.
    #[track_caller]
    pub fn wait_for_success(&mut self) {
        let ending = self.wait();
        assert!(matches!(ending, Ending::Exited(0) | Ending::Unseen), "process {}: {ending:?}", self.pid());
    }

    /// Sends a signal and waits for the end.
    #[track_caller]
    pub fn end_by(&mut self, signal: Signal) -> Ending {
        self.signal(signal);
        self.wait()
    }
}

fn ending(status: WaitStatus) -> Ending {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(status), _) => Ending::Exited(status),
        (None, Some(signal)) => Ending::Signaled(signal),
        (None, None) => Ending::Unseen,
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.ended && self.poll().is_none() {
            // A child of ours that has not been waited for: its number is nobody else's, nor are its children's. A
            // program that a Frida was starting goes with it.
            let children = children(self.pid());
            kill(self.pid);
            for child in children {
                kill(to_pid(child));
            }
        }
    }
}

/// The children of a process's first thread.
pub fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

fn to_pid(pid: u32) -> Pid {
    i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id")
}

/// Sends a signal to a process that runs.
pub fn send_signal(pid: u32, signal: Signal) {
    kill_process(to_pid(pid), signal).unwrap_or_else(|error| panic!("signal to process {pid}: {error}"));
}

fn kill(pid: Pid) {
    // One that has ended meanwhile needs neither.
    let _ = kill_process(pid, Signal::KILL);
    let _ = waitpid(Some(pid), WaitOptions::empty());
}
