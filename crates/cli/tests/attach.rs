//! What `attach` looks at before it asks Frida into a process, and what it says where it must not.

mod harness;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use harness::{Outcome, compile, frida, has, run, skipped, until};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

/// Gets into the state that its first argument names, says so with its process id, and sends each line of its standard input
/// to itself over a pair. Ends with 6.
const PROGRAM: &str = r#"
#define _GNU_SOURCE
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <linux/filter.h>
#include <linux/seccomp.h>

static void filter(int number, int action) {
    struct sock_filter f[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), BPF_STMT(BPF_RET | BPF_K, action),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog g = {4, f};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, 2, &g)) exit(3);
}

static void *echo(void *unused) {
    int pair[2];
    char line[100];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) exit(4);
    printf("%d %ld\n", getpid(), syscall(SYS_gettid));
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        write(pair[0], line, strlen(line));
        ssize_t n = read(pair[1], line, sizeof line);
        printf("%.*s", (int)n, line);
        fflush(stdout);
    }
    exit(6);
}

int main(int c, char **v) {
    pthread_t thread;
    if (!strcmp(v[1], "filter")) filter(SYS_connect, SECCOMP_RET_KILL_PROCESS);
    if (!strcmp(v[1], "harmless filter")) filter(SYS_reboot, SECCOMP_RET_KILL_PROCESS);
    if (!strcmp(v[1], "thread") || !strcmp(v[1], "main ends")) {
        pthread_create(&thread, 0, echo, 0);
        if (v[1][0] == 'm') pthread_exit(0);
        pthread_join(thread, 0);
    }
    if (!strcmp(v[1], "strict")) {
        char byte;
        printf("%d\n", getpid());
        fflush(stdout);
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
        while (read(0, &byte, 1) > 0);
        syscall(SYS_exit, 6);
    }
    if (!strcmp(v[1], "traced")) {
        int child = fork();
        if (!child) for (;;) pause();
        if (ptrace(PTRACE_SEIZE, child, 0, 0)) exit(5);
        printf("%d %d\n", child, getpid());
        fflush(stdout);
        while (getchar() != EOF);
        exit(6);
    }
    echo(0);
}
"#;

fn build() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "program", PROGRAM, &["-pthread", "-w"]);
    (folder, program)
}

/// A program, and the numbers that it said first.
struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: BufReader<std::process::ChildStdout>,
    numbers: Vec<u32>,
}

impl Program {
    fn start(program: &Path, state: &str) -> Self {
        let mut command = Command::new(program);
        command.arg(state);
        Self::of(command)
    }

    fn of(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().unwrap());
        let mut program = Self { child, stdin, lines: BufReader::new(stdout), numbers: Vec::new() };
        program.numbers = program.line().split_whitespace().map(|number| number.parse().unwrap()).collect();
        program
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }

    fn say(&mut self, text: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{text}").unwrap();
        assert_eq!(self.line().trim_end(), text);
    }

    fn state(&self) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        status.lines().find_map(|line| line.strip_prefix("State:\t")).unwrap()[..1].to_owned()
    }

    /// Lets it end: it was not harmed.
    fn end(mut self) {
        self.stdin = None;
        assert_eq!(self.child.wait().unwrap().code(), Some(6));
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Without a Frida: it must not come to that.
fn attach(pid: u32) -> Outcome {
    run(&["attach", "--frida", "/no/frida", "--for", "100ms", &pid.to_string()])
}

fn refused(pid: u32, why: &str) {
    let outcome = attach(pid);
    assert_eq!(outcome.code, Some(1), "{}", outcome.err);
    assert_eq!(outcome.err.matches(&format!("process {pid}: ")).count(), 1, "{}", outcome.err);
    assert!(outcome.err.contains(why), "{}", outcome.err);
}

#[test]
fn a_program_without_libc() {
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "program", PROGRAM, &["-static", "-pthread", "-w"]);
    let mut program = Program::start(&program, "");
    refused(program.child.id(), "statically linked");
    program.say("goes on");
    program.end();
}

#[test]
fn a_stopped_process_stays_stopped() {
    let (_folder, program) = build();
    let mut program = Program::start(&program, "");
    let pid = Pid::from_child(&program.child);
    kill_process(pid, Signal::STOP).unwrap();
    until("it is stopped", || program.state() == "T");
    refused(program.child.id(), "is stopped");
    assert_eq!(program.state(), "T");
    kill_process(pid, Signal::CONT).unwrap();
    program.say("goes on");
    program.end();
}

