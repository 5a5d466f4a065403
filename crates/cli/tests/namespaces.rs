//! Processes that see themselves under other numbers than the collector does (pid_namespaces(7)), and processes of one
//! number: what each did is recorded as its own.

mod harness;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use harness::{SOCKTRACE, command, compile, outcome, skipped, socktrace};
use socktrace_event::{Direction, Event, EventType, ProcessId, What};
use socktrace_recording::Recording;

/// A tree of processes, made at random of a seed by each way there is to make one, some in pid namespaces of their own.
/// Each says what it is called to the socket at a path, and goes on when that answers; some of them from a thread.
const TREE: &str = r#"
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static char *program, *path;

static void *say(void *name) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    char answer;
    if (connect(fd, (struct sockaddr *)&address, sizeof address)) _exit(10);
    if (send(fd, name, strlen(name), 0) < 0 || recv(fd, &answer, 1, 0) != 1) _exit(11);
    close(fd);
    return 0;
}

static void grow(char *name, unsigned seed) {
    unsigned state = seed;
    if (rand_r(&state) % 4) {
        say(name);
    } else {
        pthread_t thread;
        if (pthread_create(&thread, 0, say, name)) _exit(12);
        pthread_join(thread, 0);
    }
    if (strlen(name) >= 4) return;
    int children = 1 + rand_r(&state) % 3;
    for (int child = 0; child < children; child++) {
        char called[8], seeded[16];
        unsigned own = rand_r(&state);
        snprintf(called, sizeof called, "%s%c", name, 'a' + child);
        snprintf(seeded, sizeof seeded, "%u", own);
        char *arguments[] = {program, path, called, seeded, 0};
        pid_t pid = -1;
        int way = rand_r(&state) % 5;
        if (way == 0) pid = syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0);
        else if (way == 1 && (pid = vfork()) == 0) { execve(program, arguments, environ); _exit(13); }
        else if (way == 2 && posix_spawn(&pid, program, 0, 0, arguments, environ)) _exit(14);
        else if (way >= 3) pid = fork();
        if (pid < 0) _exit(15);
        if (pid == 0) {
            if (way == 3) { execve(program, arguments, environ); _exit(16); }
            grow(called, own);
            _exit(0);
        }
    }
    int status;
    while (wait(&status) > 0) if (status) _exit(17);
}

int main(int argc, char **argv) {
    (void)argc;
    program = argv[0], path = argv[1];
    grow(argv[2], atoi(argv[3]));
    return 0;
}
"#;

/// Whether pid namespaces can be made here; says so if a test has to do without them.
fn has_namespaces(test: &str) -> bool {
    let can = Command::new("unshare").args(["-pf", "--mount-proc", "true"]).stderr(Stdio::null()).status();
    let can = can.is_ok_and(|status| status.success());
    if !can {
        skipped(test, "no pid namespace can be made here: needs root, and unshare(1)");
    }
    can
}

/// What the kernel says of who has connected: its number here, and the one that it sees itself.
fn numbers(stream: &UnixStream) -> (u32, u32) {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    let at = (&raw mut peer).cast();
    // SAFETY: room for a `struct ucred`, and its length.
    let failed = unsafe { libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, at, &raw mut len) };
    assert_eq!(failed, 0);
    let status = fs::read_to_string(format!("/proc/{}/status", peer.pid)).unwrap();
    let seen = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap();
    (peer.pid.cast_unsigned(), seen.split_whitespace().last().unwrap().parse().unwrap())
}

type Truth = BTreeMap<String, (u32, u32)>;

/// Answers until told `end`; who has said what.
fn listen(listener: UnixListener) -> thread::JoinHandle<Truth> {
    thread::spawn(move || {
        let mut truth = Truth::new();
        loop {
            let (mut stream, _) = listener.accept().unwrap();
            let mut name = [0; 16];
            let len = stream.read(&mut name).unwrap();
            let name = String::from_utf8(name[..len].to_vec()).unwrap();
            if name == "end" {
                return truth;
            }
            assert!(truth.insert(name, numbers(&stream)).is_none());
            stream.write_all(b"+").unwrap();
        }
    })
}

