//! Sockets that a service is given when it is executed, as systemd does it (sd_listen_fds(3)): they have their paths.

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use serde_json::json;
use socktrace_e2e::{Account, Process, Server, SockType, Stage, Workload, assert_same, preload_files};

/// Gives a program its input and output as descriptors 3 and 4.
const ACTIVATE: &str = r#"LISTEN_FDS=2 LISTEN_PID=$$ LD_PRELOAD="$PROBE" exec "$0" "$@" 3<&0 4<&1 </dev/null >&2"#;

fn activated(sock_type: SockType) {
    let stage = Stage::new();
    let server = Server::start(&stage, sock_type);
    let parameters = stage.parameters(json!({ "out_sock_type": sock_type.name() }));
    let bind = |name: &str| UnixListener::bind(stage.socket(name)).expect("a socket in the test's directory");
    let (listener, given) = (bind("activated"), bind("given"));
    let mut client = UnixStream::connect(stage.socket("given")).expect("a listener listens");
    let (connection, _) = given.accept().expect("a client has connected");
    client.write_all(b"waiting").expect("a new connection takes a few bytes");
    std::fs::write(stage.socket("go"), "").expect("a file in the test's directory");
    let file = stage.path("account.jsonl");
    let mut command = Command::new("sh");
    command.args(["-c", ACTIVATE]).arg(Workload::program()).arg(&file).arg(stage.sockets()).arg("activated");
    command.env("PROBE", preload_files(&stage, &parameters));
    command.stdin(OwnedFd::from(listener)).stdout(OwnedFd::from(connection));
    let mut process = Process::spawn(&mut command);
    // The connection's end is then the program's alone.
    drop(command);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).expect("the program answers");
    process.wait_for_success();
    let account = Account::read(&file);
    account.assert_undisturbed();
    assert_eq!(answer.len(), 32);
    assert_same(&account, &server.stop());
}

#[test]
fn activated_by_dgram() {
    activated(SockType::Dgram);
}

#[test]
fn activated_by_stream() {
    activated(SockType::Stream);
}

#[test]
fn activated_by_shm() {
    activated(SockType::Shm);
}
