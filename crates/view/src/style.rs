//! How everything is shown.

use std::env;

use crate::clock::Time;

/// What an event becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// A line, with a summary of the payload or its beginning at the end.
    #[default]
    Preview,
    /// A line, and the payload's beginning below it, as text.
    Text,
    /// The same in hex.
    Hex,
    /// In hex, however long it is.
    Full,
    /// A line of JSON, with the payload.
    Json,
}

/// What lines look like.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    /// What an event becomes.
    pub form: Form,
    /// How times are written.
    pub time: Time,
    /// Whether there are colours.
    pub colour: bool,
    /// Whether the reader's terminal knows characters beyond ASCII.
    pub utf8: bool,
}

impl Style {
    pub(crate) fn ellipsis(self) -> &'static str {
        if self.utf8 { "…" } else { "..." }
    }
}

/// Whether the user's locale, as locale(7) has it, is of UTF-8.
pub fn is_utf8_locale() -> bool {
    let value = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| env::var(name).ok().filter(|v| !v.is_empty()));
    let value = value.unwrap_or_default().to_ascii_lowercase();
    value.ends_with("utf-8") || value.ends_with("utf8")
}
