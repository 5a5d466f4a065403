//! Why a way in does not work.

use socktrace_event::{PathError, errno};

/// Why a way in does not work. Its text is one line, which says what to do where something can be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No folder will do for what programs load: of each that was tried, why.
    #[error("no place for the probe, set TMPDIR to a folder that only you can write to: {0}")]
    NoPlace(String),
    /// What the engine needs is not there.
    #[error("{0}")]
    Missing(String),
    /// Something has gone wrong with what is at a path.
    #[error(transparent)]
    Path(#[from] PathError),
    /// It did not get into a process, or not out of it.
    #[error("process {pid}: {why}")]
    Process {
        /// Which.
        pid: u32,
        /// Why.
        why: String,
    },
    /// The engine is no way into such a thing.
    #[error("this engine cannot trace {0}: choose another one")]
    NotThisWay(&'static str),
}

impl Error {
    /// What a process could not be brought to, in the words of `why`.
    pub fn of_process(pid: u32, why: &(dyn std::error::Error + 'static)) -> Self {
        Self::Process { pid, why: errno::explain(why) }
    }
}
