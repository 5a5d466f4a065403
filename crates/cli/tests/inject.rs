//! `attach` without Frida: the probe is put in by ptrace(2), and whoever it was put into goes on as if nothing had been.

mod harness;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use harness::{SOCKTRACE, compile, has, outcome, run, skipped, until};
use rustix::process::{Pid, Signal, geteuid, kill_process};

const BLOCKED: &str = include_str!("inject/blocked.c");
const WORKED: &str = include_str!("inject/worked.c");
/// By so much a call may take longer or less long, in milliseconds.
const TOLERANCE_MS: i64 = 20;

/// How long calls take, in milliseconds.
const LIMIT_MS: i64 = 1500;

/// What a call came to: what `blocked` prints, without the time; and the time in milliseconds.
fn blocked(line: &str) -> (String, i64) {
    let (what, ms) = line.trim().rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
    (what.to_owned(), ms.parse().unwrap())
}

/// Every call that blocks, attached to and left while it does: it ends as without us, with the same result, after the same
/// time. Its process has one thread, so that it is this one that is interrupted.
#[test]
fn blocked_calls_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "blocked", BLOCKED, &["-w", "-pthread", "-lrt"]);
    let list = outcome(&mut Command::new(&program)).out;
    let calls: Vec<_> = list.lines().collect();
    assert!(calls.len() > 30, "{list}");
    let start = |call: &&str| {
        let mut command = Command::new(&program);
        command.arg(call).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
    };
    // A few at a time, and each again if it was late: a busy machine makes calls late, and none early.
    for calls in calls.chunks(6) {
        let mut late = vec![i64::MAX; calls.len()];
        for _ in 0..4 {
            let alone: Vec<_> = calls.iter().map(start).collect();
            let traced: Vec<_> = calls.iter().map(start).collect();
            std::thread::sleep(Duration::from_millis(300));
            let pids: Vec<_> = traced.iter().map(|child| child.id().to_string()).collect();
            let mut args = vec!["attach", "--for", "400ms"];
            args.extend(pids.iter().map(String::as_str));
            let attached = run(&args);
            let told = attached.err.lines().find(|line| line.contains("attached to")).unwrap_or_default();
            assert!(pids.iter().all(|pid| told.contains(pid)), "{}", attached.err);
            let ended = |child: Child| blocked(&String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap());
            let pairs = alone.into_iter().map(ended).zip(traced.into_iter().map(ended));
            for (late, ((expected, alone_ms), (found, traced_ms))) in late.iter_mut().zip(pairs) {
                assert_eq!(found, expected);
                // The kernel's own timers for sockets are late by as much as 32 ms.
                *late = (*late).min((traced_ms - alone_ms).abs()).min((traced_ms - LIMIT_MS).abs());
            }
            if late.iter().all(|&late| late <= TOLERANCE_MS) {
                break;
            }
        }
        let found: Vec<_> = calls.iter().zip(&late).filter(|(_, late)| **late > TOLERANCE_MS).collect();
        assert!(found.is_empty(), "milliseconds late, four times: {found:?}");
    }
}

/// A program that says its process id first.
struct Program {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
    pid: u32,
}

