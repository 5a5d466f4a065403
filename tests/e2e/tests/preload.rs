//! The probe as a preloaded library, without Frida: the same recording of the same calls.

use std::process::{Command, Stdio};

use serde_json::json;
use socktrace_e2e::{Event, Process, Server, SockType, Stage, Workload, assert_same, find_program, preload_files};

fn record_and_compare(sock_type: SockType, cases: &[&str]) {
    let stage = Stage::new();
    let server = Server::start(&stage, sock_type);
    let parameters = stage.parameters(json!({ "out_sock_type": sock_type.name() }));
    let account = Workload::preload(&stage, &parameters, cases).finish();
    assert_same(&account, &server.stop());
}

macro_rules! tests {
    ($($dgram:ident $stream:ident $shm:ident: $($case:literal)+,)+) => {
        $(#[test]
        fn $dgram() {
            record_and_compare(SockType::Dgram, &[$($case),+]);
        }

        #[test]
        fn $stream() {
            record_and_compare(SockType::Stream, &[$($case),+]);
        }

        #[test]
        fn $shm() {
            record_and_compare(SockType::Shm, &[$($case),+]);
        })+
    };
}

tests! {
    streams_by_dgram streams_by_stream streams_by_shm:
        "calls" "seqpacket" "scattered" "large" "peek" "partial" "zero" "half_close" "errno_kept",
    datagrams_by_dgram datagrams_by_stream datagrams_by_shm: "datagrams" "datagram_reply" "datagram_truncated",
    failures_by_dgram failures_by_stream failures_by_shm: "failures" "bad_memory" "broken_pipe",
    names_by_dgram names_by_stream names_by_shm: "abstract_names" "relative_path" "symlinked_directory" "longest_path" "strange_path",
    descriptors_by_dgram descriptors_by_stream descriptors_by_shm: "dups" "dup_over" "reused_number" "copy_closed_behind_libc",
    threads_by_dgram threads_by_stream threads_by_shm: "threads" "cancelled",
    signals_by_dgram signals_by_stream signals_by_shm: "signals",
    daemons_by_dgram daemons_by_stream daemons_by_shm: "close_all" "close_all_by_range" "descriptors_full",
    high_numbers_by_dgram high_numbers_by_stream high_numbers_by_shm: "high_descriptors",
    children_by_dgram children_by_stream children_by_shm: "forked" "forked_among_threads",
}

/// Closed and used again by system calls that libc does not see. A ring saves the look at every call, and says what may
/// be wrong for that: the end of a connection that is noticed late tells since when.
#[test]
fn closed_behind_libc() {
    for sock_type in [SockType::Dgram, SockType::Stream] {
        record_and_compare(sock_type, &["closed_behind_libc"]);
    }
    let stage = Stage::new();
    let server = Server::start(&stage, SockType::Shm);
    let parameters = stage.parameters(json!({ "out_sock_type": "shm" }));
    let account = Workload::preload(&stage, &parameters, &["closed_behind_libc"]).finish();
    let recording = server.stop();
    let doubted: Vec<_> = recording.of_type("close").filter(|close| close.how.as_deref() == Some("vanished")).collect();
    assert!(!doubted.is_empty());
    let is_doubted = |event: &&Event| {
        let since = |close: &&&Event| close.conn_id == event.conn_id && close.since_ns <= event.ts_ns;
        event.kind == "data" && doubted.iter().any(|close| since(&close))
    };
    let more: u64 = recording.of_type("data").filter(is_doubted).filter_map(|event| event.size).sum();
    let recorded: u64 = recording.of_type("data").filter_map(|event| event.size).sum();
    assert!(recorded >= account.bytes() && recorded - more <= account.bytes(), "{recorded}, of which {more} in doubt");
}

/// Threads that use copies of a socket for the first time at once are on one connection, which ends once.
#[test]
fn copies_at_once() {
    for sock_type in [SockType::Dgram, SockType::Stream, SockType::Shm] {
        let stage = Stage::new();
        let server = Server::start(&stage, sock_type);
        let mut parameters = stage.parameters(json!({ "out_sock_type": sock_type.name() }));
        parameters["on_full"] = json!("block");
        let account = Workload::preload(&stage, &parameters, &["copies_at_once"]).finish();
        let connections = server.stop().connections();
        let shared = account.notes("shared by copies");
        // An inode number may be given out again: each socket is one connection.
        assert_eq!(connections.len(), shared.len());
        for (id, connection) in connections {
            let is_shared = connection.opened.iter().all(|open| shared.iter().any(|&is| Some(is as u64) == open.inode));
            assert!(is_shared, "{id}: {:?}", connection.opened);
            let bytes: u64 = connection.data.iter().filter_map(|data| data.size).sum();
            assert_eq!((connection.data.len(), bytes, connection.closed.len()), (3, 15, 1), "{id}: {connection:?}");
        }
    }
}

