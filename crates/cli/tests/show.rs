//! `socktrace show`: what the user reads of a recording.

mod harness;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

use gttr::Direction::{In, Out};
use gttr::Ext;
use harness::{Recording, Traffic, outcome, run, socktrace};

const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";

fn redis() -> Traffic {
    let peer = [Ext::Inode(100), Ext::PeerPid(20), Ext::PeerExe(b"/usr/bin/redis-server"), Ext::PeerInode(200)];
    Traffic::of(10, "/usr/bin/redis-cli")
        .open("r:1", "/tmp/r.sock", "connect", &peer)
        .data("r:1", "/tmp/r.sock", Out, PING)
        .data("r:1", "/tmp/r.sock", In, b"+PONG\r\n")
        .close("r:1")
}

fn http() -> Traffic {
    Traffic::of(30, "/usr/bin/curl")
        .open("h:1", "/run/docker.sock", "connect", &[])
        .data("h:1", "/run/docker.sock", Out, b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
        .data("h:1", "/run/docker.sock", In, b"\x1b]0;owned\x07\x00\xff hello")
}

#[test]
fn one_line_a_message_and_a_table() {
    let shown = Recording::of(&[redis()]).show(&[]);
    let expected = "\
03:04:05.002000 redis-cli[10] start /usr/bin/redis-cli (child of 1)
03:04:05.003000 redis-cli[10] open /tmp/r.sock redis-server[20] (connect)
03:04:05.004000 redis-cli[10] → /tmp/r.sock redis-server[20] 14 bytes redis PING
03:04:05.005000 redis-cli[10] ← /tmp/r.sock redis-server[20] 7 bytes redis PONG
03:04:05.006000 redis-cli[10] close /tmp/r.sock (close)

PATH         PROCESS        PEER                         SENT        RECEIVED  DURATION
/tmp/r.sock  redis-cli[10]  redis-server[20]  1 message, 14 B  1 message, 7 B   0.003 s
";
    assert_eq!((shown.code, &*shown.out, &*shown.err), (Some(0), expected, ""));
}

#[test]
fn two_traced_ends_know_each_other() {
    // SO_PEERCRED tells who listened (pid 1, for a socket-activated server); the inodes tell who is there.
    let client = [Ext::Inode(100), Ext::PeerPid(1), Ext::PeerInode(200)];
    let server = [Ext::Inode(200), Ext::PeerPid(10), Ext::PeerInode(100)];
    let recording = Recording::of(&[
        Traffic::of(20, "/usr/bin/server").open("s:1", "/tmp/s", "accept4", &server),
        Traffic::of(10, "/usr/bin/client").open("c:1", "/tmp/s", "connect", &client).data("c:1", "/tmp/s", Out, b"hi"),
    ]);
    let shown = recording.show(&[]).out;
    assert!(shown.contains("client[10] → /tmp/s server[20] 2 bytes \"hi\""), "{shown}");
}

#[test]
fn nothing_drives_the_terminal() {
    for args in [&[][..], &["-A"], &["-x"], &["-X"]] {
        let shown = Recording::of(&[http()]).show(args).out;
        assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{shown:?}");
    }
    let shown = Recording::of(&[http()]).show(&[]).out;
    assert!(shown.contains(r#"← /run/docker.sock 18 bytes "\x1b]0;owned\x07\0\xff hello""#), "{shown}");
    assert!(shown.contains("→ /run/docker.sock 32 bytes HTTP GET /_ping HTTP/1.1\n"), "{shown}");
}

#[test]
fn ascii_where_the_locale_is() {
    let recording = Recording::of(&[redis()]);
    let shown = outcome(socktrace(&["show", &recording.path]).env("LANG", "C")).out;
    assert!(shown.contains("-> /tmp/r.sock") && shown.contains("<- /tmp/r.sock") && shown.is_ascii());
    let shown = outcome(socktrace(&["show", &recording.path]).env("LC_ALL", "C")).out;
    assert!(shown.is_ascii());
}

#[test]
fn text_and_hex() {
    let recording = Recording::of(&[http()]);
    let text = recording.show(&["-A"]).out;
    assert!(text.contains("HTTP/1.1\n    GET /_ping HTTP/1.1\n    Host: x\n    \n"), "{text}");
    let hex = recording.show(&["-x"]).out;
    assert!(hex.contains("    0x0000:  4745 5420 2f5f 7069 6e67 2048 5454 502f  GET /_ping HTTP/\n"), "{hex}");
}

#[test]
fn long_payloads_are_folded() {
    let long: Vec<u8> = b"abcdefgh".repeat(512);
    let traffic = Traffic::of(1, "/x").open("l:1", "/l", "connect", &[]).data("l:1", "/l", Out, &long);
    let recording = Recording::of(&[traffic]);
    let shown = recording.show(&[]).out;
    assert!(shown.contains("4096 bytes \"abcdefgh") && shown.contains("\" … 4016 more bytes\n"), "{shown}");
    let hex = recording.show(&["-x"]).out;
    assert!(hex.contains("0x01f0:") && !hex.contains("0x0200:") && hex.contains("… 3584 more bytes\n"), "{hex}");
    assert!(recording.show(&["-A"]).out.contains("… 3584 more bytes\n"));
    let full = recording.show(&["-X"]).out;
    assert!(full.contains("0x0ff0:") && !full.contains("more bytes"), "{full}");
}

#[test]
fn cut_and_split_messages() {
    let part = |n| [Ext::Total(9000), Ext::Part(n), Ext::Parts(2)];
    let traffic = Traffic::of(1, "/x")
        .open("c:1", "/c", "connect", &[])
        .data_with("c:1", "/c", Out, b"cut", &[Ext::Total(5000)])
        .data_with("c:1", "/c", In, &[b'a'; 5000], &part(0))
        .data_with("c:1", "/c", In, &[b'b'; 4000], &part(1));
    let shown = Recording::of(&[traffic]).show(&[]).out;
    assert!(shown.contains("→ /c 3 of 5000 bytes \"cut\"\n"), "{shown}");
    assert!(shown.contains("← /c 9000 bytes \"aaa") && shown.matches('←').count() == 1, "{shown}");
}

#[test]
fn times() {
    let recording = Recording::of(&[redis()]);
    let relative = recording.show(&["--time", "relative"]).out;
    // The first is the server's, which is of another time.
    assert!(relative.contains("\n0.004000 redis-cli[10] ←"), "{relative}");
    assert!(recording.show(&["--time", "epoch"]).out.contains("\n1704164645.005000 redis-cli[10] ←"));
    let tokyo = outcome(socktrace(&["show", &recording.path]).env("TZ", "JST-9")).out;
    assert!(tokyo.contains("12:04:05.005000"), "{tokyo}");
}

#[test]
fn filters() {
    let recording = Recording::of(&[redis(), http()]);
    let of = |args: &[&str]| recording.show(args).out;
    let docker = of(&["--path", "*docker*"]);
    assert!(docker.contains("/_ping") && !docker.contains("PONG") && !docker.contains("/tmp/r.sock"), "{docker}");
    let not_docker = of(&["--path", "!*docker*"]);
    assert!(not_docker.contains("PONG") && !not_docker.contains("docker"), "{not_docker}");
    let pid = of(&["--pid", "10"]);
    assert!(pid.contains("PONG") && !pid.contains("curl"), "{pid}");
    let sent = of(&["--direction", "out"]);
    assert!(sent.contains('→') && !sent.contains('←'), "{sent}");
    let grep = of(&["--grep", "PO.G"]);
    assert!(grep.contains("PONG") && !grep.contains("PING") && !grep.contains(" open "), "{grep}");
    let bytes = of(&["--grep", r"\xff hel+o$"]);
    assert!(bytes.contains("hello") && bytes.matches("bytes").count() == 1, "{bytes}");
}

#[test]
fn filters_that_leave_nothing_say_so() {
    let shown = Recording::of(&[redis(), http()]).show(&["--path", "/elsewhere/*"]);
    assert_eq!((shown.code, &*shown.out), (Some(0), ""));
    assert!(shown.err.contains("nothing shown: the filters let none of it through, 4 messages"), "{}", shown.err);
}

#[test]
fn json_is_what_was_recorded() {
    let recording = Recording::of(&[redis(), http()]);
    let of =
        |text: &str| -> Vec<serde_json::Value> { text.lines().map(|l| serde_json::from_str(l).unwrap()).collect() };
    let (mut shown, mut recorded) =
        (of(&recording.show(&["--json"]).out), of(&fs::read_to_string(recording.events()).unwrap()));
    assert_eq!(shown.iter().filter(|e| e["type"] == "data").map(|e| &e["payload"]).collect::<Vec<_>>().len(), 4);
    assert!(
        shown.iter().any(|e| e["payload"] == "+PONG\r\n")
            && shown.iter().any(|e| e["payload_base64"] == "G10wO293bmVkBwD/IGhlbGxv"),
        "{shown:?}"
    );
    for event in &mut shown {
        let fields = event.as_object_mut().unwrap();
        fields.remove("payload");
        fields.remove("payload_base64");
    }
    // By time, and the server's own where they were.
    let last = recorded.len() - 1;
    recorded[1..last].sort_by_key(|e| e["ts_ns"].as_u64());
    assert_eq!(shown, recorded);
    let some = recording.show(&["--json", "--path", "/run/*", "--direction", "in"]).out;
    let events: Vec<serde_json::Value> = some.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let data: Vec<_> = events.iter().filter(|event| event["type"] == "data").collect();
    assert_eq!(data.len(), 1);
    assert_eq!(data[0]["conn_id"], "h:1");
}

#[test]
fn colours() {
    let recording = Recording::of(&[redis()]);
    assert!(!recording.show(&[]).out.contains('\x1b'));
    let always = recording.show(&["--color", "always"]).out;
    assert!(always.contains("\x1b[32m→\x1b[0m"), "{always}");
    let asked = outcome(socktrace(&["show", &recording.path, "--color", "always"]).env("NO_COLOR", "1")).out;
    assert!(asked.contains('\x1b'));
    assert!(!recording.show(&["--color", "never"]).out.contains('\x1b'));
}

#[test]
fn losses_are_loud() {
    let shown = Recording::of(&[redis().lost(3, 77)]).show(&[]);
    assert!(shown.out.contains("LOST 3 events, 77 bytes: the server did not read"), "{}", shown.out);
    assert!(shown.err.contains("LOST: 3 events with 77 payload bytes: the server did not read"), "{}", shown.err);
}

#[test]
fn a_cut_recording_is_shown_and_called_one() {
    let recording = Recording::of(&[redis()]);
    let events = fs::read_to_string(recording.events()).unwrap();
    let cut = &events[..events.rfind("host_shutdown").unwrap()];
    fs::write(recording.events(), cut).unwrap();
    let shown = recording.show(&[]);
    assert!(shown.out.contains("PONG") && shown.err.contains("the last line is cut off"), "{shown:?}");
    let whole = &cut[..=cut.rfind('\n').unwrap()];
    fs::write(recording.events(), whole).unwrap();
    assert!(recording.show(&[]).err.contains("has not ended, or was cut off"));
    fs::write(recording.events(), format!("no json\n{whole}")).unwrap();
    assert!(recording.show(&[]).err.contains("1 lines are no events"));
}

#[test]
fn missing_payload_is_said() {
    let recording = Recording::of(&[redis()]);
    let file = std::path::Path::new(&recording.path).join("r:1.in.bin");
    fs::write(&file, "+PO").unwrap();
    let shown = recording.show(&[]).out;
    assert!(shown.contains("7 bytes (the payload file ends before) \"+PO\""), "{shown}");
    fs::remove_file(&file).unwrap();
    assert!(recording.show(&[]).out.contains("7 bytes (the payload file ends before)\n"));
}

#[test]
fn holes_in_payload_files() {
    let traffic = Traffic::of(1, "/x")
        .open("c:1", "/c", "connect", &[])
        .data("c:1", "/c", Out, b"first")
        .data("c:1", "/c", Out, b"GONE")
        .data("c:1", "/c", Out, b"last");
    let recording = Recording::of(&[traffic]);
    fs::write(std::path::Path::new(&recording.path).join("c:1.out.bin"), "firstlast").unwrap();
    let hole =
        r#"{"type":"lost","ts_ms":1,"direction":"out","conn_id":"c:1","offset":5,"bytes":4,"reason":"disk full"}"#;
    let mut events = fs::OpenOptions::new().append(true).open(recording.events()).unwrap();
    writeln!(events, "{hole}").unwrap();
    let shown = recording.show(&[]);
    assert!(shown.out.contains("\"first\"") && shown.out.contains("\"last\""), "{}", shown.out);
    assert!(shown.out.contains("4 bytes (bytes were lost)\n") && !shown.out.contains("GONE"), "{}", shown.out);
    assert!(shown.err.contains("LOST: 4 payload bytes: disk full"), "{}", shown.err);
}

#[test]
fn following_ends_with_the_server() {
    let recording = Recording::of(&[redis()]);
    let events = fs::read_to_string(recording.events()).unwrap();
    let (begin, end) = events.split_at(events.find(r#"{"type":"close""#).unwrap());
    fs::write(recording.events(), begin).unwrap();
    let mut follower = socktrace(&["show", "--follow", &recording.path])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("PONG")));
    // Half a line is none.
    let (half, rest) = end.split_at(20);
    let mut file = fs::OpenOptions::new().append(true).open(recording.events()).unwrap();
    file.write_all(half.as_bytes()).unwrap();
    file.write_all(rest.as_bytes()).unwrap();
    assert!(lines.any(|line| line.unwrap().contains("close /tmp/r.sock")));
    assert!(follower.wait().unwrap().success());
    let mut err = String::new();
    follower.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!(err, "");
}

#[test]
fn a_reader_that_goes_is_no_error() {
    let mut traffic = Traffic::of(1, "/x").open("c:1", "/c", "connect", &[]);
    for _ in 0..20_000 {
        traffic = traffic.data("c:1", "/c", Out, b"line");
    }
    let recording = Recording::of(&[traffic]);
    let mut show = socktrace(&["show", &recording.path]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(show.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.contains("start /x"));
    let mut err = String::new();
    show.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!((show.wait().unwrap().code(), &*err), (Some(0), ""));
}

#[test]
fn what_is_no_recording() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let empty = run(&["show", path]);
    assert_eq!(empty.code, Some(1));
    assert!(empty.err.contains("no recording: it has no events.jsonl"), "{}", empty.err);
    assert!(run(&["show", "/no/such/dir"]).err.contains("/no/such/dir: no such directory"));
    assert!(run(&["show", "/etc/passwd"]).err.contains("not a directory"));
    assert!(run(&["show", "--follow", "/no/such/dir"]).err.contains("no such directory"));
}

#[test]
fn to_a_file() {
    let recording = Recording::of(&[redis()]);
    let file = recording.folder.path().join("lines");
    let shown = recording.show(&["-o", file.to_str().unwrap()]);
    assert_eq!(shown.out, "");
    assert!(fs::read_to_string(file).unwrap().contains("redis PONG"));
    assert!(recording.show(&["-o", "/no/such/folder/file"]).err.contains("/no/such/folder/file: cannot be written"));
}
