//! Where an engine's events come from, whichever source it has.

use std::error::Error;
use std::fmt;

use socktrace_event::{Failed, Origin, PathError, Sink, Source, Stop};

type Problem = Box<dyn Error + Send + Sync>;
type AnySink<'s> = dyn Sink<Error = PathError> + 's;

/// A [`Source`] of whatever kind, for sinks that fail as files do.
pub struct Events(Box<dyn AnySource + Send>);

impl Events {
    /// Events that come from there.
    pub fn from<S: Source<Error: Into<Problem>> + Send + 'static>(source: S) -> Self {
        Self(Box::new(source))
    }

    /// Where they come from.
    pub fn origin(&self) -> Origin<'_> {
        self.0.origin()
    }

    /// As [`Source::run`].
    ///
    /// # Errors
    ///
    /// Whose failure ended it before.
    pub fn run(self, stop: &Stop, sink: &mut AnySink<'_>) -> Result<&'static str, Failed<Problem, PathError>> {
        self.0.run(stop, sink)
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Events").field(&self.origin()).finish()
    }
}

/// [`Source`], of which the kind need not be known.
trait AnySource {
    fn origin(&self) -> Origin<'_>;
    fn run(self: Box<Self>, stop: &Stop, sink: &mut AnySink<'_>) -> Result<&'static str, Failed<Problem, PathError>>;
}

impl<S: Source<Error: Into<Problem>>> AnySource for S {
    fn origin(&self) -> Origin<'_> {
        Source::origin(self)
    }

    fn run(self: Box<Self>, stop: &Stop, sink: &mut AnySink<'_>) -> Result<&'static str, Failed<Problem, PathError>> {
        Source::run(*self, stop, sink).map_err(|failed| match failed {
            Failed::Source(error) => Failed::Source(error.into()),
            Failed::Sink(error) => Failed::Sink(error),
        })
    }
}
