//! How many instructions a captured call takes beside the call itself: a regression shows without a clock.
//!
//! callgrind writes a file each time the workload begins another block of exchanges. The least of these counts is nearly
//! the same on every run: now and then a call does more, because some milliseconds have passed since something was looked at.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::{fs, io};

/// Instructions in the traced process for one captured call of 64 bytes, without those of clock_gettime(2), for which
/// valgrind has no vDSO.
const RECORDED: u64 = 737;
/// What may be added to that.
const TOLERATED_PERCENT: u64 = 15;
/// How many blocks of exchanges are counted.
const BLOCKS: usize = 50;
/// What does one, and how many exchanges it is, and captured calls.
const BLOCK: &str = "*Connection*block*";
const EXCHANGES: usize = 16;
const CALLS: u64 = 2 * EXCHANGES as u64;

/// Instructions of one block.
fn count(directory: &Path, preload: Option<&Path>) -> u64 {
    fs::create_dir(directory).unwrap();
    let mut command = Command::new("valgrind");
    command.args(["-q", "--tool=callgrind", &format!("--dump-before={BLOCK}")]);
    command.arg(format!("--callgrind-out-file={}", directory.join("out").display()));
    command.arg(env!("CARGO_BIN_EXE_socktrace-bench")).args(["workload", "-", "a"]).arg(directory);
    command.envs(preload.map(|preload| ("LD_PRELOAD", preload)));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("valgrind starts");
    writeln!(child.stdin.take().unwrap(), "{}", BLOCKS * EXCHANGES).unwrap();
    assert!(child.wait().unwrap().success());
    let mut counts: Vec<u64> = Vec::new();
    for entry in directory.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("out.") {
            let text = fs::read_to_string(&path).unwrap();
            let total = text.lines().find_map(|line| line.strip_prefix("totals: ")).expect("totals");
            counts.push(total.trim().parse().unwrap());
        }
    }
    assert!(counts.len() >= BLOCKS, "callgrind wrote {} files", counts.len());
    counts.into_iter().min().expect("as many")
}

#[test]
fn instructions_of_a_captured_call() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        // Past the test runner's capture.
        let _ = writeln!(io::stderr(), "SKIPPED instructions_of_a_captured_call: valgrind is not installed");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let probe = directory.path().join("socktrace-probe.so");
    fs::write(&probe, socktrace_agent::PROBE).unwrap();
    // There is no server: the ring keeps everything, and is the same.
    let socket = directory.path().join("nobody");
    let parameters = format!("out_socket_path={}\0out_sock_type=shm\0on_full=block\0", socket.display());
    fs::write(directory.path().join("params"), parameters).unwrap();
    let untraced = count(&directory.path().join("untraced"), None);
    let traced = count(&directory.path().join("traced"), Some(&probe));
    let each = (traced - untraced) / CALLS;
    println!("{each} instructions a captured call of 64 bytes: {untraced} untraced, {traced} traced");
    let most = RECORDED + RECORDED * TOLERATED_PERCENT / 100;
    assert!(each <= most, "{each} instructions a captured call; {RECORDED} are recorded, {most} tolerated");
}
