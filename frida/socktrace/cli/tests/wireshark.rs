//! Recordings of real programs, exported and read by tshark.

mod harness;

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use harness::wireshark::{Capture, events, is_there, record, recorded};
use harness::{Recording, Traffic, has, until};

/// A server that goes when the test does.
struct Server(Child);

impl Server {
    /// Starts a program, and waits until its socket takes connections.
    fn start(command: &mut Command, socket: &Path) -> Self {
        let server = Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        until("the server listens", || UnixStream::connect(socket).is_ok());
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn limited(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--foreground", "-s", "KILL", harness::LIMIT]).arg(program);
    command
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn redis(socket: &Path) -> Server {
    let mut command = limited("redis-server");
    command.args(["--port", "0", "--save", "", "--unixsocket", text(socket)]).current_dir(socket.parent().unwrap());
    Server::start(&mut command, socket)
}

#[test]
fn redis_commands() {
    if !is_there("redis_commands") || !has("redis-server", "redis_commands") || !has("redis-cli", "redis_commands") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("redis.sock");
    let _server = redis(&socket);
    // More than fits into a segment, both ways.
    let big = folder.path().join("big");
    fs::write(&big, (0..200_000_u32).map(|n| (n % 251) as u8).collect::<Vec<_>>()).unwrap();
    let script = format!(
        "redis-cli -s {0} set greeting hello; redis-cli -s {0} -x set big < {1}; redis-cli -s {0} get big > /dev/null",
        text(&socket),
        text(&big)
    );
    let dir = record(folder.path(), &["sh", "-c", &script]);
    let capture = Capture::of(&dir, &[]);
    assert_eq!(capture.err, "");
    capture.is_sound();
    capture.is_what_was_recorded(&dir);
    let commands = capture.fields("resp && tcp.dstport == 6379", &["_ws.col.Info"]).join("\n");
    assert!(commands.contains("Request: set greeting hello") && commands.contains("get big"), "{commands:.200}");
    assert_eq!(capture.fields("tcp.flags.syn == 1 && tcp.flags.ack == 0", &["tcp.dstport"]), ["6379"; 3]);
    // Names instead of addresses, and who said it.
    let names = capture.tshark(&["-N", "n", "-Y", "tcp.flags.syn == 1 && tcp.flags.ack == 0"]).join("\n");
    assert!(names.contains("redis-cli[") && names.contains(&format!("]:{}", text(&socket))), "{names}");
    let comments = capture.fields("resp && tcp.dstport == 6379", &["frame.comment"]).join("\n");
    assert!(
        comments.contains("redis-cli[") && comments.contains("(fd 3)") && comments.contains(" bytes"),
        "{comments}"
    );
}

/// Chunked bodies in many segments, from a server in Python.
const HTTP_SERVER: &str = r#"
import socketserver, sys, http.server, time

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        body = bytes(n * 7 % 253 for n in range(300_000))
        for at in range(0, len(body), 70_001):
            chunk = body[at:at + 70_001]
            self.wfile.write(b"%x\r\n" % len(chunk) + chunk + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")
    def do_POST(self):
        length = int(self.headers["Content-Length"])
        self.rfile.read(length)
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def address_string(self): return "client"
    def log_message(self, *args): pass

class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    def get_request(self):
        request, _ = super().get_request()
        return request, ("client", 0)

Server(sys.argv[1], Handler).serve_forever()
"#;

#[test]
fn http_with_chunked_bodies() {
    let test = "http_with_chunked_bodies";
    if !is_there(test) || !has("python3", test) || !has("curl", test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (socket, script) = (folder.path().join("web.sock"), folder.path().join("server.py"));
    fs::write(&script, HTTP_SERVER).unwrap();
    let _server = Server::start(limited("python3").arg(&script).arg(&socket), &socket);
    let body = folder.path().join("body");
    let post = folder.path().join("post");
    fs::write(&post, vec![b'p'; 150_000]).unwrap();
    let data = format!("@{}", text(&post));
    let command = ["curl", "-s", "--unix-socket", text(&socket), "-o", text(&body), "http://docker/v1/images"];
    let rest = ["--next", "-s", "--unix-socket", text(&socket), "--data-binary", &data, "http://docker/v1/build"];
    let dir = record(folder.path(), &[&command[..], &rest[..]].concat());
    let capture = Capture::of(&dir, &[]);
    capture.is_sound();
    capture.is_what_was_recorded(&dir);
    // Known by its first bytes: the path says nothing.
    assert_eq!(capture.fields("http.request", &["http.request.uri"]), ["/v1/images", "/v1/build"]);
    assert_eq!(capture.fields("http.response", &["http.response.code"]), ["200", "201"]);
    assert!(capture.fields("http.response.code == 200", &["tcp.segment.count"])[0].parse::<u32>().unwrap() > 2);
    let objects = folder.path().join("objects");
    let export = format!("http,{}", text(&objects));
    capture.tshark(&["-q", "--export-objects", &export]);
    let found: Vec<Vec<u8>> = fs::read_dir(&objects).unwrap().map(|e| fs::read(e.unwrap().path()).unwrap()).collect();
    let expected = fs::read(&body).unwrap();
    assert_eq!(expected.len(), 300_000);
    assert!(found.contains(&expected), "{:?}", found.iter().map(Vec::len).collect::<Vec<_>>());
}

/// A server and its client, which speak HTTP/2 at once (RFC 9113, "Prior Knowledge").
const HTTP2: &str = r#"
const http2 = require('http2'), net = require('net'), path = process.argv[2];
const server = http2.createServer();
server.on('stream', stream => { stream.respond({':status': 200}); stream.end('x'.repeat(100000)); });
server.listen(path, () => {
  const client = http2.connect('http://localhost', {createConnection: () => net.connect(path)});
  const request = client.request({':path': '/v1/containers'});
  request.resume();
  request.on('end', () => { client.close(); server.close(); });
  request.end();
});
"#;

#[test]
fn http2_requests() {
    let test = "http2_requests";
    if !is_there(test) || !has("node", test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (socket, script) = (folder.path().join("h2.sock"), folder.path().join("h2.js"));
    fs::write(&script, HTTP2).unwrap();
    let dir = record(folder.path(), &["node", text(&script), text(&socket)]);
    let capture = Capture::of(&dir, &[]);
    capture.is_sound();
    capture.is_what_was_recorded(&dir);
    assert_eq!(capture.fields("http2.headers.path", &["http2.headers.path"]), ["/v1/containers"]);
}

/// Where Debian and others keep what a server's administrator runs.
fn postgres_program(name: &str) -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<_> = versions.map(|v| v.path().join("bin").join(name)).filter(|path| path.exists()).collect();
    found.sort();
    found.pop().or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.exists())
    })
}

/// A command as somebody who is not root, whom PostgreSQL refuses.
fn as_postgres(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return limited(program);
    }
    let mut command = limited("runuser");
    command.args(["-u", "postgres", "--"]).arg(program);
    command
}

#[test]
fn postgresql_queries() {
    let test = "postgresql_queries";
    let (Some(initdb), Some(postgres)) = (postgres_program("initdb"), postgres_program("postgres")) else {
        return harness::skipped(test, "PostgreSQL is not installed");
    };
    if !is_there(test) || !has("psql", test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (data, sockets) = (folder.path().join("data"), folder.path().join("run"));
    for path in [&data, &sockets] {
        fs::create_dir(path).unwrap();
    }
    if rustix::process::geteuid().is_root() {
        assert!(Command::new("chmod").arg("755").arg(folder.path()).status().unwrap().success());
        assert!(Command::new("chown").arg("postgres").args([&data, &sockets]).status().unwrap().success());
    }
    let mut init = as_postgres(&initdb);
    init.args(["-A", "trust", "-U", "postgres", "--no-sync", "-D", text(&data)]).current_dir("/");
    assert!(init.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    let mut serve = as_postgres(&postgres);
    let settings = format!("unix_socket_directories={}", text(&sockets));
    serve.args(["-D", text(&data), "-c", "listen_addresses=", "-c", &settings, "-F"]).current_dir("/");
    let server = Server::start(&mut serve, &sockets.join(".s.PGSQL.5432"));
    let pid = fs::read_to_string(data.join("postmaster.pid")).unwrap().lines().next().unwrap().to_owned();
    let ready = || {
        let args = ["-h", text(&sockets), "-U", "postgres", "-c", "select 1"];
        Command::new("psql").args(args).output().unwrap().status.success()
    };
    until("the database is ready", ready);
    let query = "select sum(n) as total from generate_series(1, 1000) n";
    let psql = ["psql", "-X", "-h", text(&sockets), "-U", "postgres", "-c", query, "-c", "select repeat('x', 100000)"];
    let dir = record(folder.path(), &psql);
    // A fast shutdown (postgres(1)).
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    drop(server);
    let capture = Capture::of(&dir, &[]);
    capture.is_sound();
    capture.is_what_was_recorded(&dir);
    assert_eq!(capture.fields("pgsql.query", &["pgsql.query"])[0], query);
    let rows = capture.fields("pgsql.val.data", &["pgsql.val.data"]).join("\n");
    assert!(rows.contains("353030353030"), "500500: {rows}");
}

#[test]
fn x11_requests() {
    let test = "x11_requests";
    if !is_there(test) || !has("Xvfb", test) || !has("xdpyinfo", test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let number = folder.path().join("number");
    let script = format!("exec Xvfb -displayfd 3 -nolisten tcp -screen 0 64x64x24 3> {}", text(&number));
    let mut command = limited("sh");
    command.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _server = Server(command.spawn().unwrap());
    until("the display is there", || fs::read_to_string(&number).is_ok_and(|text| text.ends_with('\n')));
    let display = format!("DISPLAY=:{}", fs::read_to_string(&number).unwrap().trim());
    let dir = record(folder.path(), &["env", &display, "xdpyinfo"]);
    let capture = Capture::of(&dir, &[]);
    capture.is_sound();
    capture.is_what_was_recorded(&dir);
    let names = capture.fields("x11.opcode == 98", &["x11.name"]);
    assert!(names.contains(&"BIG-REQUESTS".to_owned()), "{names:?}");
    assert!(!capture.fields("x11.reply", &["x11.reply"]).is_empty());
}

#[test]
fn d_bus_messages() {
    let test = "d_bus_messages";
    if !is_there(test) || !has("dbus-daemon", test) || !has("dbus-send", test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("bus");
    let address = format!("unix:path={}", text(&socket));
    let mut command = limited("dbus-daemon");
    command.args(["--session", "--nofork", "--nopidfile", "--nosyslog", &format!("--address={address}")]);
    let _server = Server::start(&mut command, &socket);
    let call =
        ["--print-reply", "--dest=org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus.ListNames"];
    let variable = format!("DBUS_SESSION_BUS_ADDRESS={address}");
    let dir = record(folder.path(), &[&["env", &variable, "dbus-send", "--session"][..], &call[..]].concat());
    let capture = Capture::of(&dir, &[]);
    capture.is_sound();
    capture.is_what_was_recorded(&dir);
    let calls = capture.fields("dbus.message_type == 1", &["dbus.member", "dbus.path", "frame.interface_name"]);
    assert_eq!(calls, ["Hello\t/org/freedesktop/DBus\tD-Bus", "ListNames\t/org/freedesktop/DBus\tD-Bus"]);
    assert!(
        capture
            .fields("dbus.message_type == 2", &["frame.comment"])
            .iter()
            .all(|comment| comment.contains("dbus-send["))
    );
}

/// Both ends in one recording: a child asks its parent, on a path and on a pair, and halves of the connection close.
const BOTH_ENDS: &str = r#"
import os, socket, sys
path = sys.argv[1]
server = socket.socket(socket.AF_UNIX); server.bind(path); server.listen()
a, b = socket.socketpair()
if os.fork() == 0:
    server.close(); a.close()
    client = socket.socket(socket.AF_UNIX); client.connect(path)
    client.sendall(b"question " * 20000)
    client.shutdown(socket.SHUT_WR)
    answer = b""
    while data := client.recv(70000): answer += data
    b.sendall(answer); b.close(); client.close()
    os._exit(0)
b.close()
connection, _ = server.accept()
while connection.recv(33333): pass
connection.sendall(b"answer " * 30000); connection.close()
total = 0
while data := a.recv(50000): total += len(data)
a.close()
os.wait()
assert total == 210000, total
"#;

#[test]
fn both_ends_are_one_conversation() {
    let test = "both_ends_are_one_conversation";
    if !is_there(test) || !has("python3", test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (socket, script) = (folder.path().join("sock"), folder.path().join("both.py"));
    fs::write(&script, BOTH_ENDS).unwrap();
    let dir = record(folder.path(), &["/usr/bin/env", "python3", text(&script), text(&socket)]);
    let joined = events(&dir).iter().filter(|event| event["peer_conn_id"].is_string()).count();
    assert!(joined >= 1, "both ends are traced");
    let capture = Capture::of(&dir, &[]);
    capture.is_sound();
    let expected = (b"question ".repeat(20000), b"answer ".repeat(30000));
    let talks = capture.talks();
    assert_eq!(talks.iter().filter(|talk| **talk == expected).count(), 1);
    assert_eq!(talks.len(), recorded(&dir).len());
    let filter = format!("tcp.flags.fin == 1 && ip.host contains \"{}\"", text(&socket));
    let ends = capture.tshark(&["-N", "n", "-Y", &filter]);
    assert_eq!(ends.len(), 2, "{ends:?}");
    capture.is_what_was_recorded(&dir);
}

mod made {
    //! Recordings made up, of what real programs seldom do.

    use super::*;
    use gttr::Direction::{In, Out};
    use gttr::Ext;

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
}
