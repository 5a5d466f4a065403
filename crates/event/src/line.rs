//! A line of `events.jsonl`: every field that there is, in the order in which they are written.

use gttr::{Credentials, Direction, Ext};
use serde::{Deserialize, Serialize};

use crate::PassedFd;
use crate::event::Event;
use crate::text::Text;
use crate::what::{EventType, What};

/// The fields behind the first two, each of which may be missing: one without a value is left out. Behind its type is
/// the extension value that it is of, and how that is made text.
macro_rules! line {
    ($($name:ident: $type:ty $(= $ext:ident $(($as_text:path))?)?,)+) => {
        /// An event as it is written and read.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default, bound(deserialize = "'de: 'a"))]
        pub(crate) struct Line<'a> {
            #[serde(rename = "type")]
            pub(crate) kind: EventType,
            pub(crate) ts_ms: u64,
            $(#[serde(skip_serializing_if = "Option::is_none")] pub(crate) $name: Option<$type>,)+
        }

        impl<'a> Line<'a> {
            /// Takes an extension value as it is; false: it takes more than that, or is none that is known.
            pub(crate) fn set(&mut self, value: Ext<'a>) -> bool {
                match value {
                    $($(Ext::$ext(value) => {
                        $(let value = $as_text(value);)?
                        self.$name = Some(value);
                    })?)+
                    _ => return false,
                }
                true
            }
        }
    };
}

line! {
    fd: i32, direction: Way, path: Text<'a>, conn_id: Text<'a>, file: Text<'a>,
    size: u64, how: Text<'a>, raw: Text<'a>,
    pid: u32 = Pid, host_pid: u32, tid: u32 = Tid, seq: u64 = Seq, ts_ns: u64 = TsNs,
    call: Text<'a> = Call(Text::escaped), total: u64 = Total, offset: u64 = Offset, part: u32 = Part, parts: u32 = Parts,
    duration_ns: u64 = DurationNs, entered_ns: u64 = EnteredNs, uncaptured: u64 = Uncaptured,
    flags: Text<'a>, truncated: Text<'a>, fds: Vec<Fd<'a>>, credentials: Ids,
    security: Text<'a> = Security(Text::escaped), pidfd: u32 = PidFd,
    ppid: u32 = Ppid, exe: Text<'a> = Exe(Text::escaped_name), comm: Text<'a> = Comm(Text::escaped_name),
    program: Text<'a> = Program(Text::escaped_name), untraced: Text<'a> = Untraced(Text::escaped),
    errno: i32, times: u32 = Times, status: u32 = Status, sockets: u32 = SocketsMade,
    inode: u64 = Inode, socket_type: Text<'a>,
    peer_pid: u32 = PeerPid, peer_uid: u32 = PeerUid, peer_gid: u32 = PeerGid, peer_inode: u64 = PeerInode,
    peer_exe: Text<'a> = PeerExe(Text::escaped_name), peer_comm: Text<'a>, peer_conn_id: Text<'a>,
    events: u64 = LostEvents, bytes: u64 = LostBytes, reason: Text<'a>,
    since_ns: u64 = LostSince, until_ns: u64 = LostUntil, error: Text<'a>,
    sock: Text<'a>, out_dir: Text<'a>, sock_type: Text<'a>, version: Text<'a>, omits: Text<'a>,
}

/// [`Direction`] in a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Way {
    In,
    Out,
}

/// [`PassedFd`] in a line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub(crate) struct Fd<'a> {
    pub(crate) fd: i32,
    pub(crate) what: Text<'a>,
}

/// [`Credentials`] in a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Ids {
    pid: u32,
    uid: u32,
    gid: u32,
}

/// A value of an event, and what a line's field has of it.
pub(crate) trait Value<InLine> {
    fn of(field: InLine) -> Self;
    fn in_line(&self) -> InLine;
}

/// One that may be missing.
impl<T: Clone> Value<Option<T>> for Option<T> {
    fn of(field: Option<T>) -> Self {
        field
    }

    fn in_line(&self) -> Option<T> {
        self.clone()
    }
}

/// One that is always there; of a line that lacks it, nothing or none.
impl<T: Clone + Default> Value<Option<T>> for T {
    fn of(field: Option<T>) -> Self {
        field.unwrap_or_default()
    }

    fn in_line(&self) -> Option<T> {
        Some(self.clone())
    }
}

impl Value<Option<Way>> for Direction {
    fn of(field: Option<Way>) -> Self {
        match field {
            None => Self::None,
            Some(Way::In) => Self::In,
            Some(Way::Out) => Self::Out,
        }
    }

    fn in_line(&self) -> Option<Way> {
        match self {
            Self::None => None,
            Self::In => Some(Way::In),
            Self::Out => Some(Way::Out),
        }
    }
}

impl<'a> Value<Option<Vec<Fd<'a>>>> for Vec<PassedFd<'a>> {
    fn of(field: Option<Vec<Fd<'a>>>) -> Self {
        field.unwrap_or_default().into_iter().map(|Fd { fd, what }| PassedFd { fd, what }).collect()
    }

    fn in_line(&self) -> Option<Vec<Fd<'a>>> {
        let in_line = |passed: &PassedFd<'a>| Fd { fd: passed.fd, what: passed.what.clone() };
        (!self.is_empty()).then(|| self.iter().map(in_line).collect())
    }
}

impl Value<Option<Ids>> for Option<Credentials> {
    fn of(field: Option<Ids>) -> Self {
        field.map(|Ids { pid, uid, gid }| Credentials { pid, uid, gid })
    }

    fn in_line(&self) -> Option<Ids> {
        self.map(Into::into)
    }
}

impl From<Credentials> for Ids {
    fn from(Credentials { pid, uid, gid }: Credentials) -> Self {
        Self { pid, uid, gid }
    }
}

/// What an event's line says that the event's kind has no value for, as other agents may: it is kept, and written again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rest<'a>(Option<Box<Line<'a>>>);

impl<'a> From<Line<'a>> for Event<'a> {
    fn from(mut line: Line<'a>) -> Self {
        let mut event = Self {
            ts_ms: std::mem::take(&mut line.ts_ms),
            fd: line.fd.take(),
            pid: line.pid.take(),
            host_pid: line.host_pid.take(),
            tid: line.tid.take(),
            seq: line.seq.take(),
            ts_ns: line.ts_ns.take(),
            entered_ns: line.entered_ns.take(),
            what: What::take(&mut line),
            rest: Rest::default(),
        };
        if line != Line::default() {
            event.rest = Rest(Some(Box::new(line)));
        }
        event
    }
}

impl<'a> From<&Event<'a>> for Line<'a> {
    fn from(event: &Event<'a>) -> Self {
        let mut line = event.rest.0.as_deref().cloned().unwrap_or_default();
        line.ts_ms = event.ts_ms;
        line.fd = event.fd;
        line.pid = event.pid;
        line.host_pid = event.host_pid;
        line.tid = event.tid;
        line.seq = event.seq;
        line.ts_ns = event.ts_ns;
        line.entered_ns = event.entered_ns;
        event.what.put(&mut line);
        line
    }
}

impl Serialize for Event<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Line::from(self).serialize(serializer)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Event<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Line::deserialize(deserializer).map(Self::from)
    }
}
