//! What is known of each connection, and what the table at the end says of it.

use std::collections::HashMap;
use std::sync::Arc;

use socktrace_event::{Direction, Event, ProcessId, What, printable};

use crate::message::Message;
use crate::processes::Processes;

/// What is known of connections takes no more than this, in bytes. Beyond it the half of them with the fewest bytes is
/// forgotten: the table at the end shows those with the most.
const MAX_LEN: usize = 128 << 20;
/// What a connection takes beside its texts, about, with its place in both tables.
const CONNECTION_LEN: usize = 400;
/// More of a text is not shown.
const MAX_TEXT_LEN: usize = 8 << 10;

/// Messages and bytes in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Calls that moved bytes.
    pub messages: u64,
    /// Those bytes, captured or not.
    pub bytes: u64,
}

/// A traced process's end of a connection.
#[derive(Debug, Default)]
pub struct Connection {
    /// The socket's path, as events have it (docs/gttr.md, "Names").
    pub path: String,
    /// The process that was the first to use it.
    pub process: Option<ProcessId>,
    /// What it was called when it last used the connection.
    pub process_name: Arc<str>,
    peer: Option<ProcessId>,
    peer_exe: Option<String>,
    peer_inode: Option<u64>,
    /// Whether the traced end connected (true) or accepted.
    pub is_client: Option<bool>,
    /// What was received.
    pub received: Count,
    /// What was sent.
    pub sent: Count,
    /// When it was first used, in nanoseconds since the Unix epoch.
    pub first_ns: u64,
    /// When it was last used.
    pub last_ns: u64,
}

impl Connection {
    /// How long it was seen, in nanoseconds.
    pub fn duration_ns(&self) -> u64 {
        self.last_ns.saturating_sub(self.first_ns)
    }

    /// The first process that uses it is whose it is said to be.
    fn used_by(&mut self, process: Option<ProcessId>, processes: &Processes) {
        self.process = self.process.or(process);
        if let Some(process) = process
            && self.process == Some(process)
        {
            self.process_name = processes.name(process);
        }
    }

    /// Bytes in both directions.
    fn moved(&self) -> u64 {
        self.received.bytes.saturating_add(self.sent.bytes)
    }

    fn seen(&mut self, ns: u64) {
        if self.first_ns == 0 {
            self.first_ns = ns;
        }
        self.first_ns = self.first_ns.min(ns);
        self.last_ns = self.last_ns.max(ns);
    }
}

fn shortened(text: &str) -> &str {
    printable::beginning(text, MAX_TEXT_LEN)
}

/// All of them.
#[derive(Debug, Default)]
pub struct Connections {
    by_id: HashMap<String, Connection>,
    /// Which process is at the end with this inode number.
    by_inode: HashMap<u64, ProcessId>,
    /// What they take, about, in bytes.
    len: usize,
    forgotten: usize,
}

impl Connections {
    /// Learns from an open or close event.
    pub fn note(&mut self, event: &Event<'_>, processes: &Processes) {
        let ns = event.time_ns();
        match &event.what {
            What::Open(open) => {
                let path = shortened(&open.path);
                let exe = open.peer_comm.as_deref().or(open.peer_exe.as_deref()).map(shortened);
                self.make_room(&open.conn_id, path.len() + exe.map_or(0, str::len));
                let connection = self.by_id.entry(open.conn_id.to_string()).or_default();
                connection.seen(ns);
                connection.path = path.to_owned();
                connection.used_by(event.process(), processes);
                connection.peer = event.peer_process().or(connection.peer);
                connection.peer_exe = exe.map(str::to_owned).or(connection.peer_exe.take());
                connection.peer_inode = open.peer_inode.or(connection.peer_inode);
                let how = open.how.strip_prefix("resumed:").unwrap_or(&open.how);
                connection.is_client = match how {
                    "connect" => Some(true),
                    _ if how.starts_with("accept") => Some(false),
                    _ => connection.is_client,
                };
                if let (Some(inode), Some(process)) = (open.inode, event.process()) {
                    self.by_inode.insert(inode, process);
                }
            }
            What::Close(close) => {
                if let Some(connection) = self.by_id.get_mut(&*close.conn_id) {
                    connection.seen(ns);
                }
            }
            _ => {}
        }
    }

