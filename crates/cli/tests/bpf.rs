//! The engine `bpf`: programs that no libc hook sees, compared byte for byte with what they say themselves.

mod harness;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use harness::{Outcome, command, compile, has, outcome, run, skipped, until};
use rustix::process::geteuid;
use serde_json::Value;
use tempfile::TempDir;

/// Sends and receives in many ways, in two processes, and keeps what each end sent and received in files of its own in the
/// folder that its argument names: `INODE.out`, `INODE.in`.
const STATIC: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>

static const char *folder;
static char big[3000000], room[1 << 20];

static void keep(int fd, const char *way, const void *bytes, size_t len) {
    char path[300];
    struct stat stat;
    fstat(fd, &stat);
    snprintf(path, sizeof path, "%s/%lu.%s", folder, stat.st_ino, way);
    int file = open(path, O_CREAT | O_APPEND | O_WRONLY, 0600);
    if (write(file, bytes, len) != (ssize_t)len) exit(9);
    close(file);
}

static void sent(int fd, const char *bytes, ssize_t n) { if (n < 0) exit(8); keep(fd, "out", bytes, n); }
static void received(int fd, const char *bytes, ssize_t n) { if (n < 0) exit(7); keep(fd, "in", bytes, n); }

static void client(int fd) {
    sent(fd, big, write(fd, big, 10));
    sent(fd, big, send(fd, big, 64, 0));
    struct iovec parts[] = {{big, 100}, {big + 100, 0}, {big + 100, 200000}, {big + 200100, 1}};
    sent(fd, big, writev(fd, parts, 4));
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 4};
    sent(fd, big, sendmsg(fd, &message, 0));
    // More than a record, and than an event, takes.
    for (size_t done = 0; done < sizeof big;) {
        ssize_t n = write(fd, big + done, sizeof big - done);
        sent(fd, big + done, n);
        done += n;
    }
    shutdown(fd, SHUT_WR);
    ssize_t n;
    while ((n = recv(fd, room, 100, 0)) > 0) received(fd, room, n);
    exit(3);
}

int main(int c, char **v) {
    folder = v[1];
    for (size_t i = 0; i < sizeof big; i++) big[i] = i * 7 + i / 251;
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    snprintf(name.sun_path, sizeof name.sun_path, "%s/s", folder);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, (void *)&name, sizeof name) || listen(listener, 5)) exit(2);
    if (!fork()) {
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        if (connect(fd, (void *)&name, sizeof name)) exit(2);
        client(fd);
    }
    int fd = accept(listener, 0, 0), way = 0;
    ssize_t n;
    do {
        // All of it at once, or by iovecs, or by a message.
        struct iovec parts[] = {{room, 3}, {room + 3, sizeof room - 3}};
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
        recv(fd, room, 1, MSG_PEEK);
        n = way % 3 == 0 ? read(fd, room, sizeof room) : way % 3 == 1 ? readv(fd, parts, 2) : recvmsg(fd, &message, 0);
        if (n > 0) received(fd, room, n);
        way++;
    } while (n > 0);
    sent(fd, "done", write(fd, "done", 4));
    close(fd);
    int status, pair[2];
    wait(&status);
    if (WEXITSTATUS(status) != 3) exit(6);
    socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair);
    sent(pair[0], big, send(pair[0], big, 5000, 0));
    received(pair[1], room, recv(pair[1], room, sizeof room, 0));
    // Nobody is there any more: an error.
    close(pair[1]);
    if (send(pair[0], "x", 1, MSG_NOSIGNAL) >= 0) exit(5);
    return 0;
}
"#;

/// The same of Go's: its system calls are its own.
const GO: &str = r#"
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
)

var folder = os.Args[1]

type end struct {
	*net.UnixConn
	inode uint64
}

func of(conn net.Conn) *end {
	e := &end{conn.(*net.UnixConn), 0}
	raw, _ := e.SyscallConn()
	raw.Control(func(fd uintptr) {
		var stat syscall.Stat_t
		syscall.Fstat(int(fd), &stat)
		e.inode = stat.Ino
	})
	return e
}