/// A process tree: every program in it introduces itself, also one whose environment was taken from it, and each finds
/// LD_PRELOAD as the first one did, with what else was in it.
#[test]
fn executed_programs_are_followed() {
    let stage = Stage::new();
    let server = Server::start(&stage, SockType::Stream);
    let probe = preload_files(&stage, &stage.parameters(json!({ "out_sock_type": "stream" })));
    let script = "env -i A=1 /bin/sh -c 'env; :' | cat; (exec /bin/sh -c true); /bin/true";
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).env("LD_PRELOAD", &probe);
    let mut tree = Process::start_command(&mut command, Stdio::null(), &stage.path("tree.txt"));
    tree.wait_for_success();
    let output = std::fs::read_to_string(stage.path("tree.txt")).expect("the tree's output");
    let mut lines: Vec<&str> =
        output.lines().filter(|line| !line.starts_with("PWD=") && !line.starts_with("_=")).collect();
    lines.sort_unstable();
    assert_eq!(lines, ["A=1", &format!("LD_PRELOAD={}", probe.display())]);
    let recording = server.stop();
    let name = |exe: &str| exe.rsplit('/').next().unwrap_or_default().to_owned();
    let mut started: Vec<String> =
        recording.of_type("start").filter_map(|event| event.exe.as_deref().map(name)).collect();
    started.sort_unstable();
    started.dedup();
    for program in ["cat", "dash", "env", "true"] {
        let program = if program == "dash" {
            name(&std::fs::canonicalize("/bin/sh").unwrap().display().to_string())
        } else {
            program.into()
        };
        assert!(started.contains(&program), "{program} is not among {started:?}");
    }
}

/// `follow_children=0`: the programs that it executes are not traced, and do not see the probe in their environment.
#[test]
fn executed_programs_are_left_alone() {
    let stage = Stage::new();
    let server = Server::start(&stage, SockType::Stream);
    let parameters = stage.parameters(json!({ "out_sock_type": "stream", "follow_children": 0 }));
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "env | grep LD_PRELOAD; :"]).env("LD_PRELOAD", preload_files(&stage, &parameters));
    let mut tree = Process::start_command(&mut command, Stdio::null(), &stage.path("tree.txt"));
    tree.wait_for_success();
    let output = std::fs::read_to_string(stage.path("tree.txt")).expect("the tree's output");
    assert_eq!(output.trim_end(), "LD_PRELOAD=");
    assert_eq!(server.stop().of_type("start").count(), 1);
}

/// When whoever preloaded the probe has taken it away, programs that are executed later hear nothing of it: the dynamic
/// linker would complain on their standard error.
#[test]
fn a_probe_that_is_gone_is_not_passed_on() {
    let stage = Stage::new();
    let server = Server::start(&stage, SockType::Stream);
    let parameters = stage.parameters(json!({ "out_sock_type": "stream" }));
    let script =
        "rm \"$1\" \"${1%/*}/params\"; env | grep LD_PRELOAD; exec env -i /bin/sh -c 'env | grep LD_PRELOAD; :'";
    for (before, expected) in [("", ""), ("libm.so.6:", "LD_PRELOAD=libm.so.6\n")] {
        let probe = preload_files(&stage, &parameters);
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, "sh"]).arg(&probe).env("LD_PRELOAD", format!("{before}{}", probe.display()));
        let mut tree = Process::start_command(&mut command, Stdio::null(), &stage.path("tree.txt"));
        tree.wait_for_success();
        let output = std::fs::read_to_string(stage.path("tree.txt")).expect("the tree's output");
        assert_eq!(output, expected);
    }
    server.stop();
}

/// A probe without parameters does nothing, and does no harm.
#[test]
fn without_parameters_nothing_happens() {
    let stage = Stage::new();
    let probe = preload_files(&stage, &stage.parameters(json!({})));
    std::fs::remove_file(stage.path("params")).expect("the parameters are there");
    let mut command = Command::new("/usr/bin/env");
    command.arg(format!("LD_PRELOAD={}", probe.display()));
    let cases = ["calls", "datagrams", "dups", "close_all_by_range", "threads", "forked", "executed", "vforked"];
    let account = Workload::start_by(&mut command, &stage, &cases).finish();
    assert!(account.bytes() > 0);
}

/// The same probe in a program of musl's.
#[test]
fn musl() {
    let Some(compiler) = find_program("musl-gcc") else {
        println!("SKIPPED musl: musl-gcc is not installed");
        return;
    };
    let stage = Stage::new();
    let program = stage.path("workload-musl");
    let sources = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/workload")).expect("the workload's sources");
    let sources = sources.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let sources = sources.filter(|path| path.extension().is_some_and(|extension| extension == "c"));
    let built = Command::new(compiler)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["-O2", "-pthread", "-o"])
        .arg(&program)
        .args(sources)
        .status()
        .expect("musl-gcc runs");
    assert!(built.success());
    let server = Server::start(&stage, SockType::Stream);
    let parameters = stage.parameters(json!({ "out_sock_type": "stream" }));
    let cases = ["calls", "seqpacket", "scattered", "large", "datagrams", "dups", "threads", "forked"];
    let account = Workload::preload_program(&program, &stage, &parameters, &cases).finish();
    assert_same(&account, &server.stop());
}

/// Of two traced ends, the one that is heard of second names the first.
#[test]
fn two_ends_of_a_connection_are_joined() {
    let stage = Stage::new();
    let server = Server::start(&stage, SockType::Dgram);
    let parameters = stage.parameters(json!({}));
    Workload::preload(&stage, &parameters, &["calls"]).finish();
    let recording = server.stop();
    let opened = |how: &'static str| recording.of_type("open").filter(move |event| event.how.as_deref() == Some(how));
    let connected: Vec<_> = opened("connect").collect();
    let accepted: Vec<_> = opened("accept").chain(opened("accept4")).collect();
    assert!(!accepted.is_empty());
    for end in accepted {
        let other = connected.iter().find(|event| event.inode == end.peer_inode).expect("its client was traced");
        let named = [(&end.peer_conn_id, &other.conn_id), (&other.peer_conn_id, &end.conn_id)];
        assert!(named.iter().any(|(named, conn_id)| named.is_some() && named == conn_id), "{end:?} {other:?}");
        assert_eq!(end.peer_pid, other.pid);
    }
}
