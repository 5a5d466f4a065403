//! What a single event does not tell: which end's view of a connection is shown, its port, how many events are to come.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use socktrace_event::{Direction, Event, ProcessId, What};

use crate::is_client;
use crate::pairs::Pairs;
use crate::ports::Ports;
use crate::processes::Processes;

/// A connection by its `conn_id`, in eight bytes: hashed with a key of our own, so that nobody can make two of them one.
pub type Key = u64;

/// One connection, as far as it matters beyond the event at hand. There may be millions: no text here.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Events that are to come.
    events: u64,
    /// Bytes recorded, received and sent.
    recorded: [u64; 2],
    /// The other end.
    peer: Option<Key>,
    process: Option<ProcessId>,
    port: Option<u16>,
    is_client: bool,
    /// Whether the other end was heard of first.
    is_second: bool,
}

/// What is shown of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// The conversation that it belongs to: both ends of a connection have the same.
    pub conversation: Key,
    /// Whether this end's messages are shown, received and sent; of the other end's are then those that are not.
    pub takes: [bool; 2],
    /// The process at the other end, where that is traced.
    pub peer: Option<ProcessId>,
    /// The server's port, where path or bytes say so.
    pub port: Option<u16>,
    /// Whether this end's comings and goings are the conversation's.
    pub leads: bool,
    /// Whether this and the other end are the two of one connection; not so of a descriptor that was passed on.
    pub is_paired: bool,
    /// Ends of which something is shown.
    pub shown_ends: u32,
}

impl View {
    /// Of a connection without another end.
    pub const fn alone(conversation: Key, port: Option<u16>) -> Self {
        Self { conversation, takes: [true; 2], peer: None, port, leads: true, is_paired: false, shown_ends: 1 }
    }

    /// Of a connection whose other end is shown.
    pub const fn hidden(conversation: Key) -> Self {
        Self { takes: [false; 2], leads: false, ..Self::alone(conversation, None) }
    }

    /// Whether anything of this end is shown.
    pub const fn is_shown(&self) -> bool {
        self.leads || self.takes[0] || self.takes[1]
    }
}

/// So many connections are known, at some 150 bytes each.
const MAX_CONNECTIONS: usize = 2 << 20;

/// The account of a recording.
#[derive(Debug, Default)]
pub struct Survey {
    /// Events of connections beyond [`MAX_CONNECTIONS`].
    left_out: u64,
    keys: RandomState,
    connections: HashMap<Key, Seen>,
    pairs: Pairs,
    /// What processes are called at the end.
    pub processes: Processes,
}

/// Which element of a pair is a direction's: received, sent.
pub const fn index(direction: Direction) -> usize {
    matches!(direction, Direction::Out) as usize
}

impl Survey {
    /// A connection's key; the same for the life of this survey.
    pub fn key(&self, conn_id: &str) -> Key {
        self.keys.hash_one(conn_id)
    }

    /// Learns from the next event. `sniff` reads the first bytes that were recorded of its connection and direction; it is
    /// asked at most twice a connection, and not if the path says enough.
    pub fn note(&mut self, event: &Event<'_>, ports: &Ports, sniff: impl FnOnce() -> Vec<u8>) {
        self.processes.note(event);
        let Some(conn_id) = event.conn_id() else { return };
        let key = self.key(conn_id);
        let is_new = !self.connections.contains_key(&key);
        if is_new && self.connections.len() >= MAX_CONNECTIONS {
            self.left_out += 1;
            return;
        }
        let seen = self.connections.entry(key).or_default();
        seen.events += 1;
        seen.process = seen.process.or(event.process());
        if is_new {
            seen.is_client = is_client(event);
        }
        if seen.port.is_none() {
            seen.port = event.path().and_then(|path| ports.by_path(path));
        }
        match &event.what {
            What::Data(data) if data.direction != Direction::None => {
                let recorded = &mut seen.recorded[index(data.direction)];
                let is_first = *recorded == 0;
                *recorded = recorded.saturating_add(data.size);
                if is_first && *recorded > 0 && seen.port.is_none() {
                    let from_client = (data.direction == Direction::Out) == seen.is_client;
                    seen.port = Ports::by_bytes(&sniff(), from_client);
                }
            }
            What::Open(open) => {
                let other = self.pairs.other_end(open).map(|other| self.keys.hash_one(other));
                if let Some(other) = other.filter(|&other| other != key) {
                    self.join(key, other);
                }
            }
            _ => {}
        }
    }

    fn join(&mut self, second: Key, first: Key) {
        let free = |seen: Option<&Seen>| seen.is_some_and(|seen| seen.peer.is_none());
        // A third end there is none: a descriptor that was passed on, whose bytes the other end has seen already.
        let (is_known, is_free) = (self.connections.contains_key(&first), free(self.connections.get(&first)));
        if !is_known || !free(self.connections.get(&second)) {
            return;
        }
        if let Some(seen) = self.connections.get_mut(&second) {
            (seen.peer, seen.is_second) = (Some(first), true);
        }
        if is_free && let Some(seen) = self.connections.get_mut(&first) {
            seen.peer = Some(second);
        }
    }

