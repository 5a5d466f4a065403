//! One line a message, as people read it.

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

/// So much of a payload is shown behind the line, in bytes.
const PREVIEW_LEN: usize = 80;
/// So much of a payload is shown below the line, unless all is asked for, in bytes.
const FOLD_LEN: usize = 512;
/// A summary's characters.
const MAX_SUMMARY: usize = 400;
const INDENT: &str = "    ";

const DIM: Colour = Colour::new().dimmed();
const NAME: Colour = AnsiColor::Cyan.on_default();
const PATH: Colour = Colour::new().bold();
const OUT: Colour = AnsiColor::Green.on_default();
const IN: Colour = AnsiColor::Blue.on_default();
const BAD: Colour = AnsiColor::Red.on_default().bold();

/// A line under construction.
pub struct Line {
    style: Style,
    text: String,
}

impl Line {
    pub fn new(style: Style, time: String) -> Self {
        let mut line = Self { style, text: String::new() };
        line.coloured(DIM, &time);
        line
    }

    fn coloured(&mut self, colour: Colour, text: &str) {
        self.bytes(colour, text.as_bytes());
    }

    /// Text with names in it, as events have them (docs/gttr.md, "Names").
    fn named(&mut self, colour: Colour, escaped: &str) {
        self.bytes(colour, &unescaped(escaped));
    }

    fn bytes(&mut self, colour: Colour, text: &[u8]) {
        if text.is_empty() {
            return;
        }
        if !self.text.is_empty() {
            self.text.push(' ');
        }
        if self.style.colour {
            self.text.push_str(&colour.render().to_string());
        }
        printable::push(&mut self.text, text, self.style.utf8);
        if self.style.colour {
            self.text.push_str(&colour.render_reset().to_string());
        }
    }

    fn plain(&mut self, text: &str) {
        self.coloured(Colour::new(), text);
    }

    fn finish(mut self, to: &mut Vec<u8>) {
        self.text.push('\n');
        to.extend_from_slice(self.text.as_bytes());
    }
}

fn unescaped(name: &str) -> Vec<u8> {
    gttr::unescape_path(name.as_bytes()).collect()
}

/// A message's line, and what of its payload stands below it.
pub fn message(message: &Message, mut line: Line, traffic: &Traffic, to: &mut Vec<u8>) {
    let connection = traffic.connections.get(&message.conn_id);
    if let Some(process) = message.process {
        line.named(NAME, &traffic.processes.show(process));
    }
    let arrows = if line.style.utf8 { ["→", "←"] } else { ["->", "<-"] };
    match message.direction {
        Direction::Out => line.coloured(OUT, arrows[0]),
        Direction::In => line.coloured(IN, arrows[1]),
        Direction::None => {}
    }
    line.named(PATH, shown_path(&message.path));
    let peer = || connection.map(|connection| traffic.peer(connection)).unwrap_or_default();
    line.named(NAME, &peer());
    line.plain(&size(message));
    if let Some(missing) = message.missing {
        line.coloured(BAD, &format!("({missing})"));
    }
    if !message.details.is_empty() {
        line.named(DIM, &format!("({})", message.details));
    }
    let summary = summary_of(message, connection);
    if let Some(summary) = &summary {
        line.plain(summary);
    }
    let style = line.style;
    if style.form == Form::Preview {
        if summary.is_none() && !message.bytes.is_empty() {
            preview(&mut line, message);
        }
        line.finish(to);
        return;
    }
    line.finish(to);
    below(style, message, to);
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

fn preview(line: &mut Line, message: &Message) {
    let len = cut(&message.bytes, PREVIEW_LEN);
    line.text.push_str(" \"");
    printable::push(&mut line.text, &message.bytes[..len], line.style.utf8);
    line.text.push('"');
    if let more @ 1.. = message.size.saturating_sub(len as u64) {
        line.plain(&more_bytes(more, line.style.ellipsis()));
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

fn below(style: Style, message: &Message, to: &mut Vec<u8>) {
    let bytes = &message.bytes;
    let len = match style.form {
        Form::Full => bytes.len(),
        Form::Text => cut(bytes, FOLD_LEN),
        _ => bytes.len().min(FOLD_LEN),
    };
    let mut text = String::new();
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
    to.extend_from_slice(text.as_bytes());
}

/// The line of an event that is no message; none for what only the recording needs.
pub fn event(event: &Event<'_>, mut line: Line, traffic: &Traffic, to: &mut Vec<u8>) {
    if let Some(process) = event.process() {
        line.named(NAME, &traffic.processes.show(process));
    }
    let connection = event.conn_id().and_then(|id| traffic.connections.get(id));
    let path = event.path().or(connection.map(|connection| &*connection.path)).unwrap_or_default();
    let peer = || connection.map(|connection| traffic.peer(connection)).unwrap_or_default();
    let text = |text: &Option<Text<'_>>| text.as_deref().unwrap_or_default().to_owned();
    match &event.what {
        What::Open(open) => {
            line.plain("open");
            line.named(PATH, shown_path(path));
            line.named(NAME, &peer());
            line.named(DIM, &format!("({})", open.how));
        }
        What::Close(_) | What::Listen(_) => {
            line.plain(if matches!(event.what, What::Close(_)) { "close" } else { "listen" });
            line.named(PATH, shown_path(path));
            line.named(DIM, &format!("({})", event.how().unwrap_or_default()));
        }
        What::Start(begun) | What::Fork(begun) => {
            line.plain(if matches!(event.what, What::Start(_)) { "start" } else { "fork" });
            line.named(Colour::new(), &text(&begun.exe));
            // Of a process in another pid namespace it is a number there.
            if let (Some(ppid), None) = (begun.ppid, event.host_pid) {
                line.coloured(DIM, &format!("(child of {ppid})"));
            }
        }
        // One that is traced introduces itself.
        What::Exec(exec) => {
            let Some(why) = exec.untraced.as_deref() else { return };
            line.plain("executes");
            line.named(PATH, &text(&exec.program));
            let colour = if why == NOT_ASKED_FOR { DIM } else { BAD };
            line.coloured(colour, &format!("(not traced: {why})"));
        }
        // That all went well is not worth a line a process.
        What::Exit(exit) => match exit.status {
            Some(0) => return,
            Some(status) => line.plain(&format!("exited {status}")),
            None => line.named(Colour::new(), &format!("exit {}", text(&exit.raw))),
        },
        What::Fail(fail) => {
            line.plain(&text(&fail.call));
            line.named(PATH, fail.program.as_deref().unwrap_or(shown_path(path)));
            line.coloured(BAD, &failure(fail));
        }
        What::Eof(_) => {
            line.plain("end of file");
            line.named(PATH, shown_path(path));
            line.named(NAME, &peer());
        }
        What::Error(said) => line.named(BAD, &format!("error: {}", said.raw)),
        What::BadFrame(bad) => line.coloured(BAD, &format!("bad frame: {} bytes: {}", bad.size, bad.error)),
        What::Lost(lost) => {
            let (events, bytes) = (lost.events.unwrap_or(0), lost.bytes.unwrap_or(0));
            line.named(BAD, &format!("LOST {events} events, {bytes} bytes: {}", text(&lost.reason)));
            line.named(PATH, path);
        }
        _ => return,
    }
    line.finish(to);
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
        let colour = if number == 0 && style.colour { PATH } else { Colour::new() };
        to.extend_from_slice(format!("{}{line}{}\n", colour.render(), colour.render_reset()).as_bytes());
    }
}