    /// Counts a message.
    pub fn count(&mut self, message: &Message, processes: &Processes) {
        self.make_room(&message.conn_id, message.path.len());
        let connection = self.by_id.entry(message.conn_id.clone()).or_default();
        connection.seen(message.ns);
        connection.used_by(message.process, processes);
        if connection.path.is_empty() {
            shortened(&message.path).clone_into(&mut connection.path);
        }
        let count = match message.direction {
            Direction::In => &mut connection.received,
            Direction::Out => &mut connection.sent,
            Direction::None => return,
        };
        count.messages += 1;
        count.bytes = count.bytes.saturating_add(message.total);
    }

    /// The one of this name.
    pub fn get(&self, conn_id: &str) -> Option<&Connection> {
        self.by_id.get(conn_id)
    }

    /// The process at the other end, and its executable where the event named it: if it is traced, too, then by its
    /// own end of the connection, for SO_PEERCRED only knows who listened.
    pub fn peer<'c>(&self, connection: &'c Connection) -> Option<(ProcessId, Option<&'c str>)> {
        let traced = connection.peer_inode.and_then(|inode| self.by_inode.get(&inode));
        match traced {
            Some(&process) => Some((process, None)),
            None => connection.peer.map(|process| (process, connection.peer_exe.as_deref())),
        }
    }

    /// Those with the most bytes, by time, and how many others there were.
    pub fn busiest(&self, max: usize) -> (Vec<&Connection>, usize) {
        let mut all: Vec<_> = self.by_id.values().collect();
        if all.len() > max {
            all.sort_by_key(|connection| std::cmp::Reverse(connection.moved()));
            all.truncate(max);
        }
        all.sort_by(|a, b| (a.first_ns, &a.path).cmp(&(b.first_ns, &b.path)));
        let hidden = self.by_id.len() - all.len() + self.forgotten;
        (all, hidden)
    }

    /// Sees to it that there is room for a connection that is noted next, if it is new.
    fn make_room(&mut self, conn_id: &str, texts: usize) {
        if self.by_id.contains_key(conn_id) {
            return;
        }
        self.len += CONNECTION_LEN + conn_id.len() + texts;
        if self.len <= MAX_LEN {
            return;
        }
        let mut moved: Vec<_> = self.by_id.values().map(Connection::moved).collect();
        let half = moved.len() / 2;
        if half == 0 {
            return;
        }
        let least = *moved.select_nth_unstable(half).1;
        let before = self.by_id.len();
        let mut spare = half;
        self.by_id.retain(|_, connection| {
            let keep = connection.moved() > least || spare == 0;
            spare -= usize::from(!keep);
            keep
        });
        self.forgotten += before - self.by_id.len();
        self.by_inode.clear();
        let texts = |(id, known): (&String, &Connection)| {
            CONNECTION_LEN + id.len() + known.path.len() + known.peer_exe.as_ref().map_or(0, String::len)
        };
        self.len = self.by_id.iter().map(texts).sum();
    }

    /// Whether there has been none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use socktrace_event::Open;

    use super::*;

    #[test]
    fn any_number_of_connections_takes_so_much_memory() {
        let (mut connections, processes) = (Connections::default(), Processes::new(false));
        let path = "p".repeat(MAX_TEXT_LEN);
        let count = 2 * MAX_LEN / (path.len() + CONNECTION_LEN);
        for number in 0..count {
            let conn_id = format!("c{number}");
            let open = Open { conn_id: (&*conn_id).into(), path: (&*path).into(), ..Open::default() };
            connections.note(&Event::now(What::Open(open)), &processes);
            assert!(connections.len <= MAX_LEN);
        }
        let (shown, hidden) = connections.busiest(50);
        assert_eq!((shown.len(), hidden), (50, count - 50));
    }
}
