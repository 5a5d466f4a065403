//! Hostile input for everything in the server that reads what somebody else has written: frames, streams, rings, and
//! recordings.
//!
//! A target is a function of bytes that panics where a promise is broken. `tests/corpus.rs` gives it the inputs in
//! `corpus/`, and a bounded number of changed ones; `make fuzz` changes them guided by coverage, for as long as one likes.

mod directory;
mod frames;
mod input;
mod memory;
mod reader;
mod rings;
mod sandbox;
mod streams;

/// Something that takes untrusted bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, which is that of its folder in `corpus/`.
    pub name: &'static str,
    /// Gives it one input.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 5] = [
    Target { name: "frames", run: frames::run },
    Target { name: "streams", run: streams::run },
    Target { name: "reader", run: reader::run },
    Target { name: "rings", run: rings::run },
    Target { name: "directory", run: directory::run },
];

impl Target {
    /// The target of a name.
    ///
    /// # Errors
    ///
    /// One line that says which there are.
    pub fn named(name: &str) -> Result<Self, String> {
        let names = || TARGETS.map(|target| target.name).join(", ");
        TARGETS.into_iter().find(|target| target.name == name).ok_or_else(|| format!("{name:?}: one of {}", names()))
    }
}
