//! The command `socktrace`: the same workload gives the same recording by each of its ways in.

use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use socktrace_e2e::{Direction, Needs, Process, Recording, Stage, Workload, assert_same, has_programs, until};

/// One case of every subject; the calls one by one are in tests/calls.rs and tests/preload.rs.
const CASES: [&str; 8] = ["calls", "seqpacket", "scattered", "large", "datagrams", "relative_path", "dups", "threads"];

fn socktrace(stage: &Stage, subcommand: &str) -> Command {
    let mut command = Command::new(Needs::Socktrace.path());
    command.args([subcommand, "-o"]).arg(stage.path("view.txt")).arg("-w").arg(stage.path("recording"));
    command
}

fn recording(stage: &Stage) -> Recording {
    Recording::read(&stage.path("recording"))
}

fn run(engine: &str) {
    let stage = Stage::new();
    let mut command = socktrace(&stage, "run");
    command.args(["--engine", engine]);
    if engine == "frida" {
        command.arg("--frida").arg(Needs::Frida.path());
    }
    command.arg("--");
    let account = Workload::start_by(&mut command, &stage, &CASES).finish();
    assert_same(&account, &recording(&stage));
}

#[test]
fn run_by_preload() {
    run("preload");
}

#[test]
fn run_by_frida() {
    run("frida");
}

fn attach(stage: &Stage, frida: &Path, pid: u32) -> Process {
    let mut command = socktrace(stage, "attach");
    // A collector that does not get a core for a while would not keep up: by default it would say what it lost.
    command.args(["--on-full", "block"]).arg("--frida").arg(frida).arg(pid.to_string());
    let attached = Process::start_command(&mut command, Stdio::null(), &stage.path("attach.txt"));
    until("socktrace has attached", || recording(stage).of_type("ready").next().map(|_| ()));
    attached
}

#[test]
fn attach_and_leave() {
    let stage = Stage::new();
    let frida = Needs::Frida.path();
    let (workload, mut attached) = Workload::start_after(&stage, &CASES, |pid| attach(&stage, &frida, pid));
    let account = workload.finish();
    attached.signal(Signal::INT);
    attached.wait();
    assert_same(&account, &recording(&stage));
}

/// A server that answers every request with what it was asked.
fn http_echo(stage: &Stage) -> std::path::PathBuf {
    use std::io::{BufRead as _, BufReader, Write as _};
    let path = stage.socket("echo");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket in the test's directory");
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut lines = BufReader::new(&connection).lines().map_while(Result::ok);
                let asked = lines.next().unwrap_or_default();
                lines.take_while(|line| !line.is_empty()).for_each(drop);
                let len = asked.len();
                // A client that is gone does not want an answer.
                let _ = write!(&connection, "HTTP/1.0 200 OK\r\nContent-Length: {len}\r\n\r\n{asked}");
            });
        }
    });
    path
}

/// Runs a program that makes requests of [`http_echo`] for paths that begin with `/asked`; which were recorded, in and out.
fn requests(program: &[&str]) -> (Vec<String>, Vec<String>) {
    let stage = Stage::new();
    let socket = http_echo(&stage);
    let mut command = socktrace(&stage, "run");
    command.arg("--").args(program).env("SOCKET", &socket);
    let mut process = Process::start_command(&mut command, Stdio::null(), &stage.path("program.txt"));
    process.wait_for_success();
    let recording = recording(&stage);
    let of = |direction| {
        let connections = recording.connections().into_values();
        let payloads = connections.map(|connection| String::from_utf8_lossy(connection.bytes(direction)).into_owned());
        let path = |payload: String| payload.split(' ').find(|word| word.starts_with("/asked")).map(str::to_owned);
        let mut paths: Vec<String> = payloads.filter_map(path).collect();
        paths.sort();
        paths
    };
    assert_eq!(recording.of_type("lost").count(), 0);
    (of(Direction::Out), of(Direction::In))
}

#[track_caller]
fn assert_recorded(program: &[&str], asked: &[String]) {
    assert_eq!(requests(program), (asked.to_vec(), asked.to_vec()));
}

#[test]
fn python() {
    if !has_programs("python", &["python3"]) {
        return;
    }
    let script = "import socket,os\ns=socket.socket(socket.AF_UNIX); s.connect(os.environ['SOCKET'])\n\
                  s.sendall(b'GET /asked-python HTTP/1.0\\r\\n\\r\\n')\nwhile s.recv(100): pass";
    assert_recorded(&["python3", "-c", script], &["/asked-python".into()]);
}

#[test]
fn node() {
    if !has_programs("node", &["node"]) {
        return;
    }
    let script = "require('http').get({ socketPath: process.env.SOCKET, path: '/asked-node' }, (r) => r.resume())";
    assert_recorded(&["node", "-e", script], &["/asked-node".into()]);
}

#[test]
fn bash_with_curl() {
    if !has_programs("bash_with_curl", &["bash", "curl"]) {
        return;
    }
    let script = "curl -s --unix-socket \"$SOCKET\" http://x/asked-curl | cat > /dev/null";
    assert_recorded(&["bash", "-c", script], &["/asked-curl".into()]);
}

/// As make runs its recipes: twenty at a time, each some shells and programs deep.
#[test]
fn a_tree_of_processes() {
    if !has_programs("a_tree_of_processes", &["bash", "curl"]) {
        return;
    }
    let script = "for i in $(seq 10 29); do \
                  (exec env N=$i bash -c 'sh -c \"exec curl -s --unix-socket $SOCKET http://x/asked-$N\" > /dev/null; :') & \
                  done; wait";
    let asked: Vec<String> = (10..30).map(|number| format!("/asked-{number}")).collect();
    assert_recorded(&["bash", "-c", script], &asked);
}
