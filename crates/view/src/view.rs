//! Events to lines.

use socktrace_event::{Captured, Event, What};

use crate::clock::Clock;
use crate::line;
use crate::lines::Lines;
use crate::message::Message;
use crate::style::{Form, Style};
use crate::traffic::Traffic;
use crate::{json, summary};

/// Writes lines of what is asked for, and the table at the end.
#[derive(Debug)]
pub struct View {
    style: Style,
    clock: Clock,
    /// What is known so far.
    pub traffic: Traffic,
}

impl View {
    /// Lines in a style, of what follows.
    pub fn new(style: Style, traffic: Traffic) -> Self {
        Self { style, clock: Clock::new(style.time), traffic }
    }

    /// So many bytes of a payload are needed to show it.
    pub fn needed_bytes(&self) -> usize {
        let all = self.traffic.selection.looks_inside() || matches!(self.style.form, Form::Full | Form::Json);
        if all { usize::MAX } else { summary::MAX_LEN }
    }

    /// Shows an event; `line` is what events.jsonl has of it, if that is where it comes from.
    pub fn show(&mut self, event: &Event<'_>, payload: Captured<'_>, line: Option<&[u8]>, to: &mut Lines) {
        self.traffic.note(event);
        let ns = event.time_ns();
        if !matches!(event.what, What::HostInit(_) | What::HostShutdown(_)) {
            self.clock.start(ns);
        }
        match &event.what {
            What::Data(data) if self.style.form == Form::Json => {
                if self.traffic.wants_part(data.direction, payload.bytes) {
                    json::push(event, payload, line, &mut to.bytes);
                }
            }
            What::Data(data) => {
                for message in self.traffic.messages(event, data, payload) {
                    self.show_message(&message, to);
                }
            }
            what if !self.traffic.selection.wants_event(what) => {}
            _ if self.style.form == Form::Json => json::push(event, payload, line, &mut to.bytes),
            what if is_process(what) && !self.traffic.selection.wants_processes() => {}
            _ => {
                if let Some(line) = line::event(self.style, &self.clock.show(ns), event, &self.traffic) {
                    line.print(self.style.colour, &mut to.bytes);
                }
            }
        }
        to.mark(ns);
    }

    fn show_message(&self, message: &Message, to: &mut Lines) {
        let line = line::message(self.style, &self.clock.show(message.ns), message, &self.traffic);
        line.print(self.style.colour, &mut to.bytes);
        to.bytes.extend_from_slice(line::below(self.style, message).as_bytes());
        to.mark(message.ns);
    }

    /// The end: messages whose last parts never came, and the table.
    pub fn finish(&mut self, to: &mut Lines) {
        for message in self.traffic.rest() {
            self.show_message(&message, to);
        }
        if self.style.form != Form::Json && !self.traffic.connections.is_empty() {
            line::table(self.style, &self.traffic, &mut to.bytes);
            to.mark(u64::MAX);
        }
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
