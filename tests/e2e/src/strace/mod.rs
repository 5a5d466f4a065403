//! strace(1), which watches a program beside socktrace and shares nothing with it: what it saw on AF_UNIX sockets.

mod calls;
mod sockets;
mod syntax;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;

pub use sockets::{Observed, Socket, Transfer};

use crate::process::{Ending, Process, children, send_signal};
use crate::stage::{Stage, until};

/// Bytes shown of a string: more than any call here moves.
const SHOWN: &str = "1000000";
/// The calls that move bytes, that make sockets, that wait (as a sign of life), and those that would move bytes unseen.
const CALLS: &str = "trace=read,write,readv,writev,preadv2,pwritev2,sendto,recvfrom,sendmsg,recvmsg,sendmmsg,recvmmsg,\
                     sendfile,splice,socket,socketpair,connect,accept,accept4,io_uring_enter,\
                     poll,ppoll,select,pselect6,epoll_wait,epoll_pwait,rt_sigsuspend,restart_syscall";

/// A running strace.
#[derive(Debug)]
pub struct Strace {
    process: Process,
    trace: PathBuf,
    /// The thread that it found waiting in a call.
    waiting: Option<u32>,
}

/// A program that strace is to start.
#[derive(Debug)]
pub struct Program<'a> {
    /// For the names of files in the test's directory.
    pub name: &'a str,
    /// The file.
    pub file: &'a Path,
    /// Without its name.
    pub args: &'a [&'a str],
    /// What LD_PRELOAD is to be for it, and not for strace.
    pub preload: Option<&'a Path>,
    /// Who it runs as, if not as the test does.
    pub user: Option<&'a str>,
}

fn command(stage: &Stage, name: &str) -> (Command, PathBuf) {
    let trace = stage.path(&format!("{name}.strace"));
    let mut command = Command::new("strace");
    command.args(["-f", "-yy", "-xx", "-s", SHOWN, "-e", CALLS, "-e", "signal=none", "-o"]).arg(&trace);
    (command, trace)
}

impl Strace {
    /// Starts a program under strace.
    pub fn start(stage: &Stage, program: &Program<'_>, input: Stdio, output: Stdio) -> Self {
        let (mut command, trace) = command(stage, program.name);
        if let Some(preload) = program.preload {
            command.arg("-E").arg(format!("LD_PRELOAD={}", preload.display()));
        }
        command.args(program.user.iter().flat_map(|user| ["-u", user])).arg("--").arg(program.file).args(program.args);
        let errors = stage.path(&format!("{}.txt", program.name));
        let errors = File::create(&errors).unwrap_or_else(|error| panic!("{}: {error}", errors.display()));
        let process = Process::spawn(command.stdin(input).stdout(output).stderr(errors));
        Self { process, trace, waiting: None }
    }

    /// Has strace join a running program, and whatever it starts from now on; waits until it has. The call that the
    /// program's first thread waits in is left out: it waited there already when Frida came, so that no hook has seen
    /// it being entered (docs/limits.md, "Calls").
    #[track_caller]
    pub fn attach(stage: &Stage, name: &str, pid: u32) -> Self {
        let (mut command, trace) = command(stage, name);
        command.args(["-p", &pid.to_string()]);
        let errors = stage.path(&format!("{name}.strace.txt"));
        let process = Process::start_command(&mut command, Stdio::null(), &errors);
        // The call that it was waiting in has been begun anew, under strace's eyes.
        until(&format!("strace sees process {pid} wait ({})", errors.display()), || {
            let lines = std::fs::read_to_string(&trace).unwrap_or_default();
            lines.lines().any(|line| line.split(' ').next() == Some(&pid.to_string())).then_some(())
        });
        Self { process, trace, waiting: Some(pid) }
    }

    /// The program that it has started, once that does what it is for: strace has other children before.
    pub fn program(&self) -> u32 {
        until("strace starts the program", || children(self.process.pid()).first().copied())
    }

    /// Waits for the end of strace, which is that of the program it has started, with 0, or joined; what it saw.
    #[track_caller]
    pub fn finish(mut self) -> Observed {
        assert_eq!(self.process.wait(), Ending::Exited(0), "strace or its program ({})", self.trace.display());
        self.observed()
    }

    /// Ends the program that it has started by a signal, and waits.
    #[track_caller]
    pub fn finish_by(mut self, signal: Signal) -> Observed {
        send_signal(self.program(), signal);
        let ending = self.process.wait();
        let by_signal = Ending::Signaled(signal.as_raw());
        assert!(ending == Ending::Exited(0) || ending == by_signal, "{}: {ending:?}", self.trace.display());
        self.observed()
    }

    fn observed(&self) -> Observed {
        let read = std::fs::read_to_string(&self.trace).map_err(|error| error.to_string());
        let calls = read.and_then(|text| calls::parse(&text));
        calls
            .and_then(|mut calls| {
                let waiting = calls.iter().position(|call| Some(call.tid) == self.waiting);
                waiting.map(|at| calls.remove(at));
                Observed::of(&calls)
            })
            .unwrap_or_else(|error| panic!("{}: {error}", self.trace.display()))
    }
}
