//! A printer in a few lines takes what is shown, of events as they come and of their recording alike.

use std::convert::Infallible;

use socktrace_event::{Captured, Data, Direction, End, Event, Layer, Lost, Open, Origin, Sink, Taken, What};
use socktrace_recording::{Contents, Follow, Next, Recorder};
use socktrace_view::line::{self, Line, Role};
use socktrace_view::{Filter, Form, Lines, Printer, Scope, Selection, Shown, Style, Time, Traffic, View};

/// Keeps what is printed, and has enough of it when that is so long.
struct Page {
    text: Vec<u8>,
    most: usize,
}

impl Printer for &mut Page {
    type Error = Infallible;

    fn print(&mut self, lines: &Lines) -> Taken<Infallible> {
        self.text.extend_from_slice(&lines.bytes);
        if self.text.len() < self.most { Ok(()) } else { Err(End::Enough) }
    }
}

fn page() -> Page {
    Page { text: Vec::new(), most: usize::MAX }
}

/// A message on each of two sockets, and a loss.
fn events() -> Vec<(Event<'static>, &'static [u8])> {
    let event =
        |seq, what| Event { pid: Some(7), seq: Some(seq), ts_ns: Some(seq * 1_000_000), what, ..Event::default() };
    let open = |path: &'static str| {
        What::Open(Open { path: path.into(), conn_id: path.into(), how: "connect".into(), ..Open::default() })
    };
    let data = |path: &'static str| {
        let (direction, conn_id) = (Direction::Out, path.into());
        What::Data(Data { direction, path: path.into(), conn_id, size: 4, ..Data::default() })
    };
    let lost = Lost { events: Some(2), bytes: Some(9), reason: Some("the disk is full".into()), ..Lost::default() };
    vec![
        (event(1, open("@a")), b""),
        (event(2, open("@b")), b""),
        (event(3, data("@a")), b"ping"),
        (event(4, data("@b")), b"pong"),
        (event(7, What::Lost(lost)), b""),
    ]
}

fn shown<'p>(page: &'p mut Page, filter: &Filter, form: Form) -> (Scope, Shown<&'p mut Page>) {
    let style = Style { form, time: Time::Epoch, ..Style::default() };
    let traffic = Traffic::new(Selection::new(filter).unwrap(), None);
    (Scope::new(filter).unwrap(), Shown::new(View::new(style, traffic), page, false))
}

/// What is printed of the events as they come, and what is said at the end.
fn live(filter: &Filter, form: Form) -> (String, Vec<String>) {
    let mut page = page();
    let (scope, shown) = shown(&mut page, filter, form);
    let mut sink = scope.before(shown);
    events().iter().for_each(|(event, payload)| sink.event(event, payload).unwrap());
    sink.finish("done").unwrap();
    let said = sink.sink.view().traffic.conclusions("nobody knows");
    (String::from_utf8(page.text).unwrap(), said)
}

const LOST: &str = "LOST: 2 events with 9 payload bytes: the disk is full";

#[test]
fn lines_and_the_table() {
    let (text, said) = live(&Filter::default(), Form::Preview);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[2..4], ["0.003000 ?[7] -> @a 4 bytes \"ping\"", "0.004000 ?[7] -> @b 4 bytes \"pong\""]);
    assert!(lines[6].starts_with("PATH") && lines[7].starts_with("@a") && lines.len() == 9, "{text}");
    assert_eq!(said, [LOST]);
}

#[test]
fn what_is_not_asked_for_is_learnt_from_and_not_shown() {
    let (text, said) = live(&Filter { paths: vec!["@a".into()], ..Filter::default() }, Form::Preview);
    assert!(text.contains("ping") && !text.contains("pong") && !text.contains("@b"), "{text}");
    assert_eq!(said, [LOST]);
    let (text, said) = live(&Filter { grep: Some("nothing".into()), ..Filter::default() }, Form::Preview);
    assert!(!text.contains("ping") && text.contains("LOST"), "{text}");
    assert_eq!(said, [LOST, "nothing shown: the filters let none of it through, 2 messages"]);
}

#[test]
fn a_recording_is_shown_as_its_events_were() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    let mut recorder = Recorder::open(&path, Contents::All).unwrap();
    recorder.begin(&Origin { path: "/run/x.sock".as_ref(), kind: "stream" }).unwrap();
    events().iter().for_each(|(event, payload)| recorder.event(event, payload).unwrap());
    recorder.finish("done").unwrap();
    for form in [Form::Preview, Form::Text, Form::Full] {
        let (mut recording, mut page) = (Follow::open(&path, true).unwrap(), page());
        let (mut scope, mut shown) = shown(&mut page, &Filter::default(), form);
        while let Next::Event(recorded) = recording.next_event().unwrap() {
            shown.recorded(&recorded, &mut scope).unwrap();
        }
        shown.end().unwrap();
        assert_eq!(String::from_utf8(page.text).unwrap(), live(&Filter::default(), form).0);
    }
}

#[test]
fn a_reader_that_has_enough() {
    let mut page = Page { most: 1, ..page() };
    let mut shown = shown(&mut page, &Filter::default(), Form::Preview).1;
    let (event, payload) = events().swap_remove(0);
    shown.event(&event, payload).unwrap();
    assert_eq!(shown.flush(), Err(End::Enough));
}

#[test]
fn a_line_in_pieces() {
    let mut traffic = Traffic::new(Selection::default(), None);
    let style = Style { utf8: true, ..Style::default() };
    let mut of = |(event, payload): &(Event<'_>, &[u8])| {
        traffic.note(event);
        let What::Data(data) = &event.what else { return line::event(style, "now", event, &traffic).unwrap() };
        let message = traffic.messages(event, data, Captured { bytes: payload, missing: None }).remove(0);
        line::message(style, "now", &message, &traffic)
    };
    let lines: Vec<_> = events().iter().map(&mut of).collect();
    let pieces = |line: &Line| line.pieces().map(|(role, text)| (role, text.to_owned())).collect::<Vec<_>>();
    let expected =
        [(Role::Dim, "now"), (Role::Process, "?[7]"), (Role::Out, "→"), (Role::Path, "@a"), (Role::Plain, "4 bytes")];
    let shown = pieces(&lines[2]);
    assert_eq!(shown[..5], expected.map(|(role, text)| (role, text.to_owned())));
    assert_eq!(shown[5..], [(Role::Plain, "\"ping\"".to_owned())]);
    assert_eq!(pieces(&lines[4])[2].0, Role::Bad);
    let mut coloured = Vec::new();
    lines[2].print(true, &mut coloured);
    assert_eq!(
        String::from_utf8(coloured).unwrap(),
        "\x1b[2mnow\x1b[0m \x1b[36m?[7]\x1b[0m \x1b[32m→\x1b[0m \x1b[1m@a\x1b[0m 4 bytes \"ping\"\n"
    );
}
