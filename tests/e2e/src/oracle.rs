//! Whether a recording says of real programs what strace saw them do at the same time.

use std::collections::{BTreeMap, BTreeSet};

use crate::account::Direction;
use crate::compare::{compare_completeness, report};
use crate::recording::{Connection, Event, Recording};
use crate::server::Server;
use crate::strace::{Observed, Socket, Transfer};

/// What strace saw, and what is known about it.
#[derive(Debug)]
pub struct Oracle {
    observed: Observed,
    transport: Transport,
    since_ns: u64,
}

/// The agents' own sockets.
#[derive(Debug)]
struct Transport {
    /// The server's address.
    path: Vec<u8>,
    /// Inode numbers of the sockets at the server's end.
    servers: BTreeSet<u64>,
}

impl Transport {
    /// An agent's socket was connected to the server's address, or before strace was there: its other end is a socket
    /// of the server's.
    fn has(&self, socket: &Socket) -> bool {
        socket.connected_to.as_ref() == Some(&self.path) || socket.peer.is_some_and(|peer| self.servers.contains(&peer))
    }
}

/// Why a socket that strace saw is rightly not in the recording. Whatever is not listed here has to be.
fn reason_to_leave_out(socket: &Socket, transport: &Transport) -> Option<&'static str> {
    transport.has(socket).then_some("it is an agent's way to the server")
}

impl Oracle {
    /// Takes what strace saw of traced programs, by one strace for each perhaps, from `since_ns` on (nanoseconds since
    /// the Unix epoch): before it, they were idle or strace was not there. The server still runs.
    pub fn new(observed: impl IntoIterator<Item = Observed>, server: &Server, since_ns: u64) -> Self {
        let transport = Transport { path: server.socket_path(), servers: server.socket_inodes() };
        Self { observed: Observed::join(observed), transport, since_ns }
    }

    /// Lets strace say of other programs what arrived of bytes that it did not see being sent (`sendfile`).
    pub fn with_other_ends(mut self, others: &Observed) -> Self {
        self.observed.fill_in_from(others);
        self
    }

    /// Bytes that strace saw on sockets that have to be in the recording.
    pub fn bytes(&self) -> usize {
        let wanted = self.observed.sockets.values().filter(|s| reason_to_leave_out(s, &self.transport).is_none());
        wanted.flat_map(|socket| &socket.transfers).map(|transfer| transfer.len).sum()
    }

    /// Fails the test with the differences, if there are any: on every socket, every thread sent and received the same
    /// bytes, in messages of the same length where messages have boundaries.
    #[track_caller]
    pub fn assert_agrees(&self, recording: &Recording) {
        report(&self.differences(recording));
    }

    fn differences(&self, recording: &Recording) -> Vec<String> {
        let mut differences = Vec::new();
        compare_completeness(recording, &mut differences);
        for call in &self.observed.unaccountable {
            differences.push(format!("strace cannot say what {call} moves: this program is none for this test"));
        }
        let connections = recording.connections();
        let recorded = Recorded::of(&connections, self.since_ns);
        let nothing = Recorded::default();
        for (inode, socket) in &self.observed.sockets {
            let recorded = recorded.get(inode).unwrap_or(&nothing);
            match reason_to_leave_out(socket, &self.transport) {
                None => compare_socket(*inode, socket, recorded, &mut differences),
                Some(why) if recorded.messages.is_empty() => println!("socket {inode} is not compared: {why}"),
                Some(why) => differences.push(format!("socket {inode}: {why}, and is recorded")),
            }
        }
        for (inode, recorded) in &recorded {
            if !self.observed.sockets.contains_key(inode) && !recorded.messages.is_empty() {
                let messages = recorded.messages.len();
                differences.push(format!("socket {inode}: {messages} messages recorded, strace saw none of them"));
            }
        }
        differences
    }
}

/// What the recording has of one socket.
#[derive(Default)]
struct Recorded<'a> {
    opened: Vec<&'a Event>,
    messages: Vec<Message<'a>>,
}

/// The bytes that one call moved.
struct Message<'a> {
    event: &'a Event,
    bytes: Vec<u8>,
}

impl<'a> Recorded<'a> {
    /// By inode number: a datagram socket has a connection for each of its peers.
    fn of(connections: &'a BTreeMap<String, Connection>, since_ns: u64) -> BTreeMap<u64, Self> {
        let mut by_inode: BTreeMap<u64, Self> = BTreeMap::new();
        for connection in connections.values() {
            // Without an open event, 0 is nobody's number: strace will have seen no such socket.
            let inode = connection.opened.first().and_then(|open| open.inode).unwrap_or(0);
            let recorded = by_inode.entry(inode).or_default();
            recorded.opened.extend(&connection.opened);
            for direction in [Direction::In, Direction::Out] {
                recorded.messages.extend(messages(connection, direction, since_ns));
            }
        }
        for recorded in by_inode.values_mut() {
            // A thread's own times do not run backwards.
            recorded.messages.sort_by_key(|message| message.event.ts_ns);
        }
        by_inode
    }
}

