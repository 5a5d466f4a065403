//! Text of an event.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

/// Text of an event, borrowed from the frame or the line it was read from where it can be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);

impl<'a> Text<'a> {
    /// Text of an agent: bytes outside 32..=126 become `\xNN`, as in a path (docs/gttr.md, "Names").
    pub fn escaped(bytes: &'a [u8]) -> Self {
        Self::escaped_by(bytes, gttr::escape_unprintable)
    }

    /// A name of an agent, as the kernel has it: backslashes, too, are escaped, so that it can be told what it was.
    pub fn escaped_name(bytes: &'a [u8]) -> Self {
        if bytes.contains(&b'\\') { Self::escape_by(bytes, gttr::escape_path) } else { Self::escaped(bytes) }
    }

    fn escaped_by(bytes: &'a [u8], escape: fn(&[u8], &mut [u8]) -> usize) -> Self {
        let printable = bytes.iter().all(|b| matches!(b, 32..=126));
        if printable && let Ok(text) = std::str::from_utf8(bytes) {
            return Self(Cow::Borrowed(text));
        }
        Self::escape_by(bytes, escape)
    }

    fn escape_by(bytes: &[u8], escape: fn(&[u8], &mut [u8]) -> usize) -> Self {
        let mut escaped = vec![0; 4 * bytes.len()];
        let len = escape(bytes, &mut escaped);
        Self(Cow::Owned(String::from_utf8_lossy(&escaped[..len]).into_owned()))
    }
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self(Cow::Borrowed(text))
    }
}
