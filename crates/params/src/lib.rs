//! What a probe is told when it is loaded: names, defaults and limits of the parameters, and the text that carries them.
//!
//! The probe reads them ([`parse`]), the command line writes them ([`Params::write_to`]) and takes its defaults and limits from
//! here. agent.js, which is JavaScript, and docs/frida.md have a copy each; `tests/copies.rs` compares them with [`TABLE`].

#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod text;

use core::fmt;

pub use text::{Complaint, entries, parse};

/// Name of the parameter that has the server's socket.
pub const OUT_SOCKET_PATH: &str = "out_socket_path";
/// Bytes of `sun_path` less its NUL (unix(7)).
pub const MAX_SOCKET_PATH: usize = 107;
/// Descriptors below this are looked at when the probe is loaded. With a larger limit, the table of descriptors would be
/// larger than what it is for.
pub const MAX_FDS: Number = Number { default: 4096, from: 1, to: 1 << 20 };
/// Bytes captured of one call's payload.
pub const MAX_BYTES: Number = Number { default: 4096, from: 0, to: u64::MAX };
/// For `max_bytes`: every byte. The largest whole number that JavaScript knows exactly (`Number.MAX_SAFE_INTEGER`).
pub const EVERYTHING: u64 = (1 << 53) - 1;
/// Milliseconds that a program may be made to wait. Whoever asks for more has the wrong unit in mind.
pub const MAX_WAIT_MS: Number = Number { default: 1000, from: 0, to: 60_000 };
/// Bytes of the ring, a power of two. By default there is room for some tens of thousands of small messages, or for what a
/// program says in the time that a busy machine leaves the server without a processor.
pub const RING_BYTES: Number = Number { default: 8 << 20, from: 1 << 16, to: 1 << 30 };

/// What a parameter is that takes a whole number.
#[derive(Clone, Copy, Debug)]
pub struct Number {
    /// What it is unless it is given.
    pub default: u64,
    /// The smallest.
    pub from: u64,
    /// The largest.
    pub to: u64,
}

impl Number {
    /// Whether the parameter may have this value.
    pub const fn has(&self, n: u64) -> bool {
        self.from <= n && n <= self.to
    }
}

/// Defines an enum whose values have a name each in the text.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident: $($(#[$value_doc:meta])* $value:ident = $word:literal),+ $(,)?) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$value_doc])* $value),+
        }

        impl $name {
            /// The names of all values.
            pub const NAMES: &[&str] = &[$($word),+];

            /// The name in the text.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$value => $word),+
                }
            }

            /// What has this name.
            pub fn named(name: &[u8]) -> Option<Self> {
                [$(Self::$value),+].into_iter().find(|value| value.name().as_bytes() == name)
            }
        }
    };
}

words! {
    /// How frames reach the server.
    Transport:
    /// SOCK_DGRAM, a frame a datagram.
    Dgram = "dgram",
    /// SOCK_STREAM, frames one behind the other.
    Stream = "stream",
    /// A ring in shared memory.
    Shm = "shm",
}

words! {
    /// What happens when the ring is full.
    OnFull:
    /// The program waits for room, for `max_wait_ms` at the most.
    Block = "block",
    /// The event is dropped and counted.
    Drop = "drop",
}

/// The parameters, as docs/frida.md documents them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params<'a> {
    /// The server's socket, NUL-free; `@` and a name, of an abstract address.
    pub out_socket_path: &'a [u8],
    /// How frames reach it.
    pub transport: Transport,
    /// See [`MAX_FDS`].
    pub max_fds: u32,
    /// See [`MAX_BYTES`].
    pub max_bytes: u64,
    /// What happens when the ring is full.
    pub on_full: OnFull,
    /// See [`MAX_WAIT_MS`].
    pub max_wait_ms: u64,
    /// See [`RING_BYTES`].
    pub ring_bytes: u64,
    /// Whether programs that this one executes are traced, too.
    pub follow_children: bool,
    /// Whether Frida put the probe there, and so may be there itself.
    pub by_frida: bool,
    /// Whether whoever put the probe there takes the ring out of the process, so that the probe tells nobody of it.
    pub hand_over: bool,
    /// Where the probe lies as a file, for programs that this one executes to load it from; empty: nowhere.
    pub preload: &'a [u8],
    /// What they were read from, where those are that may be given more than once.
    pub text: &'a [u8],
}

