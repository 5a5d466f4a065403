//! The line of a data frame, straight from the frame: what nearly every event is, without an [`Event`](socktrace_event::Event) in between.
//!
//! What it writes is byte for byte what serde_json makes of the frame's event, which tests hold it to.
//! A frame that has more to it than usual (text to be escaped, ancillary data) is left to that.

use gttr::{Direction, Ext, Frame, FrameType};

/// Bytes of a line beside those of its texts: all keys, and each number as long as it gets.
const FIXED_LEN: usize = 640;

/// The values that data frames usually have.
#[derive(Default)]
struct Values<'a> {
    pid: Option<u32>,
    tid: Option<u32>,
    seq: Option<u64>,
    ts_ns: Option<u64>,
    call: Option<&'a [u8]>,
    total: Option<u64>,
    offset: Option<u64>,
    part: Option<u32>,
    parts: Option<u32>,
    duration_ns: Option<u64>,
    entered_ns: Option<u64>,
    uncaptured: Option<u64>,
}

impl<'a> Values<'a> {
    /// None if there are others.
    #[inline]
    fn of(frame: &Frame<'a>) -> Option<Self> {
        let mut values = Self::default();
        for value in frame.ext.iter() {
            match value {
                Ext::Seq(v) => values.seq = Some(v),
                Ext::Pid(v) => values.pid = Some(v),
                Ext::Tid(v) => values.tid = Some(v),
                Ext::TsNs(v) => values.ts_ns = Some(v),
                Ext::Call(v) if is_plain(v) => values.call = Some(v),
                Ext::Total(v) => values.total = Some(v),
                Ext::Offset(v) => values.offset = Some(v),
                Ext::Part(v) => values.part = Some(v),
                Ext::Parts(v) => values.parts = Some(v),
                Ext::DurationNs(v) => values.duration_ns = Some(v),
                Ext::EnteredNs(v) => values.entered_ns = Some(v),
                Ext::Uncaptured(v) => values.uncaptured = Some(v),
                _ => return None,
            }
        }
        Some(values)
    }
}

/// Whether the text stands in JSON as it is: printable ASCII without `"` and `\`.
#[inline]
fn is_plain(text: &[u8]) -> bool {
    // Without a way out in the middle, so that it is done many bytes at a time.
    text.iter().fold(true, |plain, &b| plain & b.wrapping_sub(b' ').lt(&95) & (b != b'"') & (b != b'\\'))
}

