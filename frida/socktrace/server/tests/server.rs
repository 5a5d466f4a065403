//! The built server, from its socket to its files.

mod harness;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener};

use gttr::{Direction, Frame, FrameType};
use harness::{Server, assert_golden, data, encode, golden_frames, noise, sum, until};
use rustix::process::Signal;

#[test]
fn golden_frames_as_datagrams() {
    let mut server = Server::start("dgram");
    let agent = server.datagrams();
    for frame in golden_frames() {
        agent.send(&frame).unwrap();
    }
    assert_golden(&server.stop_and_get_agents_events());
    assert_eq!(server.payload("_tmp_demo.sock:fd=8:t=1795407956372.in.bin").len(), 37);
    assert_eq!(server.payload("_tmp_demo.sock:fd=8:t=1795407956372.out.bin").len(), 40 + 4096);
    assert_eq!(server.payload("@demo-abstract:fd=9:t=1795407956377.in.bin").len(), 2);
}

#[test]
fn golden_frames_as_a_stream() {
    let mut server = Server::start("stream");
    server.stream().write_all(&golden_frames().concat()).unwrap();
    assert_golden(&server.stop_and_get_agents_events());
    assert_eq!(server.payload("_tmp_demo.sock:fd=8:t=1795407956372.out.bin").len(), 40 + 4096);
}

#[test]
fn says_who_records_and_why_it_ends() {
    let mut server = Server::start("dgram");
    server.datagrams().send(&data(b"c", Direction::In, b"12345")).unwrap();
    server.signal(Signal::INT);
    assert_eq!(server.wait().code(), Some(0));
    let events = server.events();
    assert_eq!(events[0]["type"], "host_init");
    assert_eq!(events[0]["sock"], server.sock().to_str().unwrap());
    assert_eq!(events[0]["out_dir"], server.out.to_str().unwrap());
    assert_eq!(events[0]["sock_type"], "dgram");
    assert_eq!(events[2]["type"], "host_shutdown");
    assert_eq!(events[2]["reason"], "SIGINT");
    assert_eq!((&events[2]["events"], &events[2]["bytes"]), (&1.into(), &5.into()));
}

/// A server with one more argument, two events and a loss recorded.
fn server_with(option: &str) -> Server {
    let server = Server::start_in(tempfile::tempdir().unwrap(), "dgram", &format!("set -- \"$@\" {option}"));
    let agent = server.datagrams();
    for frame in [
        encode(&Frame { conn: b"c|connect", path: b"/tmp/x", ..Frame::new(FrameType::Open, 1) }),
        data(b"c", Direction::In, b"ping"),
        data(b"c", Direction::In, b"pong"),
        encode(&Frame { conn: b"the server did not read", ..Frame::new(FrameType::Lost, 1) }),
    ] {
        agent.send(&frame).unwrap();
    }
    until("flushed", || server.events_so_far().iter().any(|e| e["type"] == "lost"));
    server
}

fn types(events: &[serde_json::Value]) -> Vec<&str> {
    events.iter().map(|e| e["type"].as_str().unwrap()).collect()
}

#[test]
fn without_payload_files() {
    let server = server_with("--no-payload-files");
    server.signal(Signal::KILL);
    // Events that speak of bytes which no file has are no damage here.
    let mut server = server.start_again("dgram");
    server.datagrams().send(&data(b"c", Direction::In, b"more")).unwrap();
    let events = server.stop();
    let expected = ["host_init", "open", "data", "data", "lost", "host_init", "data", "host_shutdown"];
    assert_eq!(types(&events), expected);
    assert_eq!((&events[0]["omits"], &events[2]["size"]), (&"payload files".into(), &4.into()));
    assert!(events[5].get("omits").is_none() && events[5]["reason"].as_str().unwrap().contains("cut off"));
    assert_eq!(server.payload("c.in.bin"), b"more");
}

#[test]
fn without_events() {
    let mut server = server_with("--no-events");
    let events = server.stop();
    assert_eq!(types(&events), ["host_init", "lost", "host_shutdown"]);
    assert_eq!(events[0]["omits"], "events");
    assert_eq!((&events[2]["events"], &events[2]["bytes"]), (&4.into(), &8.into()));
    assert_eq!(server.payload("c.in.bin"), b"pingpong");
    // Killed: there are no events that the payload would have to fit.
    let server = server_with("--no-events");
    server.signal(Signal::KILL);
    let mut server = server.start_again("dgram");
    assert_eq!(types(&server.stop()), ["host_init", "lost", "host_init", "host_shutdown"]);
    assert_eq!(server.payload("c.in.bin"), b"pingpong");
}

