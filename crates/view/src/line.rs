//! One line a message, as people read it.

use std::io::Write;
use std::mem;

use anstyle::{AnsiColor, Style as Colour};
use socktrace_event::{Direction, Event, Fail, Text, What, errno, printable};

use crate::connections::Connection;
use crate::hexdump;
use crate::message::Message;
use crate::processes::label;
use crate::style::{Form, Style};
use crate::summary::{self, Context};
use crate::table::{self, Row};
use crate::traffic::Traffic;
use crate::unseen::NOT_ASKED_FOR;
use Role::{Bad, Dim, In, Out, Path, Plain, Process};

/// So much of a payload is shown behind the line, in bytes.
const PREVIEW_LEN: usize = 80;
/// So much of a payload is shown below the line, unless all is asked for, in bytes.
const FOLD_LEN: usize = 512;
/// A summary's characters.
const MAX_SUMMARY: usize = 400;
const INDENT: &str = "    ";

/// What a piece of a line is, and so how it is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Text without a role of its own.
    Plain,
    /// Times and details.
    Dim,
    /// A process.
    Process,
    /// A socket, or a program.
    Path,
    /// That bytes were sent.
    Out,
    /// That bytes were received.
    In,
    /// That something failed, or is missing.
    Bad,
}

impl Role {
    fn colour(self) -> Colour {
        match self {
            Self::Plain => Colour::new(),
            Self::Dim => Colour::new().dimmed(),
            Self::Process => AnsiColor::Cyan.on_default(),
            Self::Path => Colour::new().bold(),
            Self::Out => AnsiColor::Green.on_default(),
            Self::In => AnsiColor::Blue.on_default(),
            Self::Bad => AnsiColor::Red.on_default().bold(),
        }
    }
}

/// A line of pieces, fit for a terminal, between which there are spaces.
#[derive(Debug)]
pub struct Line {
    utf8: bool,
    text: String,
    /// What each piece is, and where it ends in the text.
    pieces: Vec<(Role, usize)>,
}

impl Line {
    fn new(style: Style, time: &str) -> Self {
        let mut line = Self { utf8: style.utf8, text: String::new(), pieces: Vec::new() };
        line.add(Dim, time);
        line
    }

    fn add(&mut self, role: Role, text: &str) {
        self.bytes(role, text.as_bytes());
    }

    /// Text with names in it, as events have them (docs/gttr.md, "Names").
    fn named(&mut self, role: Role, escaped: &str) {
        self.bytes(role, &unescaped(escaped));
    }

    fn bytes(&mut self, role: Role, text: &[u8]) {
        if !text.is_empty() {
            printable::push(&mut self.text, text, self.utf8);
            self.pieces.push((role, self.text.len()));
        }
    }

    /// Its pieces.
    pub fn pieces(&self) -> impl Iterator<Item = (Role, &str)> {
        self.pieces.iter().scan(0, |begin, &(role, end)| Some((role, &self.text[mem::replace(begin, end)..end])))
    }

    /// Appends it as text.
    pub fn print(&self, colour: bool, to: &mut Vec<u8>) {
        for (number, (role, text)) in self.pieces().enumerate() {
            if number > 0 {
                to.push(b' ');
            }
            push(colour, role, text, to);
        }
        to.push(b'\n');
    }
}

fn push(colour: bool, role: Role, text: &str, to: &mut Vec<u8>) {
    if colour {
        let colour = role.colour();
        // Memory takes everything.
        let _ = write!(to, "{colour}{text}{colour:#}");
    } else {
        to.extend_from_slice(text.as_bytes());
    }
}

fn unescaped(name: &str) -> Vec<u8> {
    gttr::unescape_path(name.as_bytes()).collect()
}

