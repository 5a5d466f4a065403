//! What happened on the sockets of a traced process: one [`Event`], and its line in `events.jsonl`.
//!
//! An event has what all of them have (when, which process, which number), and [`What`] happened, with the values that
//! belong to that. It is made of a frame that an agent has sent ([`Event::from_frame`]) or read from its line by serde,
//! and is written as a line again.
//!
//! ```
//! use socktrace_event::{Event, What};
//!
//! let line = r#"{"type":"close","ts_ms":1795407956377,"fd":8,"conn_id":"demo:fd=8","how":"close","pid":7}"#;
//! let event: Event = serde_json::from_str(line)?;
//! match &event.what {
//!     What::Close(close) => assert_eq!(&*close.conn_id, "demo:fd=8"),
//!     _ => unreachable!(),
//! }
//! assert_eq!(serde_json::to_string(&event)?, line);
//! # Ok::<(), serde_json::Error>(())
//! ```
//!
//! Events come from a [`Source`] and go to a [`Sink`]: whoever implements one can be put together with all of the other.
//!
//! Beside events there is what everybody needs who shows them: [`printable`] makes text from elsewhere fit for a terminal,
//! [`errno`] has the names of errors, [`util::safe_filename`] those of payload files.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod errno;
mod error;
mod event;
mod frame;
mod line;
mod notice;
pub mod printable;
mod process;
mod sink;
mod source;
mod stop;
mod text;
pub mod util;
mod what;

pub use error::{ErrorKind, PathError};
pub use event::{Captured, Event, file_suffix};
pub use gttr::{Credentials, Direction};
pub use line::Rest;
pub use notice::{Limited, notice, silence_notices};
pub use process::{ProcessId, Stat, proc_text, process_name};
pub use sink::{Before, End, Layer, Sink, Taken};
pub use source::{Failed, Origin, Source};
pub use stop::{Stop, StopHandle};
pub use text::Text;
pub use what::{
    BadFrame, Begun, Close, Data, Eof, EventType, Exec, Exit, Fail, HostInit, HostShutdown, Listen, Lost, Open, Said,
    What,
};

/// A descriptor that was passed over a socket: its number in the process whose event this is, and what it leads to,
/// `socket:/run/x.sock` say; empty where that is not known.
pub type PassedFd<'a> = gttr::PassedFd<Text<'a>>;
