//! What a message says, in a few words, where its protocol shows beyond doubt.
//!
//! Bytes are the traced programs' and may be hostile or cut anywhere: no summary panics, recurses as deep as its input
//! says, or claims what it has not read. The words come from the bytes; whoever prints them escapes them.

mod dbus;
mod http;
mod postgres;
mod redis;
mod wayland;

/// So much of a message is looked at, in bytes.
pub const MAX_LEN: usize = 64 << 10;
/// So many messages of one payload are named; the rest is counted.
const MAX_NAMED: usize = 4;

/// What is known beside the bytes.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The socket's path.
    pub path: &'a str,
    /// Whether the bytes are a client's to a server or the other way round, where that is known.
    pub from_client: Option<bool>,
}

/// The summary of a message that begins with `bytes`.
pub fn summarise(bytes: &[u8], context: &Context<'_>) -> Option<String> {
    let bytes = &bytes[..bytes.len().min(MAX_LEN)];
    http::summarise(bytes)
        .or_else(|| dbus::summarise(bytes))
        .or_else(|| redis::summarise(bytes))
        .or_else(|| postgres::summarise(bytes, context))
        .or_else(|| wayland::summarise(bytes, context.path))
}

/// Names of the messages in one payload.
#[derive(Debug, Default)]
struct Names {
    text: String,
    count: usize,
}

impl Names {
    fn push(&mut self, name: impl FnOnce() -> String) {
        self.count += 1;
        if self.count <= MAX_NAMED {
            if self.count > 1 {
                self.text.push_str(", ");
            }
            self.text.push_str(&name());
        }
    }

    fn finish(mut self, protocol: &str) -> Option<String> {
        if self.count == 0 {
            return None;
        }
        if self.count > MAX_NAMED {
            self.text.push_str(&format!(", … {} more", self.count - MAX_NAMED));
        }
        Some(format!("{protocol} {}", self.text))
    }
}

/// Bytes as text, cut after `max` characters.
fn text(bytes: &[u8], max: usize) -> String {
    // Four bytes a character at the most: no need to look at a megabyte of SQL.
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * max)]);
    match text.char_indices().nth(max) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None if bytes.len() > 4 * max => format!("{text}…"),
        None => text.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLIENT: Context<'_> = Context { path: "/run/postgresql/.s.PGSQL.5432", from_client: Some(true) };
    const SERVER: Context<'_> = Context { from_client: Some(false), ..CLIENT };
    const OTHER: Context<'_> = Context { path: "/run/user/0/wayland-0", from_client: None };

    /// Beginnings that lead into each parser.
    fn beginning() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            Just(Vec::new()),
            Just(b"GET / HTTP/1.1\r\n".to_vec()),
            Just(b"HTTP/1.1 200 OK\r\n".to_vec()),
            Just(b"l\x01\x00\x01".to_vec()),
            Just(b"B\x04\x00\x01".to_vec()),
            Just(b"l\x01\x00\x01\0\0\0\0\x01\0\0\0\x10\0\0\0".to_vec()),
            Just(b"*3\r\n$3\r\nSET\r\n".to_vec()),
            Just(b"*1\r\n*1\r\n".to_vec()),
            Just(b"$".to_vec()),
            Just(b"*".to_vec()),
            Just(b"Q\0\0\0\x08".to_vec()),
            Just(b"\0\0\0\x09\0\x03\0\0".to_vec()),
            Just(b"\x01\0\0\0\x01\0\x0c\0".to_vec()),
        ]
    }

    proptest! {
        #[test]
        fn no_bytes_panic(begin in beginning(), rest in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = [begin, rest].concat();
            for context in [CLIENT, SERVER, OTHER] {
                summarise(&bytes, &context);
            }
        }

        #[test]
        fn no_text_panics(begin in beginning(), rest in "[*$+:0-9\r\n-]{0,200}") {
            let bytes = [begin, rest.into_bytes()].concat();
            for context in [CLIENT, SERVER, OTHER] {
                summarise(&bytes, &context);
            }
        }

        #[test]
        fn cuts_keep_whole_characters(bytes in proptest::collection::vec(any::<u8>(), 0..100), max in 0..30_usize) {
            prop_assert!(text(&bytes, max).chars().count() <= max + 1);
        }
    }

    #[test]
    fn deep_nesting_is_not_followed() {
        for unit in [&b"*1\r\n"[..], b"*2\r\n:1\r\n", b"*-1\r\n"] {
            assert_eq!(summarise(&unit.repeat(50_000), &OTHER), None);
        }
    }

    #[test]
    fn many_messages_are_counted() {
        let pings = b"*1\r\n$4\r\nPING\r\n".repeat(10);
        assert_eq!(summarise(&pings, &OTHER).unwrap(), "redis PING, PING, PING, PING, … 6 more");
    }
}
