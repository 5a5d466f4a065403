//! A running program: what is open when the agent arrives is found, and all that follows is on record.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use rustix::process::Signal;
use serde_json::json;
use socktrace_e2e::{
    Account, Direction, Frida, Process, Server, SockType, Stage, Workload, assert_same, connections_by_inode, until,
};

/// What a recording from now on must say of the sockets that are open now.
fn as_found(before: &Account) -> Account {
    let mut found = Account::default();
    let is_closed = |inode: u64| before.closed.iter().any(|closed| closed.inode == inode);
    for opened in before.opened.iter().filter(|opened| !is_closed(opened.inode)) {
        let mut opened = opened.clone();
        // The accepting end has the path as its own name, the connecting one as its peer's.
        opened.how = if opened.how == "connect" { "preexisting:getpeername" } else { "preexisting:getsockname" }.into();
        found.opened.push(opened);
    }
    found
}

fn attach(sock_type: SockType) {
    let stage = Stage::new();
    let mut steps = Workload::prepare_steps(&stage);
    let workload = Workload::start(&stage, &["steps"]);
    steps.step("open 0 a");
    steps.step("send 0 3 100");
    steps.step("open 1 b");
    steps.step("open 2 closed");
    steps.step("send 2 1 10");
    steps.step("close 2");
    steps.step("listen waiting");
    let before = workload.account();

    let server = Server::start(&stage, sock_type);
    let parameters = stage.parameters(json!({ "out_sock_type": sock_type.name() }));
    Frida::new().attach(&stage, "frida", &parameters, workload.process.pid());
    server.wait_until_ready(workload.process.pid());
    steps.step("send 0 20 300");
    steps.step("answer 0");
    steps.step("send 1 2 9000");
    steps.step("open 3 new");
    steps.step("send 3 4 1");
    for number in [0, 1, 3] {
        steps.step(&format!("close {number}"));
    }
    drop(steps);

    let account = workload.finish();
    let mut expected = account.since(&before);
    let mut found = as_found(&before);
    found.opened.append(&mut expected.opened);
    expected.opened = found.opened;
    let mut waiting = before.listening.last().expect("the last step before").clone();
    waiting.how = "preexisting:getsockname".into();
    expected.listening.push(waiting);
    assert_same(&expected, &server.stop());
}

#[test]
fn attach_by_dgram() {
    attach(SockType::Dgram);
}

#[test]
fn attach_by_stream() {
    attach(SockType::Stream);
}

/// `ready` says how many connections and listeners were found.
#[test]
fn ready_counts_what_was_found() {
    let stage = Stage::new();
    let mut steps = Workload::prepare_steps(&stage);
    let workload = Workload::start(&stage, &["steps"]);
    for step in ["open 0 a", "open 1 b", "listen c"] {
        steps.step(step);
    }
    let server = Server::start(&stage, SockType::Dgram);
    Frida::new().attach(&stage, "frida", &stage.parameters(json!({})), workload.process.pid());
    server.wait_until_ready(workload.process.pid());
    drop(steps);
    workload.finish();
    let recording = server.stop();
    let ready: Vec<_> = recording.of_type("ready").filter_map(|ready| ready.raw.as_deref()).collect();
    // Which functions could not be hooked, of those that there are under Frida, comes behind it.
    let counted: Vec<_> = ready.iter().map(|raw| raw.split(";unhooked=").next().unwrap()).collect();
    assert_eq!(counted, ["tracked=4;listen=1"]);
}

/// Datagram sockets that were there before: their messages are on record, boundaries and all.
#[test]
fn attach_to_datagram_sockets() {
    let stage = Stage::new();
    let mut steps = Workload::prepare_steps(&stage);
    let workload = Workload::start(&stage, &["steps"]);
    steps.step("datagram 0 d");
    steps.step("send 0 2 50");
    let before = workload.account();
    let server = Server::start(&stage, SockType::Dgram);
    Frida::new().attach(&stage, "frida", &stage.parameters(json!({})), workload.process.pid());
    server.wait_until_ready(workload.process.pid());
    steps.step("send 0 5 60");
    drop(steps);
    let mut expected = workload.finish().since(&before);
    expected.opened = as_found(&before).opened;
    let mut recording = server.stop();
    // Whether a bound socket without a peer is announced as such is left open here.
    recording.events.retain(|event| event.kind != "listen");
    for event in &mut recording.events {
        event.seq = None;
    }
    assert_same(&expected, &recording);
}

