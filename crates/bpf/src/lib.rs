//! AF_UNIX sockets as the kernel sees them, whichever program uses them: Go's, static ones, setuid ones, by whatever system call.
//!
//! ```text
//! object/socktrace.bpf.c   in the kernel: at each send and receive of a traced process, bytes into a ring buffer
//! load                     gets it there, and says what is missing where it cannot
//! records                  what comes out of the ring buffer
//! tell                     records to events: connections, processes, calls of many pieces
//! source                   the ring buffer read until the end, losses counted, closed connections noticed
//! ```
//!
//! [`load()`] gives a [`Control`], which says whom to trace, and a [`Kernel`], the [`Source`](socktrace_event::Source). The object
//! is built by `make bpf` and kept as built, so that nobody needs clang who builds this.

#![warn(missing_docs)]

mod load;
mod records;
mod source;
mod tell;

pub use load::{Control, Error, Options, load, permitted};
pub use source::{KIND, Kernel};
