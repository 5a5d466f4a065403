//! A call's bytes may take several events; a line is for all of them.

use std::collections::HashMap;

use socktrace_event::{Captured, Data, Direction, Event, ProcessId};

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
    /// When, in nanoseconds since the Unix epoch.
    pub ns: u64,
    /// The process that made the call.
    pub process: Option<ProcessId>,
    /// Which connection.
    pub conn_id: String,
    /// The socket's path, as events have it (docs/gttr.md, "Names").
    pub path: String,
    /// Which way.
    pub direction: Direction,
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

type Key = (String, Direction, Option<ProcessId>, Option<u32>);

/// Messages of which parts are missing.
#[derive(Debug, Default)]
pub struct Assembler {
    pending: HashMap<Key, (u32, Message)>,
    /// Bytes of all of them.
    kept: usize,
}

impl Assembler {
    /// Takes a data event, and returns the messages that are to be shown now.
    pub fn take(&mut self, event: &Event<'_>, data: &Data<'_>, payload: Captured<'_>) -> Vec<Message> {
        if !data.is_split() {
            return vec![message(event, data, payload)];
        }
        let Captured { bytes, missing } = payload;
        let (part, parts) = (data.part.unwrap_or(0), data.parts.unwrap_or(1));
        let key: Key = (data.conn_id.to_string(), data.direction, event.process(), event.tid);
        let mut done = Vec::new();
        let begun = self.pending.remove(&key);
        self.kept -= begun.as_ref().map_or(0, |(_, begun)| begun.bytes.len());
        match begun {
            Some((next, mut begun)) if next == part && begun.bytes.len() + bytes.len() <= MAX_KEPT => {
                // Behind a gap the rest would stand in the wrong place.
                if begun.bytes.len() as u64 == begun.size {
                    begun.bytes.extend_from_slice(bytes);
                }
                begun.size = begun.size.saturating_add(data.size);
                begun.missing = begun.missing.or(missing);
                self.keep_or_finish(key, part.saturating_add(1), parts, begun, &mut done);
            }
            begun => {
                done.extend(begun.map(|(_, begun)| begun));
                self.keep_or_finish(key, part.saturating_add(1), parts, message(event, data, payload), &mut done);
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

fn message(event: &Event<'_>, data: &Data<'_>, payload: Captured<'_>) -> Message {
    Message {
        ns: event.time_ns(),
        process: event.process(),
        conn_id: data.conn_id.to_string(),
        path: data.path.to_string(),
        direction: data.direction,
        bytes: payload.bytes.to_owned(),
        size: data.size,
        total: data.moved().max(data.size),
        missing: payload.missing,
        details: details(data),
    }
}

fn details(data: &Data<'_>) -> String {
    let mut all: Vec<String> = data.flags.iter().map(|flags| flags.to_string()).collect();
    if data.truncated.as_deref() == Some("yes") {
        all.push("truncated".into());
    }
    if let Some(bytes) = data.uncaptured {
        all.push(format!("{bytes} bytes not captured"));
    }
    let fds = &data.fds;
    if !fds.is_empty() {
        let shown = fds.iter().take(MAX_FDS).map(|fd| format!("{} {}", fd.fd, &*fd.what).trim_end().to_owned());
        let more = if fds.len() > MAX_FDS { format!(", … {} more", fds.len() - MAX_FDS) } else { String::new() };
        all.push(format!("fds {}{more}", shown.collect::<Vec<_>>().join(", ")));
    }
    if let Some(sender) = &data.credentials {
        all.push(format!("from pid {}, uid {}, gid {}", sender.pid, sender.uid, sender.gid));
    }
    if let Some(pidfd) = data.pidfd {
        all.push(format!("pidfd {pidfd}"));
    }
    if let Some(context) = &data.security {
        all.push(format!("security {}", &**context));
    }
    all.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Assembler {
        fn part(&mut self, number: u32, of: u32, bytes: &[u8]) -> Vec<Message> {
            let data = Data {
                conn_id: "c".into(),
                direction: Direction::Out,
                size: bytes.len() as u64,
                total: Some(6),
                part: (of > 1).then_some(number),
                parts: (of > 1).then_some(of),
                ..Data::default()
            };
            self.take(&Event { pid: Some(1), ..Event::default() }, &data, Captured { bytes, missing: None })
        }
    }

    #[test]
    fn parts_become_one() {
        let mut assembler = Assembler::default();
        assert!(assembler.part(0, 3, b"ab").is_empty());
        assert!(assembler.part(1, 3, b"cd").is_empty());
        let done = assembler.part(2, 3, b"ef");
        assert_eq!((done.len(), &*done[0].bytes, done[0].size), (1, &b"abcdef"[..], 6));
        assert!(assembler.rest().is_empty());
    }

    #[test]
    fn a_lost_part_loses_no_other() {
        let mut assembler = Assembler::default();
        assert!(assembler.part(0, 3, b"ab").is_empty());
        let done = assembler.part(2, 3, b"ef");
        assert_eq!(done.iter().map(|m| &*m.bytes).collect::<Vec<_>>(), [b"ab", b"ef"]);
        assert!(assembler.part(0, 2, b"gh").is_empty());
        let rest = assembler.rest();
        assert_eq!((rest.len(), &*rest[0].bytes), (1, &b"gh"[..]));
    }
}
