//! `socktrace attach`: running processes, through Frida.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, geteuid, pidfd_open};
use socktrace_collect::{Bound, raise_descriptor_limit, stop_on_signals};
use socktrace_event::{Stop, errno, notice};
use socktrace_params::OnFull;

use crate::args::AttachArgs;
use crate::engine::frida::Frida;
use crate::engine::place::is_reached_by;
use crate::engine::target::{self, Probe};
use crate::engine::{Parameters, Place, preload};
use crate::live::Live;
use crate::nest;
use crate::packets::Keep;

const NEVER_HEARD: &str = "the probe was loaded and could not reach the collector: is the process in a sandbox?";

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
    // Its collector has nothing to do with the processes that are attached to here.
    let _ = nest::leave_outer();
    let pids = willing(wanted(args)?);
    if pids.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    let frida = Frida::find(args.frida.as_deref())?;
    raise_descriptor_limit();
    // While Ctrl-C still works: a FIFO is opened when its reader comes.
    let kept = keep.open()?;
    let stop = stop_on_signals()?;
    let place = Place::new()?;
    let (bound, pids) = bind_for(&place, pids)?;
    let parameters = Parameters::new(&place, &bound, &args.capture, OnFull::Drop, args.children);
    if args.children {
        preload::prepare(&place, &parameters)?;
    }
    let live = Live::start(bound, &args.filter, kept, &args.view, None)?;
    let mut targets = Vec::new();
    for pid in pids {
        // Opened first, so that it is no other process that gets the number while Frida takes its time.
        let Some(pidfd) = open(pid) else {
            notice(&format!("process {pid}: no such process"));
            continue;
        };
        match inject(&frida, pid, &place, &parameters) {
            Ok(()) => targets.push(Target { pid, pidfd }),
            Err(error) => notice(&errno::explain(error.as_ref())),
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
        let stopped = frida.stop(target.pid, &place);
        if let (Err(error), false) = (stopped, has_ended(&target.pidfd)) {
            notice(&format!("the hooks stay in, quiet: {}", errno::explain(error.as_ref())));
        }
    }
    let removal = place.remove();
    let ended = live.finish(reason, NEVER_HEARD, false);
    removal.finish(ended.processes_go_on);
    Ok(if ended.heard_of_probes { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The processes that are asked for.
fn wanted(args: &AttachArgs) -> Result<Vec<u32>> {
    let mut pids = args.target_pids.clone();
    if let Some(name) = &args.name {
        let found = target::named(name);
        if found.is_empty() {
            bail!("no process is named {}", name.display());
        }
        pids.extend(found);
    }
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

/// Those of them that Frida can be asked into; says of the others why not.
fn willing(mut pids: Vec<u32>) -> Vec<u32> {
    pids.retain(|&pid| {
        let why = target::refusal(pid).or_else(|| match target::probe_in(pid) {
            Probe::ReportsTo(collector) => Some(format!("process {pid}: is traced by {} already", named(collector))),
            Probe::Absent | Probe::Idle => None,
        });
        why.inspect(|why| notice(why)).is_none()
    });
    pids
}

/// A process, in words.
fn named(pid: u32) -> String {
    format!("{}[{pid}]", target::name_of(pid).unwrap_or_else(|| "another socktrace".into()))
}

/// Binds the collector's socket where the processes reach it, by a path if all do; says which ones do not.
fn bind_for(place: &Place, mut pids: Vec<u32>) -> Result<(Bound, Vec<u32>)> {
    let mut bound = place.bind()?;
    let reach_it = |bound: &Bound, pid| is_reached_by(pid, bound.path());
    if !pids.iter().all(|&pid| reach_it(&bound, pid)) {
        if pids.iter().all(|&pid| target::has_our_network(pid)) {
            bound = place.bind_abstract()?;
        } else {
            pids.retain(|&pid| {
                let is_reached = reach_it(&bound, pid);
                if !is_reached {
                    notice(&format!(
                        "process {pid}: has its own root or mounts, where {} is not, and its own network namespace: \
                         TMPDIR may name a folder that it shares with us",
                        bound.path().display()
                    ));
                }
                is_reached
            });
        }
    }
    let me = geteuid().as_raw();
    let mut others: Vec<_> = pids.iter().flat_map(|&pid| target::users(pid)).filter(|&user| user != me).collect();
    others.sort_unstable();
    others.dedup();
    if !others.is_empty() {
        bound.admit(&others)?;
    }
    bound.admit_family(&pids)?;
    Ok((bound, pids))
}

/// Has Frida put the probe in. One that was left there, by a socktrace that was killed, is taken over.
fn inject(frida: &Frida, pid: u32, place: &Place, parameters: &Parameters) -> Result<()> {
    if target::probe_in(pid) == Probe::Idle {
        frida.stop(pid, place)?;
    }
    frida.inject(pid, place, parameters)
}

fn open(pid: u32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid.cast_signed())?, PidfdFlags::empty()).ok()
}

fn has_ended(process: &OwnedFd) -> bool {
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
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
