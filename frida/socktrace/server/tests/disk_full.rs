//! What could not be written is counted, to the byte, and the server goes on.

mod harness;

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use gttr::{Direction, Frame, FrameType};
use harness::{Server, data, encode, events_in, noise, skipped, sum, until};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::Value;
use socktrace_collect::decode;
use socktrace_event::Sink;
use socktrace_recording::{Contents, Recorder};
use tempfile::TempDir;

/// A small disk, mounted where the server is to write.
struct Disk(PathBuf);

impl Disk {
    /// None where mounting takes privileges that the test does not have.
    fn mount_in(dir: &Path) -> Option<Self> {
        let at = dir.join("out");
        fs::create_dir(&at).unwrap();
        mount("tmpfs", &at, "tmpfs", MountFlags::empty(), c"size=64m,mode=0700").ok()?;
        Some(Self(at))
    }

    /// Fills the disk up to some bytes.
    fn fill(&self, left: u64) {
        let mut filler = fs::File::create(self.0.join("filler")).unwrap();
        while filler.write_all(&[0; 4096]).is_ok() {}
        filler.set_len(filler.metadata().unwrap().len() - left).unwrap();
    }

    fn free(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

fn start(test: &str) -> Option<(Server, Disk)> {
    let dir: TempDir = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::mount_in(dir.path()) else {
        skipped(test);
        return None;
    };
    let server = Server::start_in(dir, "dgram", "true");
    Some((server, disk))
}

/// Sends payloads of 4 KiB on several connections, with events that are as long, and keeps what was sent.
#[derive(Default)]
struct Sent {
    events: u64,
    payloads: HashMap<String, Vec<u8>>,
}

impl Sent {
    fn send(&mut self, count: u64, mut to: impl FnMut(&[u8])) {
        for _ in 0..count {
            let conn = format!("c{}", self.events % 5);
            let payload = noise(self.events, 4096);
            let frame = Frame {
                path: &[b'p'; 4096],
                conn: conn.as_bytes(),
                direction: Direction::Out,
                payload: &payload,
                ..Frame::new(FrameType::Data, 1)
            };
            to(&encode(&frame));
            self.events += 1;
            self.payloads.entry(conn).or_default().extend(payload);
        }
    }

    /// What is in the files and what is counted as lost is what was sent.
    fn assert_accounted_for(&self, out: &Path, events: &[Value]) {
        let recorded = events.iter().filter(|e| e["type"] == "data").count() as u64;
        assert_eq!(recorded + sum(events, "events", |e| e["type"] == "lost"), self.events);
        for (conn, sent) in &self.payloads {
            let file = fs::read(out.join(format!("{conn}.out.bin"))).unwrap();
            let (mut in_file, mut in_sent) = (0, 0);
            for lost in events.iter().filter(|e| e["type"] == "lost" && e["conn_id"] == conn.as_str()) {
                assert_eq!(lost["direction"], "out");
                let number = |field: &str| usize::try_from(lost[field].as_u64().unwrap()).unwrap();
                let until_gap = number("offset") - in_file;
                assert!(file[in_file..in_file + until_gap] == sent[in_sent..in_sent + until_gap], "{conn}: {lost}");
                in_file += until_gap;
                in_sent += until_gap + number("bytes");
            }
            assert!(file[in_file..] == sent[in_sent..], "{conn}: after the last gap");
        }
    }
}

/// Fills and frees the disk under the recorder itself: under a server nobody can tell when all that was sent has come
/// to the recorder, and that more than is kept in memory has.
#[test]
fn recovers_and_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::mount_in(dir.path()) else { return skipped("recovers_and_says_what_is_missing") };
    let mut sent = Sent::default();
    let mut recorder = Recorder::open(&disk.0, Contents::All).unwrap();
    for _ in 0..2 {
        disk.fill(100 << 10);
        sent.send(3000, |frame| decode::datagram(frame, frame.len(), &mut recorder).unwrap());
        assert!(!recorder.flush().unwrap());
        disk.free();
        until("room again", || recorder.flush().unwrap());
        sent.send(100, |frame| decode::datagram(frame, frame.len(), &mut recorder).unwrap());
    }
    recorder.finish("test").unwrap();
    let events = events_in(&disk.0);
    sent.assert_accounted_for(&disk.0, &events);
    for field in ["events", "bytes"] {
        let lost = |e: &Value| e["type"] == "lost" && e["reason"] == "disk full";
        assert!(sum(&events, field, lost) > 0, "no {field} lost");
    }
    let end = events.last().unwrap();
    assert_eq!(end["events"], events.iter().filter(|e| e["type"] == "data").count());
    let in_files: u64 =
        sent.payloads.keys().map(|c| disk.0.join(format!("{c}.out.bin")).metadata().unwrap().len()).sum();
    assert_eq!(end["bytes"], in_files);
}

#[test]
fn the_server_goes_on() {
    let Some((mut server, disk)) = start("the_server_goes_on") else { return };
    let mut sent = Sent::default();
    let agent = server.datagrams();
    let send = |frame: &[u8]| assert!(agent.send(frame).is_ok());
    for outage in 1..=2 {
        disk.fill(100 << 10);
        sent.send(2000, send);
        until("full", || server.stderr().matches("no space left for").count() == outage);
        disk.free();
        until("room again", || server.stderr().matches("can be written to again").count() == outage);
        sent.send(100, send);
    }
    let events = server.stop();
    sent.assert_accounted_for(&server.out, &events);
    // Where it listens, and when each outage began and ended.
    assert_eq!(server.stderr().lines().count(), 5, "{}", server.stderr());
}

#[test]
fn a_short_outage_costs_nothing() {
    let Some((mut server, disk)) = start("a_short_outage_costs_nothing") else { return };
    let mut sent = Sent::default();
    disk.fill(10 << 10);
    let agent = server.datagrams();
    sent.send(500, |frame| assert!(agent.send(frame).is_ok()));
    until("full", || server.stderr().contains("no space left for"));
    disk.free();
    let events = server.stop();
    sent.assert_accounted_for(&server.out, &events);
    assert_eq!(sum(&events, "events", |e| e["type"] == "lost"), 0);
    assert_eq!(sum(&events, "bytes", |e| e["type"] == "lost"), 0);
}

#[test]
fn ends_well_on_a_full_disk() {
    let Some((mut server, disk)) = start("ends_well_on_a_full_disk") else { return };
    let mut sent = Sent::default();
    disk.fill(10 << 10);
    let agent = server.datagrams();
    sent.send(100, |frame| assert!(agent.send(frame).is_ok()));
    until("full", || server.stderr().contains("no space left for"));
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(server.wait().code(), Some(0));
    let recorded = server.events().iter().filter(|e| e["type"] == "data").count() as u64;
    let written: usize =
        (0..5).filter_map(|n| fs::read(server.out.join(format!("c{n}.out.bin"))).ok()).map(|f| f.len()).sum();
    let stderr = server.stderr();
    let lost =
        format!("{} events and {} payload bytes could not be written", sent.events - recorded, 409_600 - written);
    assert!(stderr.contains(&lost), "expected {lost}: {stderr}");
    // Where it listens, when the disk was full, and that.
    assert_eq!(stderr.lines().count(), 3, "{stderr}");
}

#[test]
fn a_file_that_may_not_grow_is_accounted_for() {
    // In blocks of 512 or 1024 bytes, by shell.
    let mut server = Server::start_in(tempfile::tempdir().unwrap(), "dgram", "ulimit -f 100");
    let agent = server.datagrams();
    let payload = noise(3, 50_000);
    for part in 0..4 {
        agent.send(&data(b"big", Direction::In, &payload)).unwrap();
        until("recorded", || server.events_so_far().iter().filter(|e| e["type"] == "data").count() == part + 1);
    }
    agent.send(&data(b"small", Direction::In, b"fits")).unwrap();
    let events = server.stop();
    let file = server.payload("big.in.bin");
    assert!([51_200, 102_400].contains(&file.len()), "{}", file.len());
    assert!(payload.repeat(4).starts_with(&file));
    assert_eq!(file.len() as u64 + sum(&events, "bytes", |e| e["type"] == "lost"), 200_000);
    assert_eq!(server.payload("small.in.bin"), b"fits");
}
