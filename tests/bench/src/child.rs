//! Programs that the benchmark starts, none of which it leaves behind.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::clock;

/// How long anything may take: a burst under a slow way of tracing, or an injection on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How often something is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(2);

/// A program that has been started; killed if it is dropped before its end.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// Of its output, what no line has been made of yet.
    rest: Vec<u8>,
}

impl Running {
    /// Starts a command, on one processor or on any, with pipes for its input and output; its errors go to a file.
    pub fn start(command: &mut Command, cpu: Option<usize>, errors: &Path) -> Result<Self> {
        let errors = File::options().create(true).append(true).open(errors)?;
        if let Some(cpu) = cpu {
            // SAFETY: pin makes one system call.
            unsafe { command.pre_exec(move || clock::pin(cpu)) };
        }
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let child = command.spawn().with_context(|| format!("{}: does not start", command.get_program().display()))?;
        Ok(Self { child, rest: Vec::new() })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes to its standard input.
    pub fn say(&mut self, text: &str) -> Result<()> {
        let input = self.child.stdin.as_mut().context("its input is closed")?;
        input.write_all(text.as_bytes()).context("it does not read its input")
    }

    /// The next line of its standard output.
    pub fn line(&mut self) -> Result<String> {
        let start = Instant::now();
        loop {
            if let Some(end) = self.rest.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim().into());
            }
            let output = self.child.stdout.as_mut().context("its output is closed")?;
            let left = PATIENCE.saturating_sub(start.elapsed());
            let mut ready = libc::pollfd { fd: output.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd.
            if unsafe { libc::poll(&raw mut ready, 1, left.as_millis() as i32) } != 1 {
                bail!("no answer in {} s", PATIENCE.as_secs());
            }
            let mut buffer = [0; 4096];
            match output.read(&mut buffer)? {
                0 => bail!("it ended early"),
                n => self.rest.extend_from_slice(&buffer[..n]),
            }
        }
    }

    /// Closes its input and waits for its end.
    pub fn finish(&mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let mut status = None;
        until("its end", || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        })?;
        match status {
            Some(status) if !status.success() => bail!("{status}"),
            _ => Ok(()),
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        signal_to(self.pid(), signal);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended, and then neither does anything.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process that is ours.
pub fn signal_to(pid: u32, signal: i32) {
    // SAFETY: kill(2) touches no memory.
    unsafe { libc::kill(pid as libc::pid_t, signal) };
}

/// Waits until something is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !is_so() {
        if start.elapsed() > PATIENCE {
            bail!("waited {} s in vain for {what}", PATIENCE.as_secs());
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// A program's file, as a shell would find it.
pub fn find_program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
}
