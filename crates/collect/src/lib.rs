//! Sources of events: sockets that agents send to, and the rings that they hand over there.
//!
//! ```text
//! listen ─► receive ─► decode ─► a Sink
//! (bind)    (bytes)  │ (Event)
//!                    └ here the thread changes: agents need not wait for a disk
//! ```
//!
//! [`listen`] makes the socket, [`receive`] takes bytes from it and knows nothing of their meaning, [`decode`] makes
//! [`Event`](socktrace_event::Event)s of bytes and knows nothing of sockets. [`Bound`] is the
//! [`Source`](socktrace_event::Source). Whatever an agent sends is untrusted in every one of them.

#![warn(missing_docs)]
mod bad_frames;
pub mod decode;
mod descriptors;
mod door;
mod family;
pub mod join;
pub mod listen;
#[doc(hidden)]
pub mod owners;
pub mod receive;
mod sender;
mod shares;
mod signals;

pub use descriptors::raise_descriptor_limit;
pub use door::Door;
pub use listen::{Bound, SockType};
pub use sender::Sender;
pub use signals::stop_on_signals;
