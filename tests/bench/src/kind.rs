//! The workloads.

/// What a traced program does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One message sent and one received on an AF_UNIX stream, in each thread.
    Messages { len: usize, threads: usize },
    /// One write and one read on a pipe.
    Pipe { len: usize },
    /// One send and one recv on a TCP connection.
    Tcp { len: usize },
    /// One request to a Redis server.
    Redis { pipeline: u32 },
    /// One posix_spawn(3) of a small program, to its end.
    Spawn,
}

/// A workload as the table has it.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Its letter, and what it is told from others by.
    pub name: &'static str,
    pub what: &'static str,
    pub kind: Kind,
}

/// All of them, by the order of the table.
pub const ALL: [Workload; 9] = [
    Workload { name: "a", what: "64 bytes", kind: Kind::Messages { len: 64, threads: 1 } },
    Workload { name: "b", what: "4 KiB", kind: Kind::Messages { len: 4 << 10, threads: 1 } },
    Workload { name: "c", what: "64 KiB", kind: Kind::Messages { len: 64 << 10, threads: 1 } },
    Workload { name: "d", what: "64 bytes, 4 threads", kind: Kind::Messages { len: 64, threads: 4 } },
    Workload { name: "e1", what: "pipe, untracked", kind: Kind::Pipe { len: 64 } },
    Workload { name: "e2", what: "TCP, untracked", kind: Kind::Tcp { len: 64 } },
    Workload { name: "f1", what: "redis", kind: Kind::Redis { pipeline: 1 } },
    Workload { name: "f2", what: "redis -P 16", kind: Kind::Redis { pipeline: 16 } },
    Workload { name: "g", what: "posix_spawn", kind: Kind::Spawn },
];

impl Workload {
    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        ALL.into_iter().find(|workload| workload.name == name)
    }

    /// Whether a choice of `a`, `e` or `e1` means it.
    pub fn is_chosen_by(&self, choice: &str) -> bool {
        self.name == choice || self.name.starts_with(choice) && choice.len() == 1
    }
}
