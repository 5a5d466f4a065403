//! D-Bus messages (D-Bus Specification, "Message Format").

use zvariant::serialized::{Context, Data, Format};
use zvariant::{Endian, Value};

use super::Names;

/// Before the array of header fields.
const FIXED_LEN: usize = 16;
/// The specification's limits, in bytes.
const MAX_FIELDS_LEN: usize = 1 << 26;
const MAX_MESSAGE_LEN: usize = 1 << 27;
/// A name or an object path, shown.
const MAX_NAME: usize = 255;

/// endianness, type, flags, version, body length, serial, fields
type Header<'a> = (u8, u8, u8, u8, u32, u32, Vec<(u8, Value<'a>)>);

pub fn summarise(bytes: &[u8]) -> Option<String> {
    let mut names = Names::default();
    let mut rest = bytes;
    while let Some((name, len)) = message(rest) {
        names.push(|| name);
        rest = rest.get(len..).unwrap_or_default();
    }
    // Something else behind a message: it was none, or the payload is cut within the next.
    names.finish("D-Bus")
}

/// The name of the message that `bytes` begin with, and its length.
fn message(bytes: &[u8]) -> Option<(String, usize)> {
    let fixed = bytes.get(..FIXED_LEN)?;
    let endian = match fixed[0] {
        b'l' => Endian::Little,
        b'B' => Endian::Big,
        _ => return None,
    };
    if !(1..=4).contains(&fixed[1]) || fixed[3] != 1 {
        return None;
    }
    let number = |at: usize| {
        let bytes = fixed[at..at + 4].try_into().expect("four bytes");
        match endian {
            Endian::Little => u32::from_le_bytes(bytes) as usize,
            Endian::Big => u32::from_be_bytes(bytes) as usize,
        }
    };
    let (body_len, serial, fields_len) = (number(4), number(8), number(12));
    if serial == 0 || fields_len > MAX_FIELDS_LEN || body_len > MAX_MESSAGE_LEN {
        return None;
    }
    let header = bytes.get(..FIXED_LEN + fields_len)?;
    let data = Data::new(header, Context::new(Format::DBus, endian, 0));
    let (header, _) = data.deserialize::<Header<'_>>().ok()?;
    let len = (FIXED_LEN + fields_len).next_multiple_of(8) + body_len;
    Some((name(fixed[1], serial, &header.6)?, len))
}

fn name(kind: u8, serial: usize, fields: &[(u8, Value<'_>)]) -> Option<String> {
    let field = |code: u8| fields.iter().find(|field| field.0 == code).map(|field| &field.1);
    let text = |code: u8| match field(code)? {
        Value::Str(text) => Some(super::text(text.as_bytes(), MAX_NAME)),
        Value::ObjectPath(path) => Some(super::text(path.as_bytes(), MAX_NAME)),
        _ => None,
    };
    const PATH: u8 = 1;
    const INTERFACE: u8 = 2;
    const MEMBER: u8 = 3;
    const ERROR_NAME: u8 = 4;
    const REPLY_SERIAL: u8 = 5;
    const DESTINATION: u8 = 6;
    let member = || {
        let member = text(MEMBER)?;
        Some(text(INTERFACE).map_or_else(|| member.clone(), |interface| format!("{interface}.{member}")))
    };
    let reply_to = || match field(REPLY_SERIAL)? {
        Value::U32(serial) => Some(*serial),
        _ => None,
    };
    Some(match kind {
        1 => {
            let to = text(DESTINATION).map(|to| format!(" to {to}")).unwrap_or_default();
            format!("call {serial} {} {}{to}", member()?, text(PATH)?)
        }
        2 => format!("reply to {}", reply_to()?),
        3 => format!("error {} to {}", text(ERROR_NAME)?, reply_to()?),
        _ => format!("signal {} {}", member()?, text(PATH)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `dbus-send` begins.
    fn hello() -> Vec<u8> {
        let fields: Vec<(u8, Value<'_>)> = vec![
            (1, Value::ObjectPath("/org/freedesktop/DBus".try_into().unwrap())),
            (6, Value::from("org.freedesktop.DBus")),
            (2, Value::from("org.freedesktop.DBus")),
            (3, Value::from("Hello")),
        ];
        let header = (b'l', 1_u8, 0_u8, 1_u8, 0_u32, 1_u32, fields);
        let context = Context::new(Format::DBus, Endian::Little, 0);
        let mut bytes = zvariant::to_bytes(context, &header).unwrap().to_vec();
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn a_call() {
        let expected = "D-Bus call 1 org.freedesktop.DBus.Hello /org/freedesktop/DBus to org.freedesktop.DBus";
        assert_eq!(summarise(&hello()).unwrap(), expected);
        let two = hello().repeat(2);
        assert_eq!(summarise(&two).unwrap().matches("Hello").count(), 2);
    }

    #[test]
    fn a_cut_header_is_raw() {
        let hello = hello();
        for len in 0..hello.len() - 8 {
            assert_eq!(summarise(&hello[..len]), None);
        }
    }
}
