//! The extension block: typed values behind the payload (docs/gttr.md, "Extension values").
//!
//! A value is a little-endian u16 tag, a u16 length and that many bytes. Readers skip tags they do not know, so a
//! new value needs no new version; a tag's meaning and type never change once released.

/// One line per value: its tag, the type it is encoded as, what it says.
macro_rules! extension_values {
    ($($(#[doc = $doc:literal])+ $name:ident = $tag:literal: $kind:tt,)+) => {
        /// One extension value.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Ext<'a> {
            $($(#[doc = $doc])+ $name(extension_values!(@type $kind 'a)),)+
            /// A tag this version does not know, or a known one of another length.
            Unknown(u16, &'a [u8]),
        }

        impl<'a> Ext<'a> {
            #[inline]
            fn from_wire(tag: u16, value: &'a [u8]) -> Self {
                match tag {
                    $($tag => match extension_values!(@read $kind value) {
                        Some(read) => Self::$name(read),
                        None => Self::Unknown(tag, value),
                    },)+
                    _ => Self::Unknown(tag, value),
                }
            }

            /// The tag on the wire.
            pub const fn tag(&self) -> u16 {
                match self {
                    $(Self::$name(_) => $tag,)+
                    Self::Unknown(tag, _) => *tag,
                }
            }
        }

        impl ExtWriter<'_> {
            /// Appends a value; one that does not fit is left out, and the block stays well-formed.
            #[inline]
            pub fn put(&mut self, value: Ext<'_>) {
                match value {
                    $(Ext::$name(v) => extension_values!(@write $kind self, $tag, v),)+
                    Ext::Unknown(tag, v) => self.put_parts(tag, &[v]),
                }
            }
        }
    };
    (@type u8 $l:lifetime) => { u8 };
    (@type u32 $l:lifetime) => { u32 };
    (@type u64 $l:lifetime) => { u64 };
    (@type text $l:lifetime) => { &$l [u8] };
    (@type passed_fd $l:lifetime) => { PassedFd<&$l [u8]> };
    (@type credentials $l:lifetime) => { Credentials };
    (@read text $v:ident) => { Some($v) };
    (@read passed_fd $v:ident) => { PassedFd::from_wire($v) };
    (@read credentials $v:ident) => { Credentials::from_wire($v) };
    (@read $int:ident $v:ident) => { <[u8; size_of::<$int>()]>::try_from($v).ok().map($int::from_le_bytes) };
    (@write text $w:ident, $tag:literal, $v:ident) => { $w.put_parts($tag, &[$v]) };
    (@write passed_fd $w:ident, $tag:literal, $v:ident) => { $w.put_parts($tag, &[&$v.fd.to_le_bytes(), $v.what]) };
    (@write credentials $w:ident, $tag:literal, $v:ident) => { $w.put_parts($tag, &[&$v.to_wire()]) };
    (@write $int:ident $w:ident, $tag:literal, $v:ident) => { $w.put_parts($tag, &[&$v.to_le_bytes()]) };
}

extension_values! {
    /// Number of the event within its process, from 1 without gaps; a gap is a loss.
    Seq = 1: u64,
    /// Process id, as the traced process sees it.
    Pid = 2: u32,
    /// Thread id, as the traced process sees it.
    Tid = 3: u32,
    /// Nanoseconds since the Unix epoch.
    TsNs = 4: u64,
    /// The libc function that was called, `recvmsg` say.
    Call = 5: text,
    /// Bytes that the call moved, also when fewer were captured.
    Total = 6: u64,
    /// Bytes that the process moved on this connection in this direction before this call, captured or not.
    Offset = 7: u64,
    /// Which frame of its call this is, from 0, where a capture was split into several.
    Part = 8: u32,
    /// Into how many frames the call's capture was split.
    Parts = 9: u32,
    /// Process id of the parent.
    Ppid = 10: u32,
    /// Path of the process's executable.
    Exe = 11: text,
    /// Events that were not recorded.
    LostEvents = 12: u64,
    /// Payload bytes that were not recorded.
    LostBytes = 13: u64,
    /// When the first of the lost events happened, nanoseconds since the Unix epoch.
    LostSince = 14: u64,
    /// When the last of the lost events happened, nanoseconds since the Unix epoch.
    LostUntil = 15: u64,
    /// Inode number of the socket, which names it in /proc/net/unix and in sock_diag(7).
    Inode = 16: u64,
    /// Socket type as in socket(2): 1 stream, 2 datagram, 5 seqpacket.
    SocketType = 17: u8,
    /// Process id of the other end, as SO_PEERCRED gives it (unix(7)).
    PeerPid = 18: u32,
    /// User id of the other end.
    PeerUid = 19: u32,
    /// Group id of the other end.
    PeerGid = 20: u32,
    /// Inode number of the socket at the other end, as sock_diag(7) gives it.
    PeerInode = 22: u64,
    /// Path of the peer process's executable.
    PeerExe = 23: text,
    /// What recvmsg(2) said of the message in `msg_flags`, and MSG_OOB where the call asked for it: the kernel's numbers.
    MsgFlags = 24: u32,
    /// Whether the message was longer than what was received of it: 1 it was, 2 it may have been, because the call does
    /// not say and the buffer was filled.
    Truncated = 25: u8,
    /// Nanoseconds from the call's beginning to its end.
    DurationNs = 26: u64,
    /// When the call began, nanoseconds since the Unix epoch, where `TsNs` is later than it should be: events are
    /// numbered in the order of their times, and an event of another thread had been numbered meanwhile.
    EnteredNs = 27: u64,
    /// Bytes that the call moved and that could not be captured, because they never were in the process's memory.
    Uncaptured = 28: u64,
    /// A descriptor that came or went with the message (SCM_RIGHTS, unix(7)); one value each.
    PassedFd = 29: passed_fd,
    /// Who sent the message (SCM_CREDENTIALS, unix(7)).
    Credentials = 30: credentials,
    /// The security context that came with the message (SCM_SECURITY, unix(7)).
    Security = 31: text,
    /// The descriptor of the sending process that came with the message (SCM_PIDFD).
    PidFd = 32: u32,
    /// Path of a program that is executed, as the call was given it (execve(2)).
    Program = 33: text,
    /// Why the executed program is not traced; without this value it is.
    Untraced = 34: text,
    /// What a failed call said, a number of errno(3).
    Errno = 35: u32,
    /// How many times in all the same call has failed in the same way, where that is more than once.
    Times = 36: u32,
    /// The process's exit status (_exit(2)).
    Status = 37: u32,
    /// UNIX sockets that the process has made.
    SocketsMade = 38: u32,
    /// The process's name, as ps(1) shows it (PR_GET_NAME, prctl(2)).
    Comm = 40: text,
    /// Which announcement told the server of this process before it wrote to a ring (docs/gttr.md, "Processes of other pid
    /// namespaces").
    Announcement = 41: u64,
    /// Which of several processes with one number this frame is of: all frames of a process have it that is the first of a
    /// pid namespace, and could neither announce itself nor make a ring of its own.
    Apart = 42: u64,
}

/// A descriptor that was passed over a socket: with bytes as on the wire, or with text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassedFd<T> {
    /// Its number in the process whose event this is.
    pub fd: i32,
    /// What it leads to, `socket:/run/x.sock` say (docs/gttr.md, "Passed descriptors"); empty where that is not known.
    pub what: T,
}

impl<'a> PassedFd<&'a [u8]> {
    fn from_wire(value: &'a [u8]) -> Option<Self> {
        let (fd, what) = value.split_first_chunk()?;
        Some(Self { fd: i32::from_le_bytes(*fd), what })
    }
}

/// `struct ucred` of unix(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Process id.
    pub pid: u32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Credentials {
    const LEN: usize = 12;

    fn from_wire(value: &[u8]) -> Option<Self> {
        let value: &[u8; Self::LEN] = value.try_into().ok()?;
        let at = |at: usize| u32::from_le_bytes([value[at], value[at + 1], value[at + 2], value[at + 3]]);
        Some(Self { pid: at(0), uid: at(4), gid: at(8) })
    }

    fn to_wire(self) -> [u8; Self::LEN] {
        let mut value = [0; Self::LEN];
        for (to, id) in value.chunks_exact_mut(4).zip([self.pid, self.uid, self.gid]) {
            to.copy_from_slice(&id.to_le_bytes());
        }
        value
    }
}

/// Bytes of a value's tag and length.
const VALUE_HEADER_LEN: usize = 4;

/// A well-formed extension block.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Extensions<'a> {
    bytes: &'a [u8],
}

impl<'a> Extensions<'a> {
    /// No values.
    pub const EMPTY: Self = Self { bytes: b"" };

    /// Checks that values fill the block exactly.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut rest = bytes;
        while let Some((_, _, behind)) = split_value(rest) {
            rest = behind;
        }
        rest.is_empty().then_some(Self { bytes })
    }

    /// The block as on the wire.
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The values, in the order they were written.
    pub fn iter(&self) -> impl Iterator<Item = Ext<'a>> + use<'a> {
        Values { rest: self.bytes }
    }
}

