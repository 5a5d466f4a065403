//! `socktrace export`: Perfetto's format, recordings that are not whole, big ones, and what cannot be.

mod harness;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use gttr::Direction::{In, Out};
use gttr::Ext;
use harness::wireshark::{events, record};
use harness::{Recording, SOCKTRACE, Traffic, command, has, outcome, run};

/// A field of a protobuf message, as protoc shows one whose meaning it does not know.
#[derive(Debug)]
enum Field {
    Value(String),
    Message(Message),
}

/// Fields by their number.
#[derive(Debug, Default)]
struct Message(BTreeMap<u32, Vec<Field>>);

impl Message {
    /// From the lines of `protoc --decode_raw`, up to the brace that closes this message.
    fn read(lines: &mut std::str::Lines<'_>) -> Self {
        let mut message = Self::default();
        while let Some(line) = lines.next() {
            let line = line.trim();
            if line == "}" {
                break;
            }
            if let Some(number) = line.strip_suffix(" {") {
                let inner = Self::read(lines);
                message.0.entry(number.parse().unwrap()).or_default().push(Field::Message(inner));
            } else if let Some((number, value)) = line.split_once(": ") {
                message.0.entry(number.parse().unwrap()).or_default().push(Field::Value(value.to_owned()));
            }
        }
        message
    }

    fn messages(&self, number: u32) -> impl Iterator<Item = &Self> {
        self.0.get(&number).into_iter().flatten().filter_map(|field| match field {
            Field::Message(message) => Some(message),
            Field::Value(_) => None,
        })
    }

    fn values(&self, number: u32) -> impl Iterator<Item = &str> {
        self.0.get(&number).into_iter().flatten().filter_map(|field| match field {
            Field::Value(value) => Some(value.as_str()),
            Field::Message(_) => None,
        })
    }

    fn value(&self, number: u32) -> Option<&str> {
        self.values(number).next()
    }
}

// Numbers of fields in Perfetto's trace_packet.proto, track_event.proto and track_descriptor.proto.
const PACKET: u32 = 1;
const TIMESTAMP: u32 = 8;
const TRACK_EVENT: u32 = 11;
const TRACK_DESCRIPTOR: u32 = 60;
const TYPE: u32 = 9;
const TRACK_UUID: u32 = 11;
const FLOW_IDS: u32 = 47;
const TERMINATING_FLOW_IDS: u32 = 48;
const ANNOTATIONS: u32 = 4;

fn trace(dir: &str) -> Message {
    let file = format!("{dir}.pftrace");
    let exported = run(&["export", dir, "-o", &file]);
    assert_eq!((exported.code, &*exported.out), (Some(0), ""), "{}", exported.err);
    let decoded = outcome(command("protoc", &["--decode_raw"]).stdin(File::open(file).unwrap()));
    assert_eq!(decoded.code, Some(0), "{}", decoded.err);
    Message::read(&mut decoded.out.lines())
}

/// Asks and answers between a parent and its child, over a path.
const TALKER: &str = r#"
import os, socket, sys
server = socket.socket(socket.AF_UNIX); server.bind(sys.argv[1]); server.listen()
if os.fork() == 0:
    server.close()
    client = socket.socket(socket.AF_UNIX); client.connect(sys.argv[1])
    for n in range(20):
        client.sendall(b"q" * (n + 1))
        answer = b""
        while len(answer) < 10 * (n + 1): answer += client.recv(7)
    client.close()
    os._exit(0)
connection, _ = server.accept()
for n in range(20):
    question = connection.recv(100)
    assert len(question) == n + 1
    connection.sendall(b"a" * (10 * len(question)))
connection.close()
os.wait()
"#;

