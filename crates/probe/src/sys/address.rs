//! UNIX socket addresses (unix(7)) as a program or the kernel gives them.

use core::ffi::c_void;

/// The family's number (address_families(7)).
pub(crate) const AF_UNIX: u16 = 1;
/// Bytes of `sun_path`.
const SUN_PATH_LEN: usize = 108;
const FAMILY_LEN: usize = 2;

/// What a `sockaddr_un` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// No name: an unbound socket, or one end of a socketpair.
    Unnamed,
    /// A file-system path, as it was given to bind(2) or connect(2).
    Path(Name),
    /// A name in the abstract namespace, without its leading NUL.
    Abstract(Name),
}

/// The bytes of a name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Name {
    bytes: [u8; SUN_PATH_LEN],
    len: u8,
}

impl Name {
    fn new(from: &[u8]) -> Self {
        let mut bytes = [0; SUN_PATH_LEN];
        let len = from.len().min(SUN_PATH_LEN);
        bytes[..len].copy_from_slice(&from[..len]);
        // At most 108, so it fits a byte.
        Self { bytes, len: len as u8 }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl core::fmt::Debug for Name {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "\"{}\"", self.as_bytes().escape_ascii())
    }
}

impl Address {
    /// Reads an address of `len` bytes; `None` if it is of another family.
    ///
    /// # Safety
    ///
    /// `at` is null or has `len` readable bytes, as it does when the kernel has just read or written them.
    pub(crate) unsafe fn read(at: *const c_void, len: usize) -> Option<Self> {
        if at.is_null() || len < FAMILY_LEN {
            return None;
        }
        let len = len.min(FAMILY_LEN + SUN_PATH_LEN);
        // SAFETY: the caller's promise.
        Self::parse(unsafe { core::slice::from_raw_parts(at.cast::<u8>(), len) })
    }

    /// Reads an address from its bytes; `None` if they are of another family.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let (family, path) = bytes.split_first_chunk::<FAMILY_LEN>()?;
        if u16::from_ne_bytes(*family) != AF_UNIX {
            return None;
        }
        Some(match path {
            [] => Self::Unnamed,
            [0, name @ ..] => Self::Abstract(Name::new(name)),
            _ => {
                let end = path.iter().position(|&b| b == 0).unwrap_or(path.len());
                Self::Path(Name::new(&path[..end]))
            }
        })
    }

    pub(crate) fn is_named(&self) -> bool {
        *self != Self::Unnamed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(path: &[u8]) -> Option<Address> {
        Address::parse(&[&AF_UNIX.to_ne_bytes(), path].concat())
    }

    #[test]
    fn each_kind_of_name() {
        assert_eq!(parse(b""), Some(Address::Unnamed));
        assert_eq!(parse(b"/tmp/a\0rest"), Some(Address::Path(Name::new(b"/tmp/a"))));
        assert_eq!(parse(b"\0a\0b"), Some(Address::Abstract(Name::new(b"a\0b"))));
        assert_eq!(parse(&[b'x'; 108]), Some(Address::Path(Name::new(&[b'x'; 108]))));
        assert_eq!(Address::parse(&[2, 0, 1, 2, 3, 4]), None);
        assert_eq!(Address::parse(b"x"), None);
    }
}