#[test]
fn a_process_with_another_tracer() {
    let (_folder, path) = build();
    let program = Program::start(&path, "traced");
    refused(program.numbers[0], &format!("is traced by program[{}]", program.numbers[1]));
    kill_process(Pid::from_raw(program.numbers[0].cast_signed()).unwrap(), Signal::KILL).unwrap();
    program.end();
}

#[test]
fn a_filter_that_would_end_it() {
    let (_folder, path) = build();
    let mut program = Program::start(&path, "filter");
    // Only root may look at a filter.
    let why = if geteuid().is_root() { "a seccomp filter that would end it at connect(2)" } else { "a seccomp filter" };
    refused(program.child.id(), why);
    program.say("lives");
    program.end();
    let program = Program::start(&path, "strict");
    until("it is in strict mode", || {
        fs::read_to_string(format!("/proc/{}/status", program.child.id())).unwrap().contains("Seccomp:\t1")
    });
    refused(program.child.id(), "strict mode");
    program.end();
}

#[test]
fn a_filter_that_does_no_harm() {
    if !geteuid().is_root() {
        return skipped("a_filter_that_does_no_harm", "only root may look at a filter");
    }
    let (_folder, path) = build();
    let mut program = Program::start(&path, "harmless filter");
    // It would go on to Frida, which is not there.
    let outcome = attach(program.child.id());
    assert!(outcome.err.contains("--frida /no/frida"), "{}", outcome.err);
    program.say("lives");
    program.end();
}

#[test]
fn threads() {
    let (_folder, path) = build();
    let program = Program::start(&path, "thread");
    let (pid, tid) = (program.numbers[0], program.numbers[1]);
    refused(tid, &format!("is a thread of process {pid}"));
    program.end();
    let mut program = Program::start(&path, "main ends");
    until("its main thread has ended", || program.state() == "Z");
    refused(program.child.id(), "its main thread has ended");
    program.say("lives");
    // By itself, without Frida.
    let pid = program.child.id().to_string();
    let mut attached = Attached::by(&["--engine", "inject", &pid]);
    program.say("seen");
    attached.lines.find(|line| line.as_ref().unwrap().contains("\"seen")).unwrap().unwrap();
    attached.leave();
    program.say("lives");
    program.end();
}

#[test]
fn what_run_traces_is_not_traced_twice() {
    let (folder, path) = build();
    let shown = folder.path().join("shown");
    let mut command = Command::new(harness::SOCKTRACE);
    command.args(["run", "-o"]).arg(&shown).arg("--").arg(&path).arg("");
    let mut program = Program::of(command);
    refused(program.numbers[0], &format!("is traced by socktrace[{}] already", program.child.id()));
    program.say("once");
    program.end();
    let shown = fs::read_to_string(shown).unwrap();
    assert_eq!(shown.matches("\"once\\n\"").count(), 2, "{shown}");
}

/// `attach`, until it is told to leave.
struct Attached {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStderr>>,
}

impl Attached {
    fn to(frida: &str, args: &[&str]) -> Self {
        Self::by(&[&["--frida", frida], args].concat())
    }

    fn by(args: &[&str]) -> Self {
        let mut command = Command::new(harness::SOCKTRACE);
        command.arg("attach").args(args).env("LANG", "C.UTF-8").stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().starts_with("socktrace: attached to ")));
        Self { child, lines }
    }

    fn sees(&mut self, text: &str) {
        assert!(self.lines.any(|line| line.unwrap().contains(text)));
    }

    fn leave(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        let rest: Vec<_> = self.lines.map(Result::unwrap).collect();
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{rest:?}");
    }
}

#[test]
fn attached_to_once_and_taken_over_from_a_killed_one() {
    let Some(frida) = frida("attached_to_once_and_taken_over_from_a_killed_one") else { return };
    let (_folder, path) = build();
    let mut program = Program::start(&path, "");
    let pid = program.child.id();
    let mut attached = Attached::to(&frida, &[&pid.to_string()]);
    refused(pid, &format!("is traced by socktrace[{}] already", attached.child.id()));
    program.say("first");
    attached.sees("first");
    // It leaves the probe in the process.
    attached.child.kill().unwrap();
    attached.child.wait().unwrap();
    let mut attached = Attached::to(&frida, &[&pid.to_string()]);
    program.say("second");
    attached.sees("second");
    attached.leave();
    program.end();
}

