//! Frames to events, without a server.

mod harness;

use std::convert::Infallible;

use gttr::{Credentials, Direction, Ext, ExtWriter, Frame, FrameType, PassedFd};
use harness::{assert_golden, data, encode, golden_frames, noise};
use proptest::prelude::*;
use serde_json::{Value, json};
use socktrace_collect::{Sender, decode};
use socktrace_event::{Event, EventType, Sink, Taken, What};

/// Keeps lines as they would be written.
#[derive(Default)]
struct Lines(Vec<String>, Vec<u8>);

impl Sink for Lines {
    type Error = Infallible;

    fn event(&mut self, event: &Event<'_>, payload: &[u8]) -> Taken<Infallible> {
        self.0.push(serde_json::to_string(event).unwrap());
        self.1.extend_from_slice(payload);
        Ok(())
    }
}

impl Lines {
    fn values(&self) -> Vec<Value> {
        self.0.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn of_datagram(bytes: &[u8]) -> Value {
    let mut lines = Lines::default();
    decode::datagram(bytes, bytes.len(), &mut lines).unwrap();
    assert_eq!(lines.0.len(), 1);
    lines.values().remove(0)
}

#[test]
fn golden_frames_as_datagrams() {
    let mut lines = Lines::default();
    for frame in golden_frames() {
        decode::datagram(&frame, frame.len(), &mut lines).unwrap();
    }
    assert_golden(&lines.values());
}

#[test]
fn golden_frames_as_a_stream_cut_at_every_byte() {
    let bytes = golden_frames().concat();
    for cut in 0..=bytes.len() {
        let mut lines = Lines::default();
        let mut stream = decode::Stream::default();
        stream.feed(&bytes[..cut], &mut lines).unwrap();
        stream.feed(&bytes[cut..], &mut lines).unwrap();
        stream.finish(&mut lines).unwrap();
        assert_golden(&lines.values());
    }
}

#[test]
fn golden_frames_as_a_stream_byte_by_byte() {
    let mut lines = Lines::default();
    let mut stream = decode::Stream::default();
    for byte in golden_frames().concat() {
        stream.feed(&[byte], &mut lines).unwrap();
    }
    stream.finish(&mut lines).unwrap();
    assert_golden(&lines.values());
}

#[test]
fn fields_stand_in_their_order() {
    let mut lines = Lines::default();
    let frame = data(b"c:1", Direction::In, b"ping");
    decode::datagram(&frame, frame.len(), &mut lines).unwrap();
    assert_eq!(
        lines.0[0],
        r#"{"type":"data","ts_ms":1,"fd":7,"direction":"in","path":"/tmp/x","conn_id":"c:1","size":4}"#
    );
    assert_eq!(lines.1, b"ping");
}

#[test]
fn extension_values_become_fields() {
    let mut buffer = [0; 512];
    let mut writer = ExtWriter::new(&mut buffer);
    for value in [
        Ext::Seq(9),
        Ext::Pid(10),
        Ext::Tid(11),
        Ext::TsNs(u64::MAX),
        Ext::Call(b"send\nmsg"),
        Ext::Total(9000),
        Ext::SocketType(5),
        Ext::PeerExe(b"/bin/\xff"),
        Ext::Unknown(60000, b"from the future"),
    ] {
        writer.put(value);
    }
    let event = of_datagram(&encode(&Frame { conn: b"c", ext: writer.finish(), ..Frame::new(FrameType::Data, 1) }));
    let expected = json!({
        "type": "data", "ts_ms": 1, "fd": -1, "path": "", "conn_id": "c", "size": 0, "pid": 10, "tid": 11, "seq": 9,
        "ts_ns": u64::MAX, "call": "send\\x0amsg", "total": 9000, "socket_type": "seqpacket", "peer_exe": "/bin/\\xff",
    });
    assert_eq!(event, expected);
}

#[test]
fn what_comes_with_a_message_becomes_fields() {
    let mut buffer = [0; 512];
    let mut writer = ExtWriter::new(&mut buffer);
    for value in [
        Ext::MsgFlags(0x1 | 0x8 | 0x4000),
        Ext::Truncated(1),
        Ext::DurationNs(12),
        Ext::EnteredNs(13),
        Ext::Uncaptured(14),
        Ext::PassedFd(PassedFd { fd: 5, what: b"file:/etc/hosts" }),
        Ext::PassedFd(PassedFd { fd: 6, what: b"" }),
        Ext::Credentials(Credentials { pid: 1, uid: 2, gid: 3 }),
        Ext::Security(b"unconfined"),
        Ext::PidFd(9),
    ] {
        writer.put(value);
    }
    let event = of_datagram(&encode(&Frame { conn: b"c", ext: writer.finish(), ..Frame::new(FrameType::Data, 1) }));
    let expected = json!({
        "type": "data", "ts_ms": 1, "fd": -1, "path": "", "conn_id": "c", "size": 0, "flags": "MSG_OOB|MSG_CTRUNC|0x4000",
        "truncated": "yes", "duration_ns": 12, "entered_ns": 13, "uncaptured": 14,
        "fds": [{ "fd": 5, "what": "file:/etc/hosts" }, { "fd": 6, "what": "" }],
        "credentials": { "pid": 1, "uid": 2, "gid": 3 }, "security": "unconfined", "pidfd": 9,
    });
    assert_eq!(event, expected);
}

#[test]
fn lost_says_what_and_why() {
    let mut buffer = [0; 64];
    let mut writer = ExtWriter::new(&mut buffer);
    for value in [Ext::LostEvents(3), Ext::LostBytes(4), Ext::LostSince(5), Ext::LostUntil(6)] {
        writer.put(value);
    }
    let frame = Frame { conn: b"queue full", ext: writer.finish(), ..Frame::new(FrameType::Lost, 1) };
    let expected = json!({
        "type": "lost", "ts_ms": 1, "fd": -1, "events": 3, "bytes": 4, "reason": "queue full", "since_ns": 5,
        "until_ns": 6,
    });
    assert_eq!(of_datagram(&encode(&frame)), expected);
}

#[test]
fn text_is_escaped_not_replaced() {
    let frame = Frame { path: b"/\xf0\"\\", conn: "é\n|ho\0w".as_bytes(), ..Frame::new(FrameType::Open, 1) };
    let event = of_datagram(&encode(&frame));
    assert_eq!(event["path"], "/\\xf0\"\\");
    assert_eq!(event["conn_id"], "\\xc3\\xa9\\x0a");
    assert_eq!(event["how"], "ho\\x00w");
}

#[test]
fn a_connection_that_cannot_name_its_file_says_which_it_is() {
    let event = of_datagram(&data(b"../../etc/passwd", Direction::In, b"x"));
    let file = event["file"].as_str().unwrap();
    assert_eq!(file, socktrace_event::util::safe_filename(b"../../etc/passwd"));
    assert!(!file.contains('/'));
    assert_eq!(of_datagram(&data(b"plain", Direction::In, b"x")).get("file"), None);
}

#[test]
fn what_is_no_frame_is_a_bad_frame() {
    let unknown = encode(&Frame { conn: b"c", ..Frame::new(FrameType::Other(200), 1) });
    let event = of_datagram(&unknown);
    assert_eq!(event["type"], "bad_frame");
    assert_eq!(event["error"], "unknown frame type 200");
    assert_eq!(event["size"], unknown.len());

    let event = of_datagram(b"nonsense");
    assert_eq!((&event["type"], &event["size"]), (&json!("bad_frame"), &json!(8)));

    // The buffer was too small for the datagram.
    let frame = data(b"c", Direction::In, &[0; 100]);
    let mut lines = Lines::default();
    decode::datagram(&frame[..90], frame.len(), &mut lines).unwrap();
    let event = &lines.values()[0];
    assert_eq!((&event["type"], &event["size"]), (&json!("bad_frame"), &json!(frame.len())));
    assert!(event["error"].as_str().unwrap().contains("the limit is 90 bytes"), "{event}");
}

#[test]
fn garbage_in_a_stream_is_reported_once() {
    let frame = data(b"c", Direction::Out, b"pong");
    let bytes = [b"garbage GTT".as_slice(), &frame, b"GTTRmore", &frame, &frame[..40]].concat();
    for step in [1, 7, bytes.len()] {
        let mut lines = Lines::default();
        let mut stream = decode::Stream::default();
        bytes.chunks(step).for_each(|chunk| stream.feed(chunk, &mut lines).unwrap());
        stream.finish(&mut lines).unwrap();
        let values = lines.values();
        let seen: Vec<_> = values.iter().map(|e| (e["type"].as_str().unwrap(), e["size"].as_u64().unwrap())).collect();
        assert_eq!(seen, [("bad_frame", 11), ("data", 4), ("bad_frame", 8), ("data", 4), ("bad_frame", 40)]);
        assert_eq!(lines.1, b"pongpong");
        assert_eq!(stream.held(), 0);
    }
}

#[test]
fn a_stream_holds_no_more_than_a_frame() {
    let mut lines = Lines::default();
    let mut stream = decode::Stream::default();
    let payload = noise(1, 1 << 20);
    let frame = data(b"c", Direction::In, &payload);
    for _ in 0..3 {
        for chunk in frame.chunks(9999) {
            stream.feed(chunk, &mut lines).unwrap();
            assert!(stream.held() < frame.len());
        }
    }
    assert_eq!(stream.held(), 0);
    assert!(lines.1 == payload.repeat(3));
}

#[test]
fn agents_together_hold_no_more_than_the_limit() {
    const MIB: usize = 1 << 20;
    let frame = data(b"c", Direction::In, &vec![0; 16 * MIB]);
    let unfinished = &frame[..16 * MIB];
    let mut lines = Lines::default();
    let mut streams = decode::Streams::default();
    let [greedy, other, of_other_user] = [(1, 0), (2, 0), (3, 1000)].map(|(pid, uid)| Sender { pid, uid });
    // Those who have less keep it, whoever comes last.
    let good = [(100, other), (101, of_other_user)];
    good.iter().for_each(|&(agent, sender)| streams.feed(agent, sender, &frame[..3 * MIB], &mut lines).unwrap());
    for agent in 0..17 {
        unfinished.chunks(MIB).for_each(|chunk| streams.feed(agent, greedy, chunk, &mut lines).unwrap());
    }
    good.iter().for_each(|&(agent, sender)| streams.feed(agent, sender, &frame[3 * MIB..], &mut lines).unwrap());
    (0..17).for_each(|agent| streams.end(agent, &mut lines).unwrap());
    // What was cut off is counted.
    let values = lines.values();
    assert_eq!(values.iter().filter(|e| e["type"] == "data" && e["size"] == 16 * MIB).count(), 2);
    let bad: Vec<_> = values.iter().filter(|e| e["type"] == "bad_frame").collect();
    assert!(bad.len() == 17 && bad.iter().all(|e| e["size"] == 16 * MIB));
    let cut_off = bad.iter().filter(|e| e["error"].to_string().contains("too much memory")).count();
    assert!((14..17).contains(&cut_off), "{cut_off}");
}

#[test]
fn events_are_read_back_as_they_were_written() {
    let frame = Frame { path: b"/p", conn: b"c|accept", ..Frame::new(FrameType::Open, 5) };
    let event = Event::from_frame(&frame);
    let line = serde_json::to_string(&event).unwrap();
    assert_eq!(serde_json::from_str::<Event<'_>>(&line).unwrap(), event);
    let newer = r#"{"type":"from_the_future","ts_ms":3,"what":[]}"#;
    assert_eq!(serde_json::from_str::<Event<'_>>(newer).unwrap().kind(), EventType::Unknown);
    let borrowed: Event<'_> = serde_json::from_str(&line).unwrap();
    assert!(matches!(borrowed.what, What::Open(open) if matches!(open.path.0, std::borrow::Cow::Borrowed("/p"))));
}

proptest! {
    #[test]
    fn any_bytes_give_events(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0usize..300) {
        let mut lines = Lines::default();
        decode::datagram(&bytes, bytes.len(), &mut lines).unwrap();
        prop_assert_eq!(lines.0.len(), 1);
        let mut stream = decode::Stream::default();
        let cut = cut.min(bytes.len());
        stream.feed(&bytes[..cut], &mut lines).unwrap();
        stream.feed(&bytes[cut..], &mut lines).unwrap();
        stream.finish(&mut lines).unwrap();
        prop_assert_eq!(stream.held(), 0);
    }

    /// Every byte of a stream is in a frame or counted as bad.
    #[test]
    fn every_byte_is_accounted_for(
        parts in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 1..60)), 0..12),
        step in 1usize..50,
    ) {
        let mut bytes = Vec::new();
        for (good, part) in &parts {
            if *good { bytes.extend(data(b"c", Direction::In, part)) } else { bytes.extend(part) }
        }
        let mut lines = Lines::default();
        let mut stream = decode::Stream::default();
        bytes.chunks(step).for_each(|chunk| stream.feed(chunk, &mut lines).unwrap());
        stream.finish(&mut lines).unwrap();
        let frame_overhead = data(b"c", Direction::In, b"").len() as u64;
        let accounted: u64 = lines.values().iter().map(|e| {
            e["size"].as_u64().unwrap() + if e["type"] == "data" { frame_overhead } else { 0 }
        }).sum();
        prop_assert_eq!(accounted, bytes.len() as u64);
    }
}
