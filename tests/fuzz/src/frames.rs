//! Datagrams from agents to a recording: what is recorded is what they said, and nothing else is written.
//!
//! An input is a byte that says what to record, and datagrams with their lengths before them.

use std::collections::HashMap;

use gttr::{Ext, Frame, unescape_path};
use socktrace_collect::join::Joined;
use socktrace_collect::owners::Owners;
use socktrace_collect::{Contents, Event, EventType, Recorder, Recording, Sender, Sink, decode, silence_notices};

use crate::input::Input;
use crate::sandbox::Sandbox;

/// A length that stands for no datagram, but for time that goes by.
const PAUSE: u16 = u16::MAX;
/// And one that stands for another sender, of whom a byte tells.
const SENDER: u16 = u16::MAX - 1;
/// A byte of a text takes four where it is not printable, and the backslash among them two in JSON.
const MAX_ESCAPED: usize = 5;
/// All names of fields, and numbers with all their digits.
const MAX_REST: usize = 4096;

/// Users who are not ours, of processes that cannot be seen: none may speak of another's connection.
const STRANGERS: [Sender; 3] =
    [Sender { pid: 0, uid: 70_001 }, Sender { pid: 0, uid: 70_002 }, Sender { pid: 0, uid: 70_003 }];

/// Remembers what the recorder is given.
struct Given<'r> {
    recorder: &'r mut Recorder,
    /// Lines of events, and the bytes that came with each.
    events: Vec<(String, Vec<u8>)>,
    sender: Sender,
    /// Whose payload files are, by their names.
    owners: HashMap<String, u32>,
}

impl Given<'_> {
    fn note(&mut self, event: &Event<'_>, payload: &[u8]) {
        if event.kind == EventType::Data
            && let Some(name) = event.payload_file()
        {
            let owner = *self.owners.entry(name.to_owned()).or_insert(self.sender.uid);
            assert_eq!(owner, self.sender.uid, "{name}: another user's");
        }
        let line = serde_json::to_string(event).expect("events are JSON");
        assert!(line.bytes().all(|byte| matches!(byte, b' '..=b'~')), "not printable: {line}");
        assert_eq!(serde_json::from_str::<Event<'_>>(&line).expect("an event"), *event, "{line}");
        self.events.push((line, payload.to_vec()));
    }
}

/// The event says what the frame said: numbers as they are, names so that their bytes can be told, the last of each.
fn check_said(frame: &Frame<'_>, event: &Event<'_>) {
    let mut expected = Event { kind: event.kind, ..Event::default() };
    for value in frame.ext.iter() {
        let is_name_of = |name: &Option<socktrace_collect::event::Text<'_>>, bytes: &[u8]| {
            name.as_deref().is_some_and(|name| unescape_path(name.as_bytes()).eq(bytes.iter().copied()))
        };
        let is_last =
            !frame.ext.iter().skip_while(|other| *other != value).skip(1).any(|other| other.tag() == value.tag());
        match value {
            Ext::Errno(number) => expected.errno = Some(number.cast_signed()),
            Ext::Times(times) => expected.times = Some(times),
            Ext::Status(status) => expected.status = Some(status),
            Ext::SocketsMade(sockets) => expected.sockets = Some(sockets),
            Ext::Program(name) if is_last => assert!(is_name_of(&event.program, name)),
            Ext::Exe(name) if is_last => assert!(is_name_of(&event.exe, name)),
            Ext::Comm(name) if is_last => assert!(is_name_of(&event.comm, name)),
            _ => {}
        }
    }
    let said = |event: &Event<'_>| (event.errno, event.times, event.status, event.sockets);
    assert_eq!(said(event), said(&expected));
    assert_eq!(event.error.is_some(), event.errno.is_some(), "an error has a number and a name");
    let name_len = |name: &Option<socktrace_collect::event::Text<'_>>| name.as_deref().map_or(0, str::len);
    assert!(name_len(&event.conn_id).max(name_len(&event.how)) <= 4 * gttr::MAX_CONN_ID_LEN);
    let line_len = serde_json::to_string(event).expect("events are JSON").len();
    assert!(line_len <= MAX_ESCAPED * (frame.encoded_len() - frame.payload.len()) + MAX_REST, "{line_len}");
}

impl Sink for Given<'_> {
    fn sender(&mut self, sender: Sender, channel: u64) {
        self.sender = sender;
        self.recorder.sender(sender, channel);
    }

    fn event(&mut self, event: &Event<'_>, payload: &[u8]) {
        self.note(event, payload);
        self.recorder.event(event, payload);
    }

    fn frame(&mut self, frame: &Frame<'_>) {
        let event = Event::from_frame(frame);
        if event.kind == EventType::BadFrame {
            // It has the server's time, another at each look.
            return self.event(&event, frame.payload);
        }
        check_said(frame, &event);
        self.note(&event, frame.payload);
        self.recorder.frame(frame);
    }

    fn flush(&mut self) -> bool {
        self.recorder.flush()
    }
}

pub(crate) fn run(bytes: &[u8]) {
    silence_notices();
    let mut input = Input(bytes);
    let sandbox = Sandbox::new();
    let contents = match input.u8() % 4 {
        1 => Contents::NoPayloadFiles,
        2 => Contents::NoEvents,
        _ => Contents::All,
    };
    let mut recorder = Recorder::open(sandbox.out(), contents).expect("an empty directory");
    let (sender, owners) = (Sender::default(), HashMap::new());
    let mut given = Given { recorder: &mut recorder, events: Vec::new(), sender, owners };
    let mut joined = Joined::new(&mut given);
    let mut owned = Owners::new(&mut joined);
    owned.sender(STRANGERS[0], 0);
    while !input.is_empty() {
        match input.u16() {
            PAUSE => assert!(owned.flush(), "there is room"),
            SENDER => owned.sender(STRANGERS[usize::from(input.u8()) % STRANGERS.len()], 0),
            len => {
                let datagram = input.bytes(len.into());
                decode::datagram(datagram, len.into(), &mut owned);
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
