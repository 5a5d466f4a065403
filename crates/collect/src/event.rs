//! One line of `events.jsonl`.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::time::{SystemTime, UNIX_EPOCH};

use gttr::{Ext, Frame, FrameType};
use serde::{Deserialize, Serialize};

use crate::errno;
use crate::process::ProcessId;
use crate::util::safe_filename;

/// What an event reports; the first field of its line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventType {
    /// A connection began or was found.
    Open,
    /// The last descriptor of a connection was closed, or one direction was shut.
    Close,
    /// A socket listens, or a datagram socket is bound.
    Listen,
    /// Bytes moved.
    Data,
    /// The agent began to load.
    Init,
    /// The agent is in place.
    Ready,
    /// The agent could not do something.
    Error,
    /// Something was not recorded, by the agent or by the server.
    Lost,
    /// A traced process introduces itself.
    Start,
    /// A traced process was forked from another traced one.
    Fork,
    /// A traced process is about to execute another program.
    Exec,
    /// A traced process ends.
    Exit,
    /// A call failed.
    Fail,
    /// Nothing more can be received on a connection.
    Eof,
    /// The server started.
    HostInit,
    /// The server ends; the last line it writes.
    HostShutdown,
    /// The server received bytes that are no frame it knows.
    BadFrame,
    /// A type that a newer server wrote.
    #[default]
    #[serde(other)]
    Unknown,
}

/// Which way bytes moved, seen from the traced process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Received by the traced process.
    In,
    /// Sent by the traced process.
    Out,
}

impl Direction {
    /// What follows the base name of a payload file.
    pub const fn file_suffix(self) -> &'static str {
        match self {
            Self::In => ".in.bin",
            Self::Out => ".out.bin",
        }
    }
}

/// Text of an event, borrowed from the frame or the line it was read from where it can be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);

impl<'a> Text<'a> {
    /// Text of an agent: bytes outside 32..=126 become `\xNN`, as in a path (docs/gttr.md, "Names").
    pub fn escaped(bytes: &'a [u8]) -> Self {
        Self::escaped_by(bytes, gttr::escape_unprintable)
    }

    /// A name of an agent, as the kernel has it: backslashes, too, are escaped, so that it can be told what it was.
    pub fn escaped_name(bytes: &'a [u8]) -> Self {
        if bytes.contains(&b'\\') { Self::escape_by(bytes, gttr::escape_path) } else { Self::escaped(bytes) }
    }

    fn escaped_by(bytes: &'a [u8], escape: fn(&[u8], &mut [u8]) -> usize) -> Self {
        let printable = bytes.iter().all(|b| matches!(b, 32..=126));
        if printable && let Ok(text) = std::str::from_utf8(bytes) {
            return Self(Cow::Borrowed(text));
        }
        Self::escape_by(bytes, escape)
    }

    fn escape_by(bytes: &[u8], escape: fn(&[u8], &mut [u8]) -> usize) -> Self {
        let mut escaped = vec![0; 4 * bytes.len()];
        let len = escape(bytes, &mut escaped);
        Self(Cow::Owned(String::from_utf8_lossy(&escaped[..len]).into_owned()))
    }
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self(Cow::Borrowed(text))
    }
}

/// A descriptor that was passed over a socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub struct PassedFd<'a> {
    /// Its number in the process whose event this is.
    pub fd: i32,
    /// What it leads to, `socket:/run/x.sock` say; empty where that is not known.
    pub what: Text<'a>,
}

/// Who sent a message, as the kernel vouches for it (SCM_CREDENTIALS, unix(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Credentials {
    /// Process id.
    pub pid: u32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// One line per field that an event may lack.
