//! Programs that live within narrow limits, and those that put themselves under some: they run as they would alone, and are
//! recorded by whatever transport there is room for.

mod harness;

use std::fs;
use std::path::Path;

use harness::{compile, outcome, run, socktrace};

/// Sends a message to itself with all the descriptors that a limit leaves it, and none taken by anybody else.
const TALKER: &str = r#"
#include <sys/socket.h>
int main(void) {
    int pair[2];
    char buffer[20];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || pair[0] != 3 || pair[1] != 4) return 9;
    if (send(pair[0], "greeting", 8, 0) != 8 || recv(pair[1], buffer, sizeof buffer, 0) != 8) return 8;
    return 42;
}
"#;

/// How often a text is in a file.
fn count(file: &Path, text: &str) -> usize {
    fs::read_to_string(file).unwrap_or_default().matches(text).count()
}

#[test]
fn limits_leave_the_program_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "talker", TALKER, &[]);
    let shown = folder.path().join("shown");
    for limit in ["-n 5", "-n 6", "-f 0", "-f 8", "-f 1024", "-v 20000", "-l 0"] {
        for transport in ["shm", "stream"] {
            let _ = fs::remove_file(&shown);
            let script = format!("ulimit {limit}; exec '{}'", program.display());
            let args = ["run", "--transport", transport, "-o", shown.to_str().unwrap(), "--", "bash", "-c", &script];
            let run = run(&args);
            assert_eq!(run.code, Some(42), "ulimit {limit}, {transport}: {}", run.err);
            assert_eq!(count(&shown, "greeting"), 2, "ulimit {limit}, {transport}: {}", run.err);
        }
    }
}

/// Forbids itself the time-stamp counter, or everything (seccomp(2)'s strict mode, in each way of asking for it).
const FORBIDS: &str = r#"
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int argc, char **argv) {
    int pair[2];
    char buffer[20];
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    send(pair[0], "greeting", 8, 0);
    recv(pair[1], buffer, sizeof buffer, 0);
    int failed = 1;
    switch (argv[1][0]) {
        case 't': failed = prctl(PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0); break;
        case 'p': failed = prctl(PR_SET_SECCOMP, 1, 0, 0, 0); break;
        case 's': failed = syscall(SYS_seccomp, 0, 0, 0); break;
        case 'n': failed = syscall(SYS_prctl, PR_SET_SECCOMP, 1, 0, 0, 0); break;
    }
    if (failed) _exit(7);
    for (int i = 0; i < 1000; i++)
        if (write(pair[0], "quietly", 7) != 7 || read(pair[1], buffer, sizeof buffer) != 7) syscall(SYS_exit, 8);
    syscall(SYS_exit, 42);
}
"#;

#[test]
fn what_is_forbidden_is_not_done() {
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "forbids", FORBIDS, &["-w"]);
    let shown = folder.path().join("shown");
    for way in ["tsc", "prctl", "seccomp", "number"] {
        for transport in ["shm", "stream"] {
            let _ = fs::remove_file(&shown);
            let mut command = socktrace(&["run", "--transport", transport, "-o", shown.to_str().unwrap(), "--"]);
            let run = outcome(command.arg(&program).arg(way));
            assert_eq!(run.code, Some(42), "{way}, {transport}: {}", run.err);
            assert_eq!(count(&shown, "greeting"), 2, "{way}, {transport}: {}", run.err);
        }
    }
}

/// Closes all that it finds to be open, and looks whether it gets the lowest numbers afterwards.
const CLOSES: &str = r#"
#include <dirent.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
int main(void) {
    DIR *folder = opendir("/proc/self/fd");
    int own = dirfd(folder), found[256], count = 0, pair[2];
    char buffer[20];
    for (struct dirent *entry; (entry = readdir(folder)) && count < 256;)
        if (atoi(entry->d_name) > 2 && atoi(entry->d_name) != own) found[count++] = atoi(entry->d_name);
    closedir(folder);
    for (int i = 0; i < count; i++)
        if (close(found[i])) return 7;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || pair[0] != 3 || pair[1] != 4) return 9;
    send(pair[0], "greeting", 8, 0);
    return recv(pair[1], buffer, sizeof buffer, 0) == 8 ? 42 : 8;
}
"#;

#[test]
fn a_program_that_closes_all_it_finds_is_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "closes", CLOSES, &[]);
    let shown = folder.path().join("shown");
    for transport in ["shm", "stream"] {
        let _ = fs::remove_file(&shown);
        let mut command = socktrace(&["run", "--transport", transport, "-o", shown.to_str().unwrap(), "--"]);
        let run = outcome(command.arg(&program));
        assert_eq!(run.code, Some(42), "{transport}: {}", run.err);
        assert_eq!(count(&shown, "greeting"), 2, "{transport}: {}", run.err);
    }
}
