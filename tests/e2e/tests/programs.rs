//! Programs that nobody here wrote: what the payload files hold is what a relay between the two has heard.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};
use socktrace_e2e::{
    Connection, Conversation, Direction, Frida, Process, Recording, Relay, Server, SockType, Stage, find_program,
    has_programs, until,
};

/// Bytes of the binary value that goes through.
const LARGE: usize = 1 << 20;

/// Bytes of every value and in no order.
fn binary(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let step = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(step).collect()
}

/// A server under Frida, a relay in front of it, and clients under Frida.
struct Conversations {
    stage: Stage,
    recorder: Server,
    relay: Relay,
    program: Process,
    parameters: Value,
}

impl Conversations {
    /// Starts a server program that listens at the stage's socket `back`.
    fn start(stage: Stage, sock_type: SockType, program: &Path, args: &[&str]) -> Self {
        let recorder = Server::start(&stage, sock_type);
        let parameters = stage.parameters(json!({ "out_sock_type": sock_type.name(), "max_bytes": 64 << 20 }));
        Frida::new().spawn(&stage, "server-program", &parameters, program, args);
        let pid = until("the server program announces itself", || started(&recorder.recording()).first().copied());
        let program = Process::of_pid(pid);
        let back = stage.socket("back");
        until("the server program listens", || back.exists().then_some(()));
        let relay = Relay::start(&stage.socket("front"), back);
        Self { stage, recorder, relay, program, parameters }
    }

    fn front(&self) -> String {
        self.stage.socket("front").display().to_string()
    }

    /// Runs a client to its end; what it printed.
    fn client(&self, name: &str, program: &Path, args: &[&str], input: &[u8]) -> Vec<u8> {
        let before = started(&self.recorder.recording());
        let injected = Frida::new().spawn_with_input(&self.stage, name, &self.parameters, program, args, input);
        let new = |recording: Recording| started(&recording).into_iter().find(|pid| !before.contains(pid));
        let pid = until("the client announces itself", || new(self.recorder.recording()));
        Process::of_pid(pid).wait_for_success();
        fs::read(&injected.output).expect("the client's output")
    }

    /// Ends all, and compares what both sides are recorded to have said with what the relay heard.
    fn end(mut self) -> Vec<Conversation> {
        let heard = self.relay.conversations();
        self.program.end_by(Signal::TERM);
        let recording = self.recorder.stop();
        assert_eq!(recording.of_type("lost").count(), 0);
        let connections: Vec<Connection> = recording.connections().into_values().collect();
        let clients = in_order(&connections, "connect", &self.stage.socket("front"));
        let servers = in_order(&connections, "accept", &self.stage.socket("back"));
        assert_eq!((clients.len(), servers.len()), (heard.len(), heard.len()), "connections");
        for (number, conversation) in heard.iter().enumerate() {
            let (client, server) = (clients[number], servers[number]);
            assert!(client.bytes(Direction::Out) == conversation.request, "{number}: what the client sent");
            assert!(client.bytes(Direction::In) == conversation.response, "{number}: what the client received");
            assert!(server.bytes(Direction::In) == conversation.request, "{number}: what the server received");
            assert!(server.bytes(Direction::Out) == conversation.response, "{number}: what the server sent");
        }
        heard
    }
}

/// The connections at a path that began by a call, or one named like it, in the order of their beginning.
fn in_order<'a>(connections: &'a [Connection], how: &str, path: &Path) -> Vec<&'a Connection> {
    let is = |connection: &&Connection| {
        let open = &connection.opened[0];
        let begun = open.how.as_deref().is_some_and(|begun| begun.starts_with(how));
        begun && open.path.as_deref() == path.to_str()
    };
    let mut found: Vec<&Connection> = connections.iter().filter(is).collect();
    found.sort_by_key(|connection| connection.opened[0].ts_ns);
    found
}

/// Processes that have announced themselves.
fn started(recording: &Recording) -> Vec<u32> {
    recording.of_type("start").filter_map(|start| start.pid).collect()
}

