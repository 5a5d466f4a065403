//! Text and bytes from elsewhere, made fit to be printed: whatever a message, a name, a recording or a command line holds,
//! it must not drive the reader's terminal, nor look like something else.
//!
//! What is printable stays as it is. Controls (C0, DEL, C1), what changes the direction of text or is not seen, and bytes
//! that are no UTF-8 are escaped as in Rust: `\n`, `\x1b`, `\xff`, `\u{202e}`. All output of socktrace's goes through here.

use std::borrow::Cow;
use std::fmt::Write;

/// Whether a character is printed as it is.
fn is_printable(c: char) -> bool {
    match c {
        ' '..='~' => true,
        _ if c.is_ascii() => false,
        // One that would be escaped begins with a backslash.
        _ => c.escape_debug().len() == 1,
    }
}

/// Appends what is printable of `bytes` as it is, everything else escaped, and backslashes doubled, so that different
/// bytes never look alike. Without `utf8` all that is not ASCII is escaped byte by byte.
pub fn push(to: &mut String, bytes: &[u8], utf8: bool) {
    for chunk in bytes.utf8_chunks() {
        let mut chars = chunk.valid().chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '\\' => to.push_str("\\\\"),
                // `\0` and a digit would be an octal escape.
                '\0' if chars.peek().is_some_and(char::is_ascii_digit) => push_byte(to, 0),
                _ if utf8 || c.is_ascii() => push_char(to, c),
                _ => c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| push_byte(to, byte)),
            }
        }
        chunk.invalid().iter().for_each(|&byte| push_byte(to, byte));
    }
}

/// The same for text of which line feeds make lines.
pub fn push_lines(to: &mut String, bytes: &[u8], utf8: bool, indent: &str) {
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    for line in bytes.split(|&b| b == b'\n') {
        to.push_str(indent);
        push(to, line.strip_suffix(b"\r").unwrap_or(line), utf8);
        to.push('\n');
    }
}

/// A sentence with names in it; backslashes stay as they are.
pub fn sentence(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_printable) {
        return Cow::Borrowed(text);
    }
    let mut printable = String::with_capacity(text.len() + 16);
    text.chars().for_each(|c| push_char(&mut printable, c));
    Cow::Owned(printable)
}

/// A name as an event has it (docs/gttr.md, "Names"), as people write it.
pub fn name(escaped: &str) -> Cow<'_, str> {
    if !escaped.contains('\\') && escaped.chars().all(is_printable) {
        return Cow::Borrowed(escaped);
    }
    let bytes: Vec<u8> = gttr::unescape_path(escaped.as_bytes()).collect();
    let mut printable = String::with_capacity(escaped.len());
    push(&mut printable, &bytes, true);
    Cow::Owned(printable)
}

/// Appends one line of JSON with all in its strings that is not printable as `\uNNNN`, which means the same.
///
/// `json` is a valid text of JSON but that its strings may have bytes that are no UTF-8 (`\ufffd` then).
pub fn push_json(to: &mut Vec<u8>, json: &[u8]) {
    if json.iter().all(|b| matches!(b, b' '..=b'~')) {
        to.extend_from_slice(json);
        return;
    }
    for chunk in json.utf8_chunks() {
        for c in chunk.valid().chars() {
            if is_printable(c) {
                to.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            } else if matches!(c, '\t' | '\n' | '\r') {
                // Between values, for in strings they are written as escapes.
                to.push(b' ');
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    to.extend_from_slice(format!("\\u{unit:04x}").as_bytes());
                }
            }
        }
        if !chunk.invalid().is_empty() {
            to.extend_from_slice(b"\\ufffd");
        }
    }
}

/// The text, or its beginning of at most `max` bytes.
pub fn beginning(text: &str, max: usize) -> &str {
    let end = (0..=text.len().min(max)).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    &text[..end]
}

fn push_byte(to: &mut String, byte: u8) {
    // Writing to a String does not fail.
    let _ = write!(to, "\\x{byte:02x}");
}

