//! Recordings of real programs, exported and read by tshark.

mod harness;

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use harness::wireshark::{Capture, events, is_there, record, recorded};
use harness::{has, until};
use rustix::process::{Pid, Signal, kill_process};

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
        // timeout(1) and runuser(1) hand this on, which they could not do with SIGKILL.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
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
    let plain = Capture::of(&dir, &[]);
    assert!(plain.err.contains("--dbus") && plain.fields("dbus", &["frame.number"]).is_empty(), "{}", plain.err);
    let capture = Capture::of(&dir, &["--dbus"]);
    assert!(!capture.err.contains("--dbus"), "{}", capture.err);
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