fn program(name: &str) -> PathBuf {
    find_program(name).unwrap_or_else(|| panic!("{name} was here a moment ago"))
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn redis(sock_type: SockType) {
    let stage = Stage::new();
    let (back, dir) = (stage.socket("back").display().to_string(), stage.path("").display().to_string());
    let args = ["--port", "0", "--unixsocket", &back, "--save", "", "--appendonly", "no", "--dir", &dir];
    let redis = Conversations::start(stage, sock_type, &program("redis-server"), &args);
    let (cli, front) = (program("redis-cli"), redis.front());

    let output = redis.client("ping", &cli, &["-s", &front], b"PING\n");
    assert!(output.ends_with(b"PONG\n"), "{}", output.escape_ascii());
    let value = binary(LARGE);
    redis.client("set", &cli, &["-s", &front, "-x", "SET", "value"], &value);
    let output = redis.client("get", &cli, &["-s", &front], b"GET value\n");
    assert!(output.ends_with(&[&value[..], b"\n"].concat()), "redis-cli printed another value");
    let many: Vec<u8> = (0..5000).flat_map(|n| format!("SET key{n} {n}\r\n").into_bytes()).collect();
    let output = redis.client("pipe", &cli, &["-s", &front, "--pipe"], &many);
    assert!(contains(&output, b"errors: 0, replies: 5000"), "{}", output.escape_ascii());

    let heard = redis.end();
    let [ping, set, get, pipe] = &heard[..] else { panic!("{} connections", heard.len()) };
    assert!(contains(&ping.request, b"$4\r\nPING\r\n") && contains(&ping.response, b"+PONG\r\n"));
    assert!(contains(&set.request, &value) && contains(&get.response, &value));
    assert!(pipe.request.starts_with(&many));
}

#[test]
fn redis_by_dgram() {
    if has_programs("redis_by_dgram", &["redis-server", "redis-cli"]) {
        redis(SockType::Dgram);
    }
}

#[test]
fn redis_by_stream() {
    if has_programs("redis_by_stream", &["redis-server", "redis-cli"]) {
        redis(SockType::Stream);
    }
}

/// The interpreter itself: `python3` may be a script that starts it.
fn python() -> PathBuf {
    let output = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output();
    let output = output.unwrap_or_else(|error| panic!("python3: {error}"));
    String::from_utf8(output.stdout).expect("a UTF-8 path").trim().into()
}

fn http(sock_type: SockType) {
    let stage = Stage::new();
    let content = binary(LARGE);
    let file = stage.path("content");
    fs::write(&file, &content).expect("a file in the test's directory");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/http_server.py");
    let args = [script, &stage.socket("back").display().to_string(), &file.display().to_string()].map(String::from);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let http = Conversations::start(stage, sock_type, &python(), &args);
    let (curl, front) = (program("curl"), http.front());
    // curl's configuration comes by its input, for it must wait until Frida has left it.
    let args = ["--silent", "--show-error", "--unix-socket", &front, "--config", "-"];
    let (got, given) = (http.stage.path("got"), http.stage.path("given-back"));
    let config = format!("url = http://localhost/a\noutput = {}\n", got.display());
    http.client("get", &curl, &args, config.as_bytes());
    let config = format!(
        "url = http://localhost/b\noutput = {}\ndata-binary = @{}\nheader = \"Expect:\"\n",
        given.display(),
        file.display()
    );
    http.client("post", &curl, &args, config.as_bytes());
    for file in [got, given] {
        assert!(fs::read(&file).expect("what curl has received") == content, "{}: as it was sent", file.display());
    }

    let heard = http.end();
    let [get, post] = &heard[..] else { panic!("{} connections", heard.len()) };
    assert!(get.request.starts_with(b"GET /a HTTP/1.1\r\n") && get.response.ends_with(&content));
    assert!(post.request.ends_with(&content) && post.response.ends_with(&content));
}

#[test]
fn http_by_dgram() {
    if has_programs("http_by_dgram", &["curl", "python3"]) {
        http(SockType::Dgram);
    }
}

#[test]
fn http_by_stream() {
    if has_programs("http_by_stream", &["curl", "python3"]) {
        http(SockType::Stream);
    }
}
