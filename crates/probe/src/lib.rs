//! The probe: the part of socktrace that runs inside the traced process.
//!
//! Its hooks stand in for libc's socket calls, put there by Frida or by the dynamic linker. Each calls the function
//! it stands for and then reports what that call did. The way of one message through this crate:
//! `hooks` (the call) → `capture` (which connection, which bytes) → `emit` (the frame) → `transport` (the server).
//!
//! It is a guest. It allocates nothing and locks nothing on a traced call, makes system calls of its own only through
//! rustix (so libc's `errno` stays the program's), raises no signal, and where it cannot record it counts and goes on.
//! docs/design.md gives the reasons.
#![cfg_attr(not(test), no_std)]

mod address;
mod ancillary;
mod announce;
mod aside;
mod calls;
mod capture;
mod clock;
mod connection;
mod control;
mod descriptors;
mod emit;
mod exec;
mod failures;
mod guest;
mod hooks;
mod install;
mod library;
mod name;
mod params;
mod patch;
mod peer;
#[cfg(feature = "standalone")]
mod preload;
mod process;
mod scan;
mod scratch;
mod stack;
#[cfg(feature = "standalone")]
mod standalone;
mod strict;
mod sys;
mod transport;

pub use control::{
    socktrace_hook, socktrace_ignore, socktrace_init, socktrace_ready, socktrace_stop, socktrace_unhook,
};
pub use exec::socktrace_followed_by;