/// Appends the line of a data frame to `out`; where it is not one of the usual kind, returns false and appends nothing.
///
/// The frame's `conn_id` must be one that names its files itself ([`safe_filename`](socktrace_event::util::safe_filename)).
#[inline]
pub(crate) fn push_data(out: &mut Vec<u8>, frame: &Frame<'_>) -> bool {
    debug_assert!(gttr::is_conn_id(frame.conn) && frame.conn[0] != b'.', "a conn_id that is not plain");
    if frame.kind != FrameType::Data || !is_plain(frame.path) {
        return false;
    }
    let Some(values) = Values::of(frame) else { return false };
    out.reserve(FIXED_LEN + frame.path.len() + frame.conn.len() + values.call.map_or(0, <[u8]>::len));
    out.extend_from_slice(br#"{"type":"data","ts_ms":"#);
    push_number(out, frame.ts_ms);
    out.extend_from_slice(br#","fd":"#);
    push_number(out, frame.fd);
    match frame.direction {
        Direction::None => {}
        Direction::In => out.extend_from_slice(br#","direction":"in""#),
        Direction::Out => out.extend_from_slice(br#","direction":"out""#),
    }
    out.extend_from_slice(br#","path":""#);
    out.extend_from_slice(frame.path);
    out.extend_from_slice(br#"","conn_id":""#);
    out.extend_from_slice(frame.conn);
    out.extend_from_slice(br#"","size":"#);
    push_number(out, frame.payload.len());
    push_value(out, br#","pid":"#, values.pid);
    push_value(out, br#","host_pid":"#, frame.host_pid);
    push_value(out, br#","tid":"#, values.tid);
    push_value(out, br#","seq":"#, values.seq);
    push_value(out, br#","ts_ns":"#, values.ts_ns);
    if let Some(call) = values.call {
        out.extend_from_slice(br#","call":""#);
        out.extend_from_slice(call);
        out.push(b'"');
    }
    push_value(out, br#","total":"#, values.total);
    push_value(out, br#","offset":"#, values.offset);
    push_value(out, br#","part":"#, values.part);
    push_value(out, br#","parts":"#, values.parts);
    push_value(out, br#","duration_ns":"#, values.duration_ns);
    push_value(out, br#","entered_ns":"#, values.entered_ns);
    push_value(out, br#","uncaptured":"#, values.uncaptured);
    out.extend_from_slice(b"}\n");
    true
}

#[inline]
fn push_value<const N: usize>(out: &mut Vec<u8>, key: &[u8; N], value: Option<impl itoa::Integer>) {
    if let Some(value) = value {
        out.extend_from_slice(key);
        push_number(out, value);
    }
}

#[inline]
fn push_number(out: &mut Vec<u8>, number: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

#[cfg(test)]
mod tests {
    use gttr::{Credentials, ExtWriter, PassedFd};
    use proptest::prelude::*;
    use socktrace_event::Event;

    use super::*;

    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![any::<u64>(), 0..1000u64, (0..64u32).prop_map(|bits| (1 << bits) - 1)]
    }

    fn usual_value() -> impl Strategy<Value = Ext<'static>> {
        let call = prop::sample::select(vec![&b"send"[..], b"recvmsg", b""]);
        prop_oneof![
            number().prop_map(Ext::Seq),
            any::<u32>().prop_map(Ext::Pid),
            any::<u32>().prop_map(Ext::Tid),
            number().prop_map(Ext::TsNs),
            call.prop_map(Ext::Call),
            number().prop_map(Ext::Total),
            number().prop_map(Ext::Offset),
            any::<u32>().prop_map(Ext::Part),
            any::<u32>().prop_map(Ext::Parts),
            number().prop_map(Ext::DurationNs),
            number().prop_map(Ext::EnteredNs),
            number().prop_map(Ext::Uncaptured),
        ]
    }

    fn unusual_value() -> impl Strategy<Value = Ext<'static>> {
        prop_oneof![
            Just(Ext::Call(b"a\"b")),
            Just(Ext::Call(b"\x7f")),
            any::<u32>().prop_map(Ext::MsgFlags),
            any::<u8>().prop_map(Ext::Truncated),
            Just(Ext::PassedFd(PassedFd { fd: 3, what: b"pipe" })),
            Just(Ext::Credentials(Credentials { pid: 1, uid: 2, gid: 3 })),
            Just(Ext::Unknown(50_000, b"new")),
            Just(Ext::Unknown(1, b"a seq of another length")),
            any::<u32>().prop_map(Ext::Ppid),
        ]
    }

    fn values() -> impl Strategy<Value = Vec<Ext<'static>>> {
        let usual = || prop::collection::vec(usual_value(), 0..14);
        prop_oneof![
            4 => usual(),
            1 => (usual(), unusual_value()).prop_map(|(mut values, unusual)| {
                values.insert(values.len() / 2, unusual);
                values
            }),
        ]
    }

    fn path() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            3 => "[ -~&&[^\"\\\\]]{0,120}".prop_map(String::into_bytes),
            1 => prop::collection::vec(any::<u8>(), 0..40),
        ]
    }

    proptest! {
        #[test]
        fn is_what_serde_makes_of_the_event(
            ts_ms in number(),
            fd in any::<i32>(),
            direction in prop_oneof![Just(Direction::None), Just(Direction::In), Just(Direction::Out)],
            path in path(),
            conn in "[A-Za-z0-9_:@=+-][A-Za-z0-9_.:@=+-]{0,199}",
            payload in prop::collection::vec(any::<u8>(), 0..9),
            values in values(),
            host_pid in proptest::option::of(any::<u32>()),
        ) {
            let mut buffer = [0; 1024];
            let mut ext = ExtWriter::new(&mut buffer);
            values.iter().for_each(|&value| ext.put(value));
            let frame = Frame {
                fd,
                direction,
                path: &path,
                conn: conn.as_bytes(),
                payload: &payload,
                ext: ext.finish(),
                host_pid,
                ..Frame::new(FrameType::Data, ts_ms)
            };
            let mut line = b"before".to_vec();
            let pushed = push_data(&mut line, &frame);
            let unusual = values.iter().any(|v| matches!(
                v, Ext::MsgFlags(_) | Ext::Truncated(_) | Ext::PassedFd(_) | Ext::Credentials(_) | Ext::Unknown(..)
                    | Ext::Ppid(_) | Ext::Call(b"a\"b" | b"\x7f")
            ));
            let printable = path.iter().all(|b| matches!(b, b' '..=b'~') && !matches!(b, b'"' | b'\\'));
            prop_assert_eq!(pushed, printable && !unusual);
            let mut expected = b"before".to_vec();
            if pushed {
                expected.extend(serde_json::to_vec(&Event::from_frame(&frame)).unwrap());
                expected.push(b'\n');
            }
            prop_assert_eq!(String::from_utf8(line), String::from_utf8(expected));
        }
    }

    #[test]
    fn the_room_that_is_made_is_enough() {
        let mut buffer = [0; 1024];
        let mut ext = ExtWriter::new(&mut buffer);
        for value in [
            Ext::Seq(u64::MAX),
            Ext::Pid(u32::MAX),
            Ext::Tid(u32::MAX),
            Ext::TsNs(u64::MAX),
            Ext::Call(b"c"),
            Ext::Total(u64::MAX),
            Ext::Offset(u64::MAX),
            Ext::Part(u32::MAX),
            Ext::Parts(u32::MAX),
            Ext::DurationNs(u64::MAX),
            Ext::EnteredNs(u64::MAX),
            Ext::Uncaptured(u64::MAX),
        ] {
            ext.put(value);
        }
        let direction = Direction::Out;
        let (ext, host_pid) = (ext.finish(), Some(u32::MAX));
        let frame =
            Frame { fd: i32::MIN, direction, conn: b"c", ext, host_pid, ..Frame::new(FrameType::Data, u64::MAX) };
        let mut line = Vec::new();
        assert!(push_data(&mut line, &frame));
        assert!(line.len() < FIXED_LEN, "{}", line.len());
    }
}
