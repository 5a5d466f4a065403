//! An event.

use std::time::{SystemTime, UNIX_EPOCH};

use gttr::Direction;

use crate::line::Rest;
use crate::process::ProcessId;
use crate::what::{BadFrame, EventType, Lost, Open, What};

/// Something that happened: when, in which process, and what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event<'a> {
    /// When, in milliseconds since the Unix epoch: in the agent, or in the server for its own events.
    pub ts_ms: u64,
    /// The descriptor's number in the traced process, -1 where none applies; absent in the server's own events.
    pub fd: Option<i32>,
    /// Process id, as the process itself sees it.
    pub pid: Option<u32>,
    /// Process id, as the collector sees it, where that is another number; 0: the collector cannot see the process.
    pub host_pid: Option<u32>,
    /// Thread id, as the process itself sees it.
    pub tid: Option<u32>,
    /// Number of the event within its process, from 1 without gaps.
    pub seq: Option<u64>,
    /// When, in nanoseconds since the Unix epoch.
    pub ts_ns: Option<u64>,
    /// When the call began, where `ts_ns` is later than that (docs/gttr.md, "Time").
    pub entered_ns: Option<u64>,
    /// What happened.
    pub what: What<'a>,
    /// What its line says beside.
    pub rest: Rest<'a>,
}

/// What is there of the bytes that a data event speaks of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Captured<'p> {
    /// Those that are there, from the first one on.
    pub bytes: &'p [u8],
    /// Why they are not all.
    pub missing: Option<&'static str>,
}

/// What follows the base name of the payload file of a direction.
pub const fn file_suffix(direction: Direction) -> Option<&'static str> {
    match direction {
        Direction::None => None,
        Direction::In => Some(".in.bin"),
        Direction::Out => Some(".out.bin"),
    }
}

impl<'a> Event<'a> {
    /// Something that happens now, in the server.
    pub fn now(what: What<'a>) -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let ts_ms = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
        Self { ts_ms, what, ..Self::default() }
    }

    /// `size` bytes that are no frame, and why.
    pub fn bad_frame(error: &'a str, size: usize) -> Self {
        Self::now(What::BadFrame(BadFrame { error: error.into(), size: size as u64, events: None }))
    }

    /// Something was lost, nobody knows how much.
    pub fn lost(reason: &'a str) -> Self {
        Self::now(What::Lost(Lost { reason: Some(reason.into()), ..Lost::default() }))
    }

    /// Its type.
    pub const fn kind(&self) -> EventType {
        self.what.kind()
    }

    /// When it happened, in nanoseconds since the Unix epoch: of bytes sent when the call was entered, so that a message
    /// is sent before it is received.
    pub fn time_ns(&self) -> u64 {
        let ns = self.ts_ns.unwrap_or_else(|| self.ts_ms.saturating_mul(1_000_000));
        match (self.direction(), self.entered_ns) {
            (Direction::Out, Some(entered)) => entered.min(ns),
            _ => ns,
        }
    }

    /// Which process it is of.
    pub fn process(&self) -> Option<ProcessId> {
        match (self.pid, self.host_pid) {
            (Some(pid), Some(0)) => Some(ProcessId::Elsewhere(pid)),
            (_, Some(pid)) | (Some(pid), None) => Some(ProcessId::Here(pid)),
            (None, None) => None,
        }
    }

    /// Which process is at the other end of a connection that opens, as far as `SO_PEERCRED` says: that of a process in
    /// another pid namespace is a number of that namespace.
    pub fn peer_process(&self) -> Option<ProcessId> {
        let What::Open(Open { peer_pid, .. }) = &self.what else { return None };
        let pid = peer_pid.filter(|&pid| pid != 0)?;
        match self.host_pid {
            None => Some(ProcessId::Here(pid)),
            Some(_) if Some(pid) == self.pid => self.process(),
            Some(_) => Some(ProcessId::Elsewhere(pid)),
        }
    }

    /// Which connection it is of, if it is of one.
    pub fn conn_id(&self) -> Option<&str> {
        match &self.what {
            What::Open(open) => Some(&open.conn_id),
            What::Data(data) => Some(&data.conn_id),
            What::Close(close) => Some(&close.conn_id),
            What::Eof(eof) => Some(&eof.conn_id),
            What::Fail(fail) => fail.conn_id.as_deref(),
            What::Lost(lost) => lost.conn_id.as_deref(),
            _ => None,
        }
    }

    /// The path of the socket that it is about, if it says that.
    pub fn path(&self) -> Option<&str> {
        match &self.what {
            What::Open(open) => Some(&open.path),
            What::Listen(listen) => Some(&listen.path),
            What::Data(data) => Some(&data.path),
            What::Eof(eof) => Some(&eof.path),
            What::Fail(fail) => fail.path.as_deref(),
            _ => None,
        }
    }

    /// The libc function that was called, or the circumstance that the agent was told by.
    pub fn how(&self) -> Option<&str> {
        match &self.what {
            What::Open(open) => Some(&open.how),
            What::Close(close) => Some(&close.how),
            What::Listen(listen) => Some(&listen.how),
            What::Data(data) => data.call.as_deref(),
            What::Fail(fail) => fail.call.as_deref(),
            _ => None,
        }
    }

    /// Which way the bytes moved that it speaks of, if it speaks of any.
    pub const fn direction(&self) -> Direction {
        match &self.what {
            What::Data(data) => data.direction,
            What::Eof(eof) => eof.direction,
            What::Lost(lost) => lost.direction,
            _ => Direction::None,
        }
    }

    /// Base name of the payload files of the event's connection, to which [`file_suffix`] is added.
    ///
    /// None where there is no connection, and where the name would lead out of the directory, which none that
    /// [`Event::from_frame`] makes does.
    pub fn payload_file(&self) -> Option<&str> {
        let file = match &self.what {
            What::Data(data) => data.file.as_deref(),
            What::Lost(lost) => lost.file.as_deref(),
            _ => None,
        };
        let name = file.or(self.conn_id())?;
        let inside = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
        inside.then_some(name)
    }

    /// Name of the payload file that it speaks of, if it does.
    pub fn payload_name(&self) -> Option<String> {
        Some(format!("{}{}", self.payload_file()?, file_suffix(self.direction())?))
    }
}