#[test]
fn those_of_a_name_that_can_be_attached_to() {
    let Some(frida) = frida("those_of_a_name_that_can_be_attached_to") else { return };
    let (folder, path) = build();
    let named = folder.path().join(format!("n{}", std::process::id()));
    fs::rename(path, &named).unwrap();
    let name = named.file_name().unwrap().to_str().unwrap();
    let stopped = Program::start(&named, "");
    kill_process(Pid::from_child(&stopped.child), Signal::STOP).unwrap();
    until("it is stopped", || stopped.state() == "T");
    let mut program = Program::start(&named, "");
    let mut attached = Attached::to(&frida, &["--name", name]);
    program.say("hello");
    attached.sees("hello");
    attached.leave();
    assert_eq!(stopped.state(), "T");
    program.end();
}

/// Another user's process, and processes that have their own mounts or root, are root's to attach to.
#[test]
fn of_another_user_and_elsewhere() {
    let test = "of_another_user_and_elsewhere";
    let Some(frida) = frida(test) else { return };
    if !geteuid().is_root() {
        return skipped(test, "only root may attach to another user's process");
    }
    if !has("setpriv", test) || !has("unshare", test) {
        return;
    }
    let (folder, path) = build();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = path.to_str().unwrap();
    let away = format!(
        "mkdir {0}/r; mount -t tmpfs none /run && mount -t tmpfs none /var/cache && exec {path} ''",
        folder.path().display()
    );
    let ways: [(&str, &[&str]); 2] = [
        ("setpriv", &["--reuid=65534", "--regid=65534", "--clear-groups", path, ""]),
        ("unshare", &["-m", "sh", "-c", &away]),
    ];
    for (way, args) in ways {
        let mut command = Command::new(way);
        command.args(args);
        let mut program = Program::of(command);
        let mut attached = Attached::to(&frida, &[&program.numbers[0].to_string()]);
        program.say(way);
        attached.sees(way);
        attached.leave();
        program.end();
    }
}

#[test]
fn a_root_without_proc() {
    let test = "a_root_without_proc";
    if !geteuid().is_root() {
        return skipped(test, "chroot(2) is root's");
    }
    let folder = tempfile::tempdir().unwrap();
    const JAIL: &str = r#"
#include <stdio.h>
#include <unistd.h>
int main(int c, char **v) {
    if (chroot(v[1])) return 3;
    printf("%d\n", getpid());
    fflush(stdout);
    while (getchar() != EOF);
    return 6;
}
"#;
    let path = compile(folder.path(), "jail", JAIL, &["-w"]);
    let mut command = Command::new(path);
    command.arg(folder.path());
    let program = Program::of(command);
    refused(program.child.id(), "no /proc is mounted");
    program.end();
}

/// Has been left behind by `run`, is attached to and left again, and executes programs: nothing of that is on their standard
/// error.
#[test]
fn a_process_that_run_has_left_behind() {
    let Some(frida) = frida("a_process_that_run_has_left_behind") else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (go, said, pid) = (path("go"), path("said"), path("pid"));
    let script = format!(
        "mkfifo {go}; sh -c 'echo $$ >{pid}; read x <{go}; /bin/true; /bin/true; echo done' >{said} 2>&1 & \
                 until [ -s {pid} ]; do /bin/true; done"
    );
    let traced = run(&["run", "-o", "/dev/null", "--", "sh", "-c", &script]);
    assert_eq!(traced.code, Some(0), "{}", traced.err);
    let pid = fs::read_to_string(pid).unwrap().trim().to_owned();
    let attached = run(&["attach", "--frida", &frida, "--for", "10ms", &pid]);
    assert_eq!(attached.code, Some(0), "{}", attached.err);
    fs::write(go, "\n").unwrap();
    until("it is done", || fs::read_to_string(&said).unwrap().contains("done"));
    assert_eq!(fs::read_to_string(&said).unwrap(), "done\n");
}
