//! Events to lines.

mod assemble;
mod clock;
mod connections;
mod hexdump;
mod json;
mod line;
pub mod losses;
mod processes;
mod table;
mod unseen;

use gttr::{Ext, Frame};
use socktrace_event::{Event, What};

use crate::args::ViewArgs;
use crate::filter::Selection;
use crate::output::Lines;
use crate::summary;
use assemble::{Assembler, Message};
use clock::Clock;
use connections::Connections;
use json::Payloads;
use line::Line;
use losses::Losses;
use processes::Processes;
use unseen::Unseen;

/// How payloads are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// A summary or the beginning, behind the message's line.
    Preview,
    Text,
    Hex,
    /// Hex, however long.
    Full,
}

/// How everything is shown.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    pub payload: Payload,
    pub json: bool,
    pub colour: bool,
    /// Whether the reader's terminal knows characters beyond ASCII.
    pub utf8: bool,
    /// Whether the processes still run, so that they can be asked for their names.
    pub live: bool,
}

impl Style {
    pub fn new(args: &ViewArgs, colour: bool, live: bool) -> Self {
        let payload = match (args.text, args.hex, args.full) {
            (_, _, true) => Payload::Full,
            (_, true, _) => Payload::Hex,
            (true, ..) => Payload::Text,
            _ => Payload::Preview,
        };
        Self { payload, json: args.json, colour, utf8: is_utf8_locale(), live }
    }
}

/// Whether the user's locale, as locale(7) has it, is of UTF-8.
fn is_utf8_locale() -> bool {
    let value =
        ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()));
    let value = value.unwrap_or_default().to_ascii_lowercase();
    value.ends_with("utf-8") || value.ends_with("utf8")
}

/// What is known so far, and the lines that follow from it.
#[derive(Debug)]
pub struct View {
    style: Style,
    selection: Selection,
    clock: Clock,
    assembler: Assembler,
    processes: Processes,
    connections: Connections,
    losses: Losses,
    unseen: Unseen,
    /// Messages shown, and not asked for.
    shown: u64,
    filtered: u64,
    sockets: u64,
    /// Calls on sockets that failed.
    failures: u64,
    started: bool,
}

impl View {
    pub fn new(args: &ViewArgs, style: Style, selection: Selection) -> Self {
        Self {
            style,
            selection,
            clock: Clock::new(args.time),
            assembler: Assembler::default(),
            processes: Processes::new(style.live),
            connections: Connections::default(),
            losses: Losses::default(),
            unseen: Unseen::default(),
            shown: 0,
            filtered: 0,
            sockets: 0,
            failures: 0,
            started: false,
        }
    }

    /// So many bytes of a payload are needed to show it.
    pub fn needed_bytes(&self) -> usize {
        let all = self.selection.looks_inside() || self.style.payload == Payload::Full || self.style.json;
        if all { usize::MAX } else { summary::MAX_LEN }
    }

    /// Learns from an event that is not shown, whatever the reason.
    pub fn hide(&mut self, event: &Event<'_>) {
        self.learn(event);
        if matches!(&event.what, What::Data(data) if data.is_first()) {
            self.filtered += 1;
        }
    }

    /// Counts a data event as shown that need not be: whoever looks on sees neither it nor the table at the end.
    pub fn count(&mut self, frame: &Frame<'_>) {
        let (mut pid, mut seq, mut is_first) = (None, None, true);
        for value in frame.ext.iter() {
            match value {
                Ext::Pid(value) => pid = Some(value),
                Ext::Seq(value) => seq = Some(value),
                Ext::Part(value) => is_first = value == 0,
                _ => {}
            }
        }
        // What a frame has of this an event has as well.
        let event = Event { pid, host_pid: frame.host_pid, ..Event::default() };
        if let Some(process) = event.process() {
            self.processes.note_process(process);
            self.losses.note_number(process, seq);
        }
        self.shown += u64::from(is_first);
    }

    fn learn(&mut self, event: &Event<'_>) {
        self.losses.note(event);
        self.processes.note(event);
        self.unseen.note(event, self.style.live);
        match &event.what {
            What::Init(_) | What::Start(_) => self.started = true,
            What::Open(_) | What::Listen(_) => self.sockets += 1,
            What::Fail(fail) if fail.program.is_none() => self.failures += 1,
            _ => {}
        }
    }

