//! The ways to trace a program, each started as its users start it.

use std::ffi::OsString;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::child::{Running, find_program, until};
use crate::count::{self, Found};
use crate::subject::{Moved, Subject};

/// More than any call of the workloads moves.
const MAX_BYTES: u32 = 1 << 20;
/// What bpftrace prints of a buffer at most, in bytes: as much as its version 0.17 lets itself be told.
const BPFTRACE_STRLEN: &str = "200";
/// Between two probes that bpftrace attaches.
const ATTACHING: Duration = Duration::from_millis(300);
/// The Frida agent in JavaScript, but for where to send to.
const PLAIN_JS: &str = include_str!("plain.js");
/// The program of bpftrace.
const SOCKETS_BT: &str = include_str!("sockets.bt");

/// How a program is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Preload,
    FridaShm,
    FridaDgram,
    FridaStream,
    Strace,
    Bpftrace,
    Javascript,
}

/// All of them, by the order of the table.
pub const ALL: [Way; 7] =
    [Way::Preload, Way::FridaShm, Way::FridaDgram, Way::FridaStream, Way::Strace, Way::Bpftrace, Way::Javascript];

impl Way {
    /// As the table has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Preload => "preload+shm",
            Self::FridaShm => "frida+shm",
            Self::FridaDgram => "frida+dgram",
            Self::FridaStream => "frida+stream",
            Self::Strace => "strace",
            Self::Bpftrace => "bpftrace",
            Self::Javascript => "frida JavaScript",
        }
    }

    /// Whether it slows down programs that it does not trace, so that it has to be stopped for the untraced ones.
    pub const fn is_felt_by_all(self) -> bool {
        // A tracepoint of a system call puts every process on the slow way into the kernel.
        matches!(self, Self::Bpftrace)
    }

    /// What it needs and is not there.
    pub fn missing(self) -> Option<String> {
        let variable = |name: &str| match std::env::var_os(name) {
            Some(path) if Path::new(&path).exists() => None,
            _ => Some(format!("{name} is not set: run `make bench`")),
        };
        let program = |name: &str| find_program(name).is_none().then(|| format!("{name} is not installed"));
        match self {
            Self::Preload => variable("SOCKTRACE"),
            Self::Strace => program("strace"),
            Self::Bpftrace => program("bpftrace")
                .or_else(|| {
                    // SAFETY: geteuid(2) cannot fail.
                    let is_root = unsafe { libc::geteuid() } == 0;
                    (!is_root).then(|| "needs root".into())
                })
                .or_else(|| {
                    let has_tracepoints = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"]
                        .iter()
                        .any(|path| Path::new(path).join("events/syscalls").exists());
                    (!has_tracepoints).then(|| "no tracepoints: mount -t tracefs tracefs /sys/kernel/tracing".into())
                }),
            Self::Javascript => variable("SOCKTRACE_FRIDA"),
            _ => variable("SOCKTRACE_FRIDA")
                .or_else(|| variable("SOCKTRACE_AGENT"))
                .or_else(|| variable("SOCKTRACE_SERVER")),
        }
    }
}

/// A traced program and what records it.
#[derive(Debug)]
pub struct Traced {
    pub subject: Subject,
    pub program: Running,
    /// Beside the program, or `None` if the program was started by it.
    collector: Option<Running>,
    way: Way,
    directory: PathBuf,
}

fn variable(name: &str) -> Result<OsString> {
    std::env::var_os(name).with_context(|| format!("{name} is not set: run `make bench`"))
}

