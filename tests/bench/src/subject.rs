//! A program that is traced, or not: our own workload, or redis-server.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::child::{Running, signal_to, until};
use crate::clock;
use crate::kind::Kind;

/// Keys and values are redis-benchmark's own: three bytes.
const REDIS_CLIENTS: &str = "50";

/// How long it took to do something so many times, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Burst {
    pub times: u64,
    pub wall: u64,
    pub cpu: u64,
}

/// What was moved on the sockets that tracers should see.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moved {
    pub messages: u64,
    pub bytes: u64,
}

/// A program and how to have it do something.
#[derive(Debug)]
pub struct Subject {
    kind: Kind,
    directory: PathBuf,
    cpu: Option<usize>,
    times: u64,
    pid: u32,
    /// Moved before it was traced.
    before: Moved,
}

impl Subject {
    /// A program that makes its sockets in a directory of its own, and keeps to a processor.
    pub fn new(kind: Kind, directory: PathBuf, cpu: Option<usize>) -> Result<Self> {
        std::fs::create_dir_all(&directory)?;
        Ok(Self { kind, directory, cpu, times: 0, pid: 0, before: Moved::default() })
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("redis")
    }

    /// What begins the path of every socket that should be seen.
    pub fn sockets(&self) -> &Path {
        &self.directory
    }

    /// Bytes of each message, where all are the workload's own.
    pub fn message_len(&self) -> Option<usize> {
        match self.kind {
            Kind::Messages { len, .. } => Some(len),
            _ => None,
        }
    }

    /// The program and its arguments.
    pub fn command(&self) -> Result<Vec<OsString>> {
        let own = std::env::current_exe()?;
        let cpu = self.cpu.map_or("-".into(), |cpu| cpu.to_string());
        let own_command = |what: &str| vec![own.clone().into(), what.into(), OsString::from(&cpu)];
        if let Kind::Redis { .. } = self.kind {
            let mut all = own_command("exec");
            let socket = self.socket();
            all.extend(
                ["redis-server", "--port", "0", "--save", "", "--appendonly", "no", "--daemonize", "no"]
                    .map(Into::into),
            );
            all.extend(["--unixsocket".into(), socket.into(), "--logfile".into(), "/dev/null".into()]);
            return Ok(all);
        }
        let name = crate::kind::ALL.into_iter().find(|it| it.kind == self.kind).map_or("", |it| it.name);
        let mut all = own_command("workload");
        all.extend([name.into(), self.directory.clone().into()]);
        Ok(all)
    }

    /// The same, to be started.
    pub fn to_command(&self) -> Result<Command> {
        let all = self.command()?;
        let mut command = Command::new(&all[0]);
        command.args(&all[1..]);
        Ok(command)
    }

    /// Waits until the program can begin; its process id.
    pub fn wait_until_ready(&mut self, running: &mut Running) -> Result<u32> {
        self.pid = if let Kind::Redis { .. } = self.kind {
            until("redis-server", || UnixStream::connect(self.socket()).is_ok())?;
            self.info("server")?.number("process_id")? as u32
        } else {
            let line = running.line()?;
            line.strip_prefix("ready ")
                .and_then(|pid| pid.parse().ok())
                .with_context(|| format!("not ready: {line}"))?
        };
        Ok(self.pid)
    }

    /// What it has moved up to now is not to be found in any recording.
    pub fn forget_what_was(&mut self) -> Result<()> {
        // Connections that were closed have been noticed by then.
        std::thread::sleep(Duration::from_millis(20));
        self.before = self.moved()?;
        Ok(())
    }

    /// Whether it starts programs, which are what should be found of it.
    pub fn is_spawning(&self) -> bool {
        self.kind == Kind::Spawn
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Has it do something so many times.
    pub fn burst(&mut self, running: &mut Running, times: u64) -> Result<Burst> {
        self.times += times;
        let Kind::Redis { pipeline } = self.kind else {
            running.say(&format!("{times}\n"))?;
            let line = running.line()?;
            let (wall, cpu) = line.split_once(' ').with_context(|| format!("no times: {line}"))?;
            return Ok(Burst { times, wall: wall.parse()?, cpu: cpu.parse()? });
        };
        let before = clock::cpu_of(self.pid);
        let mut command = Command::new("redis-benchmark");
        command.args(["-c", REDIS_CLIENTS, "-t", "set", "--csv", "-n"]).arg(times.to_string());
        command.arg("-P").arg(pipeline.to_string()).arg("-s").arg(self.socket());
        let mut benchmark = Running::start(&mut command, self.cpu, Path::new("/dev/null"))?;
        let rate = loop {
            let line = benchmark.line()?;
            if let Some(rate) = line.strip_prefix("\"SET\",\"").and_then(|rest| rest.split('"').next()) {
                break rate.parse::<f64>()?;
            }
        };
        benchmark.finish()?;
        Ok(Burst { times, wall: (times as f64 / rate * 1e9) as u64, cpu: clock::cpu_of(self.pid) - before })
    }

    /// Ends it, and says what it moved.
    pub fn finish(self, running: &mut Running) -> Result<Moved> {
        let moved = self.moved()?;
        let before = self.before;
        let moved = Moved { messages: moved.messages - before.messages, bytes: moved.bytes - before.bytes };
        if let Kind::Redis { .. } = self.kind {
            signal_to(self.pid, libc::SIGTERM);
        }
        running.finish()?;
        Ok(moved)
    }

    fn moved(&self) -> Result<Moved> {
        let times = self.times;
        match self.kind {
            Kind::Messages { len, threads } => {
                let messages = 2 * times * threads as u64;
                Ok(Moved { messages, bytes: messages * len as u64 })
            }
            Kind::Redis { .. } => {
                let info = self.info("stats")?;
                // Each connection's last read finds its end; this one has not ended yet.
                let ends = info.number("total_connections_received")? - 1;
                let calls = info.number("total_reads_processed")? - ends + info.number("total_writes_processed")?;
                let bytes = info.number("total_net_input_bytes")? + info.number("total_net_output_bytes")?;
                // The answer itself was not yet written.
                Ok(Moved { messages: calls + 1, bytes: bytes + info.len })
            }
            Kind::Spawn => Ok(Moved { messages: times, bytes: 0 }),
            Kind::Pipe { .. } | Kind::Tcp { .. } => Ok(Moved::default()),
        }
    }

    fn info(&self, section: &str) -> Result<Info> {
        let mut socket = BufReader::new(UnixStream::connect(self.socket())?);
        socket.get_mut().write_all(format!("INFO {section}\r\n").as_bytes())?;
        let mut head = String::new();
        socket.read_line(&mut head)?;
        let len: usize = head.trim().trim_start_matches('$').parse().context("redis-server's INFO")?;
        let mut text = vec![0; len + 2];
        socket.read_exact(&mut text)?;
        Ok(Info { text: String::from_utf8(text)?, len: (head.len() + len + 2) as u64 })
    }
}

/// redis-server's answer to INFO.
struct Info {
    text: String,
    len: u64,
}

impl Info {
    fn number(&self, name: &str) -> Result<u64> {
        let value = self.text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        match value.and_then(|value| value.trim().parse().ok()) {
            Some(value) => Ok(value),
            None => bail!("redis-server's INFO has no {name}: version 7 or later is needed"),
        }
    }
}
