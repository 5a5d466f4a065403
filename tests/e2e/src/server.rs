//! The server under test.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
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
    /// SOCK_STREAM, over which agents hand over rings.
    Shm,
}

impl SockType {
    /// The name that agents take.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dgram => "dgram",
            Self::Stream => "stream",
            Self::Shm => "shm",
        }
    }

    /// The name that the server takes.
    const fn server_name(self) -> &'static str {
        match self {
            Self::Shm => Self::Stream.name(),
            other => other.name(),
        }
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    process: Process,
    socket: PathBuf,
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
        let args = [text(&socket), text(&out_dir), "--sock-type", sock_type.server_name()];
        let process =
            Process::start(&Needs::Server.path(), &args, Stdio::null(), &stage.path(&format!("{out}.server.txt")));
        let server = Self { process, socket, out_dir };
        until("the server listens", || is_served(&server.socket, sock_type).then_some(()));
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

    /// Its socket's address.
    pub fn socket_path(&self) -> Vec<u8> {
        self.socket.as_os_str().as_bytes().to_vec()
    }

    /// The inode numbers of its sockets: the one that agents connect to, and on a stream its end of each connection
    /// (`/proc/net/unix`, proc(5)).
    pub fn socket_inodes(&self) -> BTreeSet<u64> {
        // Names may have any bytes.
        let table = std::fs::read("/proc/net/unix").expect("/proc is there");
        let table = String::from_utf8_lossy(&table);
        let socket = text(&self.socket);
        let of_line = |line: &str| {
            let mut fields = line.split_whitespace().skip(6);
            let inode = fields.next()?.parse().ok()?;
            (fields.next() == Some(socket)).then_some(inode)
        };
        table.lines().filter_map(of_line).collect()
    }

    /// Lets agents of every user report to it.
    pub fn let_everybody_in(&self) {
        let everybody = |path: &Path, mode| {
            std::fs::set_permissions(path, Permissions::from_mode(mode))
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        };
        everybody(&self.socket, 0o666);
        everybody(self.socket.parent().expect("the test's directory"), 0o711);
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
        SockType::Stream | SockType::Shm => UnixStream::connect(socket).is_ok(),
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path that tempfile made is ASCII")
}
