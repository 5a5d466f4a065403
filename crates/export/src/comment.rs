//! What is said of a packet or a message in words.

use std::fmt::Write;

use socktrace_collect::Event;
use socktrace_collect::event::PassedFd;
use socktrace_collect::printable::{name, sentence};

use crate::Captured;
use crate::processes::Processes;

/// A comment's greatest length in bytes: a message may pass 253 descriptors (unix(7)), each with a path.
const MAX_LEN: usize = 8 << 10;
/// SCM_MAX_FD, unix(7).
const MAX_FDS: usize = 253;

/// `redis-cli[5353] thread 5353: send(fd 5)`, and whatever else the event has to say.
pub fn of_event(event: &Event<'_>, processes: &Processes) -> String {
    let mut text = who(event, processes);
    let call = event.call.as_deref().or(event.how.as_deref()).unwrap_or("?");
    let _ = match event.fd {
        Some(fd) => write!(text, ": {call}(fd {fd})"),
        None => write!(text, ": {call}"),
    };
    // More are in none that the kernel has passed, and of less all that is longer than a comment is cut off.
    for PassedFd { fd, what } in event.fds.iter().flatten().take(MAX_FDS) {
        let _ = match what.is_empty() {
            true => write!(text, ", passed fd {fd}"),
            false => write!(text, ", passed fd {fd} = {}", name(what)),
        };
    }
    if let Some(sender) = event.credentials {
        let _ = write!(text, ", sender pid {} uid {} gid {}", sender.pid, sender.uid, sender.gid);
    }
    if let Some(security) = event.security.as_deref() {
        let _ = write!(text, ", security context {}", name(security));
    }
    if let Some(pidfd) = event.pidfd {
        let _ = write!(text, ", passed pidfd {pidfd}");
    }
    if let Some(flags) = event.flags.as_deref() {
        let _ = write!(text, ", {flags}");
    }
    if let Some(truncated) = event.truncated.as_deref() {
        let _ = match truncated {
            "yes" => write!(text, ", truncated: the message was longer"),
            _ => write!(text, ", the message may have been longer"),
        };
    }
    if let (Some(entered), Some(ts)) = (event.entered_ns, event.ts_ns)
        && entered < ts
    {
        let _ = write!(text, ", called {} ns before this time", ts - entered);
    }
    if let Some(duration) = event.duration_ns {
        let _ = write!(text, ", took {duration} ns");
    }
    cut(&mut text);
    sentence(&text).into_owned()
}

/// What is missing of a message's bytes, if anything.
pub fn of_payload(event: &Event<'_>, payload: Captured<'_>) -> Option<String> {
    let (size, there) = (event.size.unwrap_or(0), payload.bytes.len() as u64);
    if there < size {
        let why = payload.missing.unwrap_or("they are not there");
        return Some(format!("{} of {size} captured bytes are missing: {why}", size - there));
    }
    of_capture(event)
}

/// How much of a message was not captured, if any.
pub fn of_capture(event: &Event<'_>) -> Option<String> {
    let size = event.size.unwrap_or(0);
    let (total, parts) = (event.total.unwrap_or(size), event.parts.unwrap_or(1));
    let is_cut = if parts > 1 { event.uncaptured.is_some_and(|bytes| bytes > 0) } else { size < total };
    is_cut.then(|| match event.uncaptured.filter(|&bytes| bytes > 0) {
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
    use super::*;

    #[test]
    fn everything_that_there_is_to_say() {
        let mut processes = Processes::default();
        processes.note(&Event { pid: Some(7), exe: Some("/usr/bin/cat".into()), ..Event::default() });
        let event = Event {
            pid: Some(7),
            tid: Some(8),
            fd: Some(3),
            call: Some("sendmsg".into()),
            fds: Some(vec![PassedFd { fd: 5, what: "file:/etc/passwd".into() }, PassedFd::default()]),
            flags: Some("MSG_EOR".into()),
            duration_ns: Some(900),
            ..Event::default()
        };
        let expected =
            "cat[7] thread 8: sendmsg(fd 3), passed fd 5 = file:/etc/passwd, passed fd 0, MSG_EOR, took 900 ns";
        assert_eq!(of_event(&event, &processes), expected);
    }

    #[test]
    fn a_comment_has_an_end() {
        let path = "ä".repeat(3000);
        let fds = vec![PassedFd { fd: 5, what: path.as_str().into() }; 9];
        let text = of_event(&Event { fds: Some(fds), ..Event::default() }, &Processes::default());
        assert!(text.len() <= MAX_LEN + '…'.len_utf8() && text.ends_with('…'));
    }
}