fn messages(connection: &Connection, direction: Direction, since_ns: u64) -> Vec<Message<'_>> {
    let mut messages: Vec<Message<'_>> = Vec::new();
    let mut rest = connection.bytes(direction);
    for event in connection.data_of(direction) {
        let size = usize::try_from(event.size.unwrap_or(0)).unwrap_or(usize::MAX);
        let (bytes, later) = rest.split_at(size.min(rest.len()));
        rest = later;
        match messages.last_mut() {
            Some(whole) if event.part.unwrap_or(0) > 0 => whole.bytes.extend_from_slice(bytes),
            _ => messages.push(Message { event, bytes: bytes.to_vec() }),
        }
    }
    messages.retain(|message| message.event.ts_ns.unwrap_or(0) >= since_ns);
    messages
}

fn compare_socket(inode: u64, socket: &Socket, recorded: &Recorded<'_>, differences: &mut Vec<String>) {
    let path = recorded.opened.first().and_then(|open| open.path.as_deref()).unwrap_or("");
    let name = format!("socket {inode} ({path})");
    if let Some(how) = &socket.opened_by
        && recorded.opened.is_empty()
    {
        differences.push(format!("{name}: {how} made a connection, and there is no open event"));
    }
    let recorded_type = recorded.opened.first().and_then(|open| open.socket_type.as_deref());
    let has_boundaries = socket.has_boundaries.or(recorded_type.map(|is| is != "stream")).unwrap_or(false);
    if recorded_type.is_some_and(|is| (is != "stream") != has_boundaries) {
        differences.push(format!("{name}: recorded as {recorded_type:?}, which it is not"));
    }
    if !has_boundaries {
        compare_peer(&name, socket, recorded, differences);
    }
    let mut threads: BTreeSet<u32> = socket.transfers.iter().map(|transfer| transfer.tid).collect();
    threads.extend(recorded.messages.iter().filter_map(|message| message.event.tid));
    for tid in threads {
        for direction in [Direction::In, Direction::Out] {
            let seen = socket.of(tid, direction);
            let is_of = |event: &Event| event.tid == Some(tid) && event.direction == Some(direction);
            let recorded: Vec<_> = recorded.messages.iter().filter(|message| is_of(message.event)).collect();
            let name = format!("{name}, thread {tid}, {direction:?}");
            let difference =
                if has_boundaries { messages_differ(&seen, &recorded) } else { bytes_differ(&seen, &recorded) };
            differences.extend(difference.map(|difference| format!("{name}: {difference}")));
        }
    }
}

/// The other end of a connection, by its number and by its address.
fn compare_peer(name: &str, socket: &Socket, recorded: &Recorded<'_>, differences: &mut Vec<String>) {
    for open in &recorded.opened {
        if let (Some(is), Some(said)) = (socket.peer, open.peer_inode)
            && is != said
        {
            differences.push(format!("{name}: its other end is socket {is}, recorded is {said}"));
        }
        if let Some(path) = socket.connected_to.as_deref().and_then(absolute)
            && open.path.as_deref() != Some(&path)
        {
            differences.push(format!("{name}: connected to {path}, recorded is {:?}", open.path));
        }
    }
}

/// An address as the recording writes it, where it does not depend on the working directory.
fn absolute(path: &[u8]) -> Option<String> {
    let printable = |bytes: &[u8]| {
        let byte = |b: &u8| if (32..127).contains(b) { char::from(*b).to_string() } else { format!("\\x{b:02x}") };
        bytes.iter().map(byte).collect::<String>()
    };
    match path {
        [0, name @ ..] => Some(format!("@{}", printable(name))),
        [b'/', ..] => Some(printable(path)),
        _ => None,
    }
}