impl Program {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let mut program = Self { child, lines, pid: 0 };
        program.pid = program.line().trim().parse().unwrap();
        program
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }

    /// Ends it: how, and what it said last.
    fn end(mut self) -> (Option<i32>, String) {
        drop(self.child.stdin.take());
        let last = self.line();
        (self.child.wait().unwrap().code(), last)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn status(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.trim().to_owned()
}

/// Registers, `errno`, signals and their stacks are as they were, while somebody comes and goes; and the process does not grow.
#[test]
fn again_and_again() {
    const CYCLES: usize = 100;
    let folder = tempfile::tempdir().unwrap();
    let path = compile(folder.path(), "worked", WORKED, &["-w", "-O1", "-mavx", "-pthread"]);
    let program = Program::start(Command::new(&path).arg("6"));
    let pid = program.pid.to_string();
    let size = || -> u64 { status(program.pid, "VmSize").split(' ').next().unwrap().parse().unwrap() };
    let mut sizes = Vec::new();
    for _ in 0..CYCLES {
        let attached = run(&["attach", "--for", "20ms", &pid]);
        assert!(attached.code == Some(0), "{}", attached.err);
        sizes.push(size());
    }
    // Records of connections rest until some hundred were used, so that it grows at first. Then no more; in KiB, a page each
    // time would be more than this, and its own heap may still grow.
    assert!(sizes[CYCLES - 1] < sizes[CYCLES * 2 / 3] + 100, "{sizes:?}");
    let (code, said) = program.end();
    assert_eq!(code, Some(6), "{said}");
}

/// What is recorded is all that is said while attached to: numbers without a gap.
#[test]
fn every_message() {
    let folder = tempfile::tempdir().unwrap();
    let path = compile(folder.path(), "worked", WORKED, &["-w", "-O1", "-mavx", "-pthread"]);
    let program = Program::start(Command::new(&path).arg("3"));
    let out = folder.path().join("rec");
    let attached =
        run(&["attach", "--for", "700ms", "--on-full", "block", "-w", out.to_str().unwrap(), &program.pid.to_string()]);
    assert_eq!(attached.code, Some(0), "{}", attached.err);
    let shown = run(&["show", out.to_str().unwrap(), "--direction", "out"]);
    let numbers: Vec<u64> =
        shown.out.lines().filter_map(|line| line.split("\"message ").nth(1)?.strip_suffix('"')?.parse().ok()).collect();
    // Two threads talk.
    assert!(numbers.len() > 1000, "{}", shown.out);
    let mut counts = std::collections::BTreeMap::new();
    numbers.iter().for_each(|number| *counts.entry(number).or_insert(0) += 1);
    let (first, last) = (numbers.iter().min().unwrap(), numbers.iter().max().unwrap());
    let few = (*first..=*last).filter(|number| !counts.contains_key(number)).count();
    assert_eq!(few, 0, "{} of {}", few, numbers.len());
    assert_eq!(program.end().0, Some(6));
}

#[test]
fn a_stopped_process_stays_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let path = compile(folder.path(), "worked", WORKED, &["-w", "-O1", "-mavx", "-pthread"]);
    let program = Program::start(Command::new(&path).arg("2"));
    let pid = Pid::from_child(&program.child);
    kill_process(pid, Signal::STOP).unwrap();
    until("it is stopped", || status(program.pid, "State").starts_with('T'));
    let attached = Command::new(SOCKTRACE)
        .args(["attach", "--for", "1s", &program.pid.to_string()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(&status(program.pid, "State")[..1], "T");
    kill_process(pid, Signal::CONT).unwrap();
    let attached = attached.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&attached.stderr).into_owned();
    assert!(said.contains("\"message "), "{said}");
    assert_eq!(program.end().0, Some(6));
}

/// One line each, an exit status that says so, and nothing done to it.
#[test]
fn what_it_does_not_get_into() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |pid: u32, why: &str| {
        let attached = run(&["attach", "--for", "100ms", &pid.to_string()]);
        assert_eq!(attached.code, Some(1), "{}", attached.err);
        assert!(attached.err.contains(&format!("process {pid}: ")) && attached.err.contains(why), "{}", attached.err);
    };
    let path = compile(folder.path(), "static", WORKED, &["-w", "-O1", "-mavx", "-pthread", "-static"]);
    let program = Program::start(&mut Command::new(&path));
    refused(program.pid, "statically linked");
    assert_eq!(program.end().0, Some(6));
    let mut child = Command::new("true").spawn().unwrap();
    until("it has ended", || status(child.id(), "State").starts_with('Z'));
    refused(child.id(), "has ended");
    child.wait().unwrap();
    if fs::read_to_string("/proc/2/comm").is_ok_and(|name| name == "kthreadd\n") {
        refused(2, "kernel");
    }
    let path = compile(folder.path(), "worked", WORKED, &["-w", "-O1", "-mavx", "-pthread"]);
    if has("strace", "what_it_does_not_get_into") {
        let program = Program::start(&mut Command::new(&path));
        let mut strace = Command::new("strace");
        let pid = program.pid.to_string();
        let mut tracer = strace.args(["-o", "/dev/null", "-p", &pid]).stderr(Stdio::null()).spawn().unwrap();
        until("it is traced", || status(program.pid, "TracerPid") != "0");
        refused(program.pid, &format!("is traced by strace[{}]", tracer.id()));
        kill_process(Pid::from_child(&tracer), Signal::INT).unwrap();
        tracer.wait().unwrap();
        assert_eq!(program.end().0, Some(6));
    }
}

