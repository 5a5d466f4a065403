//! Processes that are traced, until there is a reason to leave them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use socktrace_event::Stop;

/// A process, which is the same one while this is there (pidfd_open(2)).
pub struct Process {
    pub pid: u32,
    pidfd: OwnedFd,
}

impl Process {
    /// None: no process has this number.
    pub fn open(pid: u32) -> Option<Self> {
        let pidfd = pidfd_open(Pid::from_raw(pid.cast_signed())?, PidfdFlags::empty()).ok()?;
        Some(Self { pid, pidfd })
    }

    pub fn has_ended(&self) -> bool {
        poll(&mut [self.end()], Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Is ready when it has ended.
    fn end(&self) -> PollFd<'_> {
        PollFd::new(&self.pidfd, PollFlags::IN)
    }
}

/// Waits for a signal, the time, or the end of all processes; keeps those that still run.
///
/// # Errors
///
/// poll(2) has failed.
pub fn wait(stop: &Stop, processes: &mut Vec<Process>, time: Option<Duration>) -> Result<&'static str> {
    let deadline = time.map(|time| Instant::now() + time);
    loop {
        if let Some(reason) = stop.reason() {
            return Ok(reason);
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok("the time is over");
        }
        let mut fds = vec![PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN)];
        fds.extend(processes.iter().map(Process::end));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("poll(2)"),
        }
        processes.retain(|process| !process.has_ended());
        if processes.is_empty() {
            return Ok("the processes have ended");
        }
    }
}
