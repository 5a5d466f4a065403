//! Ways in: how what observes a program or a process gets there, and how its events come from there.
//!
//! ```text
//! ENGINES ─► Engine ─┬► to_run ────► Events + Running    the program is started
//!                    └► to_attach ─► Events + Attached   into each process, and out again
//! ```
//!
//! Whoever traces knows these traits, and takes an engine from [`ENGINES`]. Those that are there bring the probe, which reports
//! to a collector's socket in a folder of its own. The traits know of neither: an engine whose events come from elsewhere makes
//! its [`Events`] of a [`Source`](socktrace_event::Source) of its own.

#![warn(missing_docs)]

mod agent;
mod bpf;
mod collector;
mod error;
mod events;
mod frida;
mod gadget;
mod gate;
mod inject;
pub mod nest;
mod place;
mod preload;
pub mod program;
mod seccomp;
pub mod start;
mod target;

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use socktrace_params::Params;

pub use error::Error;
pub use events::Events;
pub use place::Removal;
use start::{Program, Signals, Start};
pub use target::named as processes_named;

/// A way in.
pub trait Engine: fmt::Debug {
    /// What keeps it out of a program or a process, in one line that names it and says what would work; None if nothing is
    /// known to. Such a program is started all the same, for it may start others; such a process is left alone.
    fn hindrance(&self, target: Target<'_>) -> Option<String>;

    /// What it lacks here, whatever is to be traced, in one line; None if nothing is known to be missing.
    fn lack(&self) -> Option<String> {
        None
    }

    /// Prepares for a program that is to be started. Its parameters say what is captured; where it is reported to is the
    /// engine's matter.
    ///
    /// # Errors
    ///
    /// What it needs is not there, or cannot be made; [`Error::NotThisWay`] if it is no way into programs.
    fn to_run(self: Box<Self>, params: &Params<'_>) -> Result<(Events, Box<dyn Running>), Error> {
        let _ = params;
        Err(Error::NotThisWay("a program that is yet to be started"))
    }

    /// The same for processes that run.
    ///
    /// # Errors
    ///
    /// What it needs is not there, or cannot be made; [`Error::NotThisWay`] if it is no way into processes.
    fn to_attach(self: Box<Self>, pids: &[u32], params: &Params<'_>) -> Result<(Events, Box<dyn Attached>), Error> {
        let _ = (pids, params);
        Err(Error::NotThisWay("a process that runs already"))
    }
}

/// What is to be traced.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// A program that is to be started.
    Program {
        /// Where it is.
        path: &'a Path,
        /// What it is given, without its name.
        arguments: &'a [OsString],
    },
    /// A process that runs.
    Process(u32),
}

/// A way in that is ready to start a program.
pub trait Running {
    /// Starts the program so that it is traced from its first instruction on.
    ///
    /// # Errors
    ///
    /// Those of fork(2) and execve(2).
    fn start(&mut self, start: &Start<'_>, signals: &Signals) -> io::Result<Program>;

    /// What it may mean that no event comes.
    fn silence(&self) -> &'static str;

    /// From here on, nothing more is traced that is executed; takes away what was prepared.
    fn leave(self: Box<Self>) -> Removal;
}

/// A way in that is ready to get into processes.
pub trait Attached {
    /// Gets into one of the processes that it was prepared for.
    ///
    /// # Errors
    ///
    /// Why it is not traced.
    fn attach(&mut self, pid: u32) -> Result<(), Error>;

    /// Gets out of it again.
    ///
    /// # Errors
    ///
    /// Why something of it stays in.
    fn detach(&mut self, pid: u32) -> Result<(), Error>;

    /// What it may mean that no event comes.
    fn silence(&self) -> &'static str;

    /// Takes away what was prepared.
    fn leave(self: Box<Self>) -> Removal;
}

/// What engines can be told by a user.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `--frida`, the `frida` or `frida-inject` command; None: as it is found.
    pub frida: Option<PathBuf>,
    /// `--gadget`, Frida Gadget's library, for `preload`; None: the probe.
    pub gadget: Option<PathBuf>,
}

/// An engine that can be chosen.
#[derive(Clone, Copy)]
pub struct Entry {
    /// What it is called.
    pub name: &'static str,
    /// What it is, in a few words.
    pub about: &'static str,
    /// Whether it is a way into programs that are to be started.
    pub runs: bool,
    /// Whether it is a way into processes that run.
    pub attaches: bool,
    /// Makes it.
    pub make: fn(&Options) -> Box<dyn Engine>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// All engines. The first that can do what is asked for does it unless another one is chosen.
pub const ENGINES: &[Entry] = &[
    Entry { name: "preload", about: "LD_PRELOAD; needs nothing", runs: true, attaches: false, make: preload::make },
    Entry {
        name: "inject",
        about: "the probe put in by ptrace(2); needs nothing",
        runs: false,
        attaches: true,
        make: inject::make,
    },
    Entry {
        name: "frida",
        about: "Frida; leaves the program's environment alone",
        runs: true,
        attaches: true,
        make: frida::make,
    },
    Entry {
        name: "bpf",
        about: "the kernel's tracepoints, as root; sees static programs and Go's",
        runs: true,
        attaches: true,
        make: bpf::make,
    },
];
