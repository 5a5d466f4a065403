//! What happens to a message once it has left the traced process: receive, decode, record.
//!
//! ```text
//! listen ─► receive ─► decode ─► Sink ─┬► Recorder: events.jsonl and payload files
//! (bind)    (bytes)  │ (Event)         └► a live view, an exporter, …
//!                    └ here the thread changes: agents need not wait for a disk
//! ```
//!
//! [`listen`] makes the socket, [`receive`] takes bytes from it and knows nothing of their meaning, [`decode`] makes
//! [`Event`]s of bytes and knows nothing of sockets, [`record`] writes them down. Whatever an agent sends is
//! untrusted in every one of them.

mod bad_frames;
mod connections;
pub mod decode;
mod descriptors;
pub mod errno;
pub mod event;
mod events_file;
mod family;
mod folder;
pub mod join;
mod journal;
mod line;
pub mod listen;
mod notice;
mod outage;
#[doc(hidden)]
pub mod owners;
mod payload;
pub mod printable;
pub mod private;
mod process;
pub mod receive;
pub mod record;
pub mod recording;
mod recover;
mod segments;
mod sender;
mod serve;
mod shares;
pub mod sink;
pub mod stop;
pub mod util;

pub use descriptors::raise_descriptor_limit;
pub use event::{Event, EventType};
pub use listen::{Bound, SockType};
pub use notice::{notice, silence_notices};
pub use process::{ProcessId, Stat, process_name};
pub use record::{Contents, Recorder};
pub use recording::{Ordered, Recording};
pub use recover::Recovered;
pub use sender::Sender;
pub use serve::serve;
pub use sink::Sink;
pub use stop::{Stop, StopHandle};
