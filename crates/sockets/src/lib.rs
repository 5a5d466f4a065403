//! The AF_UNIX sockets that a machine has, and the processes that hold them: what `ss -xp` shows, as a library.
//!
//! The kernel tells of sockets by sock_diag(7), of one network namespace at a time, and of the processes that have
//! descriptors of them in /proc. [`Snapshot::take`] puts both together:
//!
//! ```
//! use socktrace_sockets::Snapshot;
//!
//! let (ours, _theirs) = std::os::unix::net::UnixStream::pair()?;
//! let snapshot = Snapshot::take()?;
//! let own = std::process::id();
//! let held = snapshot.sockets.values().find(|socket| socket.holders.iter().any(|holder| holder.pid == own));
//! let other = held.and_then(|socket| snapshot.peer(socket)).expect("the other end of the pair");
//! assert_eq!(other.holders[0].pid, own);
//! # drop(ours);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What this process may not see, because it is not root, is counted ([`Unseen`]). It sees processes of its own pid namespace
//! and those below; a thread with descriptors of its own (unshare(2), CLONE_FILES) is not looked at beside its process.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod address;
mod cgroup;
mod diag;
mod error;
mod namespace;
mod process;
mod snapshot;
mod socket;

pub use address::Address;
pub use cgroup::{Cgroups, Unit};
pub use error::{Error, Unseen};
pub use process::{Process, Users, line_of, processes};
pub use snapshot::{Snapshot, file_at};
pub use socket::{Holder, Kind, Peer, Socket};
