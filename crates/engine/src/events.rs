//! Where an engine's events come from, whichever source it has.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

use socktrace_event::{Failed, Origin, PathError, Sink, Source, Stop};

type Problem = Box<dyn Error + Send + Sync>;
type AnySink<'s> = dyn Sink<Error = PathError> + 's;
type Ended = Result<&'static str, Failed<Problem, PathError>>;
type Run = dyn FnOnce(&Stop, &mut AnySink<'_>) -> Ended + Send;

/// A [`Source`] of whatever kind, for sinks that fail as files do.
pub struct Events {
    path: PathBuf,
    kind: String,
    run: Box<Run>,
}

impl Events {
    /// Events that come from there.
    pub fn from<S: Source<Error: Into<Problem>> + Send + 'static>(source: S) -> Self {
        let origin = source.origin();
        let (path, kind) = (origin.path.to_owned(), origin.kind.to_owned());
        let run = |stop: &Stop, sink: &mut AnySink<'_>| {
            source.run(stop, sink).map_err(|failed| match failed {
                Failed::Source(error) => Failed::Source(error.into()),
                Failed::Sink(error) => Failed::Sink(error),
            })
        };
        Self { path, kind, run: Box::new(run) }
    }

    /// Where they come from.
    pub fn origin(&self) -> Origin<'_> {
        Origin { path: &self.path, kind: &self.kind }
    }

    /// Whether programs are seen as well that make their system calls without libc.
    pub fn see_system_calls(&self) -> bool {
        self.kind == socktrace_bpf::KIND
    }

    /// As [`Source::run`].
    ///
    /// # Errors
    ///
    /// Whose failure ended it before.
    pub fn run(self, stop: &Stop, sink: &mut AnySink<'_>) -> Ended {
        (self.run)(stop, sink)
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Events").field(&self.origin()).finish()
    }
}
