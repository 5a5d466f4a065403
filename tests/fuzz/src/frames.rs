//! Datagrams from agents to a recording: what is recorded is what they said, and nothing else is written.
//!
//! An input is a byte that says what to record, and datagrams with their lengths before them.

use socktrace_collect::join::Joined;
use socktrace_collect::{Contents, Event, EventType, Recorder, Recording, Sink, decode};

use crate::input::Input;
use crate::sandbox::Sandbox;

/// A length that stands for no datagram, but for time that goes by.
const PAUSE: u16 = u16::MAX;

/// Remembers what the recorder is given.
struct Given<'r> {
    recorder: &'r mut Recorder,
    /// Lines of events, and the bytes that came with each.
    events: Vec<(String, Vec<u8>)>,
}

impl Given<'_> {
    fn note(&mut self, event: &Event<'_>, payload: &[u8]) {
        let line = serde_json::to_string(event).expect("events are JSON");
        self.events.push((line, payload.to_vec()));
    }
}

impl Sink for Given<'_> {
    fn event(&mut self, event: &Event<'_>, payload: &[u8]) {
        self.note(event, payload);
        self.recorder.event(event, payload);
    }

    fn frame(&mut self, frame: &gttr::Frame<'_>) {
        let event = Event::from_frame(frame);
        if event.kind == EventType::BadFrame {
            // It has the server's time, another at each look.
            return self.event(&event, frame.payload);
        }
        self.note(&event, frame.payload);
        self.recorder.frame(frame);
    }

    fn flush(&mut self) -> bool {
        self.recorder.flush()
    }
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let sandbox = Sandbox::new();
    let contents = match input.u8() % 4 {
        1 => Contents::NoPayloadFiles,
        2 => Contents::NoEvents,
        _ => Contents::All,
    };
    let mut recorder = Recorder::open(sandbox.out(), contents).expect("an empty directory");
    let mut given = Given { recorder: &mut recorder, events: Vec::new() };
    let mut joined = Joined::new(&mut given);
    while !input.is_empty() {
        match input.u16() {
            PAUSE => assert!(joined.flush(), "there is room"),
            len => {
                let datagram = input.bytes(len.into());
                decode::datagram(datagram, len.into(), &mut joined);
            }
        }
    }
    let events = given.events;
    recorder.finish("done");
    sandbox.check();
    if contents != Contents::NoEvents {
        check(&sandbox, contents, &events);
    }
}

/// Every event is there as it was given, and the bytes of every message.
fn check(sandbox: &Sandbox, contents: Contents, events: &[(String, Vec<u8>)]) {
    let mut recording = Recording::open(sandbox.out()).expect("what was recorded");
    for (given, payload) in events {
        let line = recording.next_line().expect("it can be read").expect("a line for each event");
        assert_eq!(String::from_utf8_lossy(&line), *given);
        let event = recording.event(&line).expect("an event");
        if event.kind == EventType::Data && event.direction.is_some() && contents == Contents::All {
            let read = recording.payload(&event, usize::MAX);
            assert_eq!((read.missing, &read.bytes), (None, payload), "{given}");
        }
    }
    let last = recording.next_line().expect("it can be read").expect("the end");
    assert_eq!(recording.event(&last).expect("an event").kind, EventType::HostShutdown);
    assert_eq!(recording.next_line().expect("it can be read"), None);
}
