//! A recording on disk: `events.jsonl`, and per connection and direction a payload file. Written, read, followed, and put
//! right after its writer was killed.
//!
//! ```no_run
//! use socktrace_event::What;
//! use socktrace_recording::Recording;
//!
//! for recorded in Recording::open("/tmp/recording".as_ref())?.events() {
//!     let recorded = recorded?;
//!     let event = recorded.event();
//!     if let What::Data(data) = &event.what {
//!         println!("{}: {} of {} bytes", data.conn_id, recorded.payload(64).bytes.len(), data.size);
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`Recording`] reads in the order in which events arrived, [`Ordered`] by their times, [`Follow`] as a recording grows.
//! [`Recorder`] is a [`Sink`](socktrace_event::Sink) that writes one. What a recording takes in memory has a limit, however
//! long it is; and it may be anybody's and hold anything.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod connections;
mod data_line;
mod events_file;
mod folder;
mod follow;
mod journal;
mod lines;
mod ordered;
mod outage;
mod payload;
mod places;
pub mod private;
mod reader;
mod recorder;
mod recover;
mod segments;

pub use follow::{Follow, Next};
pub use ordered::{Condition, Ordered};
pub use reader::{Payload, Recorded, Recording};
pub use recorder::{Contents, Recorder};
pub use recover::Recovered;
