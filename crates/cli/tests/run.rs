//! `socktrace run`: programs, their traffic, and that they do not notice.

mod harness;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use harness::{compile, has, outcome, run, socktrace, until};
use tempfile::TempDir;

/// Sends its first argument's bytes to itself over a pair, and over a socket at a path to a child of its own.
const TALKER: &str = r#"
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, argv[1], sizeof address.sun_path - 1);
    int server = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(server, (struct sockaddr *)&address, sizeof address) || listen(server, 1)) return 1;
    if (fork() == 0) {
        int fd = accept(server, 0, 0);
        char buffer[100];
        ssize_t n = recv(fd, buffer, sizeof buffer, 0);
        send(fd, "answer", 6, 0);
        _exit(n == 8 ? 0 : 1);
    }
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof address)) return 2;
    send(fd, "question", 8, 0);
    char buffer[100];
    if (recv(fd, buffer, sizeof buffer, 0) != 6) return 3;
    int status;
    wait(&status);
    unlink(argv[1]);
    puts("done");
    return status ? 4 : 42;
}
"#;

struct Talker {
    folder: TempDir,
    program: PathBuf,
}

impl Talker {
    fn build(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = compile(folder.path(), "talker", TALKER, args);
        Self { folder, program }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn program(&self) -> &str {
        self.program.to_str().unwrap()
    }
}

#[test]
fn both_ends_of_a_conversation() {
    let talker = Talker::build(&[]);
    let sock = talker.path("sock");
    let traced = run(&["run", "--", talker.program(), &sock]);
    assert_eq!((traced.code, &*traced.out), (Some(42), "done\n"), "{}", traced.err);
    for line in ["listen", "open", "→", "←", "8 bytes \"question\"", "6 bytes \"answer\"", "fork"] {
        assert!(traced.err.contains(line), "no {line}: {}", traced.err);
    }
    assert_eq!(traced.err.matches("\"question\"").count(), 2, "{}", traced.err);
    assert!(traced.err.contains("PATH") && traced.err.contains("1 message, 8 B"), "{}", traced.err);
    assert!(!traced.err.contains("LOST"), "{}", traced.err);
}

#[test]
fn the_recording_is_kept_and_is_what_was_shown() {
    let talker = Talker::build(&[]);
    let (sock, dir) = (talker.path("sock"), talker.path("rec"));
    let traced = run(&["run", "-w", &dir, "--", talker.program(), &sock]);
    assert_eq!(traced.code, Some(42), "{}", traced.err);
    let payloads = |suffix: &str| {
        let mut all: Vec<_> = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.to_str().unwrap().ends_with(suffix))
            .map(|path| fs::read_to_string(path).unwrap())
            .collect();
        all.sort();
        all
    };
    assert_eq!(
        (payloads(".in.bin"), payloads(".out.bin")),
        (vec!["answer".into(), "question".into()], vec!["answer".into(), "question".into()])
    );
    let messages = |text: &str| text.lines().filter(|line| line.contains(" bytes ")).count();
    assert_eq!(messages(&run(&["show", &dir]).out), messages(&traced.err));
    let events_only = talker.path("events-only");
    let traced = run(&["run", "-w", &events_only, "--no-payload-files", "--", talker.program(), &sock]);
    assert_eq!(traced.code, Some(42), "{}", traced.err);
    assert_eq!(fs::read_dir(&events_only).unwrap().count(), 1);
    let shown = run(&["show", &events_only]).out;
    assert_eq!(messages(&shown), messages(&traced.err));
    assert_eq!(shown.matches("no payload files were written, as asked").count(), messages(&shown), "{shown}");
    let filtered = talker.path("filtered");
    run(&["run", "-w", &filtered, "--path", "/elsewhere", "--", talker.program(), &sock]);
    let events = fs::read_to_string(Path::new(&filtered).join("events.jsonl")).unwrap();
    assert!(events.contains(r#""type":"start""#) && !events.contains(r#""type":"data""#), "{events}");
}

#[test]
fn json_on_standard_output() {
    let talker = Talker::build(&[]);
    let traced = run(&["run", "--json", "--", talker.program(), &talker.path("sock")]);
    // The program's own output is beside the lines.
    assert_eq!(traced.err, "done\n");
    let events: Vec<serde_json::Value> = traced.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let payloads: Vec<_> =
        events.iter().filter(|event| event["type"] == "data").map(|event| &event["payload"]).collect();
    assert!(payloads.len() == 4 && payloads.iter().any(|payload| *payload == "answer"), "{payloads:?}");
    let both = run(&["run", "--json", "-w", "-", "--", talker.program()]);
    assert!(both.code == Some(125) && both.err.contains("both write to standard output"), "{both:?}");
}

#[test]
fn a_tmpdir_that_does_not_do() {
    let talker = Talker::build(&[]);
    for name in ["with space", "with:colon", &"long".repeat(40)] {
        let tmp = talker.path(name);
        fs::create_dir(&tmp).unwrap();
        let traced = outcome(socktrace(&["run", "--", talker.program(), &talker.path("sock")]).env("TMPDIR", &tmp));
        assert!(traced.code == Some(42) && traced.err.contains("\"answer\""), "{}", traced.err);
    }
}

#[test]
fn exit_statuses() {
    for (script, code) in [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", 143), ("kill -KILL $$", 137)] {
        assert_eq!(run(&["run", "--", "sh", "-c", script]).code, Some(code), "{script}");
    }
    let missing = run(&["run", "--", "no-such-program"]);
    assert_eq!((missing.code, missing.err.contains("no-such-program: not found in PATH")), (Some(127), true));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let refused = run(&["run", "--", file.to_str().unwrap()]);
    assert_eq!((refused.code, refused.err.contains("not executable")), (Some(126), true), "{}", refused.err);
}

#[test]
fn the_program_gets_what_it_would_get() {
    let print = "pwd; echo $0 $1; cat; env | grep -v -e ^LD_PRELOAD= -e ^_=; grep -e SigBlk -e SigCgt /proc/self/status; ulimit -a";
    let direct = |wrapped: bool| {
        let args = ["sh", "-c", print, "zero", "a b"];
        let mut command = if wrapped {
            let all: Vec<_> = ["run", "--"].into_iter().chain(args).collect();
            socktrace(&all)
        } else {
            harness::command(args[0], &args[1..])
        };
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"standard input").unwrap();
        let mut out = String::new();
        child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        child.wait().unwrap();
        out
    };
    assert_eq!(direct(true), direct(false));
}

#[test]
fn ignored_signals_stay_ignored() {
    for signal in ["HUP", "INT", "PIPE", "TERM"] {
        let script = format!("trap '' {signal}; exec \"$@\"");
        let with = |program: &[&str]| {
            let args: Vec<_> = ["-c", &script, "sh"].into_iter().chain(program.iter().copied()).collect();
            let line = outcome(&mut harness::command("sh", &args)).out;
            let ignored = u64::from_str_radix(line.trim().rsplit('\t').next().unwrap(), 16).unwrap();
            // But for 32 and 33, which are glibc's own and which any program with threads sets (nptl(7)).
            ignored & !(3 << 31)
        };
        let grep = ["grep", "SigIgn", "/proc/self/status"];
        let traced: Vec<_> = [harness::SOCKTRACE, "run", "--"].into_iter().chain(grep).collect();
        assert_eq!(with(&traced), with(&grep), "{signal}");
    }
}

#[test]
fn what_was_preloaded_still_is() {
    let folder = tempfile::tempdir().unwrap();
    let library = compile(folder.path(), "lib.so", "int unused;", &["-shared", "-fPIC"]);
    let mut command = socktrace(&["run", "--", "sh", "-c", "echo $LD_PRELOAD; cat /proc/self/maps"]);
    let traced = outcome(command.env("LD_PRELOAD", &library));
    let (list, maps) = traced.out.split_once('\n').unwrap();
    let (first, second) = list.split_once(':').unwrap();
    assert_eq!(Path::new(first), library);
    // A symbolic link is in the probe's path; the map has the file.
    let probe = second.ends_with("/socktrace-probe.so") && maps.contains("/socktrace-probe.so");
    assert!(probe && maps.contains(first), "{}", traced.out);
}

#[test]
fn signals_for_the_program_reach_it() {
    let script = "trap 'echo caught; exit 5' TERM HUP; echo ready; while :; do sleep 0.01; done";
    for signal in ["TERM", "HUP"] {
        // A shell cannot catch what was ignored when it began, and under nohup(1) SIGHUP is.
        let mut command = Command::new("env");
        command.args(["--default-signal=HUP,TERM", harness::SOCKTRACE, "run", "--", "sh", "-c", script]);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = Watched(command.spawn().unwrap());
        let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        let pid = child.0.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
        assert_eq!(lines.next().unwrap().unwrap(), "caught");
        assert_eq!(child.0.wait().unwrap().code(), Some(5));
    }
}

/// Ended with the test, whatever becomes of that.
struct Watched(Child);

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_reader_that_goes_does_not_hurt_the_program() {
    let talker = Talker::build(&[]);
    let script = format!("for i in 1 2 3; do {} {}; done; exit 9", talker.program(), talker.path("sock"));
    let mut child = socktrace(&["run", "-X", "--", "sh", "-c", &script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stderr.take());
    let mut out = String::new();
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    assert_eq!((child.wait().unwrap().code(), &*out), (Some(9), "done\ndone\ndone\n"));
}

#[test]
fn a_reader_that_sleeps_does_not_stop_the_program() {
    let talker = Talker::build(&[]);
    // Far more lines than a pipe holds, and nobody reads them.
    let script = format!("for i in $(seq 300); do {} {}; done; echo over", talker.program(), talker.path("sock"));
    let mut child = socktrace(&["run", "-X", "--", "sh", "-c", &script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "over"));
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(err.matches("\n    0x0000:  7175 6573").count() == 600 && !err.contains("LOST"), "{}", err.len());
}

#[test]
fn what_cannot_be_traced_is_told_at_once() {
    let talker = Talker::build(&["-static"]);
    let traced = run(&["run", "--", talker.program(), &talker.path("sock")]);
    assert_eq!((traced.code, &*traced.out), (Some(42), "done\n"));
    assert!(
        traced.err.contains("talker: statically linked") && traced.err.contains("nothing recorded"),
        "{}",
        traced.err
    );
}

#[test]
fn nothing_seen_is_explained() {
    let quiet = run(&["run", "--", "true"]);
    assert_eq!(quiet.code, Some(0));
    assert!(
        quiet.err.contains("nothing recorded: 1 process traced, and no AF_UNIX socket was used through libc"),
        "{}",
        quiet.err
    );
    let talker = Talker::build(&[]);
    let filtered = run(&["run", "--path", "/elsewhere", "--", talker.program(), &talker.path("sock")]);
    assert!(filtered.err.contains("nothing shown: the filters let none of it through, 4 messages"), "{}", filtered.err);
}

/// Over a socketpair, a message with two descriptors, and urgent data.
const PASSES_DESCRIPTORS: &str = r#"
import os, socket
a, b = socket.socketpair()
read, write = os.pipe()
socket.send_fds(a, [b"take these"], [os.open("/dev/null", 0), read])
socket.recv_fds(b, 100, 4)
a.send(b"!", socket.MSG_OOB)
b.recv(1, socket.MSG_OOB)
"#;

#[test]
fn what_comes_with_a_message_is_shown() {
    if !has("python3", "what_comes_with_a_message_is_shown") {
        return;
    }
    let outcome = run(&["run", "--", "/usr/bin/env", "python3", "-c", PASSES_DESCRIPTORS]);
    let lines: Vec<_> = outcome.err.lines().filter(|line| line.contains("take these")).collect();
    let [sent, received] = lines[..] else { panic!("{}", outcome.err) };
    for line in [sent, received] {
        assert!(line.contains("(unnamed)") && line.contains("device:/dev/null, "), "{line}");
        assert!(line.contains(" pipe) \"take these\""), "{line}");
    }
    assert_eq!(outcome.err.matches("1 byte (MSG_OOB) \"!\"").count(), 2, "{}", outcome.err);
}

#[test]
fn daemons_are_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = |name: &str| {
        let path = folder.path().join(name);
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        path
    };
    let (up, end) = (fifo("up"), fifo("end"));
    let daemon = format!("{{ echo up > {}; read line < {}; }} > /dev/null 2>&1 &", up.display(), end.display());
    let script = format!("{daemon} read line < {}", up.display());
    let traced = run(&["run", "--", "bash", "-c", &script]);
    assert!(traced.err.contains("1 traced process still running"), "{}", traced.err);
    // Lets it go.
    fs::OpenOptions::new().write(true).open(&end).unwrap().write_all(b"end\n").unwrap();
}

#[test]
fn musl_programs_too() {
    if !has("musl-gcc", "musl_programs_too") {
        return;
    }
    let talker = Talker::build(&[]);
    let program = talker.path("musl");
    let built = Command::new("musl-gcc").args(["-o", &program]).arg(talker.path("talker.c")).status().unwrap();
    assert!(built.success());
    let traced = run(&["run", "--", &program, &talker.path("sock")]);
    assert_eq!(traced.code, Some(42), "{}", traced.err);
    assert_eq!(traced.err.matches("\"question\"").count(), 2, "{}", traced.err);
}

#[test]
fn redis() {
    if !has("redis-server", "redis") || !has("redis-cli", "redis") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let sock = folder.path().join("r.sock");
    let mut server = Command::new("redis-server");
    server.args(["--port", "0", "--save", "", "--unixsocket"]).arg(&sock).stdout(Stdio::null());
    let server = Watched(server.current_dir(folder.path()).spawn().unwrap());
    let ping = |program: &str, first: &[&str]| {
        let args: Vec<_> = first.iter().copied().chain(["-s", sock.to_str().unwrap(), "ping"]).collect();
        outcome(&mut harness::command(program, &args))
    };
    until("redis answers", || ping("redis-cli", &[]).out == "PONG\n");
    let traced = ping(harness::SOCKTRACE, &["run", "--", "redis-cli"]);
    assert_eq!((traced.code, &*traced.out), (Some(0), "PONG\n"));
    let peer = format!("redis-server[{}]", server.0.id());
    let line = |text: &str| traced.err.lines().any(|line| line.contains(text) && line.contains(&peer));
    assert!(line("redis ping") && line("redis PONG"), "{}", traced.err);
}

#[test]
fn a_tree_of_processes() {
    let talker = Talker::build(&[]);
    let script = talker.path("tree.sh");
    // Each level executes the next one; the leaves talk.
    let text = format!(
        "#!/bin/sh\nn=$1; id=$2\nif [ \"$n\" = 0 ]; then {} {}/s$id; exit 0; fi\n\"$0\" $((n-1)) ${{id}}0 & \"$0\" $((n-1)) ${{id}}1 & wait\n",
        talker.program(),
        talker.folder.path().display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let traced = run(&["run", "--", &script, "3", "x"]);
    assert_eq!((traced.code, traced.out.matches("done").count()), (Some(0), 8), "{}", traced.err);
    assert_eq!(traced.err.matches("\"question\"").count(), 16, "{}", traced.err);
    assert!(!traced.err.contains("LOST"), "{}", traced.err);
    let alone = run(&["run", "--no-children", "--", &script, "1", "x"]);
    assert!(alone.out.contains("done") && !alone.err.contains("question"), "{}", alone.err);
}

#[test]
fn what_is_closed_stays_closed() {
    let folder = tempfile::tempdir().unwrap();
    const OPEN: &str = r#"
#include <fcntl.h>
int main(void) { return 40 + (fcntl(0, F_GETFD) != -1) + 2 * (fcntl(1, F_GETFD) != -1) + 4 * (fcntl(2, F_GETFD) != -1); }
"#;
    let program = compile(folder.path(), "open", OPEN, &[]);
    let run = format!("{} run -o /dev/null -- ", harness::SOCKTRACE);
    for closed in ["", "0<&-", "1>&-", "2>&-", "0<&- 1>&-", "1>&- 2>&-", "0<&- 1>&- 2>&-"] {
        let code = |run: &str| {
            let script = format!("exec {closed}; exec {run}{}", program.display());
            std::process::Command::new("sh").args(["-c", &script]).status().unwrap().code()
        };
        assert_eq!(code(&run), code(""), "{closed}");
    }
}

#[test]
fn the_dynamic_linker_as_the_program() {
    let linker = "/lib64/ld-linux-x86-64.so.2";
    if !std::path::Path::new(linker).exists() {
        return;
    }
    let talker = Talker::build(&[]);
    let traced = run(&["run", "--", linker, talker.program(), &talker.path("sock")]);
    assert_eq!(traced.code, Some(42), "{}", traced.err);
    assert!(traced.err.contains("\"answer\"") && !traced.err.contains("static"), "{}", traced.err);
}