func (e *end) keep(way string, bytes []byte) {
	file, err := os.OpenFile(fmt.Sprintf("%s/%d.%s", folder, e.inode, way), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0600)
	if err != nil {
		panic(err)
	}
	file.Write(bytes)
	file.Close()
}

func (e *end) send(bytes []byte) {
	if _, err := e.Write(bytes); err != nil {
		panic(err)
	}
	e.keep("out", bytes)
}

func (e *end) receive(n int) []byte {
	bytes := make([]byte, n)
	if _, err := io.ReadFull(e, bytes); err != nil {
		panic(err)
	}
	e.keep("in", bytes)
	return bytes
}

var sizes = []int{1, 64, 65, 4096, 100000, 1, 2000000}

func main() {
	listener, err := net.Listen("unix", folder+"/go")
	if err != nil {
		panic(err)
	}
	done := make(chan bool)
	go func() {
		conn, _ := listener.Accept()
		e := of(conn)
		for _, n := range sizes {
			e.send(e.receive(n))
		}
		e.Close()
		done <- true
	}()
	conn, err := net.Dial("unix", folder+"/go")
	if err != nil {
		panic(err)
	}
	e := of(conn)
	for _, n := range sizes {
		bytes := make([]byte, n)
		for i := range bytes {
			bytes[i] = byte(i*3 + n)
		}
		go e.send(bytes)
		e.receive(n)
	}
	<-done
	e.Close()
}
"#;

/// Sends each line of its standard input to itself over a pair that it had before it said its number.
const ECHO: &str = r#"
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <sys/socket.h>
int main() {
    int pair[2];
    char line[100];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) return 4;
    printf("%d\n", getpid());
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        write(pair[0], line, strlen(line));
        printf("%d\n", (int)read(pair[1], line, sizeof line));
        fflush(stdout);
    }
}
"#;

/// Whether the engine can be used here; says so if a test has to do without it.
fn can(test: &str) -> bool {
    if !geteuid().is_root() {
        skipped(test, "only root may load programs into the kernel");
        return false;
    }
    let tried = run(&["run", "--engine", "bpf", "--", "true"]);
    if tried.code == Some(125) {
        skipped(test, tried.err.trim());
        return false;
    }
    true
}

