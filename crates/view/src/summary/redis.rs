//! Redis commands and replies (RESP, the Redis serialization protocol).

use redis_protocol::resp2::decode::decode_range;
use redis_protocol::resp2::types::RangeFrame;

use super::{Names, text};

/// A reply or an argument, shown.
const MAX_TEXT: usize = 60;
/// So many arguments of a command are shown.
const MAX_ARGUMENTS: usize = 4;
/// No command has more; a larger number is no length.
const MAX_ELEMENTS: usize = 1 << 20;

pub fn summarise(bytes: &[u8]) -> Option<String> {
    let mut names = Names::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (name, len) = if rest[0] == b'*' { array(rest)? } else { single(rest)? };
        names.push(|| name);
        rest = &rest[len..];
    }
    names.finish("redis")
}

/// A reply that is not an array. The decoder is given nothing else, so it does not recurse.
fn single(bytes: &[u8]) -> Option<(String, usize)> {
    let (frame, len) = element(bytes, b"+-:$")?;
    let name = match frame {
        RangeFrame::SimpleString((from, to)) => text(&bytes[from..to], MAX_TEXT),
        RangeFrame::Error((from, to)) => format!("error {}", text(&bytes[from..to], MAX_TEXT)),
        RangeFrame::Integer(number) => number.to_string(),
        RangeFrame::BulkString((from, to)) => format!("\"{}\"", text(&bytes[from..to], MAX_TEXT)),
        RangeFrame::Null => "null".into(),
        RangeFrame::Array(_) => return None,
    };
    Some((name, len))
}

/// A command: an array of strings. Replies that are arrays look the same.
fn array(bytes: &[u8]) -> Option<(String, usize)> {
    let line_len = bytes.windows(2).take(12).position(|pair| pair == b"\r\n")?;
    let count: usize = std::str::from_utf8(&bytes[1..line_len]).ok()?.parse().ok()?;
    if count > MAX_ELEMENTS {
        return None;
    }
    let mut at = line_len + 2;
    let mut words = Vec::new();
    for index in 0..count {
        let (frame, len) = element(&bytes[at..], b"$:")?;
        if index < MAX_ARGUMENTS {
            words.push(match frame {
                RangeFrame::BulkString((from, to)) => text(&bytes[at + from..at + to], MAX_TEXT),
                RangeFrame::Integer(number) => number.to_string(),
                RangeFrame::Null => "null".into(),
                _ => return None,
            });
        }
        at += len;
    }
    if count > MAX_ARGUMENTS {
        words.push(format!("… {} more", count - MAX_ARGUMENTS));
    }
    let name = if count == 0 { "empty array".into() } else { words.join(" ") };
    Some((name, at))
}

/// One whole frame of one of these types.
fn element(bytes: &[u8], types: &[u8]) -> Option<(RangeFrame, usize)> {
    if !types.contains(bytes.first()?) {
        return None;
    }
    decode_range(bytes).ok().flatten().filter(|(_, len)| (1..=bytes.len()).contains(len))
}

#[cfg(test)]
mod tests {
    use super::summarise;

    #[test]
    fn commands_and_replies() {
        let of = |bytes: &str| summarise(bytes.as_bytes());
        assert_eq!(of("*1\r\n$4\r\nPING\r\n").unwrap(), "redis PING");
        assert_eq!(of("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\nv1\r\n").unwrap(), "redis SET k v1");
        assert_eq!(of("+PONG\r\n").unwrap(), "redis PONG");
        assert_eq!(of("$5\r\nhello\r\n").unwrap(), "redis \"hello\"");
        assert_eq!(of("$-1\r\n").unwrap(), "redis null");
        assert_eq!(of(":42\r\n+OK\r\n").unwrap(), "redis 42, OK");
        assert_eq!(of("-ERR unknown\r\n").unwrap(), "redis error ERR unknown");
        assert_eq!(of("*0\r\n").unwrap(), "redis empty array");
    }

    #[test]
    fn the_rest_is_raw() {
        for raw in ["+", "PING\r\n", "*1\r\n", "*1\r\n$4\r\nPIN", "+OK\r\nand more", "*x\r\n", "*99999999\r\n"] {
            assert_eq!(summarise(raw.as_bytes()), None, "{raw:?}");
        }
    }
}
