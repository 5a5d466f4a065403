//! The collector inside `run` and `attach`: receives, records what is kept, shows what is asked for.

use std::io;
use std::process::ExitCode;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use gttr::{Frame, FrameType};
use socktrace_collect::{Bound, Event, Recorder, Sink, Stop, StopHandle, errno, notice, receive};

use crate::args::{FilterArgs, ViewArgs};
use crate::filter::{Scope, Selection};
use crate::nest::Relay;
use crate::output::{Default, Destination, Lines, ORDERING_TIME, Output};
use crate::packets::{Kept, Packets};
use crate::view::{Silence, Style, View};

/// Lines are handed on when they take so much, in bytes, if they are not flushed before.
const HAND_ON_LEN: usize = 64 << 10;

/// Takes events from agents.
struct Tracer {
    scope: Scope,
    recorder: Option<Recorder>,
    /// To a socktrace that this one runs under.
    relay: Option<Relay>,
    packets: Option<Box<Packets>>,
    view: View,
    lines: Lines,
    /// None: nobody wants to see lines.
    output: Option<Output>,
    /// Whether messages are all recorded and none is shown: there is no need to look at them.
    is_unseen: bool,
}

impl Sink for Tracer {
    fn came(&mut self, frame: &Frame<'_>) {
        if let Some(relay) = &mut self.relay {
            relay.frame(frame);
        }
    }

    fn event(&mut self, event: &Event<'_>, payload: &[u8]) {
        self.take(event, payload, |recorder| recorder.event(event, payload));
    }

    fn frame(&mut self, frame: &Frame<'_>) {
        if self.is_unseen && frame.kind == FrameType::Data {
            self.view.count(frame);
            if let Some(recorder) = &mut self.recorder {
                recorder.frame(frame);
            }
            return;
        }
        // A recorder is faster with the frame than with the event, which the view needs.
        self.take(&Event::from_frame(frame), frame.payload, |recorder| recorder.frame(frame));
    }

    fn is_recorded(&self, frame: &Frame<'_>) -> bool {
        self.recorder.as_ref().is_some_and(|recorder| recorder.is_recorded(frame))
    }

    fn flush(&mut self) -> bool {
        self.hand_on();
        if let Some(relay) = &mut self.relay {
            relay.flush();
        }
        if let Some(packets) = &mut self.packets {
            packets.flush();
        }
        self.recorder.as_mut().is_none_or(Recorder::flush)
    }
}

impl Tracer {
    fn take(&mut self, event: &Event<'_>, payload: &[u8], record: impl FnOnce(&mut Recorder)) {
        if !self.scope.lets_through(event) {
            self.view.hide(event);
            return;
        }
        if let Some(recorder) = &mut self.recorder {
            record(recorder);
        }
        if let Some(packets) = &mut self.packets {
            packets.event(event, payload);
        }
        self.view.show(event, payload, None, None, &mut self.lines);
        if self.lines.bytes.len() >= HAND_ON_LEN {
            self.hand_on();
        }
    }

    fn hand_on(&mut self) {
        if let Some(output) = &self.output {
            output.write(&self.lines);
        }
        self.lines.clear();
    }
}

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
    thread: JoinHandle<(io::Result<&'static str>, Tracer)>,
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
        let (mut recorder, mut packets, mut is_shown) = (None, None, true);
        match kept {
            Kept::Nothing => {}
            Kept::Folder(folder, contents) => {
                let mut opened = Recorder::open(&folder, contents)?;
                opened.begin(&bound)?;
                recorder = Some(opened);
            }
            Kept::Packets { packets: opened, are_shown_elsewhere } => {
                is_shown = !are_shown_elsewhere || wants_lines;
                packets = Some(opened);
            }
        }
        let is_unseen = (!is_shown || destination.is_null) && packets.is_none() && scope.is_all() && selection.is_all();
        let style = Style::new(view, destination.colour, true);
        let mut tracer = Tracer {
            scope,
            recorder,
            relay,
            packets,
            view: View::new(view, style, selection),
            lines: Lines::default(),
            output: is_shown.then(|| destination.in_background(ORDERING_TIME)),
            is_unseen,
        };
        let stop = Stop::new()?;
        let handle = stop.handle();
        let collect = move || (receive::run(&bound, &stop, &mut tracer), tracer);
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
        let Ok((result, mut tracer)) = self.thread.join() else {
            notice("the collector has failed: what was recorded is not complete");
            return Ended { processes_go_on: true, heard_of_probes: true };
        };
        tracer.view.finish(&mut tracer.lines);
        tracer.hand_on();
        if let Some(recorder) = tracer.recorder.take() {
            recorder.finish(reason);
        }
        if let Some(packets) = tracer.packets.take() {
            packets.finish();
        }
        let unshown = tracer.output.take().map_or(0, Output::finish);
        if unshown > 0 {
            notice(&format!("{unshown} lines were not shown: the output did not take them"));
        }
        if let Err(error) = result {
            let why = errno::explain(&error);
            notice(&format!("LOST: the collector has failed: {why}: what was recorded is not complete"));
        }
        tracer.view.losses().iter().for_each(|sentence| notice(sentence));
        tracer.view.unseen().iter().for_each(|sentence| notice(sentence));
        let silence = tracer.view.silence();
        let heard_of_probes = !matches!(silence, Some(Silence::NeverLoaded));
        if let Some(silence) = silence {
            explain(silence, never_loaded);
        }
        let running = tracer.view.running();
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