fn events(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("events.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Files of the account and of the recording, by inode and direction.
fn compare(account: &Path, recording: &Path) -> usize {
    let events = events(recording);
    let conns: BTreeMap<u64, &str> = events
        .iter()
        .filter(|event| event["type"] == "open")
        .map(|event| (event["inode"].as_u64().unwrap(), event["conn_id"].as_str().unwrap()))
        .collect();
    assert!(!events.iter().any(|event| event["type"] == "lost"), "{events:#?}");
    let mut compared = 0;
    for entry in fs::read_dir(account).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let Some((inode, way)) = name.split_once('.') else { continue };
        let conn_id = conns[&inode.parse().unwrap()];
        let recorded = fs::read(recording.join(format!("{conn_id}.{way}.bin"))).unwrap();
        let told = fs::read(entry.path()).unwrap();
        assert_eq!(recorded.len(), told.len(), "{name}");
        assert!(recorded == told, "{name}: other bytes");
        compared += 1;
    }
    compared
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An account's folder, a recording's and the outcome of a run.
fn traced(folder: &TempDir, program: &Path) -> (std::path::PathBuf, std::path::PathBuf, Outcome) {
    let (account, recording) = (folder.path().join("account"), folder.path().join("rec"));
    fs::create_dir(&account).unwrap();
    let args = ["run", "--engine", "bpf", "--ring-size", "67108864", "-w", text(&recording), "--"];
    let traced = run(&[&args[..], &[text(program), text(&account)]].concat());
    assert_eq!(traced.code, Some(0), "{}", traced.err);
    (account, recording, traced)
}

#[test]
fn a_static_program() {
    let test = "a_static_program";
    if !can(test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "program", STATIC, &["-static", "-w"]);
    let (account, recording, traced) = traced(&folder, &program);
    // Both ends of the connection, each way, and one way of the pair.
    assert_eq!(compare(&account, &recording), 6);
    let events = events(&recording);
    let of = |kind: &str| events.iter().filter(|event| event["type"] == kind).collect::<Vec<_>>();
    let path = format!("{}/s", text(&account));
    assert_eq!(of("open").iter().filter(|open| open["path"] == *path).count(), 2, "{}", traced.err);
    assert_eq!(of("start").len(), 1);
    assert_eq!(of("fork").len(), 1);
    assert_eq!(of("exit").iter().map(|exit| exit["status"].as_u64().unwrap()).collect::<Vec<_>>(), [3, 0]);
    assert_eq!(of("eof").len(), 2, "of both ends");
    assert_eq!((of("fail").len(), &of("fail")[0]["error"]), (1, &"EPIPE".into()));
    // Each end's offsets follow from its sizes.
    let mut next: BTreeMap<(String, String), u64> = BTreeMap::new();
    for data in of("data") {
        let key = (data["conn_id"].to_string(), data["direction"].to_string());
        let next = next.entry(key).or_default();
        if data["part"].as_u64().unwrap_or(0) == 0 {
            assert_eq!(data["offset"], *next, "{data}");
            *next += data["total"].as_u64().unwrap();
        }
        assert!(data.get("uncaptured").is_none(), "{data}");
    }
    // Others read the recording as any.
    let shown = run(&["show", text(&recording)]);
    assert!(shown.out.contains(&path), "{}", shown.out);
    let packets = run(&["export", "-o", text(&folder.path().join("x.pcapng")), text(&recording)]);
    assert_eq!((shown.code, packets.code), (Some(0), Some(0)), "{}{}", shown.err, packets.err);
}

/// Sends so many datagrams of so many bytes to itself, fast.
const FLOOD: &str = r#"
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
int main(int c, char **v) {
    int pair[2], n = atoi(v[1]), len = atoi(v[2]);
    char *bytes = calloc(1, len);
    if (socketpair(AF_UNIX, SOCK_DGRAM, 0, pair)) return 2;
    while (n--)
        if (write(pair[0], bytes, len) != len || read(pair[1], bytes, len) != len) return 3;
}
"#;

#[test]
fn what_a_full_ring_buffer_has_no_room_for_is_counted() {
    let test = "what_a_full_ring_buffer_has_no_room_for_is_counted";
    if !can(test) {
        return;
    }
    const COUNT: u64 = 20_000;
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "program", FLOOD, &["-static", "-w"]);
    for len in [300_u64, 100_000] {
        let recording = folder.path().join(len.to_string());
        let (count, size) = (COUNT * 300 / len, len.to_string());
        let args = ["run", "--engine", "bpf", "--ring-size", "65536", "-w", text(&recording), "--"];
        let traced = run(&[&args[..], &[text(&program), &count.to_string(), &size]].concat());
        assert_eq!(traced.code, Some(0), "{}", traced.err);
        let events = events(&recording);
        let sum = |kind: &str, field: &str| -> u64 {
            events.iter().filter(|event| event["type"] == kind).filter_map(|event| event[field].as_u64()).sum()
        };
        let (recorded, lost) = (sum("data", "size"), sum("lost", "bytes") + sum("data", "uncaptured"));
        // A message that is longer than the ring buffer never has room.
        assert!(len < 65536 || (lost > 0 && traced.err.contains("LOST")), "{}", traced.err);
        assert_eq!(recorded + lost, 2 * count * len, "{}", traced.err);
        let files: u64 = fs::read_dir(&recording)
            .unwrap()
            .flatten()
            .map(|file| match file.path().extension() {
                Some(extension) if extension == "bin" => file.metadata().unwrap().len(),
                _ => 0,
            })
            .sum();
        assert_eq!(files, recorded);
    }
}

#[test]
fn a_program_of_gos() {
    let test = "a_program_of_gos";
    if !can(test) || !has("go", test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("main.go"), folder.path().join("program"));
    fs::write(&source, GO).unwrap();
    let built = Command::new("go")
        .args(["build", "-o", text(&program), text(&source)])
        .env("CGO_ENABLED", "0")
        .env("GOCACHE", folder.path().join("cache"))
        .status()
        .unwrap();
    assert!(built.success());
    let (account, recording, traced) = traced(&folder, &program);
    assert_eq!(compare(&account, &recording), 4);
    assert!(!traced.err.contains("Go"), "it is seen: {}", traced.err);
}

#[test]
fn nothing_of_others_and_of_children_only_when_asked_for() {
    let test = "nothing_of_others_and_of_children_only_when_asked_for";
    if !can(test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "program", STATIC, &["-static", "-w"]);
    let recording = folder.path().join("rec");
    let script = format!("{} {}", text(&program), text(folder.path()));
    // The shell has a child that has all the traffic.
    let args = ["run", "--engine", "bpf", "--no-children", "-w", text(&recording), "--", "sh", "-c"];
    let traced = run(&[&args[..], &[&format!("{script}; true")]].concat());
    assert_eq!(traced.code, Some(0), "{}", traced.err);
    let events = events(&recording);
    assert!(!events.iter().any(|event| event["type"] == "data"), "{events:#?}");
    assert_eq!(events.iter().filter(|event| event["type"] == "start").count(), 1);
}

#[test]
fn a_process_that_runs() {
    let test = "a_process_that_runs";
    if !can(test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "program", ECHO, &["-static", "-w"]);
    let recording = folder.path().join("rec");
    let mut child = Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut lines = BufReader::new(stdout).lines();
    let mut next = || lines.next().unwrap().unwrap();
    let pid = next();
    writeln!(stdin, "before").unwrap();
    next();
    let mut tracer = harness::socktrace(&["attach", "--engine", "bpf", "-w", text(&recording), &pid]);
    let mut tracer = tracer.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut said = BufReader::new(tracer.stderr.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("attached to")));
    writeln!(stdin, "hello").unwrap();
    next();
    drop(stdin);
    child.wait().unwrap();
    // It ends with the process.
    let rest: Vec<_> = said.map(Result::unwrap).collect();
    assert!(tracer.wait().unwrap().success(), "{rest:?}");
    until("the recording has ended", || {
        fs::read_to_string(recording.join("events.jsonl")).unwrap().contains("host_shutdown")
    });
    let events = events(&recording);
    let opened: Vec<_> = events.iter().filter(|event| event["type"] == "open").collect();
    assert_eq!(opened.len(), 2, "both ends of the pair, once each: {events:#?}");
    assert!(opened.iter().all(|open| open["how"].as_str().unwrap().starts_with("preexisting:")), "{opened:#?}");
    assert_eq!(opened[0]["inode"], opened[1]["peer_inode"]);
    let data: Vec<_> = events.iter().filter(|event| event["type"] == "data").collect();
    assert_eq!(data.len(), 2, "what was before is not known: {data:#?}");
    for (data, way) in data.iter().zip(["out", "in"]) {
        let file = recording.join(format!("{}.{way}.bin", data["conn_id"].as_str().unwrap()));
        assert_eq!(fs::read(file).unwrap(), b"hello\n");
    }
}

#[test]
fn who_may_not_is_told_in_one_line() {
    let test = "who_may_not_is_told_in_one_line";
    let args = ["run", "--engine", "bpf", "--", "true"];
    let refused = if geteuid().is_root() {
        if !has("setpriv", test) {
            return;
        }
        // In a folder that nobody else may search, the executable would not be found.
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        let copy = folder.path().join("socktrace");
        fs::copy(harness::SOCKTRACE, &copy).unwrap();
        fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", text(&copy)];
        outcome(&mut command("setpriv", &[&nobody[..], &args].concat()))
    } else {
        run(&args)
    };
    assert_eq!(refused.code, Some(125));
    assert_eq!(refused.err.lines().count(), 1, "{}", refused.err);
    assert!(refused.err.contains("root"), "{}", refused.err);
    let none = run(&["attach", "--engine", "bpf", "2147483647"]);
    assert!(none.err.contains("no such process"), "{}", none.err);
}
