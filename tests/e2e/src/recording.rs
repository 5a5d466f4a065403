//! What the server wrote: events.jsonl and the payload files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::account::Direction;

/// A descriptor that a message carried.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct PassedFd {
    /// Its number in the process that sent or received it.
    pub fd: i32,
    /// What it leads to.
    pub what: String,
}

/// Who sent a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Credentials {
    /// Process id.
    pub pid: u32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// One line of events.jsonl, by the documented names.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Event {
    /// `type`.
    #[serde(rename = "type")]
    pub kind: String,
    /// When, in milliseconds since the Unix epoch.
    pub ts_ms: u64,
    /// The descriptor's number.
    pub fd: Option<i32>,
    /// The socket's path.
    pub path: Option<String>,
    /// Which connection.
    pub conn_id: Option<String>,
    /// Base name of the payload files if it is not `conn_id`.
    pub file: Option<String>,
    /// Which way the bytes moved.
    pub direction: Option<Direction>,
    /// Bytes captured.
    pub size: Option<u64>,
    /// The agent's words.
    pub raw: Option<String>,
    /// Which call or circumstance.
    pub how: Option<String>,
    /// Process id.
    pub pid: Option<u32>,
    /// Thread id.
    pub tid: Option<u32>,
    /// When the last was.
    pub until_ns: Option<u64>,
    /// Number within the process.
    pub seq: Option<u64>,
    /// When, in nanoseconds.
    pub ts_ns: Option<u64>,
    /// The function.
    pub call: Option<String>,
    /// Bytes that the call moved.
    pub total: Option<u64>,
    /// Inode number of the socket at the other end.
    pub peer_inode: Option<u64>,
    /// Process id of the other end.
    pub peer_pid: Option<u32>,
    /// The other end's connection.
    pub peer_conn_id: Option<String>,
    /// Bytes moved before it.
    pub offset: Option<u64>,
    /// Which part of the call's capture.
    pub part: Option<u32>,
    /// Of how many.
    pub parts: Option<u32>,
    /// How long the call took, in nanoseconds.
    pub duration_ns: Option<u64>,
    /// When it was entered, in nanoseconds, if that is not `ts_ns`.
    pub entered_ns: Option<u64>,
    /// Bytes that the call moved past the program's memory.
    pub uncaptured: Option<u64>,
    /// Of the message.
    pub flags: Option<String>,
    /// Whether the message was longer than what was received of it.
    pub truncated: Option<String>,
    /// Descriptors that the message carried.
    pub fds: Vec<PassedFd>,
    /// Who sent the message.
    pub credentials: Option<Credentials>,
    /// The sender's security context.
    pub security: Option<String>,
    /// The sender's pidfd.
    pub pidfd: Option<u32>,
    /// Parent's process id.
    pub ppid: Option<u32>,
    /// The executable.
    pub exe: Option<String>,
    /// Inode number of the socket.
    pub inode: Option<u64>,
    /// `stream`, `dgram` or `seqpacket`.
    pub socket_type: Option<String>,
    /// Events lost.
    pub events: Option<u64>,
    /// Bytes lost.
    pub bytes: Option<u64>,
    /// Why.
    pub reason: Option<String>,
    /// Since when.
    pub since_ns: Option<u64>,
}

/// One connection as recorded.
#[derive(Clone, Debug, Default)]
pub struct Connection {
    /// Its open events.
    pub opened: Vec<Event>,
    /// Its close events.
    pub closed: Vec<Event>,
    /// Its data events, in the order of events.jsonl.
    pub data: Vec<Event>,
    /// Its payload files, in and out; empty where there is none.
    pub payload: BTreeMap<Direction, Vec<u8>>,
}

impl Connection {
    /// The payload of a direction.
    pub fn bytes(&self, direction: Direction) -> &[u8] {
        self.payload.get(&direction).map_or(&[], Vec::as_slice)
    }

