//! What the wire promises, on any input: frames round-trip, no bytes panic, a stream may be cut anywhere, a
//! version 1 reader understands extended frames.

use gttr::{
    Credentials, DataValues, Direction, Error, Ext, ExtWriter, Extensions, Frame, FrameType, HEADER_LEN, PassedFd,
    StreamDecoder, StreamStep, decode_datagram,
};
use proptest::collection::vec;
use proptest::prelude::*;

const GOLDEN: &str = include_str!("golden/gttr-v1-frames.hex");

fn golden() -> Vec<Vec<u8>> {
    let unhex = |line: &str| {
        (0..line.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&line[at..at + 2], 16).expect("golden frames are hex"))
            .collect()
    };
    GOLDEN.lines().map(unhex).collect()
}

/// A frame that owns its parts.
#[derive(Clone, Debug)]
struct Owned {
    kind: u8,
    ts_ms: u64,
    fd: i32,
    direction: Direction,
    path: Vec<u8>,
    conn: Vec<u8>,
    payload: Vec<u8>,
    ext: Vec<u8>,
}

impl Owned {
    fn frame(&self) -> Frame<'_> {
        Frame {
            fd: self.fd,
            direction: self.direction,
            path: &self.path,
            conn: &self.conn,
            payload: &self.payload,
            ext: Extensions::parse(&self.ext).expect("built by ExtWriter"),
            ..Frame::new(FrameType::from_wire(self.kind), self.ts_ms)
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let frame = self.frame();
        let mut bytes = vec![0; frame.encoded_len()];
        assert_eq!(frame.encode(&mut bytes), Ok(bytes.len()));
        bytes
    }
}

fn ext_block() -> impl Strategy<Value = Vec<u8>> {
    vec((any::<u16>(), vec(any::<u8>(), 0..40)), 0..6).prop_map(|values| {
        let mut buffer = [0; 512];
        let mut writer = ExtWriter::new(&mut buffer);
        for (tag, value) in &values {
            writer.put(Ext::Unknown(tag % 30, value));
        }
        writer.bytes().to_vec()
    })
}

fn owned() -> impl Strategy<Value = Owned> {
    let direction = prop_oneof![Just(Direction::None), Just(Direction::In), Just(Direction::Out)];
    let head = (any::<u8>(), any::<u64>(), any::<i32>(), direction);
    let body = (vec(any::<u8>(), 0..60), vec(any::<u8>(), 0..60), vec(any::<u8>(), 0..200), ext_block());
    (head, body).prop_map(|((kind, ts_ms, fd, direction), (path, conn, payload, ext))| Owned {
        kind,
        ts_ms,
        fd,
        direction,
        path,
        conn,
        payload,
        ext,
    })
}

/// Feeds a stream in pieces, as a server reads it, and gives the frames (encoded again) and the garbage reports.
fn read_stream(pieces: &[&[u8]]) -> (Vec<Vec<u8>>, Vec<usize>) {
    let (mut buffer, mut decoder) = (Vec::new(), StreamDecoder::new());
    let (mut frames, mut garbage) = (Vec::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            let used = match decoder.step(&buffer) {
                StreamStep::Frame { frame, len } => {
                    frames.push(buffer[..len].to_vec());
                    assert_eq!(frame.encoded_len(), len);
                    garbage.extend(decoder.take_garbage().map(|(size, _)| size));
                    len
                }
                StreamStep::Garbage { skip } => {
                    assert!(skip > 0, "a step must move on");
                    skip
                }
                StreamStep::Incomplete { needed } => {
                    assert!(needed > buffer.len(), "a step that can decide must decide");
                    break;
                }
            };
            buffer.drain(..used.min(buffer.len()));
        }
    }
    garbage.extend(decoder.take_garbage().map(|(size, _)| size));
    (frames, garbage)
}

