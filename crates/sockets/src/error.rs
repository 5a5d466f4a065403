//! What goes wrong, and what is not seen.

use std::fmt;
use std::io;

use socktrace_event::{PathError, errno};

/// Why nothing can be said of sockets.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel does not tell of them.
    #[error("the kernel does not tell which sockets there are (sock_diag(7)): {0}")]
    Diag(#[source] io::Error),
    /// Its processes cannot be read.
    #[error(transparent)]
    Proc(#[from] PathError),
    /// Names no cgroup.
    #[error("{0}: {1}")]
    Unit(String, &'static str),
}

/// What a [`Snapshot`](crate::Snapshot) does not have. Its text is one line, empty if it has everything.
#[derive(Debug, Default)]
pub struct Unseen {
    /// Processes whose descriptors may not be looked at.
    pub processes: usize,
    /// Network namespaces that could not be entered, by inode number, and why.
    pub namespaces: Vec<(u64, io::Error)>,
}

impl fmt::Display for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |n: usize| if n == 1 { "" } else { "s" };
        let what = match (self.processes, self.namespaces.len()) {
            (0, 0) => return Ok(()),
            (n, 0) => format!("what {n} process{} of other users hold{}", es(n), third_person(n)),
            (0, n) => format!("what is in {n} other network namespace{}", plural(n)),
            (n, m) => format!(
                "what {n} process{} of other users hold{}, and what is in {m} other network namespace{}",
                es(n),
                third_person(n),
                plural(m)
            ),
        };
        write!(f, "not seen: {what}")?;
        let other = self.namespaces.iter().find(|(_, error)| error.kind() != io::ErrorKind::PermissionDenied);
        match other {
            Some((inode, error)) => write!(f, " (net:[{inode}]: {})", errno::explain(error)),
            None => f.write_str("; root sees it"),
        }
    }
}

fn es(n: usize) -> &'static str {
    if n == 1 { "" } else { "es" }
}

fn third_person(n: usize) -> &'static str {
    if n == 1 { "s" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line() {
        let denied = |inode| (inode, io::ErrorKind::PermissionDenied.into());
        assert_eq!(Unseen::default().to_string(), "");
        let one = Unseen { processes: 1, namespaces: Vec::new() };
        assert_eq!(one.to_string(), "not seen: what 1 process of other users holds; root sees it");
        let both = Unseen { processes: 7, namespaces: vec![denied(1), denied(2)] };
        let text =
            "not seen: what 7 processes of other users hold, and what is in 2 other network namespaces; root sees it";
        assert_eq!(both.to_string(), text);
    }
}
