//! The collector inside `run` and `attach`: receives, records what is kept, shows what is asked for.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use socktrace_engine::nest::Relay;
use socktrace_engine::{Events, program};
use socktrace_event::{End, Failed, Layer, PathError, Sink, Stop, StopHandle, errno, notice};
use socktrace_recording::Recorder;
use socktrace_view::{Shown, Traffic, View};

use crate::args::{FilterArgs, ViewArgs};
use crate::output::{Destination, ORDERING_TIME, Output};
use crate::packets::Kept;

type Problem = Box<dyn Error + Send + Sync>;
type AnySink = dyn Sink<Error = PathError> + Send;

/// How the collector's thread has ended, what is shown, and what is kept.
type Collected = (Result<(), Problem>, Shown<Output>, Option<Box<AnySink>>);

/// What there is to say about the processes at the end.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Whether there are traced processes that go on.
    pub processes_go_on: bool,
    /// Whether any probe has reported.
    pub heard_of_probes: bool,
}

/// The collector, on a thread of its own.
pub struct Live {
    stop: StopHandle,
    thread: JoinHandle<Collected>,
}

impl Live {
    /// Opens the recording and the output, and begins to receive. What comes is handed on by `relay`, too.
    ///
    /// # Errors
    ///
    /// One line that names what cannot be opened or is no pattern.
    pub fn start(
        events: Events,
        filter: &FilterArgs,
        kept: Kept,
        view: &ViewArgs,
        relay: Option<Relay>,
    ) -> Result<Self> {
        let (scope, selection) = filter.both()?;
        let destination = Destination::open(view, view.json)?;
        let wants_lines = view.output.is_some() || view.text || view.hex || view.full || view.json;
        let is_shown = wants_lines || !matches!(kept, Kept::Packets { are_shown_elsewhere: true, .. });
        let is_unseen = (!is_shown || destination.is_null)
            && !matches!(kept, Kept::Packets { .. })
            && scope.is_all()
            && selection.is_all();
        let mut kept: Option<Box<AnySink>> = match kept {
            Kept::Nothing => None,
            Kept::Folder(folder, contents) => Some(Box::new(Recorder::open(&folder, contents)?)),
            Kept::Packets { packets, .. } => Some(packets),
        };
        if let Some(kept) = &mut kept
            && let Err(End::Failed(error)) = kept.begin(&events.origin())
        {
            return Err(error.into());
        }
        // A program of Go's is worth a word where only calls of libc's functions are seen.
        let is_unseen_go = if events.see_system_calls() { |_: Option<u32>, _: &Path| false } else { program::is_go };
        let view = View::new(view.style(destination.colour), Traffic::new(selection, Some(is_unseen_go)));
        let output = if is_shown { destination.in_background(ORDERING_TIME) } else { Output::default() };
        let mut shown = Shown::new(view, output, is_unseen);
        let stop = Stop::new()?;
        let handle = stop.handle();
        let collect = move || {
            let mut wanted: Vec<Box<dyn Sink<Error = PathError> + '_>> = vec![Box::new(&mut shown)];
            wanted.extend(kept.as_mut().map(|kept| Box::new(kept) as _));
            let mut sinks: Vec<Box<dyn Sink<Error = PathError> + '_>> = vec![Box::new(scope.before(wanted))];
            sinks.extend(relay.map(|relay| Box::new(relay) as _));
            let result = match events.run(&stop, &mut sinks) {
                Ok(_) => Ok(()),
                Err(Failed::Source(error)) => Err(error),
                Err(Failed::Sink(error)) => Err(error.into()),
            };
            drop(sinks);
            (result, shown, kept)
        };
        let thread = thread::Builder::new().name("collect".into()).spawn(collect).context("starting a thread")?;
        Ok(Self { stop: handle, thread })
    }

    /// Receives no more than what has been sent by now.
    pub fn stop(&self) {
        self.stop.stop();
    }

    /// Takes what has arrived, shows the end, and says what was lost, or why nothing was seen.
    ///
    /// `never_loaded` says what it may mean that no probe was heard of, `leaves` whether to name the processes that go
    /// on.
    pub fn finish(self, reason: &str, never_loaded: &str, leaves: bool) -> Ended {
        self.stop();
        let Ok((result, mut shown, kept)) = self.thread.join() else {
            notice("the collector has failed: what was recorded is not complete");
            return Ended { processes_go_on: true, heard_of_probes: true };
        };
        let finished = kept.map_or(Ok(()), |mut kept| kept.finish(reason)).and(shown.finish(reason));
        if let Err(error) = result.and(finished.map_err(Problem::from)) {
            let why = errno::explain(error.as_ref());
            notice(&format!("LOST: the collector has failed: {why}: what was recorded is not complete"));
        }
        let traffic = &shown.view().traffic;
        traffic.conclusions(never_loaded).iter().for_each(|sentence| notice(sentence));
        let running = traffic.processes.running();
        if leaves && !running.is_empty() {
            let (count, pids) = (running.len(), running.iter().take(8).map(u32::to_string).collect::<Vec<_>>());
            let (processes, more) =
                (if count == 1 { "process" } else { "processes" }, if count > 8 { ", …" } else { "" });
            notice(&format!(
                "{count} traced {processes} still running, from here on untraced: {}{more}",
                pids.join(", ")
            ));
        }
        Ended { processes_go_on: !running.is_empty(), heard_of_probes: traffic.has_heard_of_probes() }
    }
}

/// An exit status as a shell has it.
pub fn exit_code(status: std::process::ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    // exit(2) keeps eight bits.
    ExitCode::from((code & 0xff) as u8)
}
