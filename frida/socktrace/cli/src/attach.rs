//! `socktrace attach`: running processes, through Frida.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use socktrace_server::{Stop, notice, raise_descriptor_limit};

use crate::args::{AttachArgs, OnFullArg};
use crate::engine::frida::{Frida, refusal};
use crate::engine::{Parameters, Place, preload};
use crate::live::Live;
use crate::packets::Keep;
use crate::program;

/// A process that the agent is in.
struct Target {
    pid: u32,
    pidfd: OwnedFd,
}

/// `socktrace attach`
pub fn attach(args: &AttachArgs) -> Result<ExitCode> {
    attach_into(args, Keep::new(&args.capture)?)
}

/// The same, with what is captured going to `keep`.
pub fn attach_into(args: &AttachArgs, keep: Keep) -> Result<ExitCode> {
    let mut pids = args.target_pids.clone();
    if let Some(name) = &args.name {
        let found = named(name);
        if found.is_empty() {
            bail!("no process is named {name}");
        }
        pids.extend(found);
    }
    pids.sort_unstable();
    pids.dedup();
    for &pid in &pids {
        if let Some(why) = refusal(pid).or_else(|| program::hindrance_of_process(pid)) {
            bail!("{why}");
        }
    }
    let frida = Frida::find(args.frida.as_deref())?;
    raise_descriptor_limit();
    // While Ctrl-C still works: a FIFO is opened when its reader comes.
    let kept = keep.open()?;
    let stop = Stop::on_signals()?;
    let place = Place::new()?;
    let parameters = Parameters::new(&place, &args.capture, OnFullArg::Drop, args.children);
    if args.children {
        preload::prepare(&place, &parameters)?;
    }
    let live = Live::start(place.bind()?, &args.filter, kept, &args.view)?;
    let mut targets = Vec::new();
    for pid in pids {
        // Opened first, so that it is no other process that gets the number while Frida takes its time.
        let Some(pidfd) = open(pid) else {
            notice(&format!("process {pid}: no such process"));
            continue;
        };
        match frida.inject(pid, &place, &parameters) {
            Ok(()) => targets.push(Target { pid, pidfd }),
            Err(error) => notice(&format!("{error:#}")),
        }
        if stop.reason().is_some() {
            break;
        }
    }
    if targets.is_empty() {
        live.finish("stop", "attached to no process", false);
        return Ok(ExitCode::FAILURE);
    }
    let names: Vec<_> = targets.iter().map(|target| target.pid.to_string()).collect();
    let until = if args.for_time.is_some() { "" } else { "; Ctrl-C leaves" };
    notice(&format!("attached to {}{until}", names.join(", ")));
    let reason = wait(&stop, &mut targets, args.for_time)?;
    // First, for Frida's own traffic is none of the user's.
    live.stop();
    for target in &targets {
        if let Err(error) = frida.stop(target.pid, &place) {
            notice(&format!("the hooks stay in, quiet: {error:#}"));
        }
    }
    let removal = place.remove();
    removal.finish(live.finish(reason, "the probe never loaded", false));
    Ok(ExitCode::SUCCESS)
}

fn open(pid: u32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid.cast_signed())?, PidfdFlags::empty()).ok()
}

/// Waits for a signal, the time, or the end of all processes; keeps those that still run.
fn wait(stop: &Stop, targets: &mut Vec<Target>, time: Option<Duration>) -> Result<&'static str> {
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
        fds.extend(targets.iter().map(|target| PollFd::from_borrowed_fd(target.pidfd.as_fd(), PollFlags::IN)));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("poll(2)"),
        }
        let ended: Vec<bool> = fds[1..].iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut ended = ended.into_iter();
        targets.retain(|_| !ended.next().unwrap_or(false));
        if targets.is_empty() {
            return Ok("the processes have ended");
        }
    }
}

/// Processes of this name that we may look into.
fn named(name: &str) -> Vec<u32> {
    let own = std::process::id();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_named = |pid: u32| {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let exe = fs::read_link(format!("/proc/{pid}/exe")).ok();
        comm.trim_end_matches('\n') == name
            || exe.as_deref().and_then(Path::file_name).is_some_and(|file| file.to_str() == Some(name))
    };
    pids.filter(|&pid| pid != own && is_named(pid)).collect()
}
