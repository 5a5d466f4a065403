//! What is known of each connection, and what the table at the end says of it.

use std::collections::HashMap;
use std::sync::Arc;

use socktrace_server::event::Direction;
use socktrace_server::{Event, EventType, ProcessId};

use super::assemble::Message;
use super::clock::time_of;
use super::processes::Processes;

/// Messages and bytes in one direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    pub messages: u64,
    pub bytes: u64,
}

#[derive(Debug, Default)]
pub struct Connection {
    pub path: String,
    pub process: Option<ProcessId>,
    /// What it was called when it last used the connection.
    pub process_name: Arc<str>,
    peer: Option<ProcessId>,
    peer_exe: Option<String>,
    peer_inode: Option<u64>,
    /// Whether the traced end connected (true) or accepted.
    pub is_client: Option<bool>,
    pub received: Count,
    pub sent: Count,
    pub first_ns: u64,
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

    fn seen(&mut self, ns: u64) {
        if self.first_ns == 0 {
            self.first_ns = ns;
        }
        self.first_ns = self.first_ns.min(ns);
        self.last_ns = self.last_ns.max(ns);
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Connections {
    by_id: HashMap<String, Connection>,
    /// Which process is at the end with this inode number.
    by_inode: HashMap<u64, ProcessId>,
}

impl Connections {
    /// Learns from an open or close event.
    pub fn note(&mut self, event: &Event<'_>, processes: &Processes) {
        let Some(conn_id) = event.conn_id.as_deref() else { return };
        let ns = time_of(event);
        match event.kind {
            EventType::Open => {
                let connection = self.by_id.entry(conn_id.to_owned()).or_default();
                connection.seen(ns);
                connection.path = event.path.as_deref().unwrap_or_default().to_owned();
                connection.used_by(event.process(), processes);
                connection.peer = event.peer_process().or(connection.peer);
                connection.peer_exe = event.peer_exe.as_deref().map(str::to_owned).or(connection.peer_exe.take());
                connection.peer_inode = event.peer_inode.or(connection.peer_inode);
                let how = event.how.as_deref().unwrap_or_default();
                let how = how.strip_prefix("resumed:").unwrap_or(how);
                connection.is_client = match how {
                    "connect" => Some(true),
                    _ if how.starts_with("accept") => Some(false),
                    _ => connection.is_client,
                };
                if let (Some(inode), Some(process)) = (event.inode, event.process()) {
                    self.by_inode.insert(inode, process);
                }
            }
            EventType::Close => {
                if let Some(connection) = self.by_id.get_mut(conn_id) {
                    connection.seen(ns);
                }
            }
            _ => {}
        }
    }

    /// Counts a message.
    pub fn count(&mut self, message: &Message, processes: &Processes) {
        let connection = self.by_id.entry(message.conn_id.clone()).or_default();
        connection.seen(message.ns);
        connection.used_by(message.process, processes);
        if connection.path.is_empty() {
            connection.path.clone_from(&message.path);
        }
        let count = match message.direction {
            Some(Direction::In) => &mut connection.received,
            Some(Direction::Out) => &mut connection.sent,
            None => return,
        };
        count.messages += 1;
        count.bytes += message.total;
    }

    pub fn get(&self, conn_id: &str) -> Option<&Connection> {
        self.by_id.get(conn_id)
    }

    /// The process at the other end, and its executable where the event named it: if it is traced, too, then by its
    /// own end of the connection, for SO_PEERCRED only knows who listened.
    pub fn peer(&self, connection: &Connection) -> Option<(ProcessId, Option<String>)> {
        let traced = connection.peer_inode.and_then(|inode| self.by_inode.get(&inode));
        match traced {
            Some(&process) => Some((process, None)),
            None => connection.peer.map(|process| (process, connection.peer_exe.clone())),
        }
    }

    /// By time.
    pub fn sorted(&self) -> Vec<&Connection> {
        let mut all: Vec<_> = self.by_id.values().collect();
        all.sort_by(|a, b| (a.first_ns, &a.path).cmp(&(b.first_ns, &b.path)));
        all
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }
}