#[test]
fn messages_are_slices_and_flows_lead_from_end_to_end() {
    let test = "messages_are_slices_and_flows_lead_from_end_to_end";
    if !has("protoc", test) || !has("python3", test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (script, socket) = (folder.path().join("talker.py"), folder.path().join("sock"));
    fs::write(&script, TALKER).unwrap();
    let dir = record(folder.path(), &["python3", script.to_str().unwrap(), socket.to_str().unwrap()]);
    let recorded: Vec<_> = events(&dir).into_iter().filter(|event| event["type"] == "data").collect();
    let trace = trace(&dir);
    let packets: Vec<_> = trace.messages(PACKET).collect();
    let of_type = |number: &'static str| {
        let packets = packets.iter();
        packets.filter(move |p| p.messages(TRACK_EVENT).any(|event| event.value(TYPE) == Some(number))).copied()
    };
    let begins: Vec<_> = of_type("1").collect();
    let messages = recorded.iter().filter(|event| event["part"].as_u64().unwrap_or(0) == 0).count();
    assert!(messages > 80, "{messages}");
    assert_eq!((begins.len(), of_type("2").count()), (messages, messages));
    // Every byte that was sent is received, and every flow that begins has its end.
    let flows = |number: u32| -> Vec<String> {
        let events = begins.iter().flat_map(|packet| packet.messages(TRACK_EVENT));
        events.flat_map(|event| event.values(number)).map(str::to_owned).collect()
    };
    let (begun, mut ended) = (flows(FLOW_IDS), flows(TERMINATING_FLOW_IDS));
    assert_eq!(ended.len(), 40, "one for each send");
    assert!(ended.iter().all(|flow| begun.contains(flow)));
    ended.sort();
    ended.dedup();
    assert_eq!(ended.len(), 40);
    // Answers were received in pieces, which the same flow leads through.
    assert!(begun.len() > 80, "{}", begun.len());
    // Two processes, and below each the connection; slices lie on such tracks and do not overlap.
    let descriptors: Vec<_> = packets.iter().flat_map(|packet| packet.messages(TRACK_DESCRIPTOR)).collect();
    let processes: Vec<_> = descriptors.iter().filter(|d| d.messages(3).next().is_some()).collect();
    assert_eq!(processes.len(), 2, "{descriptors:#?}");
    let path = format!("{}", socket.display());
    let tracks: Vec<_> = descriptors.iter().filter(|d| d.value(2).is_some_and(|name| name.contains(&path))).collect();
    assert!(tracks.len() >= 2 && tracks.iter().all(|t| processes.iter().any(|p| p.value(1) == t.value(5))));
    let mut times: BTreeMap<&str, Vec<(u64, u8)>> = BTreeMap::new();
    for packet in &packets {
        for event in packet.messages(TRACK_EVENT) {
            let (time, kind) = (packet.value(TIMESTAMP).unwrap(), event.value(TYPE).unwrap());
            times
                .entry(event.value(TRACK_UUID).unwrap())
                .or_default()
                .push((time.parse().unwrap(), kind.parse().unwrap()));
        }
    }
    for times in times.values() {
        assert!(times.is_sorted_by_key(|(time, _)| *time), "{times:?}");
        assert!(times.chunks(2).all(|pair| (pair[0].1, pair[1].1) == (1, 2)));
    }
    // protoc takes "preview" for a message, which it could be.
    let sizes: Vec<u64> = begins
        .iter()
        .flat_map(|packet| packet.messages(TRACK_EVENT))
        .flat_map(|event| event.messages(ANNOTATIONS).filter(|a| a.value(10) == Some("\"size\"")))
        .map(|annotation| annotation.value(3).unwrap().parse().unwrap())
        .collect();
    let total: u64 = recorded.iter().map(|event| event["size"].as_u64().unwrap()).sum();
    assert_eq!((sizes.len(), sizes.iter().sum::<u64>()), (messages, total));
}

