//! Code is changed under the feet of threads: whoever is between the first instructions of a function that is hooked,
//! or was interrupted there by a signal, goes on as if nothing had happened.

use std::process::{Command, Stdio};

use serde_json::json;
use socktrace_e2e::{Stage, preload_files};

/// A thread for each hooked function and each of its first instructions is stopped there while the hooks are put in
/// place, taken away and put back.
#[test]
fn threads_between_instructions() {
    let stage = Stage::new();
    let probe = preload_files(&stage, &stage.parameters(json!({ "out_sock_type": "dgram" })));
    let program = stage.path("fronts");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fronts.c");
    let mut compiler = Command::new("cc");
    let built = compiler.args(["-w", "-pthread", "-o"]).arg(&program).args([source, "-ldl"]).status().expect("cc runs");
    assert!(built.success());
    let parameters = std::fs::File::open(probe.with_file_name("params")).expect("the probe's parameters");
    let mut command = Command::new(&program);
    let output = command.arg(&probe).stdin(parameters).stdout(Stdio::piped()).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {said}", output.status);
    let stopped = said.lines().find_map(|line| line.strip_suffix(" stopped")?.parse::<u32>().ok());
    assert!(stopped.is_some_and(|stopped| stopped > 500), "{said}");
}
