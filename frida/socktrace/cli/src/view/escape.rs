//! Bytes on a terminal: whatever a message holds, it must not drive the reader's.

/// Appends what is printable of `bytes` as it is, everything else escaped as in Rust: `\n`, `\xff`, `\u{202e}`.
pub fn push(to: &mut String, bytes: &[u8], utf8: bool) {
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            push_char(to, c, utf8);
        }
        for byte in chunk.invalid() {
            push_byte(to, *byte);
        }
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

fn push_byte(to: &mut String, byte: u8) {
    to.push_str(&format!("\\x{byte:02x}"));
}

fn push_char(to: &mut String, c: char, utf8: bool) {
    match c {
        '\'' | '"' => to.push(c),
        ' '..='~' if c != '\\' => to.push(c),
        '\0'..='\u{7f}' if !matches!(c, '\n' | '\r' | '\t' | '\0' | '\\') => push_byte(to, c as u8),
        _ if utf8 || c.is_ascii() => to.extend(c.escape_debug()),
        _ => c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| push_byte(to, byte)),
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

    #[test]
    fn what_is_printable_stays() {
        assert_eq!(of("it's \"ä\" ☃".as_bytes(), true), "it's \"ä\" ☃");
        assert_eq!(of("ä".as_bytes(), false), "\\xc3\\xa4");
        assert_eq!(of(b"a\r\n\t\0\\\x1b[31m\x7f\xff", true), "a\\r\\n\\t\\0\\\\\\x1b[31m\\x7f\\xff");
    }

    #[test]
    fn invisible_characters_are_seen() {
        // C1's CSI, right-to-left override, zero-width space
        assert_eq!(of("\u{9b}\u{202e}\u{200b}".as_bytes(), true), "\\u{9b}\\u{202e}\\u{200b}");
    }

    proptest! {
        #[test]
        fn nothing_drives_a_terminal(bytes in proptest::collection::vec(any::<u8>(), 0..100), utf8: bool) {
            let text = of(&bytes, utf8);
            prop_assert!(!text.chars().any(char::is_control));
            prop_assert!(utf8 || text.is_ascii());
        }

        #[test]
        fn no_text_drives_a_terminal(input in "\\PC*|.*") {
            prop_assert!(!of(input.as_bytes(), true).chars().any(char::is_control));
        }
    }
}
