//! The kernel's own tracepoints (crates/bpf): programs of any kind, from outside.

use std::io;

use socktrace_bpf::{Control, Options};
use socktrace_event::proc_text;
use socktrace_params::Params;

use crate::place::Removal;
use crate::start::{Program, Signals, Start, With};
use crate::{Attached, Engine, Error, Events, Running, Target};

const SILENT: &str = "no process was traced";

#[derive(Debug)]
struct Bpf;

pub(crate) fn make(_: &crate::Options) -> Box<dyn Engine> {
    Box::new(Bpf)
}

impl Engine for Bpf {
    fn hindrance(&self, target: Target<'_>) -> Option<String> {
        match target {
            Target::Program { .. } => None,
            Target::Process(pid) => why_not(pid).map(|why| format!("process {pid}: {why}")),
        }
    }

    fn lack(&self) -> Option<String> {
        socktrace_bpf::permitted().err().map(|error| error.to_string())
    }

    fn to_run(self: Box<Self>, params: &Params<'_>) -> Result<(Events, Box<dyn Running>), Error> {
        let (events, control) = load(params)?;
        Ok((events, Box::new(Within(control))))
    }

    fn to_attach(self: Box<Self>, _: &[u32], params: &Params<'_>) -> Result<(Events, Box<dyn Attached>), Error> {
        let (events, control) = load(params)?;
        Ok((events, Box::new(Within(control))))
    }
}

fn load(params: &Params<'_>) -> Result<(Events, Control), Error> {
    let options = Options {
        max_bytes: params.max_bytes,
        ring_bytes: params.ring_bytes as u32,
        follow_children: params.follow_children,
    };
    let (kernel, control) = socktrace_bpf::load(&options).map_err(|error| Error::Missing(error.to_string()))?;
    Ok((Events::from(kernel), control))
}

/// What keeps it out of a process, which is only that there is none.
fn why_not(pid: u32) -> Option<String> {
    let status = proc_text(&format!("/proc/{pid}/status")).unwrap_or_default();
    match status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse::<u32>().ok()) {
        None => Some("no such process".into()),
        Some(process) if process != pid => Some(format!("is a thread of process {process}: attach to that")),
        Some(_) => None,
    }
}

/// Loaded, for as long as it is there and its events are read.
struct Within(Control);

impl Running for Within {
    fn start(&mut self, start: &Start<'_>, signals: &Signals) -> io::Result<Program> {
        self.0.while_starting(|| start.spawn(signals, With::default())).map(Program::from)
    }

    fn silence(&self) -> &'static str {
        SILENT
    }

    fn leave(self: Box<Self>) -> Removal {
        Removal::default()
    }
}

impl Attached for Within {
    fn attach(&mut self, pid: u32) -> Result<(), Error> {
        self.0.trace(pid).map_err(|error| Error::of_process(pid, &error))
    }

    fn detach(&mut self, pid: u32) -> Result<(), Error> {
        self.0.leave(pid);
        Ok(())
    }

    fn silence(&self) -> &'static str {
        SILENT
    }

    fn leave(self: Box<Self>) -> Removal {
        Removal::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_be_attached_to() {
        assert_eq!(why_not(std::process::id()), None);
        assert_eq!(why_not(u32::MAX).unwrap(), "no such process");
    }
}