impl core::fmt::Debug for Extensions<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

struct Values<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Values<'a> {
    type Item = Ext<'a>;

    #[inline]
    fn next(&mut self) -> Option<Ext<'a>> {
        let (tag, value, rest) = split_value(self.rest)?;
        self.rest = rest;
        Some(Ext::from_wire(tag, value))
    }
}

/// The tag and the bytes of the first value, and what is behind it.
#[inline]
fn split_value(block: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (head, rest) = block.split_first_chunk::<VALUE_HEADER_LEN>()?;
    let len = usize::from(u16::from_le_bytes([head[2], head[3]]));
    let (value, rest) = rest.split_at_checked(len)?;
    Some((u16::from_le_bytes([head[0], head[1]]), value, rest))
}

/// Builds an extension block in a buffer of the caller's.
#[derive(Debug)]
pub struct ExtWriter<'a> {
    buffer: &'a mut [u8],
    len: usize,
}

impl<'a> ExtWriter<'a> {
    /// An empty block at the front of `buffer`.
    pub const fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, len: 0 }
    }

    #[inline]
    fn put_parts(&mut self, tag: u16, parts: &[&[u8]]) {
        let len = parts.iter().map(|part| part.len()).sum::<usize>();
        let end = self.len + VALUE_HEADER_LEN + len;
        let (Ok(value_len), true) = (u16::try_from(len), end <= usize::from(u16::MAX)) else {
            return;
        };
        let Some(out) = self.buffer.get_mut(self.len..end) else {
            return;
        };
        out[0..2].copy_from_slice(&tag.to_le_bytes());
        out[2..4].copy_from_slice(&value_len.to_le_bytes());
        let mut at = VALUE_HEADER_LEN;
        for part in parts {
            out[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        self.len = end;
    }

    /// Bytes that are left.
    pub fn room(&self) -> usize {
        self.buffer.len() - self.len
    }

    /// The block as on the wire.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len]
    }

    /// The block, ready to go into a [`Frame`](crate::Frame).
    pub fn finish(&self) -> Extensions<'_> {
        Extensions { bytes: self.bytes() }
    }
}
