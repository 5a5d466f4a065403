//! From a recording to Wireshark and Perfetto.
//!
//! ```text
//! recording ─► survey ─► order ─┬► Pcapng ─► blocks
//! (a directory: twice)          └► Perfetto ─► packets
//! collector (live) ──────────────► Pcapng
//! ```
//!
//! [`export()`] reads a directory, first to learn what a single event does not tell ([`survey`]), then
//! to hand its events on in the order of time. [`Pcapng`] and [`Perfetto`] each take events and their bytes and write
//! what they make of them; [`stream`] says where in its stream a message lies, so that what is missing is a gap and not
//! a wrong stream. The mapping is described in docs/wireshark.md.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod comment;
pub mod directory;
pub mod pairs;
pub mod pcapng;
pub mod perfetto;
pub mod ports;
pub mod processes;
pub mod stream;
pub mod survey;

use std::io;

use socktrace_event::{Captured, Event, What};

pub use directory::{Error, Progress, Report, export};
pub use pcapng::Pcapng;
pub use perfetto::Perfetto;
pub use ports::Ports;
pub use survey::Survey;

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

    /// What was met and left out, though it could be had.
    fn left_out(&self) -> Option<LeftOut> {
        None
    }
}

/// What an exporter leaves out unless it is told not to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftOut {
    /// Messages of D-Bus as packets of their own: [`Pcapng::with_dbus`] writes them.
    DbusMessages,
}

/// Whether the traced process is the client of a connection that begins so: it has connected, or sent first.
pub fn is_client(event: &Event<'_>) -> bool {
    let how = event.how().unwrap_or_default();
    let how = how.strip_prefix("resumed:").unwrap_or(how);
    let receives = ["accept", "bind", "listen", "recv", "read", "__re"].iter().any(|call| how.starts_with(call));
    // Of a socket that was open before, the path is its own end's: a server's.
    let is_named = how.ends_with(":getsockname") && event.path().is_some_and(|path| !path.is_empty());
    !(receives || is_named)
}

/// Whether a connection has been recorded since its first byte, if this is its first event.
pub fn is_from_start(event: &Event<'_>) -> bool {
    matches!(&event.what, What::Open(open) if !open.how.starts_with("resumed:"))
}

/// Whether a connection's messages are datagrams.
pub fn is_datagram(event: &Event<'_>) -> bool {
    matches!(&event.what, What::Open(open) if open.is_datagram())
}