/// What a program that knows only version 1 reads: the header's fixed fields, and nothing behind the payload.
fn version_1_reader(bytes: &[u8]) -> (u8, u64, i32, u8, Vec<u8>, Vec<u8>, Vec<u8>) {
    assert_eq!(&bytes[..5], b"GTTR\x01");
    let path_end = 32 + usize::from(u16::from_le_bytes([bytes[24], bytes[25]]));
    let conn_end = path_end + usize::from(u16::from_le_bytes([bytes[26], bytes[27]]));
    let payload_len = u32::from_le_bytes(bytes[28..32].try_into().expect("4 bytes"));
    (
        bytes[5],
        u64::from_le_bytes(bytes[8..16].try_into().expect("8 bytes")),
        i32::from_le_bytes(bytes[16..20].try_into().expect("4 bytes")),
        bytes[20],
        bytes[32..path_end].to_vec(),
        bytes[path_end..conn_end].to_vec(),
        bytes[conn_end..conn_end + payload_len as usize].to_vec(),
    )
}

#[test]
fn golden_frames_encode_to_the_recorded_bytes() {
    for bytes in golden() {
        let frame = decode_datagram(&bytes).expect("golden frames decode");
        let mut again = vec![0; bytes.len()];
        assert_eq!(frame.encode(&mut again), Ok(bytes.len()));
        assert_eq!(again, bytes);
    }
}

#[test]
fn golden_stream_may_be_cut_at_any_byte() {
    let frames = golden();
    let stream = frames.concat();
    for cut in 0..=stream.len() {
        let read = read_stream(&[&stream[..cut], &stream[cut..]]);
        assert_eq!(read, (frames.clone(), vec![]), "cut at byte {cut}");
    }
}

#[test]
fn a_reader_says_what_is_wrong() {
    let good = golden().swap_remove(4);
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    assert_eq!(decode_datagram(&with(0, b'X')), Err(Error::Magic));
    assert_eq!(decode_datagram(&with(4, 2)), Err(Error::Version(2)));
    assert_eq!(decode_datagram(&with(20, 3)), Err(Error::Direction(3)));
    assert!(matches!(decode_datagram(&with(31, 0xff)), Err(Error::PayloadLength(_))));
    assert_eq!(decode_datagram(&good[..20]), Err(Error::Truncated { needed: HEADER_LEN }));
    assert_eq!(decode_datagram(&good[..good.len() - 1]), Err(Error::Truncated { needed: good.len() }));
    let mut extended = with(6, 3);
    extended[22] = 3;
    extended.extend_from_slice(&[1, 0, 200]);
    assert_eq!(decode_datagram(&extended), Err(Error::Extension));
}

#[test]
fn names_are_made_safe() {
    let mut out = [0; 32];
    let len = gttr::sanitize(b"/run/a b|c\xff@=+-.:_", &mut out);
    assert_eq!(&out[..len], b"_run_a_b_c_@=+-.:_");
    assert!(gttr::is_conn_id(&out[..len]));
    assert!(!gttr::is_conn_id(b"") && !gttr::is_conn_id(&[b'a'; 201]) && !gttr::is_conn_id(b"a/b"));
    let len = gttr::escape_path(b"/tmp/\x00\x1f \x7f\xe9~", &mut out);
    assert_eq!(&out[..len], b"/tmp/\\x00\\x1f \\x7f\\xe9~");
    assert_eq!(gttr::escape_path(b"abc\xff", &mut out[..6]), 3);
    let len = gttr::escape_path(b"a\\x01\x01", &mut out);
    assert_eq!(&out[..len], b"a\\x5cx01\\x01");
    assert!(
        gttr::unescape_path(&out[..len]).eq(*b"a\\x01\x01") && gttr::unescape_path(b"\\x\\xg0\\").eq(*b"\\x\\xg0\\")
    );
    assert!(gttr::is_escaped_path(&out[..len], b"a\\x01\x01") && !gttr::is_escaped_path(&out[..len], b"a\x01\x01"));
}

