//! What a socket is bound to.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A socket's own address (unix(7)).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// In the file system: the path as it was given to bind(2), or absolute where it was found out what that leads to.
    Path(Vec<u8>),
    /// In the abstract namespace: the name without its leading NUL.
    Abstract(Vec<u8>),
    /// None.
    #[default]
    Unnamed,
}

impl Address {
    /// As the kernel has it in `sun_path`.
    pub(crate) fn of_kernel(sun_path: &[u8]) -> Self {
        match sun_path {
            [] => Self::Unnamed,
            [0, name @ ..] => Self::Abstract(name.into()),
            path => Self::Path(path.strip_suffix(b"\0").unwrap_or(path).into()),
        }
    }

    /// As patterns of paths are matched with it: `@name` in the abstract namespace, empty without a name.
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Path(path) => path.clone(),
            Self::Abstract(name) => [b"@", &**name].concat(),
            Self::Unnamed => Vec::new(),
        }
    }

    /// As events have it (docs/gttr.md, "Names"): what is no printable ASCII is `\xNN`.
    pub fn escaped(&self) -> String {
        escaped(&self.bytes())
    }

    /// The path as it was given, if it depends on the working directory.
    pub(crate) fn relative(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(Path::new(OsStr::from_bytes(path))).filter(|path| path.is_relative()),
            _ => None,
        }
    }
}

/// A name as events have it.
pub(crate) fn escaped(bytes: &[u8]) -> String {
    let mut escaped = vec![0; 4 * bytes.len()];
    let len = gttr::escape_path(bytes, &mut escaped);
    String::from_utf8_lossy(&escaped[..len]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_kernel() {
        assert_eq!(Address::of_kernel(b"").bytes(), b"");
        assert_eq!(Address::of_kernel(b"/x\0"), Address::Path(b"/x".into()));
        // An abstract name may end with NULs, and be empty.
        assert_eq!(Address::of_kernel(b"\0a\0\0").bytes(), b"@a\0\0");
        assert_eq!(Address::of_kernel(b"\0").escaped(), "@");
        assert_eq!(Address::of_kernel(b"/\xff\n\\\0").escaped(), r"/\xff\x0a\x5c");
        assert!(Address::of_kernel(b"x\0").relative().is_some() && Address::of_kernel(b"/x\0").relative().is_none());
    }
}
