//! The probe: the part of socktrace that runs inside the traced process.
//!
//! Its hooks stand in for libc's socket calls, put there by Frida or by the dynamic linker. Each calls the function
//! it stands for and then reports what that call did. The way of one message through this crate:
//! `hooks` (the call) → `observe` (which connection, which bytes) → `emit` (the frame) → `transport` (the server).
//!
//! It is a guest. It allocates nothing and locks nothing on a traced call, makes system calls of its own only through
//! rustix (so libc's `errno` stays the program's), raises no signal, and where it cannot record it counts and goes on.
//! docs/design.md gives the reasons.
#![cfg_attr(not(test), no_std)]

// The layers, from the top down: each imports from itself and from those below it (tests/layers.rs).

/// The probe begins and ends, and puts its hooks in place.
mod start;

/// libc's functions as they are called, and what happens around each.
mod hooks;

/// The process becomes another program, a child, or one that may no longer ask the kernel.
mod life;

/// What a call did: to which connection, with which bytes.
mod observe;

/// Which descriptor leads to which connection.
mod table;

/// Frames, their numbers, and the count of what was lost.
mod emit;

/// Frames on their way to the server.
mod transport;

/// Which process and thread this is, on which stack, at what time.
mod process;

/// Changes libc's code in memory.
mod patch;

/// The kernel, libc, memory, and what the probe was told.
mod sys;

/// What depends on the processor.
mod arch;

pub use life::exec::socktrace_followed_by;
pub use start::control::{socktrace_ignore, socktrace_leave, socktrace_start, socktrace_stop};