#[test]
fn one_of_the_two_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let run = std::process::Command::new(env!("CARGO_BIN_EXE_socktrace-server"))
        .args([&dir.path().join("sock"), &dir.path().join("out")])
        .args(["--no-events", "--no-payload-files"])
        .output()
        .unwrap();
    assert_eq!(run.status.code(), Some(2));
}

#[test]
fn is_recorded_while_the_server_runs() {
    let server = Server::start("dgram");
    server.datagrams().send(&data(b"c", Direction::In, b"ping")).unwrap();
    until("flushed", || server.events_so_far().len() == 2);
    assert_eq!(server.payload("c.in.bin"), b"ping");
}

#[test]
fn sigterm_records_what_has_arrived() {
    for sock_type in ["dgram", "stream"] {
        let mut server = Server::start(sock_type);
        let frame = |n: u32| data(b"c", Direction::Out, &n.to_le_bytes());
        if sock_type == "dgram" {
            let agent = server.datagrams();
            (0..500).for_each(|n| assert!(agent.send(&frame(n)).is_ok()));
        } else {
            server.stream().write_all(&(0..500).flat_map(frame).collect::<Vec<_>>()).unwrap();
        }
        let events = server.stop_and_get_agents_events();
        assert_eq!(events.len(), 500, "{sock_type}");
        assert_eq!(server.payload("c.out.bin"), (0..500u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
    }
}

#[test]
fn a_stale_socket_is_replaced() {
    for sock_type in ["dgram", "stream"] {
        let dir = tempfile::tempdir().unwrap();
        drop(UnixListener::bind(dir.path().join("sock")).unwrap());
        let mut server = Server::start_in(dir, sock_type, "true");
        server.stop();
    }
}

#[test]
fn what_is_no_socket_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let sock = dir.path().join("sock");
    fs::write(&sock, "precious").unwrap();
    let (code, stderr) = Server::refused(dir.path(), &dir.path().join("out"), "dgram");
    assert_eq!(code, Some(1));
    assert!(stderr.contains("not a socket"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1);
    assert_eq!(fs::read(&sock).unwrap(), b"precious");
    assert!(!dir.path().join("out").exists());
}

#[test]
fn a_live_server_is_not_robbed() {
    let dir = tempfile::tempdir().unwrap();
    let sock = dir.path().join("sock");
    let _dgram = UnixDatagram::bind(&sock).unwrap();
    for sock_type in ["dgram", "stream"] {
        let (code, stderr) = Server::refused(dir.path(), &dir.path().join("out"), sock_type);
        assert_eq!(code, Some(1));
        assert!(stderr.contains("already in use"), "{stderr}");
        assert!(sock.exists());
    }
}

#[test]
fn a_bad_place_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("out"), "").unwrap();
    let (code, stderr) = Server::refused(dir.path(), &dir.path().join("out"), "dgram");
    assert_eq!(code, Some(1));
    assert!(stderr.contains("out: not a directory"), "{stderr}");
    assert!(!dir.path().join("sock").exists());

    let run = |sock: &std::path::Path| {
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_socktrace-server"))
            .args([sock, &dir.path().join("elsewhere")])
            .output()
            .unwrap();
        assert_eq!(out.status.code(), Some(1));
        String::from_utf8(out.stderr).unwrap()
    };
    let stderr = run(&dir.path().join("x".repeat(120)));
    assert!(stderr.contains("at most 107 bytes"), "{stderr}");
    let stderr = run(&dir.path().join("missing/sock"));
    assert!(stderr.contains("missing does not exist"), "{stderr}");
    let stderr = run(&dir.path().join("x".repeat(90)).join("y".repeat(12)));
    assert!(stderr.starts_with("socktrace-server: ") && stderr.contains("choose"), "{stderr}");
    std::os::unix::fs::symlink("loop", dir.path().join("loop")).unwrap();
    let stderr = run(&dir.path().join("loop/sock"));
    let (what, why) =
        ("loop/sock: cannot bind the socket: ", "too many levels of symbolic links (ELOOP): choose another path");
    assert!(stderr.contains(what) && stderr.contains(why) && stderr.lines().count() == 1, "{stderr}");
}

