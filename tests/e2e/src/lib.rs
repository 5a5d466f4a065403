//! socktrace under real Frida, end to end.
//!
//! A test makes a [`Stage`], starts a [`Server`] on it, and has Frida load the agent into a program. The programs are
//! real ones, or the [`Workload`], which makes every hooked call and keeps its own [`Account`] of the bytes that
//! moved. At the end the [`Recording`] must say what the account says.

#![forbid(unsafe_code)]

mod account;
mod compare;
mod frida;
mod needs;
mod oracle;
mod process;
mod recording;
mod relay;
mod server;
mod stage;
mod steps;
mod strace;
mod workload;

pub use account::{Account, Direction, Moved, Opened};
pub use compare::{assert_same, assert_same_but_for_losses, assert_same_up_to_a_kill, connections_by_inode};
pub use frida::{Frida, Injected};
pub use needs::{Needs, announce_skipped, find_program, has_programs};
pub use oracle::Oracle;
pub use process::{Ending, Process, children, send_signal};
pub use recording::{Connection, Credentials, Event, PassedFd, Recording};
pub use relay::{Conversation, Relay};
pub use server::{Server, SockType};
pub use stage::{PATIENCE, Stage, until};
pub use steps::Steps;
pub use strace::{Observed, Program, Strace};
pub use workload::{Workload, preload_files};
