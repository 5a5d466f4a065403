//! Runs the built `socktrace`, and makes what it reads.
#![allow(dead_code, reason = "every test file uses its own part")]

pub mod disk;
pub mod wireshark;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use gttr::{Direction, Ext, ExtWriter, Frame, FrameType};
use socktrace_collect::{SockType, decode, listen};
use socktrace_event::{Sink, Source, Stop};
use socktrace_recording::{Contents, Recorder};

pub const SOCKTRACE: &str = env!("CARGO_BIN_EXE_socktrace");
/// Nothing here takes that long, in seconds; a machine under load may.
pub const LIMIT: &str = "120";

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// socktrace with these arguments, in an environment that is the same everywhere.
pub fn socktrace(args: &[&str]) -> Command {
    command(SOCKTRACE, args)
}

pub fn command(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--foreground", "-s", "KILL", LIMIT, program]).args(args);
    for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "LD_PRELOAD", "TMPDIR", "LC_ALL", "LC_CTYPE"] {
        command.env_remove(name);
    }
    command.env("LANG", "C.UTF-8").env("TZ", "UTC").stdin(Stdio::null());
    command
}

pub fn outcome(command: &mut Command) -> Outcome {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Outcome { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

pub fn run(args: &[&str]) -> Outcome {
    outcome(&mut socktrace(args))
}

/// Says where no capture hides it that a test did not run.
pub fn skipped(test: &str, why: &str) {
    let _ = std::io::stderr().write_all(format!("SKIPPED {test}: {why}\n").as_bytes());
}

/// Whether a program is installed; says so if a test has to do without it.
pub fn has(program: &str, test: &str) -> bool {
    let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|folder| fs::metadata(folder.join(program)).is_ok_and(|m| m.permissions().mode() & 0o111 != 0));
    if !found {
        skipped(test, &format!("{program} is not installed"));
    }
    found
}

/// Frida, where there is one; says so if a test has to do without it.
pub fn frida(test: &str) -> Option<String> {
    if let Ok(path) = std::env::var("SOCKTRACE_FRIDA") {
        return Some(path);
    }
    has("frida", test).then(|| "frida".into())
}

/// Asks until something is so.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "still not: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Compiles a C program.
pub fn compile(folder: &Path, name: &str, source: &str, args: &[&str]) -> PathBuf {
    let (file, program) = (folder.join(format!("{name}.c")), folder.join(name));
    fs::write(&file, source).unwrap();
    let status = Command::new("cc").args(args).arg("-o").arg(&program).arg(&file).status().unwrap();
    assert!(status.success());
    program
}

fn encode(frame: &Frame<'_>) -> Vec<u8> {
    let mut bytes = vec![0; frame.encoded_len()];
    frame.encode(&mut bytes).unwrap();
    bytes
}

/// A moment that all events of [`Traffic`] are counted from, in milliseconds: 2024-01-02 03:04:05 UTC.
pub const EPOCH_MS: u64 = 1_704_164_645_000;

/// Frames of a process.
pub struct Traffic {
    bytes: Vec<u8>,
    pid: u32,
    seq: u64,
    ms: u64,
}

impl Traffic {
    pub fn of(pid: u32, exe: &str) -> Self {
        let mut traffic = Self { bytes: Vec::new(), pid, seq: 0, ms: 0 };
        traffic.push(Frame { conn: b"mode=probe", ..Frame::new(FrameType::Init, 0) }, &[]);
        traffic.push(Frame::new(FrameType::Start, 0), &[Ext::Ppid(1), Ext::Exe(exe.as_bytes())]);
        traffic
    }

    /// Adds a frame a millisecond later than the last.
    pub fn push(&mut self, frame: Frame<'_>, values: &[Ext<'_>]) {
        self.seq += 1;
        self.ms += 1;
        let ts_ms = EPOCH_MS + self.ms;
        let mut buffer = [0; 1024];
        let mut writer = ExtWriter::new(&mut buffer);
        for value in [Ext::Seq(self.seq), Ext::Pid(self.pid), Ext::Tid(self.pid), Ext::TsNs(ts_ms * 1_000_000)] {
            writer.put(value);
        }
        values.iter().for_each(|value| writer.put(*value));
        self.bytes.extend(encode(&Frame { ts_ms, ext: writer.finish(), ..frame }));
    }

    pub fn open(mut self, conn: &str, path: &str, how: &str, values: &[Ext<'_>]) -> Self {
        let conn = format!("{conn}|{how}");
        self.push(
            Frame { fd: 3, conn: conn.as_bytes(), path: path.as_bytes(), ..Frame::new(FrameType::Open, 0) },
            values,
        );
        self
    }

    pub fn data(self, conn: &str, path: &str, direction: Direction, payload: &[u8]) -> Self {
        self.data_with(conn, path, direction, payload, &[])
    }

    pub fn data_with(mut self, conn: &str, path: &str, direction: Direction, payload: &[u8], v: &[Ext<'_>]) -> Self {
        let (conn, path) = (conn.as_bytes(), path.as_bytes());
        self.push(Frame { fd: 3, direction, conn, path, payload, ..Frame::new(FrameType::Data, 0) }, v);
        self
    }

    pub fn close(mut self, conn: &str) -> Self {
        let conn = format!("{conn}|close");
        self.push(Frame { fd: 3, conn: conn.as_bytes(), ..Frame::new(FrameType::Close, 0) }, &[]);
        self
    }

    pub fn lost(mut self, events: u64, bytes: u64) -> Self {
        self.seq += events;
        let values = [Ext::LostEvents(events), Ext::LostBytes(bytes)];
        self.push(Frame { conn: b"the server did not read", ..Frame::new(FrameType::Lost, 0) }, &values);
        self
    }
}

/// A directory as the server leaves it.
pub struct Recording {
    pub folder: tempfile::TempDir,
    pub path: String,
}

impl Recording {
    pub fn of(traffic: &[Traffic]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let bound = listen::bind(&folder.path().join("sock"), SockType::Stream).unwrap();
        let mut recorder = Recorder::open(&out, Contents::All).unwrap();
        recorder.begin(&bound.origin()).unwrap();
        for traffic in traffic {
            let mut stream = decode::Stream::default();
            stream.feed(&traffic.bytes, &mut recorder).unwrap();
            stream.finish(&mut recorder).unwrap();
        }
        let stop = Stop::new().unwrap();
        stop.handle().stop();
        let reason = bound.run(&stop, &mut recorder).unwrap();
        recorder.finish(reason).unwrap();
        let path = out.to_str().unwrap().to_owned();
        Self { folder, path }
    }

    pub fn events(&self) -> PathBuf {
        Path::new(&self.path).join("events.jsonl")
    }

    pub fn show(&self, args: &[&str]) -> Outcome {
        let args: Vec<_> = ["show", self.path.as_str()].iter().chain(args).copied().collect();
        run(&args)
    }
}