#[test]
fn two_servers_do_not_share_an_output_directory() {
    let server = Server::start("dgram");
    let other = tempfile::tempdir().unwrap();
    let (code, stderr) = Server::refused(other.path(), &server.out, "dgram");
    assert_eq!(code, Some(1));
    assert!(stderr.contains("another server is recording there"), "{stderr}");
}

#[test]
fn a_successors_socket_is_left_alone() {
    let mut server = Server::start("dgram");
    fs::remove_file(server.sock()).unwrap();
    let _successor = UnixDatagram::bind(server.sock()).unwrap();
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(0));
    assert!(server.sock().exists());
}

#[test]
fn only_the_owner_may_look() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start_in(dir, "stream", "umask 0");
    assert_eq!(fs::symlink_metadata(server.sock()).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(fs::metadata(&server.out).unwrap().mode() & 0o7777, 0o700);
    server.stream().write_all(&data(b"c", Direction::In, b"x")).unwrap();
    server.stop();
    for name in ["events.jsonl", "c.in.bin"] {
        assert_eq!(fs::metadata(server.out.join(name)).unwrap().mode() & 0o7777, 0o600, "{name}");
    }
}

#[test]
fn an_earlier_recording_is_continued() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("out")).unwrap();
    fs::write(dir.path().join("out/events.jsonl"), "{\"type\":\"ready\"}\n{\"type\":\"da").unwrap();
    let mut server = Server::start_in(dir, "dgram", "true");
    let events = server.stop();
    let types: Vec<_> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["ready", "lost", "host_init", "host_shutdown"]);
    assert_eq!(events[1]["events"], 1);
}

#[test]
fn thousands_of_connections_on_few_descriptors() {
    const CONNECTIONS: u64 = 3000;
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start_in(dir, "dgram", "ulimit -n 256");
    let agent = server.datagrams();
    let payload = |connection, round| noise(2 * connection + round, 20 + usize::try_from(connection % 50).unwrap());
    for round in 0..2 {
        for connection in 0..CONNECTIONS {
            let direction = if connection % 2 == 0 { Direction::In } else { Direction::Out };
            agent.send(&data(format!("c{connection}").as_bytes(), direction, &payload(connection, round))).unwrap();
        }
    }
    let events = server.stop_and_get_agents_events();
    assert_eq!(events.len() as u64, 2 * CONNECTIONS);
    for connection in 0..CONNECTIONS {
        let suffix = if connection % 2 == 0 { "in" } else { "out" };
        let expected = [payload(connection, 0), payload(connection, 1)].concat();
        assert!(server.payload(&format!("c{connection}.{suffix}.bin")) == expected, "connection {connection}");
    }
}

#[test]
fn many_agents_speak_at_once() {
    const AGENTS: u64 = 100;
    let mut server = Server::start("stream");
    let mut agents: Vec<_> = (0..AGENTS).map(|_| server.stream()).collect();
    let streams: Vec<Vec<u8>> = (0..AGENTS)
        .map(|n| {
            (0..5).flat_map(|part| data(format!("a{n}").as_bytes(), Direction::In, &noise(n * 5 + part, 90))).collect()
        })
        .collect();
    for at in (0..streams.iter().map(Vec::len).max().unwrap()).step_by(37) {
        for (agent, stream) in agents.iter_mut().zip(&streams) {
            let end = stream.len().min(at + 37);
            agent.write_all(&stream[at.min(end)..end]).unwrap();
        }
    }
    // One of them ends inside a frame.
    agents[0].write_all(&streams[0][..50]).unwrap();
    drop(agents);
    let events = server.stop_and_get_agents_events();
    assert_eq!(events.iter().filter(|e| e["type"] == "data").count() as u64, 5 * AGENTS);
    assert_eq!(sum(&events, "size", |e| e["type"] == "bad_frame"), 50);
    for n in 0..AGENTS {
        let expected: Vec<u8> = (0..5).flat_map(|part| noise(n * 5 + part, 90)).collect();
        assert!(server.payload(&format!("a{n}.in.bin")) == expected, "agent {n}");
    }
}

