//! `run --engine frida` and `attach`.

mod harness;

use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};

use harness::{compile, frida, run, until};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Sends every line of its standard input to itself over a pair, and prints what arrives.
const ECHO: &str = r#"
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(void) {
    int pair[2];
    char line[100];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) return 1;
    setvbuf(stdout, 0, _IOLBF, 0);
    while (fgets(line, sizeof line, stdin)) {
        send(pair[0], line, strlen(line), 0);
        ssize_t n = recv(pair[1], line, sizeof line, 0);
        printf("%.*s", (int)n, line);
    }
    return 6;
}
"#;

fn build() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "echo", ECHO, &[]);
    (folder, program)
}

/// A program that speaks when told to.
struct Echo {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Echo {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().unwrap());
        Self { child, stdin, lines: BufReader::new(stdout).lines() }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
        assert_eq!(self.lines.next().unwrap().unwrap(), line);
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_program_of_ours() {
    let Some(frida) = frida("a_program_of_ours") else { return };
    let (folder, program) = build();
    let (lines, dir) = (folder.path().join("lines"), folder.path().join("rec"));
    let mut command = Command::new(harness::SOCKTRACE);
    command.args(["run", "--engine", "frida", "--frida", &frida, "-o"]).arg(&lines).arg("-w").arg(&dir);
    command.arg("--").arg(&program);
    let mut echo = Echo::start(command);
    echo.say("hello");
    echo.say("goodbye");
    echo.stdin = None;
    assert_eq!(echo.child.wait().unwrap().code(), Some(6));
    let lines = fs::read_to_string(lines).unwrap();
    assert_eq!(lines.matches("\"hello\\n\"").count(), 2, "{lines}");
    let payloads: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "bin"))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    assert_eq!(payloads, ["hello\ngoodbye\n", "hello\ngoodbye\n"]);
}

#[test]
fn exit_statuses() {
    let Some(frida) = frida("exit_statuses") else { return };
    for (script, code) in [("exit 3", 3), ("kill -KILL $$", 137)] {
        let traced = run(&["run", "--engine", "frida", "--frida", &frida, "--", "sh", "-c", script]);
        assert_eq!(traced.code, Some(code), "{}", traced.err);
    }
}

/// socktrace in a process, and its lines.
struct Attached {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
}

impl Attached {
    fn to(frida: &str, pid: u32, args: &[&str]) -> Self {
        let mut command = Command::new(harness::SOCKTRACE);
        command.args(["attach", "--frida", frida, &pid.to_string()]).args(args).stderr(Stdio::piped());
        let mut child = command.env("LANG", "C.UTF-8").spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let attached = format!("socktrace: attached to {pid}");
        assert!(lines.any(|line| line.unwrap().starts_with(&attached)));
        Self { child, lines }
    }

    fn rest(mut self) -> (Option<i32>, String) {
        let rest: Vec<_> = self.lines.map(Result::unwrap).collect();
        (self.child.wait().unwrap().code(), rest.join("\n"))
    }
}

#[test]
fn a_running_process_is_left_as_it_was() {
    let Some(frida) = frida("a_running_process_is_left_as_it_was") else { return };
    let (_folder, program) = build();
    let mut echo = Echo::start(Command::new(program));
    echo.say("before");
    for word in ["first", "second"] {
        let mut attached = Attached::to(&frida, echo.child.id(), &[]);
        echo.say(word);
        assert!(attached.lines.any(|line| line.unwrap().contains(&format!("\"{word}\\n\""))));
        let pid = Pid::from_raw(attached.child.id().cast_signed()).unwrap();
        kill_process(pid, Signal::INT).unwrap();
        let (code, rest) = attached.rest();
        assert_eq!(code, Some(0), "{rest}");
        assert!(rest.contains("PATH") && !rest.contains("LOST"), "{rest}");
        echo.say("between");
    }
}

#[test]
fn it_ends_with_the_process_or_the_time() {
    let Some(frida) = frida("it_ends_with_the_process_or_the_time") else { return };
    let (_folder, program) = build();
    let mut echo = Echo::start(Command::new(&program));
    let attached = Attached::to(&frida, echo.child.id(), &["--for", "100ms"]);
    let (code, rest) = attached.rest();
    assert_eq!(code, Some(0), "{rest}");
    echo.say("still here");
    let attached = Attached::to(&frida, echo.child.id(), &["--for", "1h"]);
    echo.child.kill().unwrap();
    echo.child.wait().unwrap();
    assert_eq!(attached.rest().0, Some(0));
}

#[test]
fn by_name() {
    let Some(frida) = frida("by_name") else { return };
    let (folder, program) = build();
    // A name that no other process has.
    let name = format!("e{}", std::process::id());
    let named = folder.path().join(&name);
    fs::rename(program, &named).unwrap();
    let mut echo = Echo::start(Command::new(named));
    until("it runs", || fs::read_to_string(format!("/proc/{}/comm", echo.child.id())).unwrap().trim() == name);
    let mut command = Command::new(harness::SOCKTRACE);
    command.args(["attach", "--frida", &frida, "--name", &name]).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("attached to")));
    echo.say("named");
    assert!(lines.any(|line| line.unwrap().contains("named")));
    echo.child.kill().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn packets_of_a_running_process() {
    let test = "packets_of_a_running_process";
    let Some(frida) = frida(test) else { return };
    if !harness::wireshark::is_there(test) {
        return;
    }
    let (folder, program) = build();
    let file = folder.path().join("live.pcapng");
    let mut echo = Echo::start(Command::new(program));
    echo.say("before");
    let attached = Attached::to(&frida, echo.child.id(), &["-w", file.to_str().unwrap()]);
    echo.say("hello");
    echo.stdin = None;
    assert_eq!(attached.rest().0, Some(0));
    let shown = harness::wireshark::tshark(&["-r", file.to_str().unwrap(), "-T", "fields", "-e", "tcp.payload"]);
    // One end's view of the pair, which was open before: no SYN.
    let payloads: Vec<_> = shown.out.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(payloads, ["68656c6c6f0a"], "{}", shown.out);
}

/// Threads of Frida's would keep a program that has ended its main thread, and unshare(2) from making a user namespace.
#[test]
fn frida_leaves() {
    let Some(frida) = frida("frida_leaves") else { return };
    const LEAVES: &str = r#"
#include <dirent.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

int main(void) {
    int pair[2], threads = 0;
    DIR *tasks = opendir("/proc/self/task");
    for (struct dirent *task; (task = readdir(tasks));) threads += task->d_name[0] != '.';
    if (threads != 1) exit(7);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || write(pair[0], "alone", 5) != 5) exit(8);
    pthread_exit(0);
}
"#;
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "leaves", LEAVES, &["-pthread"]);
    let traced = run(&["run", "--engine", "frida", "--frida", &frida, "--", program.to_str().unwrap()]);
    assert_eq!(traced.code, Some(0), "{}", traced.err);
    assert_eq!(traced.err.matches("\"alone\"").count(), 1, "{}", traced.err);
}
