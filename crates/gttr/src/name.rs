//! Names on the wire: connection ids and socket paths (docs/gttr.md, "Names").

/// The longest connection id, in bytes: with `.out.bin` behind it, still a file name (NAME_MAX is 255).
pub const MAX_CONN_ID_LEN: usize = 200;

const fn is_conn_id_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b':' | b'@' | b'=' | b'+' | b'-')
}

/// Whether a text is a connection id as the wire asks for it: 1 to 200 bytes of `[A-Za-z0-9_.:@=+-]`.
pub fn is_conn_id(text: &[u8]) -> bool {
    (1..=MAX_CONN_ID_LEN).contains(&text.len()) && text.iter().all(|&b| is_conn_id_byte(b))
}

/// Copies `text` to `out` with every byte outside `[A-Za-z0-9_.:@=+-]` replaced by `_`, and returns how many
/// bytes were copied: as many as fit.
pub fn sanitize(text: &[u8], out: &mut [u8]) -> usize {
    let mut len = 0;
    for (to, &from) in out.iter_mut().zip(text) {
        *to = if is_conn_id_byte(from) { from } else { b'_' };
        len += 1;
    }
    len
}

/// Copies a socket's path to `out` with every byte outside 32..=126, and every backslash, written `\xNN`, and returns
/// the length written; a path that does not fit is cut before the byte that did not.
pub fn escape_path(path: &[u8], out: &mut [u8]) -> usize {
    escape(path, out, |b| matches!(b, 32..=126) && b != b'\\')
}

/// The same for text that an agent has, or should have, escaped: its backslashes stay as they are.
pub fn escape_unprintable(text: &[u8], out: &mut [u8]) -> usize {
    escape(text, out, |b| matches!(b, 32..=126))
}

fn escape(text: &[u8], out: &mut [u8], is_plain: impl Fn(u8) -> bool) -> usize {
    let mut len = 0;
    for &b in text {
        if is_plain(b) {
            let Some(to) = out.get_mut(len) else { break };
            *to = b;
            len += 1;
        } else {
            let Some(to) = out.get_mut(len..len + 4) else {
                break;
            };
            to.copy_from_slice(&escaped(b));
            len += 4;
        }
    }
    len
}

const fn escaped(b: u8) -> [u8; 4] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    [b'\\', b'x', HEX[(b >> 4) as usize], HEX[(b & 15) as usize]]
}

/// The bytes that [`escape_path`] was given. A backslash that begins no `\xNN` stands for itself, as agents wrote it
/// before 0.2.
pub fn unescape_path(escaped: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let mut rest = escaped;
    core::iter::from_fn(move || {
        let (&first, after) = rest.split_first()?;
        let (byte, after) = match after {
            [b'x', high, low, after @ ..] if first == b'\\' => match (hex_digit(*high), hex_digit(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, after),
                _ => (first, &rest[1..]),
            },
            _ => (first, after),
        };
        rest = after;
        Some(byte)
    })
}

const fn hex_digit(b: u8) -> Option<u8> {
    match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    }
}

/// Whether `escaped` is what [`escape_path`] makes of `path`.
pub fn is_escaped_path(escaped: &[u8], path: &[u8]) -> bool {
    unescape_path(escaped).eq(path.iter().copied())
}
