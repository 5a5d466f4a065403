//! Where events come from: sockets and rings, a recording, a queue.

use std::fmt;
use std::path::Path;

use crate::sink::Sink;
use crate::stop::Stop;

/// What a source says of itself before its first event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin<'a> {
    /// The path of the socket, file or directory.
    pub path: &'a Path,
    /// What it is: `dgram` or `stream` of a socket.
    pub kind: &'a str,
}

/// Hands events on to a sink, until there are no more, the sink has enough, or a stop is asked for.
pub trait Source {
    /// What can go wrong.
    type Error;

    /// Where the events come from.
    fn origin(&self) -> Origin<'_>;

    /// Hands the events on, and returns why there are no more. The sink has been flushed then; beginning and finishing it is
    /// the caller's.
    ///
    /// # Errors
    ///
    /// Whose failure ended it before.
    fn run<S: Sink + ?Sized>(self, stop: &Stop, sink: &mut S) -> Result<&'static str, Failed<Self::Error, S::Error>>;
}

/// Who has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed<Source, Sink> {
    /// Whoever the events come from.
    Source(Source),
    /// Whoever takes them.
    Sink(Sink),
}

impl<A: fmt::Display, B: fmt::Display> fmt::Display for Failed<A, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(error) => error.fmt(f),
            Self::Sink(error) => error.fmt(f),
        }
    }
}

impl<A: std::error::Error, B: std::error::Error> std::error::Error for Failed<A, B> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Source(error) => error.source(),
            Self::Sink(error) => error.source(),
        }
    }
}
