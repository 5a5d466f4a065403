//! The frame itself: header, path, conn, payload (docs/gttr.md, "The frame").

use crate::ext::{Ext, Extensions};

/// The first four bytes of every frame.
pub const MAGIC: [u8; 4] = *b"GTTR";
/// The only version there is; what is newer travels as extension values.
pub const VERSION: u8 = 1;
/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 32;
/// Flags bit 0: the frame carries a payload, which may be empty.
pub const FLAG_PAYLOAD: u16 = 1 << 0;
/// Flags bit 1: an extension block of header bytes 22..24 length follows the payload.
pub const FLAG_EXTENDED: u16 = 1 << 1;
/// The longest payload a reader accepts, in bytes. A stream reader has to buffer a whole frame, so a length
/// field nobody checks would let one agent take 4 GiB of the server's memory.
pub const MAX_PAYLOAD_LEN: u32 = 16 << 20;

/// What a frame reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrameType {
    /// A connection began or was found; conn is `conn_id|how`.
    Open,
    /// The last descriptor of a connection was closed, or one direction was shut; conn is `conn_id|how`.
    Close,
    /// A socket listens, or a datagram socket is bound; conn is `how`.
    Listen,
    /// Bytes moved; conn is `conn_id`.
    Data,
    /// The agent is in place; conn is its text.
    Ready,
    /// The agent began to load; conn is its text.
    Init,
    /// The agent could not do something; conn is its text.
    Error,
    /// Events and bytes that were not recorded, as extension values; conn is the reason.
    Lost,
    /// A traced process introduces itself; conn is its text.
    Start,
    /// A traced process was forked from another traced one; conn is its text.
    Fork,
    /// A traced process is about to execute another program; conn is its text.
    Exec,
    /// A traced process ends; conn is its text.
    Exit,
    /// About a ring in shared memory: `announce`, with its memfd, or `wake`; conn is which.
    Ring,
    /// A call failed; conn is the `conn_id` of the connection that it was made on, empty where there is none.
    Fail,
    /// Nothing more can be received on a connection: the other end was closed, or shut for sending; conn is `conn_id`.
    Eof,
    /// A number this version has no name for.
    Other(u8),
}

impl FrameType {
    /// The number on the wire.
    pub const fn to_wire(self) -> u8 {
        match self {
            Self::Open => 1,
            Self::Close => 2,
            Self::Listen => 3,
            Self::Data => 4,
            Self::Ready => 5,
            Self::Init => 6,
            Self::Error => 7,
            Self::Lost => 8,
            Self::Start => 9,
            Self::Fork => 10,
            Self::Exec => 11,
            Self::Exit => 12,
            Self::Ring => 13,
            Self::Fail => 14,
            Self::Eof => 15,
            Self::Other(n) => n,
        }
    }

    /// The type behind a number on the wire.
    pub const fn from_wire(n: u8) -> Self {
        match n {
            1 => Self::Open,
            2 => Self::Close,
            3 => Self::Listen,
            4 => Self::Data,
            5 => Self::Ready,
            6 => Self::Init,
            7 => Self::Error,
            8 => Self::Lost,
            9 => Self::Start,
            10 => Self::Fork,
            11 => Self::Exec,
            12 => Self::Exit,
            13 => Self::Ring,
            14 => Self::Fail,
            15 => Self::Eof,
            n => Self::Other(n),
        }
    }
}

/// Which way bytes moved, seen from the traced process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The frame is not about bytes.
    #[default]
    None,
    /// Received by the traced process.
    In,
    /// Sent by the traced process.
    Out,
}

impl Direction {
    /// The number on the wire.
    pub const fn to_wire(self) -> u8 {
        match self {
            Self::None => 0,
            Self::In => 1,
            Self::Out => 2,
        }
    }

    const fn from_wire(n: u8) -> Option<Self> {
        match n {
            0 => Some(Self::None),
            1 => Some(Self::In),
            2 => Some(Self::Out),
            _ => None,
        }
    }
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The bytes end before the frame does; `needed` is the frame's length as far as it is known.
    Truncated {
        /// Bytes that the frame takes, counted from its first.
        needed: usize,
    },
    /// The first four bytes are not `GTTR`.
    Magic,
    /// A version other than 1.
    Version(u8),
    /// A direction other than 0, 1 and 2.
    Direction(u8),
    /// A payload above [`MAX_PAYLOAD_LEN`].
    PayloadLength(u32),
    /// The extension block's values do not fill it exactly.
    Extension,
}

