//! Makes first inputs for every target: `seeds DIR FRAMES`, of the golden frames and of a file with frames as a stream
//! has them.

use std::fs;
use std::path::Path;

use gttr::{Direction, Ext, ExtWriter, Frame, FrameType, StreamDecoder, StreamStep};

/// Frames to an input: short ones are changed to more effect.
const FRAMES: usize = 6;
const GOLDEN: &str = include_str!("../../../crates/gttr/tests/golden/gttr-v1-frames.hex");
const EVENTS: &str = include_str!("../../../crates/gttr/tests/golden/gttr-v1-events.jsonl");

fn main() {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [dir, frames] = &args[..] else { panic!("seeds DIR FRAMES") };
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).expect("ASCII"), 16).expect("hexadecimal");
    let mut all: Vec<Vec<u8>> = GOLDEN.lines().map(|line| line.as_bytes().chunks(2).map(byte).collect()).collect();
    all.extend(split(&fs::read(frames).unwrap_or_else(|error| panic!("{frames}: {error}"))));
    for (number, frames) in all.chunks(FRAMES).enumerate() {
        let number = number as u8;
        let with_lens = |before: &[u8]| -> Vec<u8> {
            frames.iter().flat_map(|frame| [before, &len(frame), frame].concat()).collect()
        };
        put(dir, "frames", number, [number % 3].into_iter().chain(with_lens(&[])).chain([0xff, 0xff]));
        put(dir, "streams", number, [number, 200, 3, 31].into_iter().chain(frames.concat()));
        // No image; each frame is a record as it should be, and in the end all are taken and given back.
        put(dir, "reader", number, [0, 0].into_iter().chain(with_lens(&[5, 2, 0])).chain([0, 3]));
        put(dir, "rings", number, [0; 4].into_iter().chain(with_lens(&[5, number, 2, 0])).chain([0, 1, 2, 1, 4, 0]));
    }
    // Frames of several users, each of which a length of SENDER and a byte tell of (src/frames.rs).
    for contents in 0..3 {
        let from = |sender: usize, frame: &Vec<u8>| [&[0xfe, 0xff, sender as u8], &len(frame)[..], frame].concat();
        let frames = told().iter().enumerate().flat_map(|(sender, frame)| from(sender, frame)).collect::<Vec<_>>();
        put(dir, "frames", 100 + contents, [contents].into_iter().chain(frames));
    }
    put(dir, "streams", 100, [3, 200, 1, 31].into_iter().chain(told().concat()));
    for (number, event) in EVENTS.lines().enumerate() {
        let lines =
            format!("{event}\n{{\"type\":\"lost\",\"conn_id\":\"a\",\"direction\":\"in\",\"bytes\":3,\"offset\":1}}\n");
        let data = "{\"type\":\"data\",\"direction\":\"in\",\"conn_id\":\"a\",\"size\":4}\n";
        let lines = [&lines, data, data].concat().into_bytes();
        let flags = number as u8;
        let journal = [1, 2, 0, 6, 0, 2, 0, 0, 0, 0, 0, 0, 0];
        put(
            dir,
            "directory",
            flags,
            [flags].into_iter().chain(len(&lines)).chain(lines).chain(journal).chain([2, 6, 0, 1]),
        );
    }
}

/// What is said of programs, failures and ends, with names that are no texts, and bytes on one connection.
fn told() -> Vec<Vec<u8>> {
    const CONN: &[u8] = b"p1.2-3";
    const NAME: &[u8] = b"/bin/\\x41\\ \xff\n";
    let data = |payload| Frame { conn: CONN, direction: Direction::In, payload, ..Frame::new(FrameType::Data, 1) };
    let of = |kind| Frame { conn: CONN, path: b"/run/\\x0a", ..Frame::new(kind, 1) };
    let said: [(Frame<'_>, &[Ext<'_>]); 8] = [
        (of(FrameType::Start), &[Ext::Pid(7), Ext::Exe(NAME), Ext::Comm(b"a\\b\x01")]),
        (of(FrameType::Exec), &[Ext::Program(NAME), Ext::Untraced(b"static: \x1b[2J"), Ext::Comm(b"x")]),
        (of(FrameType::Fail), &[Ext::Call(b"connect"), Ext::Errno(2), Ext::Times(u32::MAX)]),
        (of(FrameType::Fail), &[Ext::Call(b"send\n"), Ext::Errno(u32::MAX), Ext::Times(0)]),
        (data(b"first"), &[Ext::Seq(1)]),
        (data(b"somebody else's"), &[Ext::Seq(1)]),
        (of(FrameType::Eof), &[Ext::Pid(7)]),
        (of(FrameType::Exit), &[Ext::Status(256), Ext::SocketsMade(3), Ext::Status(1)]),
    ];
    let encode = |(frame, values): &(Frame<'_>, &[Ext<'_>])| {
        let mut room = [0; 512];
        let mut writer = ExtWriter::new(&mut room);
        values.iter().for_each(|value| writer.put(*value));
        let frame = Frame { ext: writer.finish(), ..*frame };
        let mut bytes = vec![0; frame.encoded_len()];
        frame.encode(&mut bytes).expect("a short frame");
        bytes
    };
    said.iter().map(encode).collect()
}

fn len(bytes: &[u8]) -> [u8; 2] {
    u16::try_from(bytes.len()).expect("a short frame").to_le_bytes()
}

fn split(mut stream: &[u8]) -> Vec<Vec<u8>> {
    let (mut decoder, mut frames) = (StreamDecoder::new(), Vec::new());
    while let StreamStep::Frame { len, .. } = decoder.step(stream) {
        frames.push(stream[..len].to_vec());
        stream = &stream[len..];
    }
    frames
}

fn put(dir: &str, target: &str, number: u8, input: impl Iterator<Item = u8>) {
    let folder = Path::new(dir).join(target);
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join(format!("seed-{number}")), input.collect::<Vec<_>>()).expect("a new file");
}