/// A message's line. What of its payload stands below it is [`below`].
pub fn message(style: Style, time: &str, message: &Message, traffic: &Traffic) -> Line {
    let mut line = Line::new(style, time);
    let connection = traffic.connections.get(&message.conn_id);
    if let Some(process) = message.process {
        line.named(Process, &traffic.processes.show(process));
    }
    let arrows = if style.utf8 { ["→", "←"] } else { ["->", "<-"] };
    match message.direction {
        Direction::Out => line.add(Out, arrows[0]),
        Direction::In => line.add(In, arrows[1]),
        Direction::None => {}
    }
    line.named(Path, shown_path(&message.path));
    if let Some(connection) = connection {
        line.named(Process, &traffic.peer(connection));
    }
    line.add(Plain, &size(message));
    if let Some(missing) = message.missing {
        line.add(Bad, &format!("({missing})"));
    }
    if !message.details.is_empty() {
        line.named(Dim, &format!("({})", message.details));
    }
    let summary = summary_of(message, connection);
    if let Some(summary) = &summary {
        line.add(Plain, summary);
    }
    if style.form == Form::Preview && summary.is_none() && !message.bytes.is_empty() {
        preview(style, &mut line, message);
    }
    line
}

/// A socket's path; without one it is what unix(7) calls it, as both ends of a socketpair(2) are.
fn shown_path(path: &str) -> &str {
    if path.is_empty() { table::UNNAMED } else { path }
}

fn size(message: &Message) -> String {
    let bytes = if message.total == 1 { "byte" } else { "bytes" };
    if message.total > message.size {
        format!("{} of {} {bytes}", message.size, message.total)
    } else {
        format!("{} {bytes}", message.size)
    }
}

fn summary_of(message: &Message, connection: Option<&Connection>) -> Option<String> {
    let client = connection.and_then(|connection| connection.is_client);
    let out = message.direction == Direction::Out;
    let context = Context { path: &message.path, from_client: client.map(|client| client == out) };
    let mut summary = summary::summarise(&message.bytes, &context)?;
    if let Some((at, _)) = summary.char_indices().nth(MAX_SUMMARY) {
        summary.truncate(at);
        summary.push('…');
    }
    Some(summary)
}

fn preview(style: Style, line: &mut Line, message: &Message) {
    let len = cut(&message.bytes, PREVIEW_LEN);
    line.text.push('"');
    printable::push(&mut line.text, &message.bytes[..len], style.utf8);
    line.text.push('"');
    line.pieces.push((Plain, line.text.len()));
    if let more @ 1.. = message.size.saturating_sub(len as u64) {
        line.add(Plain, &more_bytes(more, style.ellipsis()));
    }
}

fn more_bytes(more: u64, ellipsis: &str) -> String {
    format!("{ellipsis} {more} more byte{}", if more == 1 { "" } else { "s" })
}

/// A length of at most `max` that does not cut a character in two.
fn cut(bytes: &[u8], max: usize) -> usize {
    if bytes.len() <= max {
        return bytes.len();
    }
    let is_inside = |at: usize| bytes[at] & 0xc0 == 0x80;
    // A character has at most three bytes of that kind; more are no text.
    (max - 3..=max).rev().find(|&at| !is_inside(at)).unwrap_or(max)
}

/// What of a message's payload stands below its line, if anything does: whole lines.
pub fn below(style: Style, message: &Message) -> String {
    let (bytes, mut text) = (&message.bytes, String::new());
    let len = match style.form {
        Form::Preview | Form::Json => return text,
        Form::Full => bytes.len(),
        Form::Text => cut(bytes, FOLD_LEN),
        _ => bytes.len().min(FOLD_LEN),
    };
    if len > 0 {
        match style.form {
            Form::Text => printable::push_lines(&mut text, &bytes[..len], style.utf8, INDENT),
            _ => hexdump::push(&mut text, &bytes[..len], INDENT),
        }
    }
    // What is missing has been said in the line.
    if let more @ 1.. = message.size.saturating_sub(len as u64)
        && (message.missing.is_none() || len < bytes.len())
    {
        text.push_str(&format!("{INDENT}{}\n", more_bytes(more, style.ellipsis())));
    }
    text
}