impl<'a> Params<'a> {
    /// All at their defaults, and the socket's path, which is required, empty.
    pub const DEFAULT: Self = Self {
        out_socket_path: b"",
        transport: Transport::Dgram,
        max_fds: MAX_FDS.default as u32,
        max_bytes: MAX_BYTES.default,
        on_full: OnFull::Drop,
        max_wait_ms: MAX_WAIT_MS.default,
        ring_bytes: RING_BYTES.default,
        follow_children: true,
        by_frida: false,
        hand_over: false,
        preload: b"",
        text: b"",
    };

    /// The sockets that are recorded; none: all of them (`socket_path` values).
    pub fn socket_paths(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        text::all(self.text, text::SOCKET_PATH)
    }

    /// Whether only some sockets are recorded.
    pub fn has_filter(&self) -> bool {
        self.socket_paths().next().is_some()
    }

    /// Descriptors that are not the program's (`ignore_fd` values).
    pub fn ignored(&self) -> impl Iterator<Item = i32> + use<'a> {
        text::all(self.text, text::IGNORE_FD).filter_map(text::number).filter_map(|fd| fd.try_into().ok())
    }
}

/// What a parameter takes.
#[derive(Clone, Copy, Debug)]
pub enum Takes {
    /// A path of a socket, which has at most so many bytes.
    SocketPath(usize),
    /// The path of a file.
    File,
    /// A list of sockets' paths.
    SocketPaths,
    /// One of these words; the second is what it is unless it is given.
    Word(&'static [&'static str], &'static str),
    /// A whole number.
    Whole(Number),
    /// A whole number that is a power of two.
    PowerOfTwo(Number),
    /// Yes or no.
    Switch,
}

/// As docs/frida.md says it.
impl fmt::Display for Takes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SocketPath(max) => write!(f, "string, 1 to {max} bytes"),
            Self::File => f.write_str("string"),
            Self::SocketPaths => f.write_str("array of strings"),
            Self::Word([first, others @ ..], _) => {
                write!(f, "`\"{first}\"`")?;
                others.iter().try_for_each(|word| write!(f, ", `\"{word}\"`"))
            }
            Self::Word([], _) => Ok(()),
            Self::Whole(Number { from, to: u64::MAX, .. }) => write!(f, "whole number, {from} or more"),
            Self::Whole(Number { from, to, .. }) => write!(f, "whole number, {from} to {to}"),
            Self::PowerOfTwo(Number { from, to, .. }) => write!(f, "power of two, {from} to {to}"),
            Self::Switch => f.write_str("`true`, `false`"),
        }
    }
}

/// What agent.js takes, by name. A list is empty, a file none, and a switch off, unless they are given; the socket's path is
/// required.
pub const TABLE: [(&str, Takes); 10] = [
    (OUT_SOCKET_PATH, Takes::SocketPath(MAX_SOCKET_PATH)),
    ("out_sock_type", Takes::Word(Transport::NAMES, Params::DEFAULT.transport.name())),
    ("on_full", Takes::Word(OnFull::NAMES, Params::DEFAULT.on_full.name())),
    ("max_wait_ms", Takes::Whole(MAX_WAIT_MS)),
    ("ring_bytes", Takes::PowerOfTwo(RING_BYTES)),
    ("socket_paths", Takes::SocketPaths),
    ("max_bytes", Takes::Whole(MAX_BYTES)),
    ("preload", Takes::File),
    ("stay", Takes::Switch),
    ("max_fds", Takes::Whole(MAX_FDS)),
];