    /// Shows an event; `line` is what events.jsonl has of it, if that is where it comes from. `missing` says why
    /// `payload` is not all that the event speaks of.
    pub fn show(
        &mut self,
        event: &Event<'_>,
        payload: &[u8],
        missing: Option<&'static str>,
        json: Option<&[u8]>,
        to: &mut Lines,
    ) {
        self.learn(event);
        let ns = event.time_ns();
        if self.style.json {
            self.show_json(event, (payload, missing), json, &mut to.bytes);
            to.mark(ns);
            return;
        }
        self.connections.note(event, &self.processes);
        if !matches!(event.what, What::HostInit(_) | What::HostShutdown(_)) {
            self.clock.start(ns);
        }
        if let What::Data(data) = &event.what {
            for message in self.assembler.take(event, data, payload, missing) {
                self.show_message(&message, to);
            }
        } else if self.selection.wants_event(&event.what)
            && (!is_process(&event.what) || self.selection.wants_processes())
        {
            let time = self.clock.show(ns);
            line::event(event, Line::new(self.style, time), &self.processes, &self.connections, &mut to.bytes);
            to.mark(ns);
        }
    }

    fn show_json(&mut self, event: &Event<'_>, payload: Payloads<'_>, json: Option<&[u8]>, to: &mut Vec<u8>) {
        let wanted = match &event.what {
            What::Data(data) => {
                let wanted = self.selection.wants(data.direction, payload.0);
                *(if wanted { &mut self.shown } else { &mut self.filtered }) += 1;
                wanted
            }
            what => self.selection.wants_event(what),
        };
        if wanted {
            json::push(event, payload, json, to);
        }
    }

    fn show_message(&mut self, message: &Message, to: &mut Lines) {
        if !self.selection.wants(message.direction, &message.bytes) {
            self.filtered += 1;
            return;
        }
        self.shown += 1;
        self.connections.count(message, &self.processes);
        let time = self.clock.show(message.ns);
        line::message(message, Line::new(self.style, time), &self.processes, &self.connections, &mut to.bytes);
        to.mark(message.ns);
    }

    /// The end: messages whose last parts never came, and the table.
    pub fn finish(&mut self, to: &mut Lines) {
        for message in self.assembler.rest() {
            self.show_message(&message, to);
        }
        if !self.style.json && self.connections.len() > 0 {
            line::table(self.style, &self.processes, &self.connections, &mut to.bytes);
            to.mark(u64::MAX);
        }
    }

    /// What was lost, loudly.
    pub fn losses(&self) -> Vec<String> {
        self.losses.sentences()
    }

    /// Why nothing was shown, if nothing was.
    pub fn silence(&self) -> Option<Silence> {
        match (self.shown, self.filtered, self.started, self.sockets) {
            (1.., ..) => None,
            (0, filtered @ 1.., ..) => Some(Silence::Filtered(filtered)),
            (_, _, false, 0) => Some(Silence::NeverLoaded),
            (_, _, _, 0) => Some(match (self.failures, self.processes.sockets_made()) {
                (failures @ 1.., _) => Silence::Failures(failures),
                (0, made @ 1..) => Silence::Unused(made),
                (0, 0) if self.unseen.has_go() => Silence::Go(self.processes.count()),
                (0, 0) => Silence::NoSockets(self.processes.count()),
            }),
            _ => Some(Silence::NoMessages(self.sockets)),
        }
    }

    /// What was not seen, and why.
    pub fn unseen(&self) -> Vec<String> {
        self.unseen.sentences(&self.processes)
    }

    /// Traced processes that still run.
    pub fn running(&self) -> Vec<u32> {
        self.processes.running()
    }
}

/// Whether it is about processes, not sockets.
fn is_process(what: &What<'_>) -> bool {
    match what {
        What::Start(_) | What::Fork(_) | What::Exec(_) | What::Exit(_) => true,
        What::Fail(fail) => fail.program.is_some(),
        _ => false,
    }
}

/// Why nothing was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// So many messages were not asked for.
    Filtered(u64),
    /// No probe has said that it is there.
    NeverLoaded,
    /// So many processes were traced, and none used an AF_UNIX socket through libc.
    NoSockets(usize),
    /// The same, and some of them do not use libc.
    Go(usize),
    /// So many AF_UNIX sockets were made, and none was used.
    Unused(u64),
    /// So many calls on AF_UNIX sockets failed, and none succeeded.
    Failures(u64),
    /// So many sockets were opened, and nothing went over them.
    NoMessages(u64),
}
