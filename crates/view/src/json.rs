//! One line of JSON an event, as in events.jsonl, and with the bytes of its message.

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::Value;
use socktrace_event::{Captured, Event, What, printable};

/// Appends the line. `recorded` is what events.jsonl has of the event, if that is where it comes from.
///
/// To a `data` event is added `payload`, if its bytes are text (UTF-8), else `payload_base64`; and `payload_missing`, the
/// reason, where they are not all.
pub fn push(event: &Event<'_>, payload: Captured<'_>, recorded: Option<&[u8]>, to: &mut Vec<u8>) {
    // Of a field that is there already there would be two.
    let line = recorded.filter(|line| !contains(line, b"\"payload")).map(<[u8]>::trim_ascii);
    let written = line.is_none().then(|| serde_json::to_vec(event).unwrap_or_default());
    let line = line.or(written.as_deref()).unwrap_or_default();
    if !matches!(event.what, What::Data(_)) {
        printable::push_json(to, line);
        to.push(b'\n');
        return;
    }
    printable::push_json(to, line.strip_suffix(b"}").unwrap_or(line));
    let mut field = |name: &str, text: String| {
        printable::push_json(to, format!(",\"{name}\":{}", Value::from(text)).as_bytes());
    };
    match std::str::from_utf8(payload.bytes) {
        Ok(text) => field("payload", text.to_owned()),
        Err(_) => field("payload_base64", BASE64_STANDARD.encode(payload.bytes)),
    }
    if let Some(missing) = payload.missing {
        field("payload_missing", missing.to_owned());
    }
    to.extend_from_slice(b"}\n");
}

fn contains(line: &[u8], text: &[u8]) -> bool {
    line.windows(text.len()).any(|window| window == text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use socktrace_event::Data;

    use super::*;

    fn of((bytes, missing): (&[u8], Option<&'static str>), recorded: Option<&[u8]>) -> Value {
        let event = Event::now(What::Data(Data { size: 1, ..Data::default() }));
        let mut line = Vec::new();
        push(&event, Captured { bytes, missing }, recorded, &mut line);
        serde_json::from_slice(&line).unwrap()
    }

    #[test]
    fn what_is_missing_is_said() {
        let line = of((b"", Some("bytes were lost")), Some(br#"{"type":"data","new":1} "#));
        assert_eq!(
            line,
            serde_json::json!({"type": "data", "new": 1, "payload": "", "payload_missing": "bytes were lost"})
        );
        // Somebody else's field of this name is not passed off as ours.
        let line = of((b"a", None), Some(br#"{"type":"data","payload":"b"}"#));
        assert_eq!(line["payload"], "a");
    }

    proptest! {
        #[test]
        fn every_byte_is_there(payload in prop_oneof![prop::collection::vec(any::<u8>(), 0..40), any::<String>().prop_map(String::into_bytes)]) {
            let line = of((&payload, None), None);
            let bytes = match (&line["payload"], &line["payload_base64"]) {
                (Value::String(text), Value::Null) => text.clone().into_bytes(),
                (Value::Null, Value::String(text)) => BASE64_STANDARD.decode(text).unwrap(),
                other => panic!("{other:?}"),
            };
            prop_assert_eq!(bytes, payload);
        }
    }
}
