//! PostgreSQL messages (PostgreSQL documentation, "Message Formats").
//!
//! The crates that know these messages parse one side of a conversation, or bring a runtime; names take a table only.

use super::{Context, Names, text};

/// SQL, shown.
const MAX_SQL: usize = 120;
/// What the first message of a connection begins with, after its length: the version 3.0, or a request in its place.
const VERSION_3: u32 = 3 << 16;
const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;

pub fn summarise(bytes: &[u8], context: &Context<'_>) -> Option<String> {
    // Type bytes mean different things each way, and are too few to know the protocol by.
    if !context.path.contains(".s.PGSQL.") {
        return None;
    }
    let from_client = context.from_client?;
    let mut names = Names::default();
    let mut rest = bytes;
    if from_client && let Some((name, len)) = first_message(bytes) {
        names.push(|| name.into());
        rest = &rest[len..];
    }
    while !rest.is_empty() {
        let (kind, body, len) = message(rest)?;
        let name = if from_client { client(kind)? } else { server(kind)? };
        names.push(|| describe(name, body));
        rest = &rest[len..];
    }
    names.finish("PostgreSQL")
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn first_message(bytes: &[u8]) -> Option<(&'static str, usize)> {
    let name = match word(bytes, 4)? {
        VERSION_3 => "StartupMessage",
        CANCEL_REQUEST => "CancelRequest",
        SSL_REQUEST => "SSLRequest",
        GSSENC_REQUEST => "GSSENCRequest",
        _ => return None,
    };
    let len = word(bytes, 0)? as usize;
    (8..=bytes.len()).contains(&len).then_some((name, len))
}

/// Type, body and length of a whole message.
fn message(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    // The length counts itself, not the type.
    let len = (word(bytes, 1)? as usize).checked_add(1)?;
    Some((bytes[0], bytes.get(5..len)?, len))
}

fn describe(name: &str, body: &[u8]) -> String {
    let until_nul = |bytes: &[u8]| text(bytes.split(|&b| b == 0).next().unwrap_or_default(), MAX_SQL);
    match name {
        "Query" | "CommandComplete" => format!("{name} {}", until_nul(body)),
        // The statement's name comes first.
        "Parse" => {
            let sql = body.iter().position(|&b| b == 0).map_or(&b""[..], |nul| &body[nul + 1..]);
            format!("{name} {}", until_nul(sql))
        }
        "ErrorResponse" | "NoticeResponse" => {
            let message = body.split(|&b| b == 0).find_map(|field| field.strip_prefix(b"M"));
            format!("{name} {}", text(message.unwrap_or_default(), MAX_SQL))
        }
        _ => name.into(),
    }
}

fn client(kind: u8) -> Option<&'static str> {
    Some(match kind {
        b'B' => "Bind",
        b'C' => "Close",
        b'd' => "CopyData",
        b'c' => "CopyDone",
        b'f' => "CopyFail",
        b'D' => "Describe",
        b'E' => "Execute",
        b'H' => "Flush",
        b'F' => "FunctionCall",
        b'P' => "Parse",
        // Passwords and SASL responses; what is in them is nobody's business.
        b'p' => "PasswordMessage",
        b'Q' => "Query",
        b'S' => "Sync",
        b'X' => "Terminate",
        _ => return None,
    })
}

fn server(kind: u8) -> Option<&'static str> {
    Some(match kind {
        b'R' => "Authentication",
        b'K' => "BackendKeyData",
        b'2' => "BindComplete",
        b'3' => "CloseComplete",
        b'C' => "CommandComplete",
        b'd' => "CopyData",
        b'c' => "CopyDone",
        b'G' => "CopyInResponse",
        b'H' => "CopyOutResponse",
        b'W' => "CopyBothResponse",
        b'D' => "DataRow",
        b'I' => "EmptyQueryResponse",
        b'E' => "ErrorResponse",
        b'V' => "FunctionCallResponse",
        b'v' => "NegotiateProtocolVersion",
        b'n' => "NoData",
        b'N' => "NoticeResponse",
        b'A' => "NotificationResponse",
        b't' => "ParameterDescription",
        b'S' => "ParameterStatus",
        b'1' => "ParseComplete",
        b's' => "PortalSuspended",
        b'Z' => "ReadyForQuery",
        b'T' => "RowDescription",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8], from_client: Option<bool>) -> Option<String> {
        summarise(bytes, &Context { path: "/run/postgresql/.s.PGSQL.5432", from_client })
    }

    #[test]
    fn both_sides() {
        assert_eq!(of(b"Q\0\0\0\x0dSELECT 1\0", Some(true)).unwrap(), "PostgreSQL Query SELECT 1");
        assert_eq!(of(b"\0\0\0\x09\0\x03\0\0\0", Some(true)).unwrap(), "PostgreSQL StartupMessage");
        let result = b"D\0\0\0\x06\0\0C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I";
        assert_eq!(of(result, Some(false)).unwrap(), "PostgreSQL DataRow, CommandComplete SELECT 1, ReadyForQuery");
    }

    #[test]
    fn in_doubt_raw() {
        assert_eq!(of(b"Q\0\0\0\x0dSELECT 1\0", None), None);
        assert_eq!(of(b"Q\0\0\0\x0dSELEC", Some(true)), None);
        assert_eq!(of(b"Q\0\0\0\x03", Some(true)), None);
        assert_eq!(of(b"~\0\0\0\x04", Some(true)), None);
    }
}
