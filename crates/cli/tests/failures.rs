//! Calls that fail, ends of connections, and what is said where nothing was recorded.

mod harness;

use std::fs;
use std::path::PathBuf;

use harness::{compile, run};
use serde_json::Value;
use tempfile::TempDir;

/// Does what its first argument says, in the folder that is its second; exits with 42 if that came out as it should.
const CALLER: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

static struct sockaddr_un address = {.sun_family = AF_UNIX};
static struct sockaddr *at(const char *path) { strcpy(address.sun_path, path); return (struct sockaddr *)&address; }
#define FAILED(call, error) (errno = 0, (call) == -1 && errno == error)
static long raw(long number, long a, long b, long c, long d) {
    long result;
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return result;
}

int main(int argc, char **argv) {
    const char *what = argv[1];
    const int len = sizeof address;
    int stream = -1, dgram = -1, pair[2] = {-1, -1};
    char byte;
    signal(SIGPIPE, SIG_IGN);
    if (chdir(argv[2])) return 1;
    if (!strcmp(what, "nothing")) return 42;
    if (!strcmp(what, "raw")) {
        return raw(SYS_socketpair, AF_UNIX, SOCK_STREAM, 0, (long)pair) || raw(SYS_write, pair[0], (long)"x", 1, 0) != 1 ? 2 : 42;
    }
    if (!strcmp(what, "making")) return FAILED(socketpair(AF_UNIX, SOCK_STREAM, 77, pair), EPROTONOSUPPORT) ? 42 : 3;
    stream = socket(AF_UNIX, SOCK_STREAM, 0);
    dgram = socket(AF_UNIX, SOCK_DGRAM, 0);
    if (stream < 0 || dgram < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) return 4;
    if (!strcmp(what, "unused")) return 42;
    if (!strcmp(what, "connect")) return FAILED(connect(stream, at("nowhere"), len), ENOENT) ? 42 : 5;
    if (!strcmp(what, "again")) {
        for (int i = 0; i < 100000; i++) if (!FAILED(connect(stream, at("nowhere"), len), ENOENT)) return 6;
        return 42;
    }
    if (!strcmp(what, "sendto")) return FAILED(sendto(dgram, "x", 1, 0, at("nowhere"), len), ENOENT) ? 42 : 7;
    if (!strcmp(what, "sendmsg")) {
        struct iovec piece = {"x", 1};
        struct msghdr message = {.msg_name = at("nowhere"), .msg_namelen = len, .msg_iov = &piece, .msg_iovlen = 1};
        struct mmsghdr messages[1] = {{message, 0}};
        return FAILED(sendmsg(dgram, &message, 0), ENOENT) && FAILED(sendmmsg(dgram, messages, 1, 0), ENOENT) ? 42 : 8;
    }
    if (!strcmp(what, "bind")) return FAILED(bind(stream, at("no/folder"), len), ENOENT) ? 42 : 9;
    if (!strcmp(what, "accept")) return FAILED(accept(stream, 0, 0), EINVAL) ? 42 : 10;
    if (!strcmp(what, "epipe")) {
        struct iovec piece = {"x", 1};
        if (write(pair[0], "x", 1) != 1 || read(pair[1], &byte, 1) != 1 || close(pair[1])) return 11;
        return FAILED(write(pair[0], "x", 1), EPIPE) && FAILED(send(pair[0], "x", 1, 0), EPIPE)
            && FAILED(writev(pair[0], &piece, 1), EPIPE) && FAILED(recv(-1, &byte, 1, 0), EBADF) ? 42 : 12;
    }
    if (!strcmp(what, "end")) {
        if (write(pair[0], "x", 1) != 1 || read(pair[1], &byte, 1) != 1 || close(pair[0])) return 13;
        // No room is no end; then it ends, and again.
        return read(pair[1], &byte, 0) || recv(pair[1], &byte, 1, 0) || read(pair[1], &byte, 1) ? 14 : 42;
    }
    if (!strcmp(what, "quiet")) {
        return FAILED(recv(pair[0], &byte, 1, MSG_DONTWAIT), EAGAIN) && FAILED(connect(stream, (void *)1, len), EFAULT)
            && FAILED(connect(-1, at("nowhere"), len), EBADF) ? 42 : 16;
    }
    return 15;
}
"#;

struct Caller {
    folder: TempDir,
    program: PathBuf,
}

impl Caller {
    fn build() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = compile(folder.path(), "caller", CALLER, &["-w"]);
        Self { folder, program }
    }

    /// The events of a run, and what was said at its end.
    fn events(&self, options: &[&str], what: &str) -> (Vec<Value>, String) {
        let [dir, cwd] = ["rec", "cwd"].map(|name| self.folder.path().join(name));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&cwd).unwrap();
        let (dir, cwd) = (dir.to_str().unwrap(), cwd.to_str().unwrap());
        let program = self.program.to_str().unwrap();
        let traced = run(&[&["run", "-w", dir], options, &["--", program, what, cwd]].concat());
        assert_eq!(traced.code, Some(42), "{what}: {}", traced.err);
        let events = fs::read_to_string(format!("{dir}/events.jsonl")).unwrap();
        (events.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), traced.err)
    }
}

