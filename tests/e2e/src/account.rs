//! The workload's own account of what it did (workload/truth.h).

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::recording::{Credentials, PassedFd};

/// Which way bytes moved, seen from the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Received.
    #[default]
    In,
    /// Sent.
    Out,
}

/// A connection that the program made, a listener, or the end of a connection.
#[derive(Clone, Debug, Deserialize)]
pub struct Opened {
    /// Of the account: its number from 0.
    #[serde(skip)]
    pub line: usize,
    /// What made a random program do it.
    #[serde(default)]
    pub seed: u64,
    /// Of the process that made it.
    pub pid: u32,
    /// Its number when it was made.
    pub fd: i32,
    /// Names the socket.
    pub inode: u64,
    /// SOCK_STREAM and so on (socket(2)); flags may be in it.
    #[serde(rename = "type")]
    pub socket_type: u32,
    /// The call.
    pub how: String,
    /// The path as events show it.
    pub path: String,
}

/// One call that moved bytes, or one message of a call of many. What a program does not say of it has its default.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Moved {
    /// Of the account: its number from 0.
    #[serde(skip)]
    pub line: usize,
    /// What made a random program do it.
    pub seed: u64,
    /// Which socket.
    pub inode: u64,
    /// Of the process that called.
    pub pid: u32,
    /// Of the thread.
    pub tid: u32,
    /// Which way.
    pub direction: Direction,
    /// The function.
    pub call: String,
    /// The bytes.
    #[serde(deserialize_with = "from_hex")]
    pub data: Vec<u8>,
    /// The path that its event has to have.
    pub path: Option<String>,
    /// Whether the message was longer than what was received of it.
    pub cut: Option<bool>,
    /// MSG_OOB and MSG_CTRUNC.
    pub flags: u32,
    /// Descriptors that it carried.
    pub fds: Vec<PassedFd>,
    /// Who sent it.
    pub credentials: Option<Credentials>,
    /// The sender's pidfd.
    pub pidfd: Option<u32>,
    /// Whether the bytes were never in the program's memory, so that their number is all that has to be recorded.
    pub by_number: bool,
}

#[derive(Deserialize)]
#[serde(tag = "truth", rename_all = "lowercase")]
enum Line {
    Open(Opened),
    Listen(Opened),
    Close(Opened),
    Moved(Moved),
    Note(Note),
    Failed(Failed),
}

#[derive(Clone, Debug, Deserialize)]
struct Note {
    name: String,
    number: i64,
}

#[derive(Clone, Debug, Deserialize)]
struct Failed {
    pid: u32,
    errno: i32,
    at: String,
    what: String,
}

fn from_hex<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digit = |c: u8| char::from(c).to_digit(16).map(|d| d as u8);
    let byte = |pair: &[u8]| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?);
    text.as_bytes().chunks(2).map(byte).collect::<Option<_>>().ok_or_else(|| serde::de::Error::custom("not hex"))
}

/// The account, in the order of its lines.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// Connections made.
    pub opened: Vec<Opened>,
    /// Sockets that listen; of datagram sockets, those that are bound.
    pub listening: Vec<Opened>,
    /// Ends of connections; `how` is the call that closed the last descriptor.
    pub closed: Vec<Opened>,
    /// Calls that moved bytes.
    pub moved: Vec<Moved>,
    notes: Vec<Note>,
    failed: Vec<Failed>,
    path: PathBuf,
}

impl Account {
    /// Reads what is there; a line that is just being written is left out.
    pub fn read(path: &Path) -> Self {
        let mut account = Self { path: path.into(), ..Self::default() };
        // No account, no lines: the program has not begun.
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        for (number, line) in text[..whole].lines().enumerate() {
            match serde_json::from_str(line).unwrap_or_else(|error| panic!("{}: {error}: {line}", path.display())) {
                Line::Open(opened) => account.opened.push(Opened { line: number, ..opened }),
                Line::Listen(listening) => account.listening.push(Opened { line: number, ..listening }),
                Line::Close(closed) => account.closed.push(Opened { line: number, ..closed }),
                Line::Moved(moved) => account.moved.push(Moved { line: number, ..moved }),
                Line::Note(note) => account.notes.push(note),
                Line::Failed(failed) => account.failed.push(failed),
            }
        }
        account
    }

    /// The numbers noted under a name.
    pub fn notes(&self, name: &str) -> Vec<i64> {
        self.notes.iter().filter(|note| note.name == name).map(|note| note.number).collect()
    }

    /// The program's process id, once it has begun.
    pub fn pid(&self) -> Option<u32> {
        self.notes("start").first().map(|&pid| u32::try_from(pid).expect("a process id"))
    }

    /// Whether the program has come to its end, with every call as it is untraced.
    pub fn has_ended(&self) -> bool {
        !self.notes("end").is_empty()
    }

    /// Fails the test if a call did not do what it does untraced.
    #[track_caller]
    pub fn assert_undisturbed(&self) {
        let failures: Vec<String> = self
            .failed
            .iter()
            .take(20)
            .map(|f| format!("  {} (process {}, errno {}): {}", f.at, f.pid, f.errno, f.what))
            .collect();
        assert!(failures.is_empty(), "the program was disturbed ({}):\n{}", self.path.display(), failures.join("\n"));
    }

    /// What came after an earlier reading of the same account.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            opened: self.opened[earlier.opened.len()..].to_vec(),
            listening: self.listening[earlier.listening.len()..].to_vec(),
            closed: self.closed[earlier.closed.len()..].to_vec(),
            moved: self.moved[earlier.moved.len()..].to_vec(),
            notes: self.notes[earlier.notes.len()..].to_vec(),
            failed: self.failed[earlier.failed.len()..].to_vec(),
            path: self.path.clone(),
        }
    }

    /// What it says of the sockets for which `wanted` says yes, by the line that first speaks of them.
    pub fn only(&self, wanted: impl Fn(&Opened) -> bool) -> Self {
        let sockets = || self.opened.iter().chain(&self.listening);
        let is_wanted = |inode: u64| sockets().find(|socket| socket.inode == inode).is_some_and(&wanted);
        let mut account = self.clone();
        account.opened.retain(|opened| is_wanted(opened.inode));
        account.listening.retain(|listening| is_wanted(listening.inode));
        account.closed.retain(|closed| is_wanted(closed.inode));
        account.moved.retain(|moved| is_wanted(moved.inode));
        account
    }

    /// What a random program says of one of its seeds.
    pub fn of_seed(&self, seed: u64) -> Self {
        let of_seed = |opened: &[Opened]| opened.iter().filter(|opened| opened.seed == seed).cloned().collect();
        Self {
            opened: of_seed(&self.opened),
            listening: of_seed(&self.listening),
            closed: of_seed(&self.closed),
            moved: self.moved.iter().filter(|moved| moved.seed == seed).cloned().collect(),
            ..Self::default()
        }
    }

    /// The sockets that it speaks of, by their inode numbers.
    pub fn sockets(&self) -> Vec<u64> {
        let named = self.opened.iter().chain(&self.listening).chain(&self.closed).map(|opened| opened.inode);
        let mut sockets: Vec<u64> = named.chain(self.moved.iter().map(|moved| moved.inode)).collect();
        sockets.sort_unstable();
        sockets.dedup();
        sockets
    }

    /// Bytes that moved, both ways.
    pub fn bytes(&self) -> u64 {
        self.moved.iter().map(|moved| moved.data.len() as u64).sum()
    }
}