impl Traced {
    /// Starts a program and traces it. The directory is removed with everything in it in the end.
    pub fn start(way: Way, mut subject: Subject, directory: &Path, collector_cpu: Option<usize>) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let errors = directory.join("errors.txt");
        let recording = directory.join("recording");
        let mut collector = None;
        let mut program = match way {
            Way::Preload => {
                let mut command = Command::new(variable("SOCKTRACE")?);
                command.args(["run", "--transport", "shm", "--on-full", "block", "-o", "/dev/null", "-w"]);
                command.arg(&recording).arg("--").args(subject.command()?);
                Running::start(&mut command, collector_cpu, &errors)?
            }
            Way::Strace => {
                let mut command = Command::new("strace");
                command.args(["-f", "-s", "65536", "-e", "trace=network,read,write", "-o"]).arg(&recording).arg("--");
                Running::start(command.args(subject.command()?), collector_cpu, &errors)?
            }
            _ => Running::start(&mut subject.to_command()?, None, &errors)?,
        };
        let pid = subject.wait_until_ready(&mut program)?;
        if !matches!(way, Way::Preload | Way::Strace) {
            subject.forget_what_was()?;
        }
        match way {
            Way::Preload | Way::Strace => {}
            Way::Bpftrace => {
                let script = directory.join("sockets.bt");
                fs::write(&script, SOCKETS_BT)?;
                let mut command = Command::new("bpftrace");
                command
                    .env("BPFTRACE_STRLEN", BPFTRACE_STRLEN)
                    .arg("-o")
                    .arg(&recording)
                    .arg(script)
                    .arg(pid.to_string());
                let bpftrace = Running::start(&mut command, collector_cpu, &errors)?;
                wait_until_attached(bpftrace.pid())?;
                collector = Some(bpftrace);
            }
            Way::Javascript => {
                let socket = directory.join("receiver");
                let mut command = Command::new(std::env::current_exe()?);
                let mut receiver = Running::start(command.arg("receive").arg(&socket), collector_cpu, &errors)?;
                receiver.line()?;
                collector = Some(receiver);
                let script = directory.join("plain.js");
                fs::write(&script, PLAIN_JS.replace("SOCKET_PATH", text(&socket)?))?;
                inject(&script, None, pid, collector_cpu, directory)?;
            }
            Way::FridaShm | Way::FridaDgram | Way::FridaStream => {
                let (sock_type, out_sock_type) = match way {
                    Way::FridaDgram => ("dgram", "dgram"),
                    Way::FridaStream => ("stream", "stream"),
                    _ => ("stream", "shm"),
                };
                let socket = directory.join("server");
                let mut command = Command::new(variable("SOCKTRACE_SERVER")?);
                command.args([&socket, &recording]).args(["--sock-type", sock_type]);
                collector = Some(Running::start(&mut command, collector_cpu, &errors)?);
                until("the server", || socket.exists())?;
                // For programs that this one executes.
                let probe = directory.join("socktrace-probe.so");
                fs::write(&probe, socktrace_agent::PROBE)?;
                let parameters = [
                    ("out_socket_path", json!(text(&socket)?)),
                    ("out_sock_type", json!(out_sock_type)),
                    ("max_bytes", json!(MAX_BYTES)),
                    ("on_full", json!("block")),
                ];
                let of_preload = |(name, value): &(&str, serde_json::Value)| match value.as_str() {
                    Some(value) => format!("{name}={value}\0"),
                    None => format!("{name}={value}\0"),
                };
                fs::write(directory.join("params"), parameters.iter().map(of_preload).collect::<String>())?;
                let mut all: serde_json::Map<_, _> =
                    parameters.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
                all.insert("preload".into(), json!(text(&probe)?));
                let agent = PathBuf::from(variable("SOCKTRACE_AGENT")?);
                inject(&agent, Some(&serde_json::Value::from(all).to_string()), pid, collector_cpu, directory)?;
            }
        }
        Ok(Self { subject, program, collector, way, directory: directory.into() })
    }

    /// The process that records.
    pub fn collector_pid(&self) -> u32 {
        self.collector.as_ref().unwrap_or(&self.program).pid()
    }

    /// Ends both; what was moved, and what of it is recorded.
    pub fn finish(self) -> Result<(Moved, Found)> {
        let Self { subject, mut program, collector, way, directory } = self;
        let (sockets, pid, message_len) = (subject.sockets().to_owned(), subject.pid(), subject.message_len());
        let is_spawning = subject.is_spawning();
        let moved = subject.finish(&mut program)?;
        let recording = directory.join("recording");
        let mut received = None;
        if let Some(mut collector) = collector {
            match way {
                Way::Bpftrace => collector.signal(libc::SIGINT),
                Way::Javascript => {
                    UnixDatagram::unbound()?.send_to(b"", directory.join("receiver"))?;
                    let line = collector.line()?;
                    let (messages, bytes) = line.split_once(' ').context("the receiver's counts")?;
                    received = Some(Found { messages: messages.parse()?, bytes: bytes.parse()?, ..Found::default() });
                }
                _ => collector.signal(libc::SIGTERM),
            }
            collector.finish()?;
        }
        let mut found = match way {
            Way::Strace => count::in_strace(&recording)?,
            Way::Bpftrace => count::in_bpftrace(&recording)?,
            Way::Javascript => received.context("the receiver's counts")?,
            _ => {
                let found = count::in_recording(&recording, &sockets, pid)?;
                if let (Some(len), 0) = (message_len, found.lost) {
                    count::check_bytes(&recording, len)?;
                }
                found
            }
        };
        if is_spawning {
            found.messages = found.children;
        }
        fs::remove_dir_all(&directory)?;
        Ok((moved, found))
    }
}

/// Has Frida load a script into a process and leave it there.
fn inject(script: &Path, parameters: Option<&str>, pid: u32, cpu: Option<usize>, directory: &Path) -> Result<()> {
    let mut command = Command::new(variable("SOCKTRACE_FRIDA")?);
    command.arg("-p").arg(pid.to_string()).arg("-l").arg(script).args(["-q", "--eternalize"]);
    command.args(parameters.into_iter().flat_map(|parameters| ["-P", parameters]));
    let errors = directory.join("frida.txt");
    let mut frida = Running::start(&mut command, cpu, &errors)?;
    let ended = frida.finish();
    if let Err(error) = ended {
        bail!("frida: {error}: {}", fs::read_to_string(&errors).unwrap_or_default().trim());
    }
    Ok(())
}

/// bpftrace says nothing in a file before it has written 4 KiB, so it is its descriptors that are looked at: one and
/// more for each probe, and no more of them for a while.
fn wait_until_attached(pid: u32) -> Result<()> {
    let events = || -> usize {
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let target = |entry: fs::DirEntry| fs::read_link(entry.path()).ok();
        entries.filter_map(target).filter(|target| target.as_os_str() == "anon_inode:[perf_event]").count()
    };
    let mut last = (0, Instant::now());
    until("bpftrace", || {
        let now = events();
        if now != last.0 {
            last = (now, Instant::now());
        }
        now > SOCKETS_BT.matches("tracepoint:").count() && last.1.elapsed() > ATTACHING
    })
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("TMPDIR has to be UTF-8")
}
