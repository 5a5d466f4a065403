//! Recordings made up, of what real programs seldom do, exported and read by tshark.

mod harness;

use std::fs;

use gttr::Direction::{In, Out};
use gttr::Ext;
use harness::wireshark::{Capture, is_there};
use harness::{Recording, Traffic};

#[test]
fn what_was_lost_is_a_gap() {
    if !is_there("what_was_lost_is_a_gap") {
        return;
    }
    let at = |offset| [Ext::Offset(offset)];
    let traffic = Traffic::of(1, "/x")
        .open("c:1", "/c", "connect", &[])
        .data_with("c:1", "/c", Out, b"first", &at(0))
        .lost(1, 100)
        .data_with("c:1", "/c", Out, b"last", &at(105))
        .data_with("c:1", "/c", In, b"cut", &[Ext::Total(5000), Ext::Offset(0)])
        .data_with("c:1", "/c", In, b"end", &at(5000))
        .close("c:1");
    let recording = Recording::of(&[traffic]);
    let capture = Capture::of(&recording.path, &[]);
    capture.is_sound();
    assert!(capture.err.contains("LOST: 1 events with 100 payload bytes"), "{}", capture.err);
    let gaps = capture.fields("tcp.analysis.lost_segment", &["tcp.seq", "tcp.payload"]);
    assert_eq!(gaps, ["106\t6c617374", "5001\t656e64"]);
    let comment = capture.fields("tcp.payload == 63:75:74", &["frame.comment"]);
    assert!(comment[0].ends_with("5000 bytes, 3 of 5000 bytes captured"), "{comment:?}");
    let follow = capture.tshark(&["-q", "-z", "follow,tcp,ascii,0"]).join("\n");
    assert!(follow.contains("[100 bytes missing in capture file]"), "{follow}");
    assert!(follow.contains("[4997 bytes missing in capture file]"), "{follow}");
    let shown = capture.tshark(&[]).join("\n");
    assert_eq!(shown.matches("[TCP Previous segment not captured]").count(), 2, "{shown}");
}

