//! `socktrace attach`: processes that run already.

mod process;
mod targets;

use std::process::ExitCode;

use anyhow::Result;
use socktrace_collect::{raise_descriptor_limit, stop_on_signals};
use socktrace_engine::{Attached, Engine, Target, nest};
use socktrace_event::{Stop, errno, notice};
use socktrace_params::OnFull;

use crate::args::AttachArgs;
use crate::live::Live;
use crate::packets::Keep;
use process::{Process, wait};
use targets::targets;

/// `socktrace attach`
pub fn attach(args: &AttachArgs) -> Result<ExitCode> {
    attach_into(args, Keep::new(&args.capture)?)
}

/// The same, with what is captured going to `keep`.
pub fn attach_into(args: &AttachArgs, keep: Keep) -> Result<ExitCode> {
    // Its collector has nothing to do with the processes that are attached to here.
    let _ = nest::leave_outer();
    trace(args.engine(), args, keep)
}

/// Puts a way in, what takes its events, and the processes together.
///
/// # Errors
///
/// One line that says what is missing, cannot be made or cannot be opened.
pub fn trace(engine: Box<dyn Engine>, args: &AttachArgs, keep: Keep) -> Result<ExitCode> {
    let (mut pids, filter) = targets(args)?;
    pids.retain(|&pid| engine.hindrance(Target::Process(pid)).inspect(|why| notice(why)).is_none());
    if pids.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    let (events, mut attached) = engine.to_attach(&pids, &args.capture.params(OnFull::Drop, args.children))?;
    raise_descriptor_limit();
    // While Ctrl-C still works: a FIFO is opened when its reader comes.
    let kept = keep.open()?;
    let stop = stop_on_signals()?;
    let live = Live::start(events, &filter, kept, &args.view, None)?;
    let mut processes = get_into(attached.as_mut(), &pids, &stop);
    if processes.is_empty() {
        live.finish("stop", "attached to no process", false);
        return Ok(ExitCode::FAILURE);
    }
    let names: Vec<_> = processes.iter().map(|process| process.pid.to_string()).collect();
    let until = if args.for_time.is_some() { "" } else { "; Ctrl-C leaves" };
    notice(&format!("attached to {}{until}", names.join(", ")));
    let reason = wait(&stop, &mut processes, args.for_time)?;
    // First: what an engine does to get out is none of the process's traffic.
    live.stop();
    for process in &processes {
        let detached = attached.detach(process.pid);
        if let (Err(error), false) = (detached, process.has_ended()) {
            notice(&format!("the hooks stay in, quiet: {}", errno::explain(&error)));
        }
    }
    let silence = attached.silence();
    let removal = attached.leave();
    let ended = live.finish(reason, silence, false);
    removal.finish(ended.processes_go_on);
    Ok(if ended.heard_of_probes { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Has the engine get into processes, until a stop is asked for; says of the others why they are not traced.
fn get_into(attached: &mut dyn Attached, pids: &[u32], stop: &Stop) -> Vec<Process> {
    let mut processes = Vec::new();
    for &pid in pids {
        // Opened first, so that it is no other process that gets the number while the engine takes its time.
        let Some(process) = Process::open(pid) else {
            notice(&format!("process {pid}: no such process"));
            continue;
        };
        match attached.attach(pid) {
            Ok(()) => processes.push(process),
            Err(error) => notice(&errno::explain(&error)),
        }
        if stop.reason().is_some() {
            break;
        }
    }
    processes
}
