//! A server that is killed at any instant and started again leaves a recording that is whole: payload files hold what
//! the events say, no event is there twice, and what is missing shows.

mod harness;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::Write;
use std::ops::Range;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use gttr::{Direction, Ext, ExtWriter, Frame, FrameType};
use harness::{Server, encode, noise, until};
use rustix::process::Signal;
use serde::Deserialize;
use socktrace_collect::decode;
use socktrace_event::Sink;
use socktrace_recording::{Contents, Recorder};

/// How often the server is killed, half of that for each transport, unless SOCKTRACE_KILLS says otherwise.
const KILLS: u64 = 200;
/// So often it goes on in the same directory before it has a new one.
const LIVES: u64 = 10;
const PID: u32 = 4711;
/// Many, so that a batch takes long.
const CONNECTIONS: u64 = 300;

fn len(seq: u64) -> usize {
    // Mostly short; some long ones make the writes long, too.
    let spread = noise(seq, 3);
    match spread[0] % 16 {
        0 => 0,
        1..=3 => 100 * usize::from(spread[1]),
        _ => usize::from(spread[2]),
    }
}

/// The payload of an event, by its number.
fn payload(seq: u64) -> Vec<u8> {
    let pattern = noise(seq, 16);
    pattern.iter().copied().cycle().take(len(seq)).collect()
}

/// The frame of a number, as the one process sends it.
fn frame(seq: u64) -> Vec<u8> {
    let mut buffer = [0; 64];
    let mut ext = ExtWriter::new(&mut buffer);
    [Ext::Seq(seq), Ext::Pid(PID), Ext::TsNs(1_000_000 * seq)].into_iter().for_each(|value| ext.put(value));
    let spread = noise(seq, 5);
    let connection = u64::from(u16::from_le_bytes([spread[3], spread[4]])) % CONNECTIONS;
    // One of them cannot name its files.
    let conn = if connection == 0 { "../c0".to_owned() } else { format!("c{connection}") };
    let direction = if seq.is_multiple_of(2) { Direction::In } else { Direction::Out };
    let (path, payload) = (b"/tmp/crash.sock", payload(seq));
    let (conn, ext) = (conn.as_bytes(), ext.finish());
    encode(&Frame { direction, path, conn, payload: &payload, ext, ..Frame::new(FrameType::Data, seq) })
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    direction: String,
    conn_id: String,
    file: Option<String>,
    size: Option<u64>,
    pid: Option<u32>,
    seq: Option<u64>,
    offset: Option<u64>,
    bytes: Option<u64>,
    events: Option<u64>,
    reason: Option<String>,
}

impl Event {
    fn payload_file(&self) -> String {
        format!("{}.{}.bin", self.file.as_ref().unwrap_or(&self.conn_id), self.direction)
    }
}

fn events(out: &Path) -> Vec<Event> {
    let text = fs::read_to_string(out.join("events.jsonl")).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "the last line is torn");
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// Payload files hold exactly the bytes of the events, and no event is there twice; returns the events' numbers.
#[track_caller]
fn assert_whole(out: &Path) -> Vec<u64> {
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let (mut seqs, mut seen) = (Vec::new(), HashSet::new());
    for event in events(out).iter().filter(|event| event.kind == "data") {
        let seq = event.seq.unwrap();
        assert!(seen.insert(seq), "event {seq} is there twice");
        seqs.push(seq);
        let payload = payload(seq);
        assert_eq!(event.size, Some(payload.len() as u64));
        files.entry(event.payload_file()).or_default().extend(payload);
    }
    for entry in fs::read_dir(out).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".bin") {
            let expected = files.remove(&name).unwrap_or_default();
            let found = fs::read(out.join(&name)).unwrap();
            assert!(found == expected, "{name}: {} bytes, its events say {}", found.len(), expected.len());
        }
    }
    assert!(files.values().all(Vec::is_empty), "no file: {:?}", files.keys());
    seqs
}

type Send = Box<dyn FnMut(&[u8]) -> std::io::Result<()> + std::marker::Send>;

/// A connection to the server, as a way to send frames over it.
fn agent(server: &Server, sock_type: &str) -> Send {
    if sock_type == "dgram" {
        let socket: UnixDatagram = server.datagrams();
        return Box::new(move |frame| socket.send(frame).map(drop));
    }
    let mut socket: UnixStream = server.stream();
    Box::new(move |frame| socket.write_all(frame))
}

