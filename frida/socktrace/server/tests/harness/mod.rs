//! Starts the built server in a directory of its own, speaks GTTR to it, and reads what it wrote.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::fs;
use std::io::Write;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use gttr::{Direction, Frame, FrameType};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Nothing here takes that long; a machine under load may.
const DEADLINE: Duration = Duration::from_secs(60);

pub const GOLDEN_FRAMES: &str = include_str!("../../../../../crates/gttr/tests/golden/gttr-v1-frames.hex");
pub const GOLDEN_EVENTS: &str = include_str!("../../../../../crates/gttr/tests/golden/gttr-v1-events.jsonl");

pub fn golden_frames() -> Vec<Vec<u8>> {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    GOLDEN_FRAMES.lines().map(|line| line.as_bytes().chunks(2).map(byte).collect()).collect()
}

/// Every field of every golden event is in the event of the same number, and there are no more events.
pub fn assert_golden(events: &[Value]) {
    let golden: Vec<Value> = GOLDEN_EVENTS.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.len(), golden.len(), "{events:#?}");
    for (event, golden) in events.iter().zip(&golden) {
        for (field, value) in golden.as_object().unwrap() {
            assert_eq!(event.get(field), Some(value), "{field} of {event} is not as in {golden}");
        }
    }
}

pub fn encode(frame: &Frame<'_>) -> Vec<u8> {
    let mut bytes = vec![0; frame.encoded_len()];
    frame.encode(&mut bytes).unwrap();
    bytes
}

pub fn data(conn: &[u8], direction: Direction, payload: &[u8]) -> Vec<u8> {
    encode(&Frame { fd: 7, direction, path: b"/tmp/x", conn, payload, ..Frame::new(FrameType::Data, 1) })
}

/// Bytes that look like no other's and are the same every time.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[4]
    };
    (0..len).map(|_| next()).collect()
}

pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < DEADLINE, "still not: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Says where no capture hides it that a test did not run.
pub fn skipped(test: &str) {
    let _ = std::io::stderr().write_all(format!("SKIPPED {test}: needs root\n").as_bytes());
}

pub struct Server {
    pub dir: TempDir,
    pub out: PathBuf,
    child: Child,
}

impl Server {
    pub fn start(sock_type: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), sock_type, "true")
    }

    /// Starts the server in a directory, after a shell command such as `ulimit -n 256`.
    pub fn start_in(dir: TempDir, sock_type: &str, first: &str) -> Self {
        let out = dir.path().join("out");
        let mut server = Self { child: spawn(dir.path(), &out, sock_type, first), out, dir };
        until("listening", || {
            assert_eq!(server.child.try_wait().unwrap(), None, "{}", server.stderr());
            server.stderr().contains("listening on")
        });
        server
    }

    /// Starts it again when it has ended, on the same socket path and directory.
    pub fn start_again(mut self, sock_type: &str) -> Self {
        self.wait();
        let dir = std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap());
        Self::start_in(dir, sock_type, "true")
    }

    /// Runs the server where it is to end by itself; gives its status and standard error.
    pub fn refused(dir: &Path, out: &Path, sock_type: &str) -> (Option<i32>, String) {
        let mut child = spawn(dir, out, sock_type, "true");
        let status = child.wait().unwrap();
        (status.code(), fs::read_to_string(dir.join("stderr")).unwrap())
    }

    pub fn sock(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn stderr(&self) -> String {
        fs::read_to_string(self.dir.path().join("stderr")).unwrap_or_default()
    }

    pub fn datagrams(&self) -> UnixDatagram {
        let socket = UnixDatagram::unbound().unwrap();
        socket.connect(self.sock()).unwrap();
        socket
    }

    pub fn stream(&self) -> UnixStream {
        UnixStream::connect(self.sock()).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        until("ended", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Ends the server by SIGTERM, which it takes well, and gives its events, all of them.
    pub fn stop(&mut self) -> Vec<Value> {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{}", self.stderr());
        assert!(!self.sock().exists(), "the socket is left behind");
        let events = self.events();
        assert_eq!(events.last().unwrap()["type"], "host_shutdown", "{}", self.stderr());
        events
    }

    /// Ends the server and gives its events, without its own first and last.
    pub fn stop_and_get_agents_events(&mut self) -> Vec<Value> {
        let mut events = self.stop();
        assert_eq!(events.remove(0)["type"], "host_init");
        events.pop();
        events
    }

    /// The events of a server that has ended.
    pub fn events(&self) -> Vec<Value> {
        events_in(&self.out)
    }

    /// The events that a running server has written so far; a reader may see the line that it is writing cut off.
    pub fn events_so_far(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.out.join("events.jsonl")).unwrap();
        parse(&text[..text.rfind('\n').map_or(0, |at| at + 1)])
    }

    pub fn payload(&self, name: &str) -> Vec<u8> {
        fs::read(self.out.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The events of a recording that has ended.
pub fn events_in(out: &Path) -> Vec<Value> {
    let text = fs::read_to_string(out.join("events.jsonl")).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "the last line is torn");
    parse(&text)
}

fn parse(lines: &str) -> Vec<Value> {
    for line in lines.lines() {
        assert!(line.starts_with("{\"type\":\""), "{line}");
    }
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn spawn(dir: &Path, out: &Path, sock_type: &str, first: &str) -> Child {
    Command::new("sh")
        .args(["-c", &format!("{first}; exec \"$@\""), "sh", env!("CARGO_BIN_EXE_socktrace-server")])
        .args([&dir.join("sock"), out])
        .args(["--sock-type", sock_type])
        .stdin(Stdio::null())
        .stderr(fs::File::create(dir.join("stderr")).unwrap())
        .spawn()
        .unwrap()
}

/// The sum of a field over all events of a type that `which` selects.
pub fn sum(events: &[Value], field: &str, which: impl Fn(&Value) -> bool) -> u64 {
    events.iter().filter(|e| which(e)).filter_map(|e| e[field].as_u64()).sum()
}