impl core::fmt::Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Truncated { needed } => {
                write!(f, "the frame is cut off: it takes {needed} bytes")
            }
            Self::Magic => f.write_str("the frame does not begin with GTTR"),
            Self::Version(v) => write!(f, "GTTR version {v}, this reader knows version {VERSION}"),
            Self::Direction(d) => write!(f, "direction {d}, known are 0, 1 (in) and 2 (out)"),
            Self::PayloadLength(n) => {
                write!(f, "a payload of {n} bytes, the limit is {MAX_PAYLOAD_LEN} bytes")
            }
            Self::Extension => f.write_str("the extension block is malformed"),
        }
    }
}

impl core::error::Error for Error {}

/// The buffer given to an encoder is too short, or a field is longer than its length field can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

impl core::fmt::Display for NoRoom {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("the frame does not fit")
    }
}

impl core::error::Error for NoRoom {}

/// The 32 bytes before a frame's variable parts.
///
/// Apart from [`Frame`] because an agent that hands path, conn, payload and extensions to `sendmsg` as they lie
/// in memory needs only these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame reports.
    pub kind: FrameType,
    /// [`FLAG_PAYLOAD`] and [`FLAG_EXTENDED`]; other bits are kept and mean nothing.
    pub flags: u16,
    /// Milliseconds since the Unix epoch, taken in the agent.
    pub ts_ms: u64,
    /// The descriptor's number in the traced process, -1 where none applies.
    pub fd: i32,
    /// Which way the bytes moved.
    pub direction: Direction,
    /// Bytes of the extension block.
    pub ext_len: u16,
    /// Bytes of the path.
    pub path_len: u16,
    /// Bytes of the conn field.
    pub conn_len: u16,
    /// Bytes of the payload.
    pub payload_len: u32,
}

impl Header {
    /// The header as it goes on the wire.
    #[inline(always)]
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        self.write_to(&mut bytes);
        bytes
    }

    /// Writes the header as it goes on the wire, all of it.
    #[inline(always)]
    pub fn write_to(&self, b: &mut [u8; HEADER_LEN]) {
        b[0..4].copy_from_slice(&MAGIC);
        b[4] = VERSION;
        b[5] = self.kind.to_wire();
        b[6..8].copy_from_slice(&self.flags.to_le_bytes());
        b[8..16].copy_from_slice(&self.ts_ms.to_le_bytes());
        b[16..20].copy_from_slice(&self.fd.to_le_bytes());
        b[20] = self.direction.to_wire();
        b[21] = 0;
        b[22..24].copy_from_slice(&self.ext_len.to_le_bytes());
        b[24..26].copy_from_slice(&self.path_len.to_le_bytes());
        b[26..28].copy_from_slice(&self.conn_len.to_le_bytes());
        b[28..32].copy_from_slice(&self.payload_len.to_le_bytes());
    }

    /// Reads and checks a header.
    ///
    /// # Errors
    ///
    /// Every [`Error`] but [`Error::Extension`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let known = bytes.len().min(MAGIC.len());
        if bytes[..known] != MAGIC[..known] {
            return Err(Error::Magic);
        }
        let Some(b) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(Error::Truncated { needed: HEADER_LEN });
        };
        let u16_at = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        if b[4] != VERSION {
            return Err(Error::Version(b[4]));
        }
        let Some(direction) = Direction::from_wire(b[20]) else {
            return Err(Error::Direction(b[20]));
        };
        let payload_len = u32_at(28);
        if payload_len > MAX_PAYLOAD_LEN {
            return Err(Error::PayloadLength(payload_len));
        }
        let flags = u16_at(6);
        Ok(Self {
            kind: FrameType::from_wire(b[5]),
            flags,
            ts_ms: u64::from(u32_at(8)) | u64::from(u32_at(12)) << 32,
            fd: u32_at(16).cast_signed(),
            direction,
            ext_len: if flags & FLAG_EXTENDED != 0 { u16_at(22) } else { 0 },
            path_len: u16_at(24),
            conn_len: u16_at(26),
            payload_len,
        })
    }

    /// Bytes of the whole frame, header and extension block included.
    pub fn frame_len(&self) -> usize {
        HEADER_LEN
            + usize::from(self.path_len)
            + usize::from(self.conn_len)
            + self.payload_len as usize
            + usize::from(self.ext_len)
    }
}

/// One frame, borrowed from the bytes it was decoded from or will be encoded of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the frame reports.
    pub kind: FrameType,
    /// Milliseconds since the Unix epoch, taken in the agent.
    pub ts_ms: u64,
    /// The descriptor's number in the traced process, -1 where none applies.
    pub fd: i32,
    /// Which way the bytes moved.
    pub direction: Direction,
    /// File-system path or `@name`; from an honest agent printable ASCII, from any other anything.
    pub path: &'a [u8],
    /// `conn_id`, `conn_id|how`, `how` or a text, by `kind`.
    pub conn: &'a [u8],
    /// The bytes that moved.
    pub payload: &'a [u8],
    /// What version 1 has no field for.
    pub ext: Extensions<'a>,
    /// Not part of the frame on the wire: the process id that the kernel gives the receiver for who sent it, where that is
    /// not the one that the frame has, because the sender is in another pid namespace (pid_namespaces(7)). 0: the receiver
    /// cannot know it.
    pub host_pid: Option<u32>,
}

