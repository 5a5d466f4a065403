//! A call's bytes may take several events; a line is for all of them.

use std::collections::HashMap;

use socktrace_collect::event::Direction;
use socktrace_collect::{Event, EventType, ProcessId};

use super::clock::time_of;

/// So much of one message is kept until its last part is there, in bytes; beyond that it is shown in pieces.
const MAX_KEPT: usize = 16 << 20;
/// And so much of all of them.
const MAX_KEPT_OF_ALL: usize = 64 << 20;
/// SCM_MAX_FD, unix(7): no message carries more descriptors.
const MAX_FDS: usize = 253;
/// So many messages may lack their last part; an agent that dies leaves one a thread.
const MAX_PENDING: usize = 1024;

/// What one call moved.
#[derive(Debug)]
pub struct Message {
    pub ns: u64,
    pub process: Option<ProcessId>,
    pub conn_id: String,
    pub path: String,
    pub direction: Option<Direction>,
    /// The captured bytes, as far as they are at hand.
    pub bytes: Vec<u8>,
    /// How many were captured.
    pub size: u64,
    /// How many the call moved.
    pub total: u64,
    /// Why `bytes` are not all that were captured, if they should be.
    pub missing: Option<&'static str>,
    /// What there is to it beside its bytes: descriptors that it carries, flags.
    pub details: String,
}

type Key = (String, Option<Direction>, Option<ProcessId>, Option<u32>);

/// Messages of which parts are missing.
#[derive(Debug, Default)]
pub struct Assembler {
    pending: HashMap<Key, (u32, Message)>,
    /// Bytes of all of them.
    kept: usize,
}

impl Assembler {
    /// Takes a data event, and returns the messages that are to be shown now.
    pub fn take(&mut self, event: &Event<'_>, bytes: &[u8], missing: Option<&'static str>) -> Vec<Message> {
        debug_assert_eq!(event.kind, EventType::Data);
        let parts = event.parts.unwrap_or(1);
        if parts <= 1 {
            return vec![message(event, bytes, missing)];
        }
        let part = event.part.unwrap_or(0);
        let conn_id = event.conn_id.as_deref().unwrap_or_default().to_owned();
        let key: Key = (conn_id, event.direction, event.process(), event.tid);
        let mut done = Vec::new();
        let begun = self.pending.remove(&key);
        self.kept -= begun.as_ref().map_or(0, |(_, begun)| begun.bytes.len());
        match begun {
            Some((next, mut begun)) if next == part && begun.bytes.len() + bytes.len() <= MAX_KEPT => {
                // Behind a gap the rest would stand in the wrong place.
                if begun.bytes.len() as u64 == begun.size {
                    begun.bytes.extend_from_slice(bytes);
                }
                begun.size = begun.size.saturating_add(event.size.unwrap_or(0));
                begun.missing = begun.missing.or(missing);
                self.keep_or_finish(key, part.saturating_add(1), parts, begun, &mut done);
            }
            begun => {
                done.extend(begun.map(|(_, begun)| begun));
                self.keep_or_finish(key, part.saturating_add(1), parts, message(event, bytes, missing), &mut done);
            }
        }
        done
    }

    fn keep_or_finish(&mut self, key: Key, next: u32, parts: u32, message: Message, done: &mut Vec<Message>) {
        let is_full = self.pending.len() >= MAX_PENDING || self.kept + message.bytes.len() > MAX_KEPT_OF_ALL;
        if next >= parts || is_full {
            done.push(message);
        } else {
            self.kept += message.bytes.len();
            self.pending.insert(key, (next, message));
        }
    }

    /// What will not be completed any more.
    pub fn rest(&mut self) -> Vec<Message> {
        self.kept = 0;
        let mut rest: Vec<_> = self.pending.drain().map(|(_, (_, message))| message).collect();
        rest.sort_by_key(|message| message.ns);
        rest
    }
}

fn message(event: &Event<'_>, bytes: &[u8], missing: Option<&'static str>) -> Message {
    let size = event.size.unwrap_or(0);
    Message {
        ns: time_of(event),
        process: event.process(),
        conn_id: event.conn_id.as_deref().unwrap_or_default().to_owned(),
        path: event.path.as_deref().unwrap_or_default().to_owned(),
        direction: event.direction,
        bytes: bytes.to_owned(),
        size,
        total: event.total.unwrap_or(size).max(size),
        missing,
        details: details(event),
    }
}

fn details(event: &Event<'_>) -> String {
    let mut all: Vec<String> = event.flags.iter().map(|flags| flags.to_string()).collect();
    if event.truncated.as_deref() == Some("yes") {
        all.push("truncated".into());
    }
    if let Some(bytes) = event.uncaptured {
        all.push(format!("{bytes} bytes not captured"));
    }
    if let Some(fds) = &event.fds {
        let shown = fds.iter().take(MAX_FDS).map(|fd| format!("{} {}", fd.fd, &*fd.what).trim_end().to_owned());
        let more = if fds.len() > MAX_FDS { format!(", … {} more", fds.len() - MAX_FDS) } else { String::new() };
        all.push(format!("fds {}{more}", shown.collect::<Vec<_>>().join(", ")));
    }
    if let Some(sender) = &event.credentials {
        all.push(format!("from pid {}, uid {}, gid {}", sender.pid, sender.uid, sender.gid));
    }
    if let Some(pidfd) = event.pidfd {
        all.push(format!("pidfd {pidfd}"));
    }
    if let Some(context) = &event.security {
        all.push(format!("security {}", &**context));
    }
    all.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(number: u32, of: u32, size: u64) -> Event<'static> {
        Event {
            kind: EventType::Data,
            conn_id: Some("c".into()),
            pid: Some(1),
            direction: Some(Direction::Out),
            size: Some(size),
            total: Some(6),
            part: (of > 1).then_some(number),
            parts: (of > 1).then_some(of),
            ..Event::default()
        }
    }

    #[test]
    fn parts_become_one() {
        let mut assembler = Assembler::default();
        assert!(assembler.take(&part(0, 3, 2), b"ab", None).is_empty());
        assert!(assembler.take(&part(1, 3, 2), b"cd", None).is_empty());
        let done = assembler.take(&part(2, 3, 2), b"ef", None);
        assert_eq!((done.len(), &*done[0].bytes, done[0].size), (1, &b"abcdef"[..], 6));
        assert!(assembler.rest().is_empty());
    }

    #[test]
    fn a_lost_part_loses_no_other() {
        let mut assembler = Assembler::default();
        assert!(assembler.take(&part(0, 3, 2), b"ab", None).is_empty());
        let done = assembler.take(&part(2, 3, 2), b"ef", None);
        assert_eq!(done.iter().map(|m| &*m.bytes).collect::<Vec<_>>(), [b"ab", b"ef"]);
        assert!(assembler.take(&part(0, 2, 2), b"gh", None).is_empty());
        let rest = assembler.rest();
        assert_eq!((rest.len(), &*rest[0].bytes), (1, &b"gh"[..]));
    }
}
