//! The server under test.

use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::Signal;

use crate::needs::Needs;
use crate::process::{Ending, Process};
use crate::recording::Recording;
use crate::stage::{Stage, until};

/// The transport between agent and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SockType {
    /// SOCK_DGRAM.
    Dgram,
    /// SOCK_STREAM.
    Stream,
}

impl SockType {
    /// The name that server and agent take.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dgram => "dgram",
            Self::Stream => "stream",
        }
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    process: Process,
    out_dir: PathBuf,
}

impl Server {
    /// Starts a server on the stage's socket, recording into the stage's directory `out`.
    pub fn start(stage: &Stage, sock_type: SockType) -> Self {
        Self::start_into(stage, sock_type, "out")
    }

    /// Starts a server that records into a directory of this name.
    pub fn start_into(stage: &Stage, sock_type: SockType, out: &str) -> Self {
        let (socket, out_dir) = (stage.server_socket(), stage.path(out));
        let args = [text(&socket), text(&out_dir), "--sock-type", sock_type.name()];
        let process =
            Process::start(&Needs::Server.path(), &args, Stdio::null(), &stage.path(&format!("{out}.server.txt")));
        let server = Self { process, out_dir };
        until("the server listens", || is_served(&socket, sock_type).then_some(()));
        server
    }

    /// What is recorded so far.
    pub fn recording(&self) -> Recording {
        Recording::read(&self.out_dir)
    }

    /// Waits until the agent in a process says that it is ready.
    #[track_caller]
    pub fn wait_until_ready(&self, pid: u32) {
        until(&format!("the agent in process {pid} is ready"), || {
            self.recording().events.iter().any(|e| e.kind == "ready" && e.pid == Some(pid)).then_some(())
        });
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Ends it as users do, and gives what it has recorded.
    #[track_caller]
    pub fn stop(mut self) -> Recording {
        assert_eq!(self.process.end_by(Signal::TERM), Ending::Exited(0), "the server's end");
        Recording::read(&self.out_dir)
    }

    /// Ends it as crashes do.
    #[track_caller]
    pub fn kill(mut self) {
        self.process.end_by(Signal::KILL);
    }
}

fn is_served(socket: &Path, sock_type: SockType) -> bool {
    match sock_type {
        SockType::Dgram => UnixDatagram::unbound().and_then(|probe| probe.connect(socket)).is_ok(),
        SockType::Stream => UnixStream::connect(socket).is_ok(),
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path that tempfile made is ASCII")
}
