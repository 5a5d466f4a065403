//! Why a write failed, and whether it is worth another try.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use socktrace_event::{PathError, Text, errno};

/// How often a failed write is tried again: soon enough for whoever has just made room, seldom enough to cost nothing.
const RETRY: Duration = Duration::from_millis(200);

/// Why something could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure(pub(crate) Errno);

impl Failure {
    /// An error of its own, of this file or directory.
    pub(crate) fn of(self, path: &Path) -> PathError {
        PathError::output(path, "cannot be written to")(self.0)
    }

    /// The `reason` of a `lost` event.
    pub(crate) fn reason(self) -> Text<'static> {
        match self.0 {
            Errno::NOSPC | Errno::DQUOT => "disk full".into(),
            Errno::LOOP => "the payload file is a symbolic link".into(),
            Errno::PERM => "the payload file belongs to another user, or others may write to it".into(),
            error => Text(errno::words(error.raw_os_error()).into()),
        }
    }

    /// Whether it is one file that is wrong, so that waiting for room would not help.
    pub(crate) fn is_of_one_file(self) -> bool {
        matches!(
            self.0,
            Errno::LOOP | Errno::ISDIR | Errno::NXIO | Errno::ACCESS | Errno::PERM | Errno::FBIG | Errno::MLINK
        ) || matches!(self.0, Errno::NOTDIR | Errno::NAMETOOLONG | Errno::TXTBSY | Errno::NODEV | Errno::INVAL)
    }
}

/// A time during which not everything could be written.
#[derive(Debug)]
pub(crate) struct Outage {
    retry_at: Instant,
}

impl Outage {
    pub(crate) fn begin() -> Self {
        Self { retry_at: Instant::now() + RETRY }
    }

    /// Whether it is time to try again; only the first to ask is told so.
    pub(crate) fn is_retry_due(&mut self) -> bool {
        let now = Instant::now();
        let due = now >= self.retry_at;
        if due {
            self.retry_at = now + RETRY;
        }
        due
    }
}