impl<'a> Frame<'a> {
    /// A frame of a type and a time, all else empty.
    pub const fn new(kind: FrameType, ts_ms: u64) -> Self {
        Self {
            kind,
            ts_ms,
            fd: -1,
            direction: Direction::None,
            path: b"",
            conn: b"",
            payload: b"",
            ext: Extensions::EMPTY,
            host_pid: None,
        }
    }

    /// The process id that the sender sees itself.
    pub fn pid(&self) -> Option<u32> {
        self.ext.iter().find_map(|value| match value {
            Ext::Pid(pid) => Some(pid),
            _ => None,
        })
    }

    /// Which connection the frame speaks of, for the types that name one.
    pub fn conn_id(&self) -> Option<&'a [u8]> {
        match self.kind {
            FrameType::Data | FrameType::Eof => Some(self.conn),
            FrameType::Fail if !self.conn.is_empty() => Some(self.conn),
            FrameType::Open | FrameType::Close => Some(self.split_conn().0),
            _ => None,
        }
    }

    /// The call or circumstance that the frame reports, for the types that name one.
    pub fn how(&self) -> Option<&'a [u8]> {
        match self.kind {
            FrameType::Listen => Some(self.conn),
            FrameType::Open | FrameType::Close => Some(self.split_conn().1),
            _ => None,
        }
    }

    fn split_conn(&self) -> (&'a [u8], &'a [u8]) {
        match self.conn.iter().position(|&b| b == b'|') {
            Some(bar) => (&self.conn[..bar], &self.conn[bar + 1..]),
            None => (self.conn, b""),
        }
    }

    /// Bytes that [`Frame::encode`] writes.
    pub fn encoded_len(&self) -> usize {
        HEADER_LEN + self.path.len() + self.conn.len() + self.payload.len() + self.ext.bytes().len()
    }

    /// Writes the frame to the front of `out` and returns its length in bytes.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] if `out` is too short, or if a field is longer than its length field or limit allows.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, NoRoom> {
        let ext = self.ext.bytes();
        let mut flags = 0;
        if self.kind == FrameType::Data || !self.payload.is_empty() {
            flags |= FLAG_PAYLOAD;
        }
        if !ext.is_empty() {
            flags |= FLAG_EXTENDED;
        }
        let payload_len = u32::try_from(self.payload.len()).map_err(|_| NoRoom)?;
        if payload_len > MAX_PAYLOAD_LEN {
            return Err(NoRoom);
        }
        let header = Header {
            kind: self.kind,
            flags,
            ts_ms: self.ts_ms,
            fd: self.fd,
            direction: self.direction,
            ext_len: u16::try_from(ext.len()).map_err(|_| NoRoom)?,
            path_len: u16::try_from(self.path.len()).map_err(|_| NoRoom)?,
            conn_len: u16::try_from(self.conn.len()).map_err(|_| NoRoom)?,
            payload_len,
        };
        let out = out.get_mut(..header.frame_len()).ok_or(NoRoom)?;
        let mut at = 0;
        for part in [&header.to_bytes(), self.path, self.conn, self.payload, ext] {
            out[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        Ok(at)
    }
}

/// Decodes one datagram, which holds one frame; bytes behind the frame are ignored, as version 1 asks.
///
/// # Errors
///
/// Every [`Error`]; [`Error::Truncated`] if the frame is longer than the datagram.
pub fn decode_datagram(bytes: &[u8]) -> Result<Frame<'_>, Error> {
    let header = Header::from_bytes(bytes)?;
    let needed = header.frame_len();
    let Some(frame) = bytes.get(HEADER_LEN..needed) else {
        return Err(Error::Truncated { needed });
    };
    let (path, rest) = frame.split_at(usize::from(header.path_len));
    let (conn, rest) = rest.split_at(usize::from(header.conn_len));
    let (payload, ext) = rest.split_at(header.payload_len as usize);
    Ok(Frame {
        kind: header.kind,
        ts_ms: header.ts_ms,
        fd: header.fd,
        direction: header.direction,
        path,
        conn,
        payload,
        ext: Extensions::parse(ext).ok_or(Error::Extension)?,
        host_pid: None,
    })
}
