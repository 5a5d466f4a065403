//! From a recording to Wireshark and Perfetto.
//!
//! ```text
//! recording ─► survey ─► order ─┬► Pcapng ─► blocks
//! (a directory: twice)          └► Perfetto ─► packets
//! collector (live) ──────────────► Pcapng
//! ```
//!
//! [`export`](directory::export) reads a directory, first to learn what a single event does not tell ([`survey`]), then
//! to hand its events on in the order of time. [`Pcapng`] and [`Perfetto`] each take events and their bytes and write
//! what they make of them; [`stream`] says where in its stream a message lies, so that what is missing is a gap and not
//! a wrong stream. The mapping is described in docs/wireshark.md.

#![forbid(unsafe_code)]

pub mod comment;
pub mod decode;
pub mod directory;
pub mod pairs;
pub mod pcapng;
pub mod perfetto;
pub mod processes;
pub mod stream;
pub mod survey;

use std::io;

use socktrace_collect::{Event, EventType};

pub use decode::Decode;
pub use directory::{Progress, Report, export};
pub use pcapng::Pcapng;
pub use perfetto::Perfetto;
pub use survey::Survey;

/// What is there of the bytes that a data event speaks of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Captured<'p> {
    /// Those that are there, from the first one on.
    pub bytes: &'p [u8],
    /// Why they are not all.
    pub missing: Option<&'static str>,
}

/// Takes a recording's events, in the order of time, and writes them in another form.
pub trait Exporter {
    /// Takes an event and the bytes of its payload that are there.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    fn event(&mut self, event: &Event<'_>, payload: Captured<'_>, survey: &Survey) -> io::Result<()>;

    /// How many of an event's bytes are asked for.
    fn needed_bytes(&self) -> usize;

    /// The event was the last of its connection.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    fn forget(&mut self, event: &Event<'_>, survey: &Survey) -> io::Result<()>;

    /// Writes the end.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    fn finish(&mut self) -> io::Result<()>;
}

/// When an event happened, in nanoseconds since the Unix epoch.
pub fn time_of(event: &Event<'_>) -> u64 {
    event.ts_ns.unwrap_or_else(|| event.ts_ms.saturating_mul(1_000_000))
}

/// Whether the traced process is the client of a connection that opens so: it has connected, or sent first.
pub fn is_client(event: &Event<'_>) -> bool {
    let how = event.how.as_deref().or(event.call.as_deref()).unwrap_or_default();
    let how = how.strip_prefix("resumed:").unwrap_or(how);
    let receives = ["accept", "bind", "listen", "recv", "read", "__re"].iter().any(|call| how.starts_with(call));
    // Of a socket that was open before, the path is its own end's: a server's.
    let is_named = how.ends_with(":getsockname") && event.path.as_deref().is_some_and(|path| !path.is_empty());
    !(receives || is_named)
}

/// Whether a connection was open before it was traced, so that its beginning was not seen.
pub fn is_midstream(event: &Event<'_>) -> bool {
    event.kind != EventType::Open || event.how.as_deref().is_some_and(|how| how.contains(':'))
}

/// Whether a connection's messages are datagrams.
pub fn is_datagram(event: &Event<'_>) -> bool {
    event.socket_type.as_deref() == Some("dgram")
}
