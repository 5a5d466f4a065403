//! What is known of the traffic so far, in whatever way it is shown.

use gttr::{Ext, Frame};
use socktrace_event::{Captured, Data, Direction, Event, What};

use crate::connections::{Connection, Connections};
use crate::filter::Selection;
use crate::losses::Losses;
use crate::message::{Assembler, Message};
use crate::processes::Processes;
use crate::unseen::{IsGo, Unseen};

/// Learns from events, and counts which of them are shown.
#[derive(Debug)]
pub struct Traffic {
    /// Which messages are asked for.
    pub selection: Selection,
    /// The processes, traced ones and others.
    pub processes: Processes,
    /// The connections of what is shown.
    pub connections: Connections,
    /// What was lost.
    pub losses: Losses,
    unseen: Unseen,
    parts: Assembler,
    /// Messages shown, and not asked for.
    shown: u64,
    filtered: u64,
    sockets: u64,
    /// Calls on sockets that failed.
    failures: u64,
    started: bool,
}

impl Traffic {
    /// Nothing is known yet. `live`: the processes are those of this machine and of now, so that they can be looked at, and
    /// how to tell a program of Go's.
    pub fn new(selection: Selection, live: Option<IsGo>) -> Self {
        Self {
            selection,
            processes: Processes::new(live.is_some()),
            connections: Connections::default(),
            losses: Losses::default(),
            unseen: Unseen::new(live),
            parts: Assembler::default(),
            shown: 0,
            filtered: 0,
            sockets: 0,
            failures: 0,
            started: false,
        }
    }

    /// Learns from an event that is to be shown.
    pub fn note(&mut self, event: &Event<'_>) {
        self.learn(event);
        self.connections.note(event, &self.processes);
    }

    /// Learns from an event that is not to be shown.
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
        self.unseen.note(event);
        match &event.what {
            What::Init(_) | What::Start(_) => self.started = true,
            What::Open(_) | What::Listen(_) => self.sockets += 1,
            What::Fail(fail) if fail.program.is_none() => self.failures += 1,
            _ => {}
        }
    }

    /// The messages that a data event completes, as far as they are asked for. It has been noted.
    pub fn messages(&mut self, event: &Event<'_>, data: &Data<'_>, payload: Captured<'_>) -> Vec<Message> {
        let messages = self.parts.take(event, data, payload);
        self.selected(messages)
    }

    /// The messages whose last parts never came.
    pub fn rest(&mut self) -> Vec<Message> {
        let messages = self.parts.rest();
        self.selected(messages)
    }

    fn selected(&mut self, mut messages: Vec<Message>) -> Vec<Message> {
        messages.retain(|message| {
            let is_wanted = self.wants_part(message.direction, &message.bytes);
            if is_wanted {
                self.connections.count(message, &self.processes);
            }
            is_wanted
        });
        messages
    }

    /// Whether what a data event has is asked for, as if it were a message.
    pub fn wants_part(&mut self, direction: Direction, bytes: &[u8]) -> bool {
        let is_wanted = self.selection.wants(direction, bytes);
        *(if is_wanted { &mut self.shown } else { &mut self.filtered }) += 1;
        is_wanted
    }

    /// `name[pid]` of the process at the other end of a connection; empty: it is not known.
    pub fn peer(&self, connection: &Connection) -> String {
        let peer = self.connections.peer(connection);
        peer.map(|(process, exe)| self.processes.show_peer(process, exe)).unwrap_or_default()
    }

    /// What there is to say at the end, a sentence each: what was lost, what was not seen and why, and why nothing was shown,
    /// if nothing was. `never_loaded` says what it may mean that no probe was heard of.
    pub fn conclusions(&self, never_loaded: &str) -> Vec<String> {
        let mut all = self.losses.sentences();
        all.extend(self.unseen.sentences(&self.processes));
        all.extend(self.silence(never_loaded));
        all
    }

    /// Whether any probe has reported.
    pub fn has_heard_of_probes(&self) -> bool {
        self.started || self.shown + self.filtered + self.sockets > 0
    }

    fn silence(&self, never_loaded: &str) -> Option<String> {
        let traced = || match self.processes.count() {
            1 => "1 process traced".to_owned(),
            n => format!("{n} processes traced"),
        };
        let made = self.processes.sockets_made();
        Some(match (self.shown, self.filtered, self.sockets, self.failures) {
            (1.., ..) => return None,
            (_, 1, ..) => "nothing shown: the filters let none of it through, 1 message".into(),
            (_, n @ 2.., ..) => format!("nothing shown: the filters let none of it through, {n} messages"),
            _ if !self.has_heard_of_probes() => format!("nothing recorded: {never_loaded}"),
            (_, _, 1, _) => "no messages: 1 AF_UNIX socket, and nothing went over it".into(),
            (_, _, n @ 2.., _) => format!("no messages: {n} AF_UNIX sockets, and nothing went over them"),
            (.., 1) => "no messages: a call on an AF_UNIX socket failed, and nothing went over any".into(),
            (.., n @ 2..) => {
                format!("no messages: calls on AF_UNIX sockets failed, {n} as told above, and nothing went over any")
            }
            _ if made == 1 => "nothing recorded: 1 AF_UNIX socket was made, and nothing went over it".into(),
            _ if made > 1 => {
                format!("nothing recorded: {made} AF_UNIX sockets were made, and nothing went over them")
            }
            _ if self.unseen.has_go() => format!("nothing recorded: {}, see above", traced()),
            _ => format!(
                "nothing recorded: {}, and no AF_UNIX socket was used through libc; what a program does by system calls of \
                 its own is not seen",
                traced()
            ),
        })
    }
}