fn push_char(to: &mut String, c: char) {
    match c {
        _ if is_printable(c) => to.push(c),
        '\n' | '\r' | '\t' | '\0' => to.extend(c.escape_debug()),
        _ if c.is_ascii() => push_byte(to, c as u8),
        _ => to.extend(c.escape_unicode()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(bytes: &[u8], utf8: bool) -> String {
        let mut text = String::new();
        push(&mut text, bytes, utf8);
        text
    }

    fn drives_a_terminal(c: char) -> bool {
        const DIRECTIONS: &str =
            "\u{200e}\u{200f}\u{61c}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}";
        c.is_control() || DIRECTIONS.contains(c)
    }

    /// What the terminal's text stands for.
    fn meant(text: &str) -> Vec<u8> {
        let (mut bytes, mut rest) = (Vec::new(), text);
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            if c != '\\' {
                bytes.extend(c.encode_utf8(&mut [0; 4]).bytes());
                continue;
            }
            let kind = rest.chars().next().unwrap();
            rest = &rest[1..];
            match kind {
                'n' => bytes.push(b'\n'),
                'r' => bytes.push(b'\r'),
                't' => bytes.push(b'\t'),
                '\\' => bytes.push(b'\\'),
                '0' => bytes.push(0),
                'x' => {
                    bytes.push(u8::from_str_radix(&rest[..2], 16).unwrap());
                    rest = &rest[2..];
                }
                'u' => {
                    let (hex, after) = rest[1..].split_once('}').unwrap();
                    let c = char::from_u32(u32::from_str_radix(hex, 16).unwrap()).unwrap();
                    bytes.extend(c.encode_utf8(&mut [0; 4]).bytes());
                    rest = after;
                }
                other => panic!("\\{other}"),
            }
        }
        bytes
    }

    #[test]
    fn what_is_printable_stays() {
        assert_eq!(of("it's \"ä\" ☃".as_bytes(), true), "it's \"ä\" ☃");
        assert_eq!(of("ä".as_bytes(), false), "\\xc3\\xa4");
        assert_eq!(of(b"a\r\n\t\0\\\x1b[31m\x7f\xff", true), "a\\r\\n\\t\\0\\\\\\x1b[31m\\x7f\\xff");
        assert_eq!(of(b"\x001", true), "\\x001");
        assert_eq!(sentence("a\\b: é, \u{9b}x\n"), "a\\b: é, \\u{9b}x\\n");
    }

    #[test]
    fn invisible_characters_are_seen() {
        // C1's CSI, right-to-left override, zero-width space
        assert_eq!(of("\u{9b}\u{202e}\u{200b}".as_bytes(), true), "\\u{9b}\\u{202e}\\u{200b}");
    }

    #[test]
    fn names_as_people_write_them() {
        assert_eq!(name("/tmp/\\xc3\\xa9.sock"), "/tmp/é.sock");
        assert_eq!(name("@a\\x01b"), "@a\\x01b");
        assert_eq!(name("@a\\x5cx01b"), "@a\\\\x01b");
        assert_eq!(name("@\\xff\\xe2\\x80\\xae"), "@\\xff\\u{202e}");
    }

    proptest! {
        #[test]
        fn nothing_drives_a_terminal(bytes in prop::collection::vec(any::<u8>(), 0..100), utf8: bool) {
            let text = of(&bytes, utf8);
            prop_assert!(!text.chars().any(drives_a_terminal));
            prop_assert!(utf8 || text.is_ascii());
            prop_assert_eq!(meant(&text), bytes);
        }

        #[test]
        fn no_text_drives_a_terminal(input in "[\\x00-\\x1f\\x7f-\\x9f\\u{61c}\\u{200e}\\u{200f}\\u{202a}-\\u{202e}\\u{2066}-\\u{2069}a1\\\\]*|.*") {
            prop_assert!(!of(input.as_bytes(), true).chars().any(drives_a_terminal));
            prop_assert!(!sentence(&input).chars().any(drives_a_terminal));
            prop_assert_eq!(meant(&of(input.as_bytes(), true)), input.as_bytes());
        }

        #[test]
        fn json_means_the_same(text: String, spaces in "[ \t\r]*") {
            let json = format!("{{\"a\":{spaces}{}}}", serde_json::to_string(&text).unwrap());
            let mut line = Vec::new();
            push_json(&mut line, json.as_bytes());
            let line = String::from_utf8(line).unwrap();
            prop_assert!(!line.chars().any(drives_a_terminal), "{line:?}");
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap(), serde_json::json!({ "a": text }));
        }

        #[test]
        fn different_names_look_different(a in prop::collection::vec(any::<u8>(), 0..9), b in prop::collection::vec(any::<u8>(), 0..9)) {
            let shown = |bytes: &[u8]| {
                let mut escaped = [0; 64];
                let len = gttr::escape_path(bytes, &mut escaped);
                name(std::str::from_utf8(&escaped[..len]).unwrap()).into_owned()
            };
            prop_assert_eq!(shown(&a) == shown(&b), a == b);
        }
    }
}