fn of_type<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["type"] == kind).collect()
}

#[test]
fn failed_calls_are_recorded_with_their_error() {
    let caller = Caller::build();
    let shown = "no such file or directory (ENOENT)";
    let rows: [(&str, &[&str], &str, i32, &str); 7] = [
        ("connect", &["connect"], "ENOENT", 2, "/cwd/nowhere"),
        ("sendto", &["sendto"], "ENOENT", 2, "/cwd/nowhere"),
        ("sendmsg", &["sendmsg", "sendmmsg"], "ENOENT", 2, "/cwd/nowhere"),
        ("bind", &["bind"], "ENOENT", 2, "/cwd/no/folder"),
        ("accept", &["accept"], "EINVAL", 22, ""),
        ("epipe", &["write", "send", "writev"], "EPIPE", 32, ""),
        ("making", &["socketpair"], "EPROTONOSUPPORT", 93, ""),
    ];
    for options in [&[][..], &["--transport", "stream"]] {
        for (what, calls, error, errno, path) in rows {
            let (events, said) = caller.events(options, what);
            let fails = of_type(&events, "fail");
            let named: Vec<_> = fails.iter().map(|event| event["call"].as_str().unwrap()).collect();
            assert_eq!(named, calls, "{what}: {fails:?}");
            for event in fails {
                assert_eq!((&event["error"], &event["errno"]), (&error.into(), &errno.into()), "{event}");
                assert!(event["path"].as_str().unwrap_or_default().ends_with(path), "{event}");
                assert_eq!(event.get("conn_id").is_some(), what == "epipe", "{event}");
            }
            assert!(error != "ENOENT" || said.contains(shown), "{said}");
            let last = said.lines().last().unwrap();
            assert_eq!(last.starts_with("socktrace: no messages: "), what != "epipe", "{last}");
        }
    }
}

#[test]
fn what_fails_all_the_time_is_told_now_and_then() {
    let (events, said) = Caller::build().events(&[], "again");
    let fails = of_type(&events, "fail");
    let times: Vec<_> = fails.iter().map(|event| event["times"].as_u64().unwrap_or(1)).collect();
    assert!((17..1000).contains(&times.len()) && times.is_sorted() && times[..4] == [1, 2, 4, 8], "{times:?}");
    assert!(*times.last().unwrap() >= 65536, "{times:?}");
    assert!(!said.contains("LOST"), "{said}");
}

#[test]
fn an_end_is_told_once() {
    for options in [&[][..], &["--transport", "stream"]] {
        let (events, said) = Caller::build().events(options, "end");
        let ends = of_type(&events, "eof");
        assert_eq!(ends.len(), 1, "{ends:?}");
        let received: Vec<_> =
            events.iter().filter(|event| event["type"] == "data" && event["direction"] == "in").collect();
        assert_eq!((&ends[0]["direction"], &ends[0]["conn_id"]), (&"in".into(), &received[0]["conn_id"]));
        assert!(said.contains("end of file"), "{said}");
    }
}

#[test]
fn the_exit_says_how_and_with_which_sockets() {
    let caller = Caller::build();
    for (what, sockets) in [("nothing", Value::Null), ("unused", 4.into())] {
        let (events, said) = caller.events(&[], what);
        let exits = of_type(&events, "exit");
        assert_eq!(exits.len(), 1, "{exits:?}");
        assert_eq!((&exits[0]["status"], &exits[0]["sockets"]), (&42.into(), &sockets));
        assert!(said.contains("exited 42"), "{said}");
    }
}

#[test]
fn nothing_false_is_said_at_the_end() {
    let caller = Caller::build();
    let none = "nothing recorded: 1 process traced, and no AF_UNIX socket was used through libc; what a program does by \
                system calls of its own is not seen";
    for (what, sentence) in [
        ("nothing", none),
        ("raw", none),
        ("unused", "nothing recorded: 4 AF_UNIX sockets were made, and nothing went over them"),
        ("connect", "no messages: a call on an AF_UNIX socket failed, and nothing went over any"),
        ("quiet", "nothing recorded: 4 AF_UNIX sockets were made, and nothing went over them"),
    ] {
        let (events, said) = caller.events(&[], what);
        assert_eq!(said.lines().last().unwrap(), format!("socktrace: {sentence}"), "{what}");
        assert_eq!(of_type(&events, "fail").len(), usize::from(what == "connect"), "{what}: {events:?}");
    }
}