#[test]
fn a_large_frame_passes_through_a_stream() {
    let mut server = Server::start("stream");
    let payload = noise(1, gttr::MAX_PAYLOAD_LEN as usize);
    server.stream().write_all(&data(b"large", Direction::In, &payload)).unwrap();
    until("recorded", || server.events_so_far().len() == 2);
    server.stop();
    assert!(server.payload("large.in.bin") == payload);
}

fn hostile_frames() -> Vec<Vec<u8>> {
    let mut frames: Vec<Vec<u8>> =
        [b"../escape".as_slice(), b"/tmp/escape", b"..", b".", b"", b"a\0b", b"a/b", b"events.jsonl"]
            .into_iter()
            .map(|conn| data(conn, Direction::In, b"payload"))
            .collect();
    frames.push(data(&[b'x'; 65535], Direction::Out, b"payload"));
    frames.push(data(&[0xff; 65535], Direction::Out, b"payload"));
    frames.push(data(b"no direction", Direction::None, b"payload"));
    frames.push(encode(&Frame { path: &[b'\n'; 65535], ..Frame::new(FrameType::Error, u64::MAX) }));
    frames.push(encode(&Frame::new(FrameType::Other(255), 0)));
    let mut giant = data(b"c", Direction::In, b"");
    giant[28..32].copy_from_slice(&u32::MAX.to_le_bytes());
    frames.push(giant);
    frames.extend((0..50).map(|n| noise(n, 3 * usize::try_from(n).unwrap())));
    // Frames with a byte changed.
    let frame = data(b"c", Direction::In, b"payload");
    frames.extend((0..frame.len()).map(|at| {
        let mut frame = frame.clone();
        frame[at] ^= 0x85;
        frame
    }));
    frames
}

#[test]
fn hostile_agents_do_no_harm() {
    for sock_type in ["dgram", "stream"] {
        let mut server = Server::start(sock_type);
        if sock_type == "dgram" {
            let agent = server.datagrams();
            hostile_frames().iter().for_each(|frame| assert!(agent.send(frame).is_ok()));
        } else {
            // One each: a giant length swallows what follows it.
            hostile_frames().iter().for_each(|frame| server.stream().write_all(frame).unwrap());
        }
        let good = data(b"good", Direction::In, b"still here");
        if sock_type == "dgram" {
            server.datagrams().send(&good).unwrap();
        } else {
            server.stream().write_all(&good).unwrap();
        }
        let events = server.stop_and_get_agents_events();
        assert!(events.iter().any(|e| e["type"] == "bad_frame"));
        assert_eq!(server.payload("good.in.bin"), b"still here");
        let mut names: Vec<_> = fs::read_dir(server.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["out", "stderr"], "{sock_type}");
        for entry in fs::read_dir(&server.out).unwrap() {
            let entry = entry.unwrap();
            assert!(entry.file_type().unwrap().is_file());
            assert!(!entry.file_name().to_string_lossy().starts_with('.'));
        }
        // What has a file is found by its event.
        for event in events.iter().filter(|e| e["type"] == "data" && e["direction"] == "in" && e["size"] != 0) {
            let name = event.get("file").unwrap_or(&event["conn_id"]).as_str().unwrap();
            assert!(server.out.join(format!("{name}.in.bin")).exists(), "{event}");
        }
    }
}

#[test]
fn a_planted_symlink_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("out")).unwrap();
    fs::write(dir.path().join("outside"), "untouched").unwrap();
    symlink("../outside", dir.path().join("out/c.in.bin")).unwrap();
    let mut server = Server::start_in(dir, "dgram", "true");
    let agent = server.datagrams();
    agent.send(&data(b"c", Direction::In, b"12345")).unwrap();
    agent.send(&data(b"c", Direction::Out, b"fine")).unwrap();
    until("told", || server.stderr().contains("c.in.bin: the payload file is a symbolic link"));
    agent.send(&data(b"c", Direction::In, b"678")).unwrap();
    let events = server.stop_and_get_agents_events();
    assert_eq!(fs::read(server.dir.path().join("outside")).unwrap(), b"untouched");
    assert_eq!(server.payload("c.out.bin"), b"fine");
    assert_eq!(sum(&events, "bytes", |e| e["type"] == "lost" && e["conn_id"] == "c" && e["direction"] == "in"), 8);
    assert_eq!(events.iter().filter(|e| e["type"] == "data").count(), 3);
    assert_eq!(server.stderr().matches("symbolic link").count(), 1);
}