fn killed_under_load(sock_type: &str) {
    let kills = std::env::var("SOCKTRACE_KILLS").map_or(KILLS, |kills| kills.parse().expect("a number")) / 2;
    let mut cut = 0;
    for directory in 0..kills / LIVES {
        let mut server = Server::start(sock_type);
        let next = AtomicU64::new(1);
        let mut lives: Vec<Range<u64>> = Vec::new();
        for life in 0..LIVES {
            let begun = next.load(Ordering::Relaxed);
            let mut send = agent(&server, sock_type);
            thread::scope(|scope| {
                // Relaxed: the thread has ended before the number is read.
                scope.spawn(|| while send(&frame(next.fetch_add(1, Ordering::Relaxed))).is_ok() {});
                let moment = noise(kills + LIVES * directory + life, 2);
                thread::sleep(Duration::from_micros(u64::from(u16::from_le_bytes([moment[0], moment[1]]))));
                server.signal(Signal::KILL);
            });
            lives.push(begun..next.load(Ordering::Relaxed));
            server = server.start_again(sock_type);
            cut += u64::from(server.stderr().contains("were too long"));
            let seqs = assert_whole(&server.out);
            // Of each life what was recorded has no gap, and what is missing at its end is a gap before the next.
            for life in &lives {
                let recorded: Vec<u64> = seqs.iter().copied().filter(|seq| life.contains(seq)).collect();
                let whole: Vec<u64> = (life.start..life.start + recorded.len() as u64).collect();
                assert_eq!(recorded, whole, "recorded of {life:?}");
            }
        }
        let reasons = server.stop();
        let reasons = reasons.iter().filter(|e| e["type"] == "host_init" && e["reason"].is_string()).count() as u64;
        assert_eq!(reasons, LIVES, "every crash is said");
        assert!(!server.out.join("events.journal").exists());
        assert!(events(&server.out).iter().all(|event| event.kind != "lost"));
    }
    println!("killed {kills} times, {cut} times between payload and events");
    assert!(cut > 0, "the server was never killed between payload and events: the test shows nothing");
}

#[test]
fn killed_under_load_by_dgram() {
    killed_under_load("dgram");
}

#[test]
fn killed_under_load_by_stream() {
    killed_under_load("stream");
}

fn feed(recorder: &mut Recorder, seqs: Range<u64>) {
    for seq in seqs {
        let frame = frame(seq);
        decode::datagram(&frame, frame.len(), recorder).unwrap();
    }
}

fn open(out: &Path) -> Recorder {
    let mut recorder = None;
    // A server that another test starts holds on to all descriptors until it executes, and so to the lock.
    until("the lock is free", || {
        recorder = match Recorder::open(out, Contents::All) {
            Ok(recorder) => Some(recorder),
            Err(error) if error.to_string().contains("another server") => None,
            Err(error) => panic!("{error:#}"),
        };
        recorder.is_some()
    });
    recorder.unwrap()
}

/// A recorder that is gone like a server that is killed.
fn recorded(out: &Path, batches: &[u64]) {
    let mut recorder = open(out);
    let mut from = 1;
    for &count in batches {
        feed(&mut recorder, from..from + count);
        from += count;
        assert!(recorder.flush().unwrap());
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Every state that the last batch's writes can be cut off in: some payload, then all payload and some events.
#[test]
fn cut_off_anywhere_in_a_batch() {
    let dir = tempfile::tempdir().unwrap();
    let (before, after) = (dir.path().join("before"), dir.path().join("after"));
    recorded(&before, &[40]);
    recorded(&after, &[40, 60]);
    let len_of = |dir: &Path, name: &str| fs::metadata(dir.join(name)).map_or(0, |m| m.len());
    let names: Vec<String> = fs::read_dir(&after)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".bin"))
        .collect();
    let cut_to = |path: &Path, len: u64| fs::File::options().write(true).open(path).unwrap().set_len(len).unwrap();
    let (first, last) = (len_of(&before, "events.jsonl"), len_of(&after, "events.jsonl"));
    for (n, events) in (first..=last).step_by(151).enumerate() {
        let killed = dir.path().join("killed");
        copy(&after, &killed);
        cut_to(&killed.join("events.jsonl"), events);
        if events == first {
            // Payload was still being written.
            for (m, name) in names.iter().enumerate() {
                let (from, to) = (len_of(&before, name), len_of(&after, name));
                cut_to(&killed.join(name), from + (to - from) * ((n + m) as u64 % 5) / 4);
            }
        }
        for _ in 0..2 {
            // Killed again at once, so that it begins anew.
            drop(open(&killed));
            let seqs = assert_whole(&killed);
            assert!(seqs.len() >= 40 && seqs.iter().copied().eq(1..=seqs.len() as u64));
        }
        fs::remove_dir_all(&killed).unwrap();
    }
}

