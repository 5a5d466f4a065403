//! Datagrams from agents to a recording: what is recorded is what they said, and nothing else is written.
//!
//! An input is a byte that says what to record, and datagrams with their lengths before them.

use std::collections::HashMap;

use gttr::{Ext, Frame, unescape_path};
use serde_json::Value;
use socktrace_collect::join::Joined;
use socktrace_collect::owners::Owners;
use socktrace_collect::{Sender, decode};
use socktrace_event::{Before, Direction, End, Event, EventType, Layer, PathError, Sink, Taken, silence_notices};
use socktrace_recording::{Contents, Recorder, Recording};

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
        if event.kind() == EventType::Data
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
    let line = serde_json::to_string(event).expect("events are JSON");
    let said: Value = serde_json::from_str(&line).expect("JSON");
    let mut numbers = HashMap::from(["errno", "times", "status", "sockets"].map(|name| (name, Value::Null)));
    for value in frame.ext.iter() {
        let is_name_of = |name: &str, bytes: &[u8]| {
            said[name].as_str().is_some_and(|name| unescape_path(name.as_bytes()).eq(bytes.iter().copied()))
        };
        let is_last =
            !frame.ext.iter().skip_while(|other| *other != value).skip(1).any(|other| other.tag() == value.tag());
        match value {
            Ext::Errno(number) => _ = numbers.insert("errno", number.cast_signed().into()),
            Ext::Times(times) => _ = numbers.insert("times", times.into()),
            Ext::Status(status) => _ = numbers.insert("status", status.into()),
            Ext::SocketsMade(sockets) => _ = numbers.insert("sockets", sockets.into()),
            Ext::Program(name) if is_last => assert!(is_name_of("program", name)),
            Ext::Exe(name) if is_last => assert!(is_name_of("exe", name)),
            Ext::Comm(name) if is_last => assert!(is_name_of("comm", name)),
            _ => {}
        }
    }
    numbers.iter().for_each(|(name, number)| assert_eq!(said[name], *number, "{name}"));
    assert_eq!(said["error"].is_string(), said["errno"].is_number(), "an error has a number and a name");
    let name_len = |name: &str| said[name].as_str().map_or(0, str::len);
    assert!(name_len("conn_id").max(name_len("how")) <= 4 * gttr::MAX_CONN_ID_LEN);
    let line_len = line.len();
    assert!(line_len <= MAX_ESCAPED * (frame.encoded_len() - frame.payload.len()) + MAX_REST, "{line_len}");
}

impl Sink for Given<'_> {
    type Error = PathError;

    fn event(&mut self, event: &Event<'_>, payload: &[u8]) -> Taken<PathError> {
        self.note(event, payload);
        self.recorder.event(event, payload)
    }

    fn frame(&mut self, frame: &Frame<'_>, event: Option<&Event<'_>>) -> Taken<PathError> {
        let made = Event::from_frame(frame);
        if made.kind() == EventType::BadFrame {
            // It has the server's time, another at each look.
            return self.event(&made, frame.payload);
        }
        check_said(frame, &made);
        self.note(event.unwrap_or(&made), frame.payload);
        self.recorder.frame(frame, event)
    }

    fn flush(&mut self) -> Result<bool, End<PathError>> {
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
    let given = Given { recorder: &mut recorder, events: Vec::new(), sender, owners };
    let mut owned = Owners::default().before(Joined::default().before(given));
    let is_from = |owned: &mut Before<Owners, Before<Joined, Given<'_>>>, sender| {
        owned.layer.sender(sender, 0);
        owned.sink.sink.sender = sender;
    };
    is_from(&mut owned, STRANGERS[0]);
    while !input.is_empty() {
        match input.u16() {
            PAUSE => assert!(owned.flush().expect("it takes everything"), "there is room"),
            SENDER => is_from(&mut owned, STRANGERS[usize::from(input.u8()) % STRANGERS.len()]),
            len => {
                let datagram = input.bytes(len.into());
                decode::datagram(datagram, len.into(), &mut owned).expect("it takes everything");
            }
        }
    }
    let events = owned.sink.sink.events;
    recorder.finish("done").expect("it takes everything");
    sandbox.check();
    if contents != Contents::NoEvents {
        check(&sandbox, contents, &events);
    }
}

/// Every event is there as it was given, and the bytes of every message.
fn check(sandbox: &Sandbox, contents: Contents, events: &[(String, Vec<u8>)]) {
    let mut recording = Recording::open(sandbox.out()).expect("what was recorded");
    for (given, payload) in events {
        let recorded = recording.next_event().expect("it can be read").expect("a line for each event");
        assert_eq!(String::from_utf8_lossy(recorded.line()), *given);
        let event = recorded.event();
        if event.kind() == EventType::Data && event.direction() != Direction::None && contents == Contents::All {
            let read = recorded.payload(usize::MAX);
            assert_eq!((read.missing, &read.bytes), (None, payload), "{given}");
        }
    }
    let last = recording.next_event().expect("it can be read").expect("the end");
    assert_eq!(last.event().kind(), EventType::HostShutdown);
    assert!(recording.next_event().expect("it can be read").is_none() && recording.unreadable() == 0);
}