fn events(folder: &Path, mut each: impl FnMut(&Event<'_>, &[u8])) {
    let mut recording = Recording::open(folder).unwrap();
    while let Some(recorded) = recording.next_event().unwrap() {
        each(&recorded.event(), &recorded.payload(100).bytes);
    }
    assert_eq!(recording.unreadable(), 0);
}

fn record_trees(test: &str, transport: &str) {
    if !has_namespaces(test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "tree", TREE, &["-pthread"]);
    for seed in 1..=4 {
        let path = folder.path().join(format!("{seed}.sock"));
        let truth = listen(UnixListener::bind(&path).unwrap());
        let kept = folder.path().join(format!("{seed}"));
        let (program, path) = (program.to_str().unwrap(), path.to_str().unwrap());
        let seed = seed.to_string();
        let options =
            ["run", "--transport", transport, "--on-full", "block", "-w", kept.to_str().unwrap(), "-o", "/dev/null"];
        let done = outcome(socktrace(&options).args(["--", program, path, "t", &seed]));
        UnixStream::connect(path).unwrap().write_all(b"end").unwrap();
        let truth = truth.join().unwrap();
        assert_eq!((done.code, &*done.err), (Some(0), ""), "seed {seed}");
        let mut recorded = Truth::new();
        events(&kept, |event, payload| {
            if matches!(event.kind(), EventType::HostInit | EventType::HostShutdown) {
                return;
            }
            let Some(ProcessId::Here(here)) = event.process() else { panic!("seed {seed}: {event:?}") };
            let own = event.pid.unwrap();
            assert_eq!(event.host_pid.is_some(), here != own, "seed {seed}: {event:?}");
            if event.kind() == EventType::Data && event.direction() == Direction::Out {
                recorded.insert(String::from_utf8(payload.to_vec()).unwrap(), (here, own));
            }
            if let What::Start(begun) | What::Fork(begun) = &event.what {
                assert_eq!(begun.comm.as_deref(), Some("tree"), "seed {seed}: {event:?}");
            }
        });
        assert_eq!(recorded, truth, "seed {seed}");
        let shown = outcome(&mut socktrace(&["show", kept.to_str().unwrap()]));
        assert_eq!(shown.err, "", "seed {seed}");
        for (name, (here, _)) in &truth {
            let line = shown.out.lines().find(|line| line.contains(&format!("\"{name}\""))).unwrap();
            assert!(line.contains(&format!(" tree[{here}] ")), "seed {seed}: {line}");
        }
    }
}

#[test]
fn trees_of_namespaces_by_shm() {
    record_trees("trees_of_namespaces_by_shm", "shm");
}

#[test]
fn trees_of_namespaces_by_stream() {
    record_trees("trees_of_namespaces_by_stream", "stream");
}

/// Has the programs that it is given executed one after the other, all under one number.
const REUSE: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        int last = open("/proc/sys/kernel/ns_last_pid", O_WRONLY);
        if (write(last, "299", 3) != 3) return 1;
        close(last);
        pid_t pid = fork();
        if (pid == 0) {
            execl(argv[i], argv[i], (char *)0);
            _exit(2);
        }
        int status;
        if (pid != 300 || waitpid(pid, &status, 0) != pid || status) return 3;
    }
    return 0;
}
"#;

/// Sends its name to itself, more often the longer that is.
const SELF: &str = r#"
#include <string.h>
#include <sys/socket.h>

int main(int argc, char **argv) {
    (void)argc;
    int pair[2];
    char *name = strrchr(argv[0], '/') + 1, buffer[100];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) return 1;
    for (size_t i = 0; i < strlen(name); i++) {
        if (send(pair[0], name, strlen(name), 0) < 0 || recv(pair[1], buffer, sizeof buffer, 0) < 0) return 2;
    }
    return 0;
}
"#;