/// Whoever keeps frames until they are flushed gives them to the next recorder again.
#[test]
fn what_was_recorded_is_known_to_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    recorded(&out, &[30, 20]);
    // Not the first: the flush after it was seen to return, for more was taken afterwards.
    let known = |recorder: &mut Recorder| {
        let recovered = recorder.take_recovered();
        let is_known = |seq: &u64| recovered.contains(&gttr::decode_datagram(&frame(*seq)).unwrap());
        let known: Vec<u64> = (1..200).filter(is_known).collect();
        assert_eq!(known.len(), recovered.len());
        known
    };
    let mut recorder = open(&out);
    assert_eq!(known(&mut recorder), (31..=50).collect::<Vec<_>>());
    // Killed again before anything was flushed: the same are known, and no less.
    drop(recorder);
    let mut recorder = open(&out);
    assert_eq!(known(&mut recorder), (31..=50).collect::<Vec<_>>());
    feed(&mut recorder, 51..61);
    assert!(recorder.flush().unwrap());
    drop(recorder);
    let mut recorder = open(&out);
    assert_eq!(known(&mut recorder), (31..=60).collect::<Vec<_>>());
    recorder.flush().unwrap();
    recorder.finish("test").unwrap();
    drop(recorder);
    assert!(known(&mut open(&out)).is_empty());
    assert_whole(&out);
}

/// The same event number in the same process number, of another program: another event.
#[test]
fn another_event_of_the_same_number_is_another() {
    let dir = tempfile::tempdir().unwrap();
    recorded(dir.path(), &[5]);
    let recovered = open(dir.path()).take_recovered();
    let mut buffer = [0; 64];
    let mut ext = ExtWriter::new(&mut buffer);
    [Ext::Seq(3), Ext::Pid(PID), Ext::TsNs(77)].into_iter().for_each(|value| ext.put(value));
    let other = Frame { ext: ext.finish(), conn: b"c", ..Frame::new(FrameType::Data, 1) };
    assert!(!recovered.contains(&other) && !recovered.contains(&Frame::new(FrameType::Data, 1)));
    assert!(recovered.contains(&gttr::decode_datagram(&frame(3)).unwrap()));
}

/// After a crash of the machine anything may be missing that was not on the disk: the journal names another boot.
#[test]
fn after_a_crash_of_the_machine_all_files_are_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    recorded(out, &[50, 50]);
    let journal = out.join("events.journal");
    let whole = fs::read(&journal).unwrap();
    // A journal of another boot, with its sum: that of a recorder which believes in another boot id.
    let other = journal_of_another_boot(&whole);
    fs::write(&journal, other).unwrap();
    let mut files: Vec<_> = fs::read_dir(out).unwrap().map(|entry| entry.unwrap()).collect();
    files.retain(|entry| entry.file_name().to_string_lossy().ends_with(".bin") && entry.metadata().unwrap().len() > 10);
    let [first, second, third] = [files[0].path(), files[1].path(), files[2].path()];
    let len = fs::metadata(&first).unwrap().len();
    fs::File::options().write(true).open(&first).unwrap().set_len(len - 10).unwrap();
    fs::remove_file(second).unwrap();
    fs::OpenOptions::new().append(true).open(&third).unwrap().write_all(b"more").unwrap();
    drop(open(out));
    let lost: Vec<_> = events(out).into_iter().filter(|event| event.kind == "lost").collect();
    assert_eq!(lost.len(), 2, "{lost:?}");
    let all = events(out);
    for event in &lost {
        let sizes = all.iter().filter(|e| e.kind == "data" && e.payload_file() == event.payload_file());
        let size: u64 = sizes.map(|e| e.size.unwrap()).sum();
        let found = fs::metadata(out.join(event.payload_file())).map_or(0, |m| m.len());
        assert_eq!((event.offset, event.bytes), (Some(found), Some(size - found)));
        assert!(
            event.reason.as_deref().unwrap().contains("cut short") && event.events.is_none() && event.pid.is_none()
        );
    }
    // What is said once is not said again.
    fs::write(&journal, journal_of_another_boot(&fs::read(&journal).unwrap())).unwrap();
    drop(open(out));
    assert_eq!(events(out).iter().filter(|event| event.kind == "lost").count(), 2);
    assert!(!fs::read(third).unwrap().ends_with(b"more"));
}

/// The head of the first record, with another boot id (docs/design.md, "Crashes").
fn journal_of_another_boot(journal: &[u8]) -> Vec<u8> {
    use sha2::{Digest, Sha256};
    const SUM_AT: usize = 8 + 36 + 4 * 8 + 8;
    let mut journal = journal.to_vec();
    journal[8..44].fill(b'0');
    let sum = Sha256::digest(&journal[..SUM_AT]);
    journal[SUM_AT..SUM_AT + 8].copy_from_slice(&sum[..8]);
    journal
}
