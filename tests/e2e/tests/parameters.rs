//! Parameters that are wrong: one line on Frida's output that names the parameter, and a program that runs as if
//! nobody had asked.

use std::fs;

use serde_json::{Value, json};
use socktrace_e2e::{Server, SockType, Stage, Workload};

fn assert_refused(name: &str, parameters: Value) {
    let stage = Stage::new();
    let server = Server::start(&stage, SockType::Dgram);
    let workload = Workload::spawn(&stage, &parameters, &["calls"]);
    let output = workload.output.as_ref().expect("Frida's output").text();
    workload.finish();
    let lines: Vec<&str> = output.lines().filter(|line| line.contains("socktrace:")).collect();
    assert!(
        matches!(lines[..], [line] if line.contains(name)),
        "one line about {name} with {parameters}, but the output is:\n{output}"
    );
    let recording = server.stop();
    assert_eq!(recording.events.iter().filter(|event| !event.kind.starts_with("host_")).count(), 0);
    assert_eq!(fs::read_dir(stage.path("out")).expect("the output directory").count(), 1, "nothing but events.jsonl");
}

macro_rules! tests {
    ($($name:ident $parameter:literal: $parameters:tt,)+) => {
        $(#[test]
        fn $name() {
            assert_refused($parameter, json!($parameters));
        })+
    };
}

tests! {
    out_socket_path_missing "out_socket_path": { "max_bytes": 1 },
    out_socket_path_not_a_text "out_socket_path": { "out_socket_path": 7 },
    out_socket_path_empty "out_socket_path": { "out_socket_path": "" },
    max_fds_of_0 "max_fds": { "out_socket_path": "/tmp/x", "max_fds": 0 },
    max_fds_a_text "max_fds": { "out_socket_path": "/tmp/x", "max_fds": "x" },
    max_fds_a_fraction "max_fds": { "out_socket_path": "/tmp/x", "max_fds": 1.5 },
    max_bytes_negative "max_bytes": { "out_socket_path": "/tmp/x", "max_bytes": -1 },
    socket_paths_a_text "socket_paths": { "out_socket_path": "/tmp/x", "socket_paths": "x" },
    socket_paths_of_numbers "socket_paths": { "out_socket_path": "/tmp/x", "socket_paths": [1] },
    out_sock_type_unknown "out_sock_type": { "out_socket_path": "/tmp/x", "out_sock_type": "tcp" },
    a_parameter_that_there_is_not "max_byte": { "out_socket_path": "/tmp/x", "max_byte": 1 },
}

/// 107 bytes are a socket's longest path with its NUL (unix(7)), 108 are too long.
#[test]
fn out_socket_path_too_long() {
    assert_refused("out_socket_path", json!({ "out_socket_path": format!("/{}", "x".repeat(107)) }));
}