#[test]
fn what_is_not_whole_is_exported_as_far_as_it_goes() {
    let traffic = Traffic::of(1, "/x")
        .open("c:1", "/tmp/c", "connect", &[Ext::SocketType(1)])
        .data("c:1", "/tmp/c", Out, b"question")
        .data("c:1", "/tmp/c", In, b"answer")
        .close("c:1");
    let recording = Recording::of(&[traffic]);
    let file = format!("{}.pcapng", recording.path);
    let export = || run(&["export", &recording.path, "-o", &file]);
    let holds = |text: &[u8]| fs::read(&file).unwrap().windows(text.len()).any(|bytes| bytes == text);
    let whole = export();
    assert_eq!((whole.code, &*whole.err), (Some(0), ""));
    assert!(holds(b"question") && holds(b"answer"));
    let events = fs::read_to_string(recording.events()).unwrap();
    // Growing, or its server killed.
    let cut = &events[..events.find(r#"{"type":"close""#).unwrap()];
    fs::write(recording.events(), cut).unwrap();
    let growing = export();
    assert!(growing.code == Some(0) && growing.err.contains("has not ended, or was cut off"), "{growing:?}");
    assert!(holds(b"answer"));
    fs::write(recording.events(), &cut[..cut.len() - 30]).unwrap();
    let torn = export();
    assert!(torn.code == Some(0) && torn.err.contains("the last line is cut off"), "{torn:?}");
    assert!(holds(b"question") && !holds(b"answer"));
    fs::write(recording.events(), format!("no event\n{events}")).unwrap();
    assert!(export().err.contains("1 lines are no events"));
    fs::write(recording.events(), &events).unwrap();
    fs::write(Path::new(&recording.path).join("c:1.in.bin"), "ans").unwrap();
    assert_eq!(export().code, Some(0));
    assert!(holds(b"3 of 6 captured bytes are missing: the payload file ends before"));
}

#[test]
fn what_cannot_be_is_said_in_a_line() {
    let recording = Recording::of(&[Traffic::of(1, "/x")]);
    let file = format!("{}.pcapng", recording.path);
    for (args, why) in [
        (&["export", "/no/such/dir", "-o", &file][..], "/no/such/dir: no such directory"),
        (&["export", "/tmp", "-o", &file], "no recording"),
        (&["export", &recording.path, "-o", "x.pcap"], "end it in .pcapng or .pftrace"),
        (&["export", &recording.path, "-o", "-"], "--format pcapng or pftrace"),
        (&["export", &recording.path, "-o", "/no/such/x.pcapng"], "/no/such/x.pcapng: cannot be written"),
        (&["export", &recording.path, "-o", &file, "--decode", "x"], "takes PATH=PROTOCOL"),
        (&["export", &recording.path, "-o", &file, "--path", "["], "not a pattern"),
    ] {
        let outcome = run(args);
        assert_eq!((outcome.code, &*outcome.out, outcome.err.lines().count()), (Some(1), "", 1), "{outcome:?}");
        assert!(outcome.err.contains(why), "{}", outcome.err);
    }
    assert!(!Path::new(&file).exists(), "what was not exported left nothing");
}

#[test]
fn a_reader_that_goes_is_no_error() {
    let mut traffic = Traffic::of(1, "/x").open("c:1", "/c", "connect", &[]);
    for _ in 0..3000 {
        traffic = traffic.data("c:1", "/c", Out, &[b'x'; 1000]);
    }
    let recording = Recording::of(&[traffic]);
    for format in ["pcapng", "pftrace"] {
        let line = format!("{SOCKTRACE} export {} -o - --format {format} | head -c 100", recording.path);
        let status = format!("set -o pipefail; {line} > /dev/null");
        let gone = outcome(&mut command("bash", &["-c", &status]));
        assert_eq!((gone.code, &*gone.err), (Some(0), ""));
    }
}

/// So many bytes may an export take.
const MAX_MEMORY: u64 = 200 << 20;
/// Payload of the recording that is made up, in MiB; SOCKTRACE_TEST_EXPORT_MIB asks for more.
const PAYLOAD_MIB: u64 = 240;
/// Of them, events of this length.
const EVENT_LEN: u64 = 64 << 10;

/// A recording with much payload on a few connections, and with many connections that nobody closes.
fn big(folder: &Path, payload: u64) -> u64 {
    let mut events = BufWriter::new(File::create(folder.join("events.jsonl")).unwrap());
    let mut ns = 1_700_000_000_000_000_000_u64;
    let mut line = |event: serde_json::Value| writeln!(events, "{event}").unwrap();
    let open = |id: &str, ns: u64| {
        serde_json::json!({"type": "open", "ts_ms": ns / 1_000_000, "fd": 3, "path": "/tmp/big",
        "conn_id": id, "how": "connect", "pid": 1, "tid": 1, "ts_ns": ns, "socket_type": "stream"})
    };
    let data = |id: &str, ns: u64, size: u64, offset: u64| {
        serde_json::json!({"type": "data", "ts_ms": ns / 1_000_000,
        "fd": 3, "direction": "out", "path": "/tmp/big", "conn_id": id, "size": size, "pid": 1, "tid": 1, "ts_ns": ns,
        "call": "send", "total": size, "offset": offset})
    };
    line(serde_json::json!({"type": "start", "ts_ms": 1, "fd": -1, "pid": 1, "exe": "/usr/bin/big"}));
    let per_connection = payload / EVENT_LEN / 4;
    for connection in 0..4 {
        line(open(&format!("big:{connection}"), ns));
        // Nothing but zeroes, which take no room on a disk.
        let file = File::create(folder.join(format!("big:{connection}.out.bin"))).unwrap();
        file.set_len(per_connection * EVENT_LEN).unwrap();
    }
    let many = payload / (32 << 10);
    for number in 0..per_connection.max(many) {
        ns += 1000;
        for connection in 0..if number < per_connection { 4 } else { 0 } {
            line(data(&format!("big:{connection}"), ns, EVENT_LEN, number * EVENT_LEN));
        }
        if number < many {
            let id = format!("small:{number}");
            line(open(&id, ns));
            line(data(&id, ns, 0, 0));
        }
    }
    events.flush().unwrap();
    4 * per_connection * EVENT_LEN
}

/// How a process ended, and the most memory that it had, in bytes.
#[expect(clippy::zombie_processes, reason = "wait4(2) waits for it")]
fn peak_memory(args: &[&str]) -> (i32, u64) {
    let child = Command::new(SOCKTRACE).args(args).stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    let pid = child.id().cast_signed();
    // SAFETY: both are ours to be written to, and the child is nobody else's to wait for.
    let waited = unsafe { libc::wait4(pid, &raw mut status, 0, usage.as_mut_ptr()) };
    assert_eq!(waited, pid);
    // SAFETY: zeroed memory is a valid rusage, which wait4 has filled in.
    let kilobytes = unsafe { usage.assume_init() }.ru_maxrss;
    (status, u64::try_from(kilobytes).unwrap() << 10)
}

#[test]
fn memory_does_not_grow_with_the_recording() {
    let mib = std::env::var("SOCKTRACE_TEST_EXPORT_MIB").map_or(PAYLOAD_MIB, |text| text.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_str().unwrap();
    let payload = big(folder.path(), mib << 20);
    for format in ["pcapng", "pftrace"] {
        let (status, memory) = peak_memory(&["export", dir, "-o", "/dev/null", "--format", format]);
        assert_eq!(status, 0);
        println!("{format}: {} MiB for {} MiB of payload", memory >> 20, payload >> 20);
        assert!(memory < MAX_MEMORY, "{format}: {} MiB", memory >> 20);
        // Not for want of payload.
        assert!(payload > MAX_MEMORY);
    }
}
