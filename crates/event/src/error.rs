//! What can go wrong with a file, a directory or a socket.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::errno::{explain, explain_input, explain_output};

/// Something has gone wrong with what is at a path. Its text is one line, which names the path and says what to do where
/// something can be done.
#[derive(Debug)]
pub struct PathError(Box<(PathBuf, ErrorKind)>);

/// What has gone wrong, and why.
#[derive(Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// It is not there, or something else than what is wanted.
    Unsuitable(String),
    /// Nothing is made or written there, because that would not be safe: it is another user's, or others may write to it.
    Refused(String),
    /// Somebody else uses it.
    InUse(String),
    /// The system does not let it.
    Io(String, io::Error),
}

impl PathError {
    /// [`ErrorKind::Unsuitable`]
    pub fn unsuitable(path: &Path, why: impl Into<String>) -> Self {
        Self(Box::new((path.to_owned(), ErrorKind::Unsuitable(why.into()))))
    }

    /// [`ErrorKind::Refused`]
    pub fn refused(path: &Path, why: impl Into<String>) -> Self {
        Self(Box::new((path.to_owned(), ErrorKind::Refused(why.into()))))
    }

    /// [`ErrorKind::InUse`]
    pub fn in_use(path: &Path, why: impl Into<String>) -> Self {
        Self(Box::new((path.to_owned(), ErrorKind::InUse(why.into()))))
    }

    /// [`ErrorKind::Io`] of what could not be done, and what the system said.
    pub fn io<E: Into<io::Error>>(path: &Path, doing: &str) -> impl FnOnce(E) -> Self {
        move |error| {
            let error = error.into();
            let why = format!("{doing}: {}", explain(&error));
            Self(Box::new((path.to_owned(), ErrorKind::Io(why, error))))
        }
    }

    /// The same of what could not be made or written, with what to do.
    pub fn output<E: Into<io::Error>>(path: &Path, doing: &str) -> impl FnOnce(E) -> Self {
        move |error| {
            let error = error.into();
            let why = format!("{doing}: {}", explain_output(path, &error));
            Self(Box::new((path.to_owned(), ErrorKind::Io(why, error))))
        }
    }

    /// The same of what cannot be read.
    pub fn input<E: Into<io::Error>>(path: &Path) -> impl FnOnce(E) -> Self {
        move |error| {
            let error = error.into();
            let why = format!("cannot be read: {}", explain_input(&error));
            Self(Box::new((path.to_owned(), ErrorKind::Io(why, error))))
        }
    }

    /// What it is about.
    pub fn path(&self) -> &Path {
        &self.0.0
    }

    /// What has gone wrong.
    pub fn kind(&self) -> &ErrorKind {
        &self.0.1
    }
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use ErrorKind::{InUse, Io, Refused, Unsuitable};
        let (Unsuitable(why) | Refused(why) | InUse(why) | Io(why, _)) = self.kind();
        write!(f, "{}: {why}", self.path().display())
    }
}

impl std::error::Error for PathError {}
