//! What happened: a struct for each kind of event, with the values that belong to it.
//!
//! A value that every event of its kind has is there; one that may be missing is an `Option`.

use serde::{Deserialize, Serialize};

use crate::line::{Line, Value};
use crate::text::Text;
use crate::{Credentials, Direction, PassedFd};

/// A struct, and how it is taken out of a line and put into one.
macro_rules! details {
    ($(
        $(#[doc = $doc:literal])+
        $name:ident { $($(#[doc = $field_doc:literal])+ $field:ident: $type:ty,)+ }
    )+) => {$(
        $(#[doc = $doc])+
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct $name<'a> {
            $($(#[doc = $field_doc])+ pub $field: $type,)+
        }

        impl<'a> $name<'a> {
            fn take(line: &mut Line<'a>) -> Self {
                Self { $($field: Value::of(std::mem::take(&mut line.$field)),)+ }
            }

            fn put(&self, line: &mut Line<'a>) {
                $(line.$field = self.$field.in_line();)+
            }
        }
    )+};
}

details! {
    /// A connection began or was found.
    Open {
        /// The socket's file-system path or `@name`; of a client the peer's.
        path: Text<'a>,
        /// Which connection.
        conn_id: Text<'a>,
        /// Which call or circumstance it was.
        how: Text<'a>,
        /// Inode number of the socket.
        inode: Option<u64>,
        /// `stream`, `dgram` or `seqpacket`; any other type is its number.
        socket_type: Option<Text<'a>>,
        /// Process id of the other end.
        peer_pid: Option<u32>,
        /// User id of the other end.
        peer_uid: Option<u32>,
        /// Group id of the other end.
        peer_gid: Option<u32>,
        /// Inode number of the socket at the other end.
        peer_inode: Option<u64>,
        /// Path of the peer process's executable.
        peer_exe: Option<Text<'a>>,
        /// The peer process's name as the collector finds it (proc_pid_comm(5)), where it is surely the same process.
        peer_comm: Option<Text<'a>>,
        /// The connection at the other end, where that is traced too and was heard of first.
        peer_conn_id: Option<Text<'a>>,
    }

    /// The last descriptor of a connection was closed, or one direction was shut.
    Close {
        /// Which connection.
        conn_id: Text<'a>,
        /// Which call or circumstance it was.
        how: Text<'a>,
        /// Since when the descriptor may have been another's, in nanoseconds since the Unix epoch, if it was not seen
        /// being closed.
        since_ns: Option<u64>,
    }

    /// A socket listens, or a datagram socket is bound.
    Listen {
        /// The socket's file-system path or `@name`.
        path: Text<'a>,
        /// The call.
        how: Text<'a>,
        /// Inode number of the socket.
        inode: Option<u64>,
        /// `stream`, `dgram` or `seqpacket`; any other type is its number.
        socket_type: Option<Text<'a>>,
    }

    /// Bytes moved.
    Data {
        /// Which way.
        direction: Direction,
        /// The socket's file-system path or `@name`; of a client the peer's.
        path: Text<'a>,
        /// Which connection.
        conn_id: Text<'a>,
        /// Base name of the payload files where `conn_id` cannot be it.
        file: Option<Text<'a>>,
        /// Bytes captured.
        size: u64,
        /// The libc function that was called.
        call: Option<Text<'a>>,
        /// Bytes that the call moved, also when fewer were captured.
        total: Option<u64>,
        /// Bytes that the process moved before in this direction.
        offset: Option<u64>,
        /// Which part of its call's capture this is, from 0.
        part: Option<u32>,
        /// Into how many parts the call's capture was split.
        parts: Option<u32>,
        /// How long the call took, in nanoseconds.
        duration_ns: Option<u64>,
        /// Bytes that the call moved and that could not be captured.
        uncaptured: Option<u64>,
        /// What is said of the message: `MSG_OOB`, `MSG_CTRUNC`, … with bars between.
        flags: Option<Text<'a>>,
        /// Whether the message was longer than what was received of it: `yes`, or `maybe` where the call does not say.
        truncated: Option<Text<'a>>,
        /// Descriptors that came or went with the message.
        fds: Vec<PassedFd<'a>>,
        /// Who sent the message, as the kernel vouches for it (SCM_CREDENTIALS, unix(7)).
        credentials: Option<Credentials>,
        /// The security context that came with the message.
        security: Option<Text<'a>>,
        /// The descriptor of the sending process that came with the message.
        pidfd: Option<u32>,
    }

    /// Nothing more can be received on a connection.
    Eof {
        /// Received, always.
        direction: Direction,
        /// The socket's file-system path or `@name`; of a client the peer's.
        path: Text<'a>,
        /// Which connection.
        conn_id: Text<'a>,
    }

    /// What the agent says.
    Said {
        /// Its text.
        raw: Text<'a>,
    }

    /// A program with an agent in it has begun: it introduces itself.
    Begun {
        /// Process id of the parent.
        ppid: Option<u32>,
        /// Path of the process's executable.
        exe: Option<Text<'a>>,
        /// The process's name in the kernel, as ps(1) shows it.
        comm: Option<Text<'a>>,
    }

    /// A process is about to execute another program.
    Exec {
        /// `posix_spawn` or `posix_spawnp`, where a child executes it and the process goes on.
        raw: Option<Text<'a>>,
        /// Path of the program, as the call was given it.
        program: Option<Text<'a>>,
        /// Why it will not be traced; absent where it will.
        untraced: Option<Text<'a>>,
        /// UNIX sockets that the process has made.
        sockets: Option<u32>,
    }

    /// A process ends.
    Exit {
        /// What the agent says.
        raw: Option<Text<'a>>,
        /// Exit status.
        status: Option<u32>,
        /// UNIX sockets that the process has made.
        sockets: Option<u32>,
    }

    /// A call on a socket failed, or the execution of a program.
    Fail {
        /// What the socket is called, or what the call named.
        path: Option<Text<'a>>,
        /// Which connection, if it was on one.
        conn_id: Option<Text<'a>>,
        /// The libc function that was called.
        call: Option<Text<'a>>,
        /// Path of the program that was not executed.
        program: Option<Text<'a>>,
        /// What the call said, a number of errno(3).
        errno: Option<i32>,
        /// How many times in all the same call has failed in the same way, where that is more than once.
        times: Option<u32>,
        /// The name of `errno`.
        error: Option<Text<'a>>,
    }

    /// Something was not recorded, by the agent or by the server.
    Lost {
        /// Which way the bytes moved, of a payload file.
        direction: Direction,
        /// Which connection, of a payload file.
        conn_id: Option<Text<'a>>,
        /// Base name of the payload file where `conn_id` cannot be it.
        file: Option<Text<'a>>,
        /// Where in the payload file the bytes are missing.
        offset: Option<u64>,
        /// How many events.
        events: Option<u64>,
        /// How many payload bytes.
        bytes: Option<u64>,
        /// Why.
        reason: Option<Text<'a>>,
        /// When the first lost event happened, in nanoseconds since the Unix epoch.
        since_ns: Option<u64>,
        /// When the last lost event happened, in nanoseconds since the Unix epoch.
        until_ns: Option<u64>,
    }

    /// The server received bytes that are no frame it knows.
    BadFrame {
        /// How many bytes.
        size: u64,
        /// How many times, where the event speaks of several.
        events: Option<u64>,
        /// What is wrong with them.
        error: Text<'a>,
    }

    /// The server started.
    HostInit {
        /// Why events may be missing that happened before.
        reason: Option<Text<'a>>,
        /// Path of the server's socket.
        sock: Text<'a>,
        /// The server's output directory.
        out_dir: Text<'a>,
        /// Type of the server's socket: `dgram` or `stream`.
        sock_type: Text<'a>,
        /// The server's version.
        version: Text<'a>,
        /// What the server was told not to write: `events` or `payload files`.
        omits: Option<Text<'a>>,
    }

    /// The server ends; the last line it writes.
    HostShutdown {
        /// Events recorded.
        events: u64,
        /// Payload bytes recorded.
        bytes: u64,
        /// Why it ends.
        reason: Text<'a>,
    }
}

/// The kinds of events, and what each has.
macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $name:ident($details:ident),)+) => {
        /// What happened, and what there is to say of it.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum What<'a> {
            $($(#[doc = $doc])+ $name($details<'a>),)+
            /// Something that a newer server wrote.
            #[default]
            Unknown,
        }

        /// The type of an event; the first field of its line.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum EventType {
            $($(#[doc = $doc])+ $name,)+
            /// A type that a newer server wrote.
            #[default]
            #[serde(other)]
            Unknown,
        }

        impl<'a> What<'a> {
            /// The type.
            pub const fn kind(&self) -> EventType {
                match self {
                    $(Self::$name(_) => EventType::$name,)+
                    Self::Unknown => EventType::Unknown,
                }
            }

            pub(crate) fn take(line: &mut Line<'a>) -> Self {
                match std::mem::take(&mut line.kind) {
                    $(EventType::$name => Self::$name($details::take(line)),)+
                    EventType::Unknown => Self::Unknown,
                }
            }

            pub(crate) fn put(&self, line: &mut Line<'a>) {
                line.kind = self.kind();
                match self {
                    $(Self::$name(details) => details.put(line),)+
                    Self::Unknown => {}
                }
            }
        }
    };
}

kinds! {
    /// A connection began or was found.
    Open(Open),
    /// The last descriptor of a connection was closed, or one direction was shut.
    Close(Close),
    /// A socket listens, or a datagram socket is bound.
    Listen(Listen),
    /// Bytes moved.
    Data(Data),
    /// The agent began to load; its parameters.
    Init(Said),
    /// The agent is in place.
    Ready(Said),
    /// The agent could not do something.
    Error(Said),
    /// Something was not recorded, by the agent or by the server.
    Lost(Lost),
    /// A traced process introduces itself.
    Start(Begun),
    /// A traced process was forked from another traced one.
    Fork(Begun),
    /// A traced process is about to execute another program.
    Exec(Exec),
    /// A traced process ends.
    Exit(Exit),
    /// A call failed.
    Fail(Fail),
    /// Nothing more can be received on a connection.
    Eof(Eof),
    /// The server started.
    HostInit(HostInit),
    /// The server ends; the last line it writes.
    HostShutdown(HostShutdown),
    /// The server received bytes that are no frame it knows.
    BadFrame(BadFrame),
}

impl Open<'_> {
    /// Whether the connection's messages are datagrams.
    pub fn is_datagram(&self) -> bool {
        self.socket_type.as_deref() == Some("dgram")
    }
}

impl Data<'_> {
    /// Bytes that the call moved, as far as is known.
    pub fn moved(&self) -> u64 {
        self.total.unwrap_or(self.size)
    }

    /// Whether it is the first part of its call's capture, or all of it.
    pub fn is_first(&self) -> bool {
        self.part.unwrap_or(0) == 0
    }

    /// Whether the call's capture was split into several events.
    pub fn is_split(&self) -> bool {
        self.parts.unwrap_or(1) > 1
    }
}