/// The line of an event that is no message; none for what only the recording needs.
pub fn event(style: Style, time: &str, event: &Event<'_>, traffic: &Traffic) -> Option<Line> {
    let mut line = Line::new(style, time);
    if let Some(process) = event.process() {
        line.named(Process, &traffic.processes.show(process));
    }
    let connection = event.conn_id().and_then(|id| traffic.connections.get(id));
    let path = event.path().or(connection.map(|connection| &*connection.path)).unwrap_or_default();
    let peer = || connection.map(|connection| traffic.peer(connection)).unwrap_or_default();
    let text = |text: &Option<Text<'_>>| text.as_deref().unwrap_or_default().to_owned();
    match &event.what {
        What::Open(open) => {
            line.add(Plain, "open");
            line.named(Path, shown_path(path));
            line.named(Process, &peer());
            line.named(Dim, &format!("({})", open.how));
        }
        What::Close(_) | What::Listen(_) => {
            line.add(Plain, if matches!(event.what, What::Close(_)) { "close" } else { "listen" });
            line.named(Path, shown_path(path));
            line.named(Dim, &format!("({})", event.how().unwrap_or_default()));
        }
        What::Start(begun) | What::Fork(begun) => {
            line.add(Plain, if matches!(event.what, What::Start(_)) { "start" } else { "fork" });
            line.named(Plain, &text(&begun.exe));
            // Of a process in another pid namespace it is a number there.
            if let (Some(ppid), None) = (begun.ppid, event.host_pid) {
                line.add(Dim, &format!("(child of {ppid})"));
            }
        }
        // One that is traced introduces itself.
        What::Exec(exec) => {
            let why = exec.untraced.as_deref()?;
            line.add(Plain, "executes");
            line.named(Path, &text(&exec.program));
            let role = if why == NOT_ASKED_FOR { Dim } else { Bad };
            line.add(role, &format!("(not traced: {why})"));
        }
        // That all went well is not worth a line a process.
        What::Exit(exit) => match exit.status {
            Some(0) => return None,
            Some(status) => line.add(Plain, &format!("exited {status}")),
            None => line.named(Plain, &format!("exit {}", text(&exit.raw))),
        },
        What::Fail(fail) => {
            line.add(Plain, &text(&fail.call));
            line.named(Path, fail.program.as_deref().unwrap_or(shown_path(path)));
            line.add(Bad, &failure(fail));
        }
        What::Eof(_) => {
            line.add(Plain, "end of file");
            line.named(Path, shown_path(path));
            line.named(Process, &peer());
        }
        What::Error(said) => line.named(Bad, &format!("error: {}", said.raw)),
        What::BadFrame(bad) => line.add(Bad, &format!("bad frame: {} bytes: {}", bad.size, bad.error)),
        What::Lost(lost) => {
            let (events, bytes) = (lost.events.unwrap_or(0), lost.bytes.unwrap_or(0));
            line.named(Bad, &format!("LOST {events} events, {bytes} bytes: {}", text(&lost.reason)));
            line.named(Path, path);
        }
        _ => return None,
    }
    Some(line)
}

/// An error in words, with its name, and how often it has been.
fn failure(fail: &Fail<'_>) -> String {
    let number = fail.errno.unwrap_or(0);
    let mut shown = errno::words(number);
    if let Some(times @ 2..) = fail.times {
        shown.push_str(&format!(", {times} times"));
    }
    shown
}

/// The table at the end.
pub fn table(style: Style, traffic: &Traffic, to: &mut Vec<u8>) {
    let escaped = |text: &str| {
        let mut escaped = String::new();
        printable::push(&mut escaped, &unescaped(text), style.utf8);
        escaped
    };
    let row = |connection: &Connection| Row {
        path: escaped(&connection.path),
        process: escaped(
            &connection.process.map(|process| label(&connection.process_name, process)).unwrap_or_default(),
        ),
        peer: escaped(&traffic.peer(connection)),
        sent: connection.sent,
        received: connection.received,
        duration_ns: connection.duration_ns(),
    };
    let (busiest, hidden) = traffic.connections.busiest(table::MAX_ROWS);
    let rows = busiest.into_iter().map(row).collect();
    to.push(b'\n');
    for (number, line) in table::lines(rows, hidden, style.ellipsis()).into_iter().enumerate() {
        push(style.colour, if number == 0 { Path } else { Plain }, &line, to);
        to.push(b'\n');
    }
}