    /// What is shown of a connection; None of one that is not in the recording (or not recorded, but live).
    pub fn view(&self, key: Key) -> Option<View> {
        let seen = self.connections.get(&key)?;
        let Some((peer_key, peer)) = seen.peer.and_then(|key| Some((key, self.connections.get(&key)?))) else {
            return Some(View::alone(key, seen.port));
        };
        let is_mutual = peer.peer == Some(key);
        let (first, second) = if seen.is_second { (peer, seen) } else { (seen, peer) };
        // The first end's, unless the second has recorded more of what went that way.
        let of_first = [0, 1].map(|way| !is_mutual || first.recorded[way] >= second.recorded[1 - way]);
        let takes = if seen.is_second { [1, 0].map(|way| is_mutual && !of_first[way]) } else { of_first };
        Some(View {
            conversation: if seen.is_second { peer_key } else { key },
            takes,
            peer: peer.process,
            port: seen.port.or(peer.port),
            leads: !seen.is_second,
            is_paired: is_mutual,
            shown_ends: if of_first == [true; 2] { 1 } else { 2 },
        })
    }

    /// Whether the connection is in the account.
    pub fn knows(&self, key: Key) -> bool {
        self.connections.contains_key(&key)
    }

    /// Events of connections that there was no room for.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// One of a connection's events has been handed on; true: it was the last.
    pub fn handed_on(&mut self, key: Key) -> bool {
        self.connections.get_mut(&key).is_some_and(|seen| {
            seen.events = seen.events.saturating_sub(1);
            seen.events == 0
        })
    }
}

#[cfg(test)]
mod tests {
    use socktrace_event::{Data, Open};

    use super::*;

    fn open(id: &'static str, how: &'static str, peer: Option<&'static str>) -> Event<'static> {
        let (conn_id, how, peer_conn_id) = (id.into(), how.into(), peer.map(Into::into));
        Event::now(What::Open(Open { conn_id, how, peer_conn_id, ..Open::default() }))
    }

    fn data(id: &'static str, direction: Direction, size: u64) -> Event<'static> {
        Event::now(What::Data(Data { conn_id: id.into(), direction, size, ..Data::default() }))
    }

    fn survey(events: &[Event<'_>]) -> Survey {
        let mut survey = Survey::default();
        events.iter().for_each(|event| survey.note(event, &Ports::default(), Vec::new));
        survey
    }

    #[test]
    fn the_end_that_was_heard_of_first_is_shown() {
        let survey = survey(&[
            open("c", "connect", None),
            data("c", Direction::Out, 5),
            open("s", "accept", Some("c")),
            data("s", Direction::In, 5),
        ]);
        let (c, s) = (survey.key("c"), survey.key("s"));
        let (client, server) = (survey.view(c).unwrap(), survey.view(s).unwrap());
        assert_eq!((client.conversation, server.conversation), (c, c));
        assert_eq!((client.takes, server.takes), ([true, true], [false, false]));
        assert!(client.leads && !server.leads);
    }

    #[test]
    fn a_direction_is_taken_from_the_end_that_has_more_of_it() {
        let survey = survey(&[
            open("c", "connect", None),
            open("s", "accept", Some("c")),
            data("c", Direction::Out, 5),
            data("s", Direction::In, 9),
            data("s", Direction::Out, 3),
            data("c", Direction::In, 3),
        ]);
        assert_eq!(survey.view(survey.key("c")).unwrap().takes, [true, false]);
        assert_eq!(survey.view(survey.key("s")).unwrap().takes, [true, false]);
    }

    #[test]
    fn a_descriptor_passed_on_is_not_shown_beside_the_other_end() {
        let survey = survey(&[
            open("c", "connect", None),
            open("s", "accept", Some("c")),
            open("t", "found:getsockname", Some("c")),
            data("t", Direction::In, 5),
            data("c", Direction::Out, 5),
        ]);
        let third = survey.view(survey.key("t")).unwrap();
        assert_eq!((third.conversation, third.takes), (survey.key("c"), [false, false]));
        assert_eq!(survey.view(survey.key("c")).unwrap().takes, [true, true]);
    }

    #[test]
    fn the_last_event_is_known() {
        let mut survey = survey(&[open("c", "connect", None), data("c", Direction::In, 1)]);
        let key = survey.key("c");
        assert!(!survey.handed_on(key) && survey.handed_on(key));
        assert!(survey.view(survey.key("no")).is_none());
    }

    #[test]
    fn bytes_say_what_paths_do_not() {
        let mut survey = Survey::default();
        survey.note(&open("c", "connect", None), &Ports::default(), || unreachable!());
        survey.note(&data("c", Direction::Out, 9), &Ports::default(), || b"GET / HTTP/1.1".to_vec());
        assert_eq!(survey.view(survey.key("c")).unwrap().port, Some(80));
    }
}