/// Its root, mounts, pids, users and network are its own, and no file of ours is within its reach.
#[test]
fn in_namespaces_of_its_own() {
    let test = "in_namespaces_of_its_own";
    if !geteuid().is_root() || !has("unshare", test) {
        return if !geteuid().is_root() {
            skipped(test, "needs root")
        };
    }
    let folder = tempfile::tempdir().unwrap();
    let path = compile(folder.path(), "worked", WORKED, &["-w", "-O1", "-mavx", "-pthread"]);
    let (path, unshare) = (path.to_str().unwrap(), "unshare");
    let hidden = format!("mount -t tmpfs none /run; mount -t tmpfs none /var/cache; exec {path} 2");
    let ways: [&[&str]; 3] = [
        &["unshare", "-Urmpfn", "sh", "-c", &hidden],
        &["unshare", "-m", "sh", "-c", &hidden],
        &["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", path, "2"],
    ];
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for way in ways {
        let mut program = Command::new(way[0]);
        let program = Program::start(program.args(&way[1..]));
        // Its number here: the last of those that were started.
        let pid = deepest(program.child.id());
        let attached = run(&["attach", "--for", "500ms", &pid.to_string()]);
        assert_eq!(attached.code, Some(0), "{way:?}: {}", attached.err);
        assert!(
            attached.err.contains("\"message ") && attached.err.contains(&format!("worked[{pid}]")),
            "{way:?}: {}",
            attached.err
        );
        assert_eq!(program.end().0, Some(6), "{unshare}");
    }
}

/// The last process of those that were started one by the other.
fn deepest(pid: u32) -> u32 {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().next().map_or(pid, |child| deepest(child.parse().unwrap()))
}

#[test]
fn musl() {
    if !has("musl-gcc", "musl") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("worked.c");
    fs::write(&source, WORKED).unwrap();
    let path = folder.path().join("worked");
    let built = Command::new("musl-gcc").args(["-w", "-O1", "-mavx", "-o"]).arg(&path).arg(&source).status().unwrap();
    assert!(built.success());
    traced_and_well(&path);
}

fn traced_and_well(path: &Path) {
    let program = Program::start(Command::new(path).arg("3"));
    let attached = run(&["attach", "--for", "500ms", &program.pid.to_string()]);
    assert_eq!(attached.code, Some(0), "{}", attached.err);
    assert!(attached.err.contains("\"message "), "{}", attached.err);
    assert_eq!(program.end().0, Some(6));
}

/// A process that goes on when its collector was killed is not harmed, and can be attached to again.
#[test]
fn a_killed_collector() {
    let folder = tempfile::tempdir().unwrap();
    let path = compile(folder.path(), "worked", WORKED, &["-w", "-O1", "-mavx", "-pthread"]);
    let program = Program::start(Command::new(&path).arg("4"));
    for _ in 0..3 {
        let mut collector = Command::new(SOCKTRACE);
        let mut collector =
            collector.args(["attach", &program.pid.to_string()]).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(collector.stderr.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("\"message ")));
        collector.kill().unwrap();
        collector.wait().unwrap();
    }
    let attached = run(&["attach", "--for", "300ms", &program.pid.to_string()]);
    assert!(attached.code == Some(0) && attached.err.contains("\"message "), "{}", attached.err);
    assert_eq!(program.end().0, Some(6));
}

/// From the first moment on: whatever its loader is just doing is waited for.
#[test]
fn a_process_that_has_just_been_started() {
    let folder = tempfile::tempdir().unwrap();
    let path = compile(folder.path(), "worked", WORKED, &["-w", "-O1", "-mavx", "-pthread"]);
    for delay in 0..12 {
        let mut child = Command::new(&path).arg("3").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(200 * delay));
        let attached = run(&["attach", "--for", "200ms", &child.id().to_string()]);
        assert!(attached.code == Some(0) && attached.err.contains("\"message "), "{}", attached.err);
        drop(child.stdin.take());
        assert_eq!(child.wait().unwrap().code(), Some(6), "{}", attached.err);
    }
}
