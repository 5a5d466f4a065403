//! Errors (errno(3)) in words.

use std::borrow::Cow;
use std::error::Error;
use std::io;
use std::path::Path;

use nix::errno::Errno;

/// The name of an error; of one that has none, `unknown error`.
pub fn name(number: i32) -> Cow<'static, str> {
    match Errno::from_raw(number) {
        Errno::UnknownErrno => "unknown error".into(),
        // Where there are two names for one number, it is always the same one.
        Errno::EDEADLK => "EDEADLOCK".into(),
        Errno::EOPNOTSUPP => "ENOTSUP".into(),
        known => format!("{known:?}").into(),
    }
}

/// An error in words, those of strerror(3), with its name: `permission denied (EACCES)`.
pub fn words(number: i32) -> String {
    if Errno::from_raw(number) == Errno::UnknownErrno {
        return format!("error {number}");
    }
    let mut text = io::Error::from_raw_os_error(number).to_string();
    text.truncate(text.find(" (os error ").unwrap_or(text.len()));
    // In the middle of a sentence, but for RPC and the like.
    if !text.chars().nth(1).is_some_and(char::is_uppercase) {
        text[..1].make_ascii_lowercase();
    }
    format!("{text} ({})", name(number))
}

/// An error and its causes in one line, those of the system as [`words`] says them.
pub fn explain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(|error| number(error).map_or_else(|| error.to_string(), words)).collect::<Vec<_>>().join(": ")
}

fn number(error: &(dyn Error + 'static)) -> Option<i32> {
    let of_io = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    of_io.or_else(|| error.downcast_ref::<rustix::io::Errno>().map(|error| error.raw_os_error()))
}

/// Why nothing can be made or written at a path, and what to do.
pub fn explain_output(path: &Path, error: &io::Error) -> String {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let folder = folder.display();
    let why = explain(error);
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => format!("the folder {folder} does not exist: create it or choose another path"),
        Some(Errno::ENOTDIR) => format!("{folder} is not a folder: choose another path"),
        Some(Errno::EACCES | Errno::EPERM) => format!("{why}: choose a folder that you may write to"),
        Some(Errno::ENOSPC | Errno::EDQUOT) => format!("{why}: make room or choose a path on another disk"),
        _ => format!("{why}: choose another path"),
    }
}

/// Why what is at a path cannot be read, and what to do.
pub fn explain_input(error: &io::Error) -> String {
    let why = explain(error);
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!("{why}: its owner or root may read it"),
        _ => why,
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn numbers_are_those_of_this_machine() {
        assert_eq!(words(libc::ENOENT), "no such file or directory (ENOENT)");
        assert_eq!(name(libc::ECONNREFUSED), "ECONNREFUSED");
        assert_eq!((&*name(-1), words(0)), ("unknown error", "error 0".into()));
    }

    #[test]
    fn errors_of_any_kind_are_said_in_one_way() {
        let denied = "permission denied (EACCES)";
        let of_io = io::Error::from_raw_os_error(libc::EACCES);
        assert_eq!((explain(&of_io), explain(&Errno::ACCESS)), (denied.into(), denied.into()));
        let with_context = anyhow::Error::from(of_io).context("/x: cannot be read");
        assert_eq!(explain(with_context.as_ref()), format!("/x: cannot be read: {denied}"));
        assert_eq!(explain(&io::Error::from_raw_os_error(4000)), "error 4000");
        assert_eq!(explain(&io::Error::other("no AT_ENTRY")), "no AT_ENTRY");
    }

    #[test]
    fn what_to_do() {
        let of = |error: Errno| explain_output(Path::new("/a/b"), &error.into());
        assert_eq!(of(Errno::NOENT), "the folder /a does not exist: create it or choose another path");
        assert_eq!(of(Errno::NOTDIR), "/a is not a folder: choose another path");
        assert_eq!(of(Errno::ROFS), "read-only file system (EROFS): choose another path");
    }
}
