//! What is said of a packet or a message in words.

use std::fmt::Write;

use socktrace_event::printable::{name, sentence};
use socktrace_event::{Captured, Data, Event, PassedFd, What};

use crate::processes::Processes;

/// A comment's greatest length in bytes: a message may pass 253 descriptors (unix(7)), each with a path.
const MAX_LEN: usize = 8 << 10;
/// SCM_MAX_FD, unix(7).
const MAX_FDS: usize = 253;

/// `redis-cli[5353] thread 5353: send(fd 5)`, and whatever else the event has to say.
pub fn of_event(event: &Event<'_>, processes: &Processes) -> String {
    let mut text = who(event, processes);
    let call = event.how().unwrap_or("?");
    let _ = match event.fd {
        Some(fd) => write!(text, ": {call}(fd {fd})"),
        None => write!(text, ": {call}"),
    };
    if let What::Data(data) = &event.what {
        of_message(data, &mut text);
    }
    if let Some(before) = event.entered_ns.and_then(|entered| event.time_ns().checked_sub(entered))
        && before > 0
    {
        let _ = write!(text, ", called {before} ns before this time");
    }
    if let What::Data(Data { duration_ns: Some(duration), .. }) = event.what {
        let _ = write!(text, ", took {duration} ns");
    }
    cut(&mut text);
    sentence(&text).into_owned()
}

/// What came or went with a message.
fn of_message(data: &Data<'_>, text: &mut String) {
    // More are in none that the kernel has passed, and of less all that is longer than a comment is cut off.
    for PassedFd { fd, what } in data.fds.iter().take(MAX_FDS) {
        let _ = match what.is_empty() {
            true => write!(text, ", passed fd {fd}"),
            false => write!(text, ", passed fd {fd} = {}", name(what)),
        };
    }
    if let Some(sender) = data.credentials {
        let _ = write!(text, ", sender pid {} uid {} gid {}", sender.pid, sender.uid, sender.gid);
    }
    if let Some(security) = data.security.as_deref() {
        let _ = write!(text, ", security context {}", name(security));
    }
    if let Some(pidfd) = data.pidfd {
        let _ = write!(text, ", passed pidfd {pidfd}");
    }
    if let Some(flags) = data.flags.as_deref() {
        let _ = write!(text, ", {flags}");
    }
    if let Some(truncated) = data.truncated.as_deref() {
        let _ = match truncated {
            "yes" => write!(text, ", truncated: the message was longer"),
            _ => write!(text, ", the message may have been longer"),
        };
    }
}

/// What is missing of a message's bytes, if anything.
pub fn of_payload(data: &Data<'_>, payload: Captured<'_>) -> Option<String> {
    let (size, there) = (data.size, payload.bytes.len() as u64);
    if there < size {
        let why = payload.missing.unwrap_or("they are not there");
        return Some(format!("{} of {size} captured bytes are missing: {why}", size - there));
    }
    of_capture(data)
}

/// How much of a message was not captured, if any.
pub fn of_capture(data: &Data<'_>) -> Option<String> {
    let (size, total, uncaptured) = (data.size, data.moved(), data.uncaptured.filter(|&bytes| bytes > 0));
    let is_cut = if data.is_split() { uncaptured.is_some() } else { size < total };
    is_cut.then(|| match uncaptured {
        Some(bytes) => format!("{bytes} of {total} bytes were not captured"),
        None => format!("{size} of {total} bytes captured"),
    })
}

fn who(event: &Event<'_>, processes: &Processes) -> String {
    let mut text = event.process().map_or_else(|| "unknown process".into(), |process| processes.label(process));
    if let Some(tid) = event.tid {
        let _ = write!(text, " thread {tid}");
    }
    text
}

fn cut(text: &mut String) {
    if text.len() > MAX_LEN {
        let end = (0..=MAX_LEN).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use socktrace_event::Begun;

    use super::*;

    #[test]
    fn everything_that_there_is_to_say() {
        let mut processes = Processes::default();
        let start = What::Start(Begun { exe: Some("/usr/bin/cat".into()), ..Begun::default() });
        processes.note(&Event { pid: Some(7), what: start, ..Event::default() });
        let what = What::Data(Data {
            call: Some("sendmsg".into()),
            fds: vec![PassedFd { fd: 5, what: "file:/etc/passwd".into() }, PassedFd::default()],
            flags: Some("MSG_EOR".into()),
            duration_ns: Some(900),
            ..Data::default()
        });
        let event = Event { pid: Some(7), tid: Some(8), fd: Some(3), what, ..Event::default() };
        let expected =
            "cat[7] thread 8: sendmsg(fd 3), passed fd 5 = file:/etc/passwd, passed fd 0, MSG_EOR, took 900 ns";
        assert_eq!(of_event(&event, &processes), expected);
    }

    #[test]
    fn a_comment_has_an_end() {
        let path = "ä".repeat(3000);
        let fds = vec![PassedFd { fd: 5, what: path.as_str().into() }; 9];
        let what = What::Data(Data { fds, ..Data::default() });
        let text = of_event(&Event { what, ..Event::default() }, &Processes::default());
        assert!(text.len() <= MAX_LEN + '…'.len_utf8() && text.ends_with('…'));
    }
}
