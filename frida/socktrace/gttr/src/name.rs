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

/// Copies a socket's path to `out` with every byte outside 32..=126 written `\xNN`, and returns the length
/// written; a path that does not fit is cut before the byte that did not.
pub fn escape_path(path: &[u8], out: &mut [u8]) -> usize {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut len = 0;
    for &b in path {
        if matches!(b, 32..=126) {
            let Some(to) = out.get_mut(len) else { break };
            *to = b;
            len += 1;
        } else {
            let Some(to) = out.get_mut(len..len + 4) else {
                break;
            };
            to.copy_from_slice(&[b'\\', b'x', HEX[usize::from(b >> 4)], HEX[usize::from(b & 15)]]);
            len += 4;
        }
    }
    len
}