#[test]
fn a_number_that_is_given_out_again_is_another_process() {
    if !has_namespaces("a_number_that_is_given_out_again_is_another_process") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let reuse = compile(folder.path(), "reuse", REUSE, &[]);
    let programs = ["alphabetical", "beta"].map(|name| compile(folder.path(), name, SELF, &[]));
    let (kept, lines) = (folder.path().join("kept"), folder.path().join("lines"));
    // All of it in a namespace of its own, where nobody else takes numbers.
    let mut run = command("unshare", &["-pf", "--mount-proc", SOCKTRACE, "run", "-w"]);
    let live = outcome(run.arg(&kept).arg("-o").arg(&lines).arg("--").arg(reuse).args(&programs));
    assert_eq!((live.code, &*live.err), (Some(0), ""));
    let shown = outcome(&mut socktrace(&["show", kept.to_str().unwrap()]));
    assert_eq!(shown.err, "");
    for lines in [&fs::read_to_string(lines).unwrap(), &shown.out] {
        for (name, count) in [("alphabetical", 12), ("beta", 4)] {
            let sent = format!(" {name}[300] → (unnamed) {name}[300] ");
            assert_eq!(lines.matches(&sent).count(), count, "{lines}");
            let row = lines.lines().filter(|line| line.starts_with(&format!("(unnamed)  {name}[300] "))).count();
            assert_eq!(row, 2, "{lines}");
        }
    }
}

/// Process 1 of a pid namespace, which takes an empty root directory and forks children that each are process 1 of their own, as
/// Chromium's sandbox does. Each says its letter some times, while the others do.
const SANDBOX: &str = r#"
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void say(char letter) {
    int pair[2];
    char got;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) _exit(10);
    for (int i = 0; i < 10; i++) {
        if (send(pair[0], &letter, 1, 0) != 1 || recv(pair[1], &got, 1, 0) != 1) _exit(11);
        usleep(10000);
    }
}

static int make(void) { return syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0); }

int main(int argc, char **argv) {
    (void)argc;
    int status, failed = 0;
    if (make() == 0) {
        say('z');
        if (chroot(argv[1]) || chdir("/")) _exit(12);
        for (char letter = 'a'; letter <= 'c'; letter++) {
            if (make() == 0) {
                say(letter);
                _exit(0);
            }
        }
        while (wait(&status) > 0) failed |= status;
        say('y');
        _exit(failed != 0);
    }
    wait(&status);
    return WEXITSTATUS(status);
}
"#;

#[test]
fn processes_1_that_cannot_reach_the_collector() {
    if !has_namespaces("processes_1_that_cannot_reach_the_collector") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "sandbox", SANDBOX, &[]);
    let (empty, kept) = (folder.path().join("empty"), folder.path().join("kept"));
    fs::create_dir(&empty).unwrap();
    let options = ["run", "-w", kept.to_str().unwrap(), "-o", "/dev/null", "--"];
    let done = outcome(socktrace(&options).arg(program).arg(empty));
    assert_eq!((done.code, &*done.err), (Some(0), ""));
    let mut said = BTreeMap::<char, (u32, usize)>::new();
    events(&kept, |event, payload| {
        if event.kind() == EventType::Data && event.direction() == Direction::Out {
            let Some(ProcessId::Here(here)) = event.process() else { panic!("{event:?}") };
            assert_eq!(event.pid, Some(1), "{event:?}");
            let (first, count) = said.entry(payload[0].into()).or_insert((here, 0));
            assert_eq!(*first, here, "{event:?}");
            *count += 1;
        }
    });
    let letters: String = said.keys().collect();
    assert_eq!(letters, "abcyz");
    assert!(said.values().all(|(_, count)| *count == 10), "{said:?}");
    let mut processes: Vec<u32> = said.values().map(|(here, _)| *here).collect();
    processes.sort_unstable();
    processes.dedup();
    assert_eq!(processes.len(), 4, "y and z are of one process, and the others of their own: {said:?}");
}