fn messages_differ(seen: &[&Transfer], recorded: &[&Message<'_>]) -> Option<String> {
    for (number, (seen, recorded)) in seen.iter().zip(recorded).enumerate() {
        if seen.bytes.as_ref().is_some_and(|bytes| *bytes != recorded.bytes) || seen.len != recorded.bytes.len() {
            let (seen, recorded) = (show(seen.bytes.as_deref()), show(Some(&recorded.bytes)));
            return Some(format!("message {number}: strace saw {seen}, recorded is {recorded}"));
        }
        let path = seen.address.as_deref().and_then(absolute);
        if path.is_some() && path != recorded.event.path {
            return Some(format!("message {number}: its address is {path:?}, recorded is {:?}", recorded.event.path));
        }
    }
    let first = seen.get(recorded.len()).map(|transfer| format!(", the first more is {}", transfer.call));
    (seen.len() != recorded.len())
        .then(|| format!("{} messages, {} recorded{}", seen.len(), recorded.len(), first.unwrap_or_default()))
}

/// Streams have no boundaries, so calls may have been joined or split: only the bytes count.
fn bytes_differ(seen: &[&Transfer], recorded: &[&Message<'_>]) -> Option<String> {
    let mut at = 0;
    let (mut seen_bytes, mut unseen) = (Vec::new(), Vec::new());
    for transfer in seen {
        // Bytes that were never in the program's memory; they may be known from where they arrived.
        if matches!(&*transfer.call, "sendfile" | "splice") {
            unseen.push(at..at + transfer.len);
        }
        let Some(bytes) = &transfer.bytes else {
            return Some(format!("strace cannot say what {} moved, not even from the other end", transfer.call));
        };
        seen_bytes.extend_from_slice(bytes);
        at += transfer.len;
    }
    at = 0;
    for message in recorded {
        let uncaptured = usize::try_from(message.event.uncaptured.unwrap_or(0)).unwrap_or(usize::MAX);
        let end = at + message.bytes.len();
        if seen_bytes.get(at..end) != Some(&message.bytes) {
            let (call, seen) = (&message.event.call, seen_bytes.get(at..end));
            let seen = show(seen);
            return Some(format!("from byte {at} on strace saw {seen}, {call:?} has {}", show(Some(&message.bytes))));
        }
        at = end;
        if uncaptured > 0 && !unseen.iter().any(|range| range.start <= at && at + uncaptured <= range.end) {
            return Some(format!("{uncaptured} bytes from {at} on are not captured, and could have been"));
        }
        at += uncaptured;
    }
    if at == seen_bytes.len() {
        return None;
    }
    let mut behind = 0;
    let missing = seen.iter().find(|transfer| {
        behind += transfer.len;
        behind > at
    });
    let call = missing.map_or("", |transfer| &transfer.call);
    Some(format!(
        "{} bytes, {at} recorded; the first that is not is moved by {call}: {}",
        seen_bytes.len(),
        show(seen_bytes.get(at..))
    ))
}

/// The first bytes of some, readable.
fn show(bytes: Option<&[u8]>) -> String {
    const SHOWN: usize = 48;
    let Some(bytes) = bytes else { return "nothing".into() };
    let end = if bytes.len() > SHOWN { "…" } else { "" };
    format!("\"{}{end}\" ({} bytes)", bytes[..bytes.len().min(SHOWN)].escape_ascii(), bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transfer(call: &str, bytes: &[u8]) -> Transfer {
        let (call, bytes) = (call.into(), Some(bytes.to_vec()));
        let len = bytes.as_ref().map_or(0, Vec::len);
        Transfer { tid: 1, call, direction: Direction::Out, len, bytes, address: Some(b"/a".into()) }
    }

    /// Recorded messages: their bytes, and how many more of them are not captured.
    fn differs(
        compare: fn(&[&Transfer], &[&Message<'_>]) -> Option<String>,
        seen: &[Transfer],
        recorded: &[(&[u8], u64)],
    ) -> bool {
        let path = || Some("/a".to_owned());
        let event = |uncaptured| Event { uncaptured: Some(uncaptured), path: path(), ..Event::default() };
        let events: Vec<Event> = recorded.iter().map(|(_, uncaptured)| event(*uncaptured)).collect();
        let messages = events.iter().zip(recorded).map(|(event, (bytes, _))| Message { event, bytes: bytes.to_vec() });
        let messages: Vec<Message<'_>> = messages.collect();
        let messages: Vec<&Message<'_>> = messages.iter().collect();
        compare(&seen.iter().collect::<Vec<_>>(), &messages).is_some()
    }

    #[test]
    fn streams() {
        let seen = [transfer("write", b"ab"), transfer("sendfile", b"cd"), transfer("write", b"e")];
        let differs = |recorded: &[(&[u8], u64)]| differs(bytes_differ, &seen, recorded);
        assert!(!differs(&[(b"ab", 0), (b"cde", 0)]));
        assert!(!differs(&[(b"ab", 2), (b"e", 0)]), "sendfile's bytes need not be captured");
        assert!(differs(&[(b"ab", 0), (b"cd", 1)]), "others do");
        assert!(differs(&[(b"ab", 0), (b"cdf", 0)]));
        assert!(differs(&[(b"ab", 0), (b"cd", 0)]));
        assert!(differs(&[(b"ab", 0), (b"cdef", 0)]));
        assert!(differs(&[]));
    }

    #[test]
    fn messages_with_boundaries() {
        let seen = [transfer("sendto", b"ab"), transfer("sendto", b"")];
        let differs = |recorded: &[(&[u8], u64)]| differs(messages_differ, &seen, recorded);
        assert!(!differs(&[(b"ab", 0), (b"", 0)]));
        assert!(differs(&[(b"ab", 0)]), "an empty one is one, too");
        assert!(differs(&[(b"a", 0), (b"b", 0)]));
        assert!(differs(&[(b"ab", 0), (b"", 0), (b"", 0)]));
        let mut elsewhere = seen;
        elsewhere[0].address = Some(b"/b".into());
        assert!(super::tests::differs(messages_differ, &elsewhere, &[(b"ab", 0), (b"", 0)]));
    }
}
