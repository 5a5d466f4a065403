//! The collector inside `run` and `attach`: receives, records what is kept, shows what is asked for.

use std::io;
use std::process::ExitCode;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use gttr::{Frame, FrameType};
use socktrace_collect::Bound;
use socktrace_event::{End, Event, Failed, Layer, PathError, Sink, Source, Stop, StopHandle, Taken, errno, notice};
use socktrace_recording::Recorder;

use crate::args::{FilterArgs, ViewArgs};
use crate::filter::{Scope, Selection};
use crate::nest::Relay;
use crate::output::{Default, Destination, Lines, ORDERING_TIME, Output};
use crate::packets::Kept;
use crate::view::{Silence, Style, View};

/// Lines are handed on when they take so much, in bytes, if they are not flushed before.
const HAND_ON_LEN: usize = 64 << 10;

/// Shows events as they come.
struct Shown {
    view: View,
    lines: Lines,
    /// None: nobody wants to see lines.
    output: Option<Output>,
    /// Whether messages are all recorded and none is shown: there is no need to look at them.
    is_unseen: bool,
}

impl Shown {
    fn hand_on(&mut self) {
        if let Some(output) = &self.output {
            output.write(&self.lines);
        }
        self.lines.clear();
    }
}

impl Sink for Shown {
    type Error = PathError;

    fn event(&mut self, event: &Event<'_>, payload: &[u8]) -> Taken<PathError> {
        self.view.show(event, payload, None, None, &mut self.lines);
        if self.lines.bytes.len() >= HAND_ON_LEN {
            self.hand_on();
        }
        Ok(())
    }

    fn frame(&mut self, frame: &Frame<'_>, event: Option<&Event<'_>>) -> Taken<PathError> {
        match event {
            _ if self.is_unseen && frame.kind == FrameType::Data => {
                self.view.count(frame);
                Ok(())
            }
            Some(event) => self.event(event, frame.payload),
            None => self.event(&Event::from_frame(frame), frame.payload),
        }
    }

    fn left_out(&mut self, event: &Event<'_>) {
        self.view.hide(event);
    }

    fn flush(&mut self) -> Result<bool, End<PathError>> {
        self.hand_on();
        Ok(true)
    }

    fn finish(&mut self, _: &str) -> Result<(), PathError> {
        self.view.finish(&mut self.lines);
        self.hand_on();
        let unshown = self.output.as_mut().map_or(0, Output::finish);
        if unshown > 0 {
            notice(&format!("{unshown} lines were not shown: the output did not take them"));
        }
        Ok(())
    }
}

type AnySink = dyn Sink<Error = PathError> + Send;

/// How the collector's thread has ended, what is shown, and what is kept.
type Collected = (Result<(), Failed<io::Error, PathError>>, Shown, Option<Box<AnySink>>);

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
    pub fn start(bound: Bound, filter: &FilterArgs, kept: Kept, view: &ViewArgs, relay: Option<Relay>) -> Result<Self> {
        let default = if view.json { Default::Stdout } else { Default::Stderr };
        let (scope, selection) = (Scope::new(filter)?, Selection::new(filter)?);
        let destination = Destination::open(view.output.as_deref(), default, view.color.into())?;
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
            && let Err(End::Failed(error)) = kept.begin(&bound.origin())
        {
            return Err(error.into());
        }
        let style = Style::new(view, destination.colour, true);
        let (view, output) =
            (View::new(view, style, selection), is_shown.then(|| destination.in_background(ORDERING_TIME)));
        let mut shown = Shown { view, lines: Lines::default(), output, is_unseen };
        let stop = Stop::new()?;
        let handle = stop.handle();
        let collect = move || {
            let mut wanted: Vec<Box<dyn Sink<Error = PathError> + '_>> = vec![Box::new(&mut shown)];
            wanted.extend(kept.as_mut().map(|kept| Box::new(kept) as _));
            let mut sinks: Vec<Box<dyn Sink<Error = PathError> + '_>> = vec![Box::new(scope.before(wanted))];
            sinks.extend(relay.map(|relay| Box::new(relay) as _));
            let result = bound.run(&stop, &mut sinks).map(drop);
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
        if let Err(error) = result.and(finished.map_err(Failed::Sink)) {
            let why = errno::explain(&error);
            notice(&format!("LOST: the collector has failed: {why}: what was recorded is not complete"));
        }
        let view = &shown.view;
        view.losses().iter().for_each(|sentence| notice(sentence));
        view.unseen().iter().for_each(|sentence| notice(sentence));
        let silence = view.silence();
        let heard_of_probes = !matches!(silence, Some(Silence::NeverLoaded));
        if let Some(silence) = silence {
            explain(silence, never_loaded);
        }
        let running = view.running();
        if leaves && !running.is_empty() {
            let (count, pids) = (running.len(), running.iter().take(8).map(u32::to_string).collect::<Vec<_>>());
            let (processes, more) =
                (if count == 1 { "process" } else { "processes" }, if count > 8 { ", …" } else { "" });
            notice(&format!(
                "{count} traced {processes} still running, from here on untraced: {}{more}",
                pids.join(", ")
            ));
        }
        Ended { processes_go_on: !running.is_empty(), heard_of_probes }
    }
}

/// Says why nothing was shown.
pub fn explain(silence: Silence, never_loaded: &str) {
    notice(&match silence {
        Silence::Filtered(1) => "nothing shown: the filters let none of it through, 1 message".into(),
        Silence::Filtered(n) => format!("nothing shown: the filters let none of it through, {n} messages"),
        Silence::NeverLoaded => format!("nothing recorded: {never_loaded}"),
        Silence::NoSockets(n) => format!(
            "nothing recorded: {n} process{} traced, and no AF_UNIX socket was used through libc; what a program does by \
             system calls of its own is not seen",
            if n == 1 { "" } else { "es" }
        ),
        Silence::Go(n) => {
            format!("nothing recorded: {n} process{} traced, see above", if n == 1 { "" } else { "es" })
        }
        Silence::Unused(1) => "nothing recorded: 1 AF_UNIX socket was made, and nothing went over it".into(),
        Silence::Unused(n) => format!("nothing recorded: {n} AF_UNIX sockets were made, and nothing went over them"),
        Silence::Failures(1) => "no messages: a call on an AF_UNIX socket failed, and nothing went over any".into(),
        Silence::Failures(n) => {
            format!("no messages: calls on AF_UNIX sockets failed, {n} as told above, and nothing went over any")
        }
        Silence::NoMessages(1) => "no messages: 1 AF_UNIX socket, and nothing went over it".into(),
        Silence::NoMessages(n) => format!("no messages: {n} AF_UNIX sockets, and nothing went over them"),
    });
}

/// An exit status as a shell has it.
pub fn exit_code(status: std::process::ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    // exit(2) keeps eight bits.
    ExitCode::from((code & 0xff) as u8)
}