macro_rules! event {
    ($($(#[doc = $doc:literal])+ $name:ident: $type:ty,)+) => {
        /// An event. The fields are written in this order; what an event has no value for is left out.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default, bound(deserialize = "'de: 'a"))]
        pub struct Event<'a> {
            /// What the event reports.
            #[serde(rename = "type")]
            pub kind: EventType,
            /// When, in milliseconds since the Unix epoch: in the agent, or in the server for its own events.
            pub ts_ms: u64,
            $(
                $(#[doc = $doc])+
                #[serde(skip_serializing_if = "Option::is_none")]
                pub $name: Option<$type>,
            )+
        }
    };
}

event! {
    /// The descriptor's number in the traced process, -1 where none applies; absent in the server's own events.
    fd: i32,
    /// Which way the bytes moved.
    direction: Direction,
    /// The socket's file-system path or `@name`.
    path: Text<'a>,
    /// Which connection.
    conn_id: Text<'a>,
    /// Base name of the payload files where `conn_id` cannot be it.
    file: Text<'a>,
    /// Bytes captured (data), or bytes that were no frame (bad_frame).
    size: u64,
    /// Which call or circumstance it was.
    how: Text<'a>,
    /// What the agent says.
    raw: Text<'a>,
    /// Process id, as the process itself sees it.
    pid: u32,
    /// Process id, as the collector sees it, where that is another number; 0: the collector cannot see the process.
    host_pid: u32,
    /// Thread id, as the process itself sees it.
    tid: u32,
    /// Number of the event within its process, from 1 without gaps.
    seq: u64,
    /// When, in nanoseconds since the Unix epoch.
    ts_ns: u64,
    /// The libc function that was called.
    call: Text<'a>,
    /// Bytes that the call moved, also when fewer were captured.
    total: u64,
    /// Bytes that the process moved before in this direction (data); where in the payload file bytes are missing (lost).
    offset: u64,
    /// Which part of its call's capture this is, from 0.
    part: u32,
    /// Into how many parts the call's capture was split.
    parts: u32,
    /// How long the call took, in nanoseconds.
    duration_ns: u64,
    /// When the call began, where `ts_ns` is later than that (docs/gttr.md, "Time").
    entered_ns: u64,
    /// Bytes that the call moved and that could not be captured.
    uncaptured: u64,
    /// What is said of the message: `MSG_OOB`, `MSG_CTRUNC`, … with bars between.
    flags: Text<'a>,
    /// Whether the message was longer than what was received of it: `yes`, or `maybe` where the call does not say.
    truncated: Text<'a>,
    /// Descriptors that came or went with the message.
    fds: Vec<PassedFd<'a>>,
    /// Who sent the message.
    credentials: Credentials,
    /// The security context that came with the message.
    security: Text<'a>,
    /// The descriptor of the sending process that came with the message.
    pidfd: u32,
    /// Process id of the parent.
    ppid: u32,
    /// Path of the process's executable.
    exe: Text<'a>,
    /// The process's name in the kernel, as ps(1) shows it.
    comm: Text<'a>,
    /// Path of the program that is executed, as the call was given it.
    program: Text<'a>,
    /// Why the program that is executed is not traced; absent where it is.
    untraced: Text<'a>,
    /// What the failed call said, a number of errno(3).
    errno: i32,
    /// How many times in all the same call has failed in the same way, where that is more than once.
    times: u32,
    /// The process's exit status.
    status: u32,
    /// UNIX sockets that the process has made.
    sockets: u32,
    /// Inode number of the socket.
    inode: u64,
    /// `stream`, `dgram` or `seqpacket`; any other type is its number.
    socket_type: Text<'a>,
    /// Process id of the other end.
    peer_pid: u32,
    /// User id of the other end.
    peer_uid: u32,
    /// Group id of the other end.
    peer_gid: u32,
    /// Inode number of the socket at the other end.
    peer_inode: u64,
    /// Path of the peer process's executable.
    peer_exe: Text<'a>,
    /// The peer process's name as the collector finds it (proc_pid_comm(5)), where it is surely the same process.
    peer_comm: Text<'a>,
    /// The connection at the other end, where that is traced too and was heard of first.
    peer_conn_id: Text<'a>,
    /// Events lost (lost), or events recorded (host_shutdown).
    events: u64,
    /// Payload bytes lost (lost), or payload bytes recorded (host_shutdown).
    bytes: u64,
    /// Why.
    reason: Text<'a>,
    /// When the first lost event happened, in nanoseconds since the Unix epoch.
    since_ns: u64,
    /// When the last lost event happened, in nanoseconds since the Unix epoch.
    until_ns: u64,
    /// What is wrong with the bytes (bad_frame), or the name of `errno` (fail).
    error: Text<'a>,
    /// Path of the server's socket.
    sock: Text<'a>,
    /// The server's output directory.
    out_dir: Text<'a>,
    /// Type of the server's socket: `dgram` or `stream`.
    sock_type: Text<'a>,
    /// The server's version.
    version: Text<'a>,
    /// What the server was told not to write: `events` or `payload files`.
    omits: Text<'a>,
}

impl<'a> Event<'a> {
    /// An event that happens now, in the server.
    pub fn now(kind: EventType) -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let ts_ms = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
        Self { kind, ts_ms, ..Self::default() }
    }

    /// `size` bytes that are no frame, and why.
    pub fn bad_frame(error: &'a str, size: usize) -> Self {
        Self { error: Some(error.into()), size: Some(size as u64), ..Self::now(EventType::BadFrame) }
    }

    /// What a frame reports (docs/gttr.md, "The frame"). A frame of a type without a name becomes a `bad_frame` event.
    pub fn from_frame(frame: &Frame<'a>) -> Self {
        let kind = match frame.kind {
            FrameType::Open => EventType::Open,
            FrameType::Close => EventType::Close,
            FrameType::Listen => EventType::Listen,
            FrameType::Data => EventType::Data,
            FrameType::Init => EventType::Init,
            FrameType::Ready => EventType::Ready,
            FrameType::Error => EventType::Error,
            FrameType::Lost => EventType::Lost,
            FrameType::Start => EventType::Start,
            FrameType::Fork => EventType::Fork,
            FrameType::Exec => EventType::Exec,
            FrameType::Exit => EventType::Exit,
            FrameType::Fail => EventType::Fail,
            FrameType::Eof => EventType::Eof,
            FrameType::Ring => return Self::bad_frame("a frame about a ring", frame.encoded_len()),
            FrameType::Other(n) => {
                return Self {
                    error: Some(Text(format!("unknown frame type {n}").into())),
                    ..Self::bad_frame("", frame.encoded_len())
                };
            }
        };
        let (fd, host_pid) = (Some(frame.fd), frame.host_pid);
        let mut event = Self { kind, ts_ms: frame.ts_ms, fd, host_pid, ..Self::default() };
        event.direction = match frame.direction {
            gttr::Direction::None => None,
            gttr::Direction::In => Some(Direction::In),
            gttr::Direction::Out => Some(Direction::Out),
        };
        let speaks_of_a_path = matches!(kind, EventType::Open | EventType::Listen | EventType::Data | EventType::Eof);
        if speaks_of_a_path || !frame.path.is_empty() {
            event.path = Some(Text::escaped(frame.path));
        }
        event.how = frame.how().map(shortened);
        if let Some(conn_id) = frame.conn_id() {
            let shown = shortened(conn_id);
            if kind == EventType::Data {
                let is_long = conn_id.len() > gttr::MAX_CONN_ID_LEN;
                let name = if is_long { shown.0.clone() } else { safe_filename(conn_id) };
                event.file = (name.as_bytes() != conn_id).then_some(Text(name));
            }
            event.conn_id = Some(shown);
        }
        match kind {
            EventType::Data => event.size = Some(frame.payload.len() as u64),
            EventType::Lost => event.reason = Some(Text::escaped(frame.conn)),
            EventType::Init | EventType::Ready | EventType::Error => event.raw = Some(Text::escaped(frame.conn)),
            EventType::Start | EventType::Fork | EventType::Exec | EventType::Exit if !frame.conn.is_empty() => {
                event.raw = Some(Text::escaped(frame.conn));
            }
            _ => {}
        }
        for value in frame.ext.iter() {
            event.set_extension(value);
        }
        event
    }

    fn set_extension(&mut self, value: Ext<'a>) {
        match value {
            Ext::Seq(v) => self.seq = Some(v),
            Ext::Pid(v) => self.pid = Some(v),
            Ext::Tid(v) => self.tid = Some(v),
            Ext::TsNs(v) => self.ts_ns = Some(v),
            Ext::Call(v) => self.call = Some(Text::escaped(v)),
            Ext::Total(v) => self.total = Some(v),
            Ext::Offset(v) => self.offset = Some(v),
            Ext::Part(v) => self.part = Some(v),
            Ext::Parts(v) => self.parts = Some(v),
            Ext::Ppid(v) => self.ppid = Some(v),
            Ext::Exe(v) => self.exe = Some(Text::escaped_name(v)),
            Ext::LostEvents(v) => self.events = Some(v),
            Ext::LostBytes(v) => self.bytes = Some(v),
            Ext::LostSince(v) => self.since_ns = Some(v),
            Ext::LostUntil(v) => self.until_ns = Some(v),
            Ext::Inode(v) => self.inode = Some(v),
            Ext::SocketType(v) => self.socket_type = Some(socket_type_name(v)),
            Ext::PeerPid(v) => self.peer_pid = Some(v),
            Ext::PeerUid(v) => self.peer_uid = Some(v),
            Ext::PeerGid(v) => self.peer_gid = Some(v),
            Ext::PeerInode(v) => self.peer_inode = Some(v),
            Ext::PeerExe(v) => self.peer_exe = Some(Text::escaped_name(v)),
            Ext::MsgFlags(v) => self.flags = Some(message_flags(v)),
            Ext::Truncated(v) => self.truncated = Some(if v == 1 { "yes" } else { "maybe" }.into()),
            Ext::DurationNs(v) => self.duration_ns = Some(v),
            Ext::EnteredNs(v) => self.entered_ns = Some(v),
            Ext::Uncaptured(v) => self.uncaptured = Some(v),
            Ext::PassedFd(v) => {
                self.fds.get_or_insert_default().push(PassedFd { fd: v.fd, what: Text::escaped(v.what) });
            }
            Ext::Credentials(v) => self.credentials = Some(Credentials { pid: v.pid, uid: v.uid, gid: v.gid }),
            Ext::Security(v) => self.security = Some(Text::escaped(v)),
            Ext::PidFd(v) => self.pidfd = Some(v),
            Ext::Comm(v) => self.comm = Some(Text::escaped_name(v)),
            Ext::Program(v) => self.program = Some(Text::escaped_name(v)),
            Ext::Untraced(v) => self.untraced = Some(Text::escaped(v)),
            Ext::Errno(v) => {
                let number = v.cast_signed();
                (self.errno, self.error) = (Some(number), Some(errno::name(number).into()));
            }
            Ext::Times(v) => self.times = Some(v),
            Ext::Status(v) => self.status = Some(v),
            Ext::SocketsMade(v) => self.sockets = Some(v),
            // A newer agent's value: the rest of the frame is understood all the same.
            _ => {}
        }
    }

    /// Which process the event is of.
    pub fn process(&self) -> Option<ProcessId> {
        match (self.pid, self.host_pid) {
            (Some(pid), Some(0)) => Some(ProcessId::Elsewhere(pid)),
            (_, Some(pid)) | (Some(pid), None) => Some(ProcessId::Here(pid)),
            (None, None) => None,
        }
    }

    /// Which process is at the other end, as far as `SO_PEERCRED` says: that of a process in another pid namespace is a
    /// number of that namespace.
    pub fn peer_process(&self) -> Option<ProcessId> {
        let pid = self.peer_pid.filter(|&pid| pid != 0)?;
        match self.host_pid {
            None => Some(ProcessId::Here(pid)),
            Some(_) if Some(pid) == self.pid => self.process(),
            Some(_) => Some(ProcessId::Elsewhere(pid)),
        }
    }

    /// Base name of the payload files of the event's connection, to which [`Direction::file_suffix`] is added.
    ///
    /// None where there is no connection, and where the name would lead out of the directory, which none that
    /// [`Event::from_frame`] makes does.
    pub fn payload_file(&self) -> Option<&str> {
        let name = self.file.as_deref().or(self.conn_id.as_deref())?;
        let inside = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
        inside.then_some(name)
    }
}

/// A name from the conn field. One that is longer than any that agents make is shortened by its hash: it is kept for as
/// long as its connection is known, and 64 KiB of each of many connections would be all the memory there is.
fn shortened(name: &[u8]) -> Text<'_> {
    if name.len() > gttr::MAX_CONN_ID_LEN { Text(safe_filename(name)) } else { Text::escaped(name) }
}

fn socket_type_name(number: u8) -> Text<'static> {
    // The numbers of socket(2), which are the same on every architecture but MIPS.
    Text(match number {
        1 => Cow::Borrowed("stream"),
        2 => Cow::Borrowed("dgram"),
        5 => Cow::Borrowed("seqpacket"),
        n => Cow::Owned(n.to_string()),
    })
}

/// Flags of recv(2) that say something of a message, which are the same on every architecture.
const MESSAGE_FLAGS: [(u32, &str); 4] = [(0x1, "MSG_OOB"), (0x8, "MSG_CTRUNC"), (0x20, "MSG_TRUNC"), (0x80, "MSG_EOR")];

fn message_flags(flags: u32) -> Text<'static> {
    let mut names: Vec<Cow<'static, str>> =
        MESSAGE_FLAGS.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| Cow::Borrowed(*name)).collect();
    let unnamed = MESSAGE_FLAGS.iter().fold(flags, |flags, (bit, _)| flags & !bit);
    if unnamed != 0 {
        names.push(Cow::Owned(format!("{unnamed:#x}")));
    }
    Text(names.join("|").into())
}