/// A thread that waits in a call while the call's code is changed, and is then interrupted by a signal, waits on.
fn blocked(case: &str, is_traced: bool) {
    let stage = Stage::new();
    let workload = Workload::start(&stage, &[case]);
    let pid = workload.process.pid();
    let connect = || UnixStream::connect(stage.socket("blocked")).ok();
    let first = (case != "blocked_accept").then(|| until("the workload listens", connect));
    until("the workload waits", || {
        let waiting = !workload.account().notes("waiting").is_empty();
        (waiting && workload.process.is_asleep()).then_some(())
    });
    let server = is_traced.then(|| Server::start(&stage, SockType::Dgram));
    if let Some(server) = &server {
        Frida::new().attach(&stage, "frida", &stage.parameters(json!({})), pid);
        server.wait_until_ready(pid);
    }
    for signal in [Signal::USR1, Signal::STOP, Signal::CONT, Signal::USR1] {
        workload.process.signal(signal);
    }
    let mut stream = first.or_else(connect).expect("the workload listens");
    stream.write_all(b"12345").expect("the workload reads, or never did");
    // Until it closes: what it writes must find room.
    let mut rest = Vec::new();
    stream
        .read_to_end(&mut rest)
        .or_else(|error| match error.kind() {
            // It has not read what was written to it.
            std::io::ErrorKind::ConnectionReset => Ok(0),
            _ => Err(error),
        })
        .expect("the connection ends with the workload");
    workload.finish();
    if let Some(server) = server {
        server.stop();
    }
}

macro_rules! blocked_tests {
    ($($name:ident)+) => {
        $(#[test]
        fn $name() {
            blocked(stringify!($name), true);
        })+

        /// The cases themselves: were one wrong about Linux, it would be so here.
        #[test]
        fn blocked_untraced() {
            $(blocked(stringify!($name), false);)+
        }
    };
}

blocked_tests! {
    blocked_accept blocked_read blocked_recv blocked_readv blocked_recvmsg blocked_write blocked_sendmsg
}

/// A second script in the same process changes nothing.
#[test]
fn a_second_init_changes_nothing() {
    let stage = Stage::new();
    let mut steps = Workload::prepare_steps(&stage);
    let workload = Workload::start(&stage, &["steps"]);
    let pid = workload.process.pid();
    let server = Server::start(&stage, SockType::Dgram);
    let parameters = stage.parameters(json!({}));
    Frida::new().attach(&stage, "first", &parameters, pid);
    server.wait_until_ready(pid);
    steps.step("open 0 a");
    steps.step("send 0 3 100");
    Frida::new().attach(&stage, "second", &parameters, pid);
    steps.step("send 0 3 100");
    steps.step("close 0");
    drop(steps);
    let account = workload.finish();
    let recording = server.stop();
    assert_same(&account, &recording);
    for kind in ["init", "start", "ready"] {
        assert_eq!(recording.of_type(kind).count(), 1, "{kind} events");
    }
}

/// Waits in eight threads for bytes, while the probe is stopped and started anew and hundreds of sockets come and go: whoever
/// has the bytes in the end, they are of the connection that they moved on.
const WAITS: &str = r#"
import os, socket, sys, threading
def step():
    if not sys.stdin.readline(): sys.exit(1)
step()
waiting = [socket.socketpair() for _ in range(8)]
threads = [threading.Thread(target=a.recv, args=(64,)) for a, _ in waiting]
for thread in threads: thread.start()
print(" ".join(str(os.fstat(s.fileno()).st_ino) for pair in waiting for s in pair), flush=True)
step()
for _ in range(1500):
    for s in socket.socketpair(): s.close()
others = [socket.socketpair() for _ in range(60)]
for a, b in others: a.send(b"other"); b.recv(64)
for _, b in waiting: b.send(b"BYTES-OF-A")
for thread in threads: thread.join()
step()
"#;

#[test]
fn bytes_stay_with_their_connection_when_the_probe_is_started_anew() {
    for sock_type in [SockType::Shm, SockType::Stream] {
        let stage = Stage::new();
        let output = stage.path("inodes");
        let (from, mut input) = std::io::pipe().expect("a pipe");
        let mut python = std::process::Command::new("python3");
        let mut process = Process::start_command(python.args(["-c", WAITS]), from.into(), &output);
        let server = Server::start(&stage, sock_type);
        let parameters = stage.parameters(json!({ "out_sock_type": sock_type.name(), "max_fds": 256 }));
        Frida::new().attach(&stage, "first", &parameters, process.pid());
        server.wait_until_ready(process.pid());
        input.write_all(b"\n").expect("it reads");
        let inodes: Vec<u64> = until("the program waits", || {
            let text = std::fs::read_to_string(&output).ok().filter(|text| text.ends_with('\n'))?;
            Some(text.split_whitespace().map(|inode| inode.parse().expect("a number")).collect())
        });
        until("its threads sleep", || process.is_asleep().then_some(()));
        Frida::new().attach(&stage, "stop", &json!({ "stop": true }), process.pid());
        Frida::new().attach(&stage, "second", &parameters, process.pid());
        input.write_all(b"\n\n").expect("it reads");
        drop(input);
        process.wait_for_success();
        let recording = server.stop();
        let mut sent = 0;
        for (inode, connections) in connections_by_inode(&recording) {
            for direction in [Direction::In, Direction::Out] {
                let has = |bytes: &[u8]| bytes.windows(10).any(|window| window == b"BYTES-OF-A");
                let with = connections.iter().filter(|(_, connection)| has(connection.bytes(direction))).count();
                assert!(with == 0 || inodes.contains(&inode), "bytes of another connection are on that of {inode}");
                sent += if direction == Direction::Out { with } else { 0 };
            }
        }
        assert_eq!(sent, 8, "what was sent after the second start");
    }
}