proptest! {
    #[test]
    fn any_frame_round_trips(owned in owned()) {
        let bytes = owned.bytes();
        prop_assert_eq!(decode_datagram(&bytes), Ok(owned.frame()));
    }

    #[test]
    fn a_short_buffer_is_refused_and_untouched(owned in owned(), short in 1usize..40) {
        let frame = owned.frame();
        let mut bytes = vec![0xaa; frame.encoded_len().saturating_sub(short)];
        prop_assert!(frame.encode(&mut bytes).is_err());
        prop_assert!(bytes.iter().all(|&b| b == 0xaa));
    }

    #[test]
    fn any_bytes_never_panic(mut bytes in vec(any::<u8>(), 0..300), magic in any::<bool>()) {
        if magic && bytes.len() > 5 {
            bytes[..5].copy_from_slice(b"GTTR\x01");
        }
        let _ = decode_datagram(&bytes);
        read_stream(&[&bytes]);
    }

    #[test]
    fn a_stream_cut_anywhere_gives_the_same_frames(
        frames in vec(owned(), 1..6),
        cuts in vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let encoded: Vec<_> = frames.iter().map(Owned::bytes).collect();
        let stream = encoded.concat();
        let mut at: Vec<_> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
        at.extend([0, stream.len()]);
        at.sort_unstable();
        let pieces: Vec<_> = at.windows(2).map(|w| &stream[w[0]..w[1]]).collect();
        prop_assert_eq!(read_stream(&pieces), (encoded, vec![]));
    }

    #[test]
    fn garbage_is_reported_once_with_its_size(
        before in owned(), after in owned(), noise in vec(any::<u8>().prop_filter("no magic", |&b| b != b'G'), 1..200),
        cut in any::<prop::sample::Index>(),
    ) {
        let (before, after) = (before.bytes(), after.bytes());
        let stream = [&before[..], &noise, &after].concat();
        let cut = cut.index(stream.len());
        let read = read_stream(&[&stream[..cut], &stream[cut..]]);
        prop_assert_eq!(read, (vec![before, after], vec![noise.len()]));
    }

    #[test]
    fn a_version_1_reader_reads_extended_frames(owned in owned()) {
        let read = version_1_reader(&owned.bytes());
        let o = owned;
        prop_assert_eq!(read, (o.kind, o.ts_ms, o.fd, o.direction.to_wire(), o.path, o.conn, o.payload));
    }

    #[test]
    fn data_values_are_what_the_writer_writes(seq in any::<u64>(), pid in any::<u32>(), ts_ns in any::<u64>()) {
        let values = DataValues { seq, pid, tid: !pid, ts_ns, total: !seq, offset: seq ^ ts_ns, duration_ns: !ts_ns };
        let bytes = values.to_bytes();
        let expected = [
            Ext::Pid(pid),
            Ext::Tid(!pid),
            Ext::Seq(seq),
            Ext::TsNs(ts_ns),
            Ext::Total(!seq),
            Ext::Offset(seq ^ ts_ns),
            Ext::DurationNs(!ts_ns),
        ];
        prop_assert_eq!(Extensions::parse(&bytes).unwrap().iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn extension_values_round_trip(seq in any::<u64>(), pid in any::<u32>(), call in vec(any::<u8>(), 0..20)) {
        let mut buffer = [0; 256];
        let mut writer = ExtWriter::new(&mut buffer);
        let values = [
            Ext::Seq(seq),
            Ext::Call(&call),
            Ext::Pid(pid),
            Ext::SocketType(5),
            Ext::PassedFd(PassedFd { fd: pid.cast_signed(), what: &call }),
            Ext::PassedFd(PassedFd { fd: -1, what: b"" }),
            Ext::Credentials(Credentials { pid, uid: 1, gid: u32::MAX }),
            Ext::Unknown(999, b"new"),
        ];
        for value in values {
            writer.put(value);
        }
        prop_assert_eq!(writer.finish().iter().collect::<Vec<_>>(), values);
        prop_assert_eq!(Extensions::parse(writer.bytes()), Some(writer.finish()));
    }
}