#[test]
fn the_end_with_fewer_gaps_is_shown() {
    if !is_there("the_end_with_fewer_gaps_is_shown") {
        return;
    }
    let client = Traffic::of(1, "/client")
        .open("c:1", "/c", "connect", &[Ext::Inode(1), Ext::PeerInode(2), Ext::SocketType(1)])
        .data_with("c:1", "/c", Out, b"one", &[Ext::Offset(0)])
        .data_with("c:1", "/c", Out, b"three", &[Ext::Offset(6)])
        .data_with("c:1", "/c", In, b"answer", &[Ext::Offset(0)])
        .close("c:1");
    let server = Traffic::of(2, "/server")
        .open("s:1", "/c", "accept", &[Ext::Inode(2), Ext::PeerInode(1), Ext::SocketType(1)])
        .data_with("s:1", "/c", In, b"onetwothree", &[Ext::Offset(0)])
        .data_with("s:1", "/c", Out, b"answ", &[Ext::Offset(0)])
        .close("s:1");
    let recording = Recording::of(&[client, server]);
    // The server adds this when it receives, which the recording here did not.
    let events = fs::read_to_string(recording.events()).unwrap();
    let joined = events.replace(r#""peer_inode":1}"#, r#""peer_inode":1,"peer_conn_id":"c:1"}"#);
    assert_ne!(events, joined);
    fs::write(recording.events(), joined).unwrap();
    let capture = Capture::of(&recording.path, &[]);
    capture.is_sound();
    assert_eq!(capture.talks(), [(b"onetwothree".to_vec(), b"answer".to_vec())]);
    capture.has_no_gaps();
    assert_eq!(capture.tshark(&["-Y", "tcp.flags.fin == 1"]).len(), 2);
}

#[test]
fn datagrams_are_udp() {
    if !is_there("datagrams_are_udp") {
        return;
    }
    let dgram = [Ext::SocketType(2)];
    let big = vec![7; 100_000];
    let message = b"<13>Jan 12 03:04:05 host program: hello";
    let traffic = Traffic::of(1, "/usr/bin/logger")
        .open("l:1", "/dev/log", "connect", &dgram)
        .data("l:1", "/dev/log", Out, message)
        .open("d:1", "@name", "connect", &dgram)
        .data("d:1", "@name", Out, b"")
        .data("d:1", "@name", Out, &big)
        .data_with("d:1", "@name", In, b"cut", &[Ext::Total(1000)])
        .close("d:1");
    let recording = Recording::of(&[traffic]);
    let capture = Capture::of(&recording.path, &["--decode", "/dev/log=syslog"]);
    capture.is_sound();
    let syslog = capture.fields("syslog", &["syslog.msg"]);
    assert!(syslog.len() == 1 && syslog[0].contains("program: hello"), "{syslog:?}");
    let lengths = capture.fields("udp && !syslog", &["udp.length", "frame.cap_len"]);
    assert_eq!(lengths, ["8\t28", "65515\t65535", "34501\t34521", "1008\t31"]);
    assert_eq!(capture.tshark(&["-q", "-z", "follow,udp,raw,0"])[6], hex(message));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn passed_descriptors_are_in_the_comment() {
    if !is_there("passed_descriptors_are_in_the_comment") {
        return;
    }
    let fds = [
        Ext::PassedFd(gttr::PassedFd { fd: 7, what: b"file:/etc/passwd" }),
        Ext::PassedFd(gttr::PassedFd { fd: 9, what: b"" }),
    ];
    let traffic = Traffic::of(1, "/x").open("c:1", "/c", "connect", &[]).data_with("c:1", "/c", Out, b"here", &fds);
    let recording = Recording::of(&[traffic]);
    let comments = Capture::of(&recording.path, &[]).fields("tcp.len == 4", &["frame.comment"]);
    assert!(comments[0].contains("passed fd 7 = file:/etc/passwd, passed fd 9"), "{comments:?}");
}

#[test]
fn filters_and_protocols() {
    if !is_there("filters_and_protocols") {
        return;
    }
    let one = |pid, id: &'static str, path: &'static str| {
        Traffic::of(pid, "/x").open(id, path, "connect", &[]).data(id, path, Out, b"POST-IT note").close(id)
    };
    let recording = Recording::of(&[one(1, "a:1", "/tmp/a"), one(2, "b:1", "/tmp/b")]);
    let ports = |args: &[&str]| {
        let mut ports = Capture::of(&recording.path, args).fields("tcp.len > 0", &["tcp.dstport"]);
        ports.sort();
        ports
    };
    assert_eq!(ports(&[]), ["60100", "60100"]);
    assert_eq!(ports(&["--decode", "/tmp/a=mysql", "--decode", "*/b=8080"]), ["3306", "8080"]);
    assert_eq!(ports(&["--path", "/tmp/a"]), ["60100"]);
    assert_eq!(ports(&["--pid", "2", "--decode", "*=http"]), ["80"]);
}

#[test]
fn a_connection_that_was_open_before_has_no_beginning() {
    if !is_there("a_connection_that_was_open_before_has_no_beginning") {
        return;
    }
    let traffic = Traffic::of(1, "/x")
        .open("c:1", "/tmp/redis.sock", "preexisting:getpeername", &[])
        .data("c:1", "/tmp/redis.sock", Out, b"PING\r\n")
        .data("c:1", "/tmp/redis.sock", In, b"+PONG\r\n");
    let recording = Recording::of(&[traffic]);
    let capture = Capture::of(&recording.path, &[]);
    capture.is_sound();
    assert!(capture.tshark(&["-Y", "tcp.flags.syn == 1"]).is_empty());
    assert_eq!(capture.fields("resp", &["tcp.dstport"]), ["6379", "61000"]);
}