    /// The part of it that one process had.
    pub fn of_process(&self, pid: u32) -> Self {
        let mut part = Self::default();
        for direction in [Direction::In, Direction::Out] {
            let mut rest = self.bytes(direction);
            let own = part.payload.entry(direction).or_default();
            for event in self.data_of(direction) {
                let size = usize::try_from(event.size.unwrap_or(0)).unwrap_or(usize::MAX);
                let (bytes, after) = rest.split_at(size.min(rest.len()));
                if event.pid == Some(pid) {
                    own.extend_from_slice(bytes);
                }
                rest = after;
            }
        }
        part.data = self.data.iter().filter(|event| event.pid == Some(pid)).cloned().collect();
        part
    }

    /// Its data events of a direction.
    pub fn data_of(&self, direction: Direction) -> impl Iterator<Item = &Event> {
        self.data.iter().filter(move |event| event.direction == Some(direction))
    }
}

/// A server's output directory.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    /// Every event.
    pub events: Vec<Event>,
    out_dir: PathBuf,
}

impl Recording {
    /// Reads the events that are there; a line that is just being written is left out.
    pub fn read(out_dir: &Path) -> Self {
        let path = out_dir.join("events.jsonl");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{}: {e}: {line}", path.display()));
        Self { events: text[..whole].lines().map(parse).collect(), out_dir: out_dir.into() }
    }

    /// The events of a type.
    pub fn of_type(&self, kind: &str) -> impl Iterator<Item = &Event> {
        self.events.iter().filter(move |event| event.kind == kind)
    }

    /// The connections by `conn_id`, each with its payload files, which must hold exactly the bytes of its events.
    pub fn connections(&self) -> BTreeMap<String, Connection> {
        let mut connections: BTreeMap<String, Connection> = BTreeMap::new();
        for event in &self.events {
            let Some(conn_id) = &event.conn_id else { continue };
            // They move nothing.
            if matches!(event.kind.as_str(), "fail" | "eof") {
                continue;
            }
            let connection = connections.entry(conn_id.clone()).or_default();
            match event.kind.as_str() {
                "open" => connection.opened.push(event.clone()),
                "close" => connection.closed.push(event.clone()),
                "data" => connection.data.push(event.clone()),
                kind => panic!("an event of type {kind} with a conn_id: {event:?}"),
            }
        }
        for (conn_id, connection) in &mut connections {
            for (direction, suffix) in [(Direction::In, "in.bin"), (Direction::Out, "out.bin")] {
                let base = connection.data.first().and_then(|event| event.file.as_deref()).unwrap_or(conn_id);
                let path = self.out_dir.join(format!("{base}.{suffix}"));
                let bytes = std::fs::read(&path).unwrap_or_default();
                let size: u64 = connection.data_of(direction).filter_map(|event| event.size).sum();
                assert_eq!(bytes.len() as u64, size, "{}: its length against its events'", path.display());
                connection.payload.insert(direction, bytes);
            }
        }
        connections
    }

    /// The part of it that speaks of these sockets.
    pub fn of_inodes(&self, inodes: &[u64]) -> Self {
        let is_of = |event: &&Event| event.inode.is_some_and(|inode| inodes.contains(&inode));
        let ids: Vec<&str> = self.events.iter().filter(is_of).filter_map(|event| event.conn_id.as_deref()).collect();
        let belongs = |event: &&Event| is_of(event) || event.conn_id.as_deref().is_some_and(|id| ids.contains(&id));
        Self { events: self.events.iter().filter(belongs).cloned().collect(), out_dir: self.out_dir.clone() }
    }

    /// Sums of `events` and `bytes` over the lost events of a process.
    pub fn lost(&self, pid: u32) -> (u64, u64) {
        let lost = || self.of_type("lost").filter(|event| event.pid == Some(pid));
        (lost().filter_map(|e| e.events).sum(), lost().filter_map(|e| e.bytes).sum())
    }

    /// Whether the order of events is kept between processes: each has a stream of its own, but they share one socket
    /// for datagrams, and one ring.
    pub fn is_ordered_between_processes(&self) -> bool {
        self.of_type("init").all(|init| init.raw.as_deref().is_some_and(|raw| !raw.contains("socktype=stream")))
    }

    /// The processes that the events speak of.
    pub fn pids(&self) -> Vec<u32> {
        let mut pids: Vec<u32> = self.events.iter().filter_map(|event| event.pid).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }
}
