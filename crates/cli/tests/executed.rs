//! What becomes of programs that a traced one executes: they behave as untraced, and are recorded, or named as not recorded.

mod harness;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{compile, has, run, skipped};
use tempfile::TempDir;

/// Sends itself a greeting over a pair, and exits with 42.
const TALKER: &str = r#"
#include <sys/socket.h>
#include <unistd.h>

int main(void) {
    int pair[2];
    char buffer[100];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) return 1;
    if (write(pair[0], "greeting", 8) != 8) return 2;
    return read(pair[1], buffer, sizeof buffer) == 8 ? 42 : 3;
}
"#;

/// Connects to a socket, and waits until that is closed to it.
const STRANGER: &str = r#"
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(int argc, char **argv) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    char byte;
    strcpy(to.sun_path, argv[1]);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&to, sizeof to)) return 1;
    return read(fd, &byte, 1) == 0 ? 0 : 2;
}
"#;

/// Executes a program in the way, and with the environment, that its arguments say; exits as that does.
const STARTER: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static char *filled(size_t len) {
    char *text = malloc(len + 1);
    memset(text, ':', len);
    memcpy(text, "LD_PRELOAD=", 11);
    text[len] = 0;
    return text;
}

int main(int argc, char **argv) {
    const char *way = argv[1], *kind = argv[2];
    char *path = argv[3], *args[] = {path, 0}, *none[] = {0};
    char **envp = environ;
    int status = 0, is_child = 0;
    pid_t pid = 0;
    if (!strcmp(kind, "null")) envp = 0;
    if (!strcmp(kind, "empty")) envp = none;
    if (!strcmp(kind, "cleared")) clearenv(), envp = environ;
    if (!strcmp(kind, "many")) {
        envp = calloc(3001, sizeof *envp);
        for (int i = 0; i < 3000; i++) asprintf(&envp[i], "V%d=1", i);
    }
    if (!strcmp(kind, "long") || !strcmp(kind, "full")) {
        envp = calloc(2, sizeof *envp);
        // The kernel takes 131072 bytes of a variable, with its NUL.
        envp[0] = filled(*kind == 'l' ? 4091 : 131071);
    }
    if (!strcmp(way, "posix_spawn")) { if (posix_spawn(&pid, path, 0, 0, args, envp)) return 90; }
    else if (!strcmp(way, "posix_spawnp")) { if (posix_spawnp(&pid, path, 0, 0, args, envp)) return 90; }
    else if (!strcmp(way, "system")) { status = system(path); return WEXITSTATUS(status); }
    else if (!strcmp(way, "popen")) { status = pclose(popen(path, "r")); return WEXITSTATUS(status); }
    else if (!strcmp(way, "vfork")) { if (!(pid = vfork())) { execve(path, args, envp); _exit(91); } }
    else if (!(pid = fork())) {
        if (!strcmp(way, "execve")) execve(path, args, envp);
        if (!strcmp(way, "execvpe")) execvpe(path, args, envp);
        if (!strcmp(way, "execle")) execle(path, path, (char *)0, envp);
        if (!strcmp(way, "fexecve")) fexecve(open(path, O_RDONLY | O_CLOEXEC), args, envp);
        if (!strcmp(way, "execveat")) syscall(SYS_execveat, AT_FDCWD, path, args, envp, 0);
        if (!strcmp(way, "syscall")) syscall(SYS_execve, path, args, envp);
        if (!strcmp(way, "execv")) execv(path, args);
        if (!strcmp(way, "execvp")) execvp(path, args);
        if (!strcmp(way, "execl")) execl(path, path, (char *)0);
        if (!strcmp(way, "execlp")) execlp(path, path, (char *)0);
        if (!strcmp(way, "chroot")) { if (chroot(argv[4])) _exit(92); execve(path, args, envp); }
        _exit(93);
    }
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 94;
}
"#;

/// Ways that take an environment, and that take the process's own.
const WITH_ENVIRONMENT: [&str; 9] =
    ["execve", "execvpe", "execle", "fexecve", "execveat", "syscall", "posix_spawn", "posix_spawnp", "vfork"];
const WITHOUT: [&str; 6] = ["execv", "execvp", "execl", "execlp", "system", "popen"];

struct Programs {
    folder: TempDir,
    starter: PathBuf,
}

impl Programs {
    fn build() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Also other users are to execute what is here.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let starter = compile(folder.path(), "starter", STARTER, &["-w"]);
        compile(folder.path(), "talker", TALKER, &[]);
        Self { folder, starter }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Runs the starter with these arguments, untraced and traced. Both must end alike and say the same; what socktrace said.
    fn start(&self, options: &[&str], arguments: &[&str]) -> String {
        let untraced = Command::new(&self.starter).args(arguments).output().unwrap();
        let starter = self.starter.to_str().unwrap();
        // Lines go elsewhere, so that standard error has the program's own, and socktrace's last sentences.
        let lines = self.path("lines");
        let traced = run(&[&["run", "-o", &lines], options, &["--", starter], arguments].concat());
        let what = format!("{options:?} {arguments:?}: {}", traced.err);
        assert_eq!(traced.code, untraced.status.code(), "{what}");
        let own = |line: &&str| !line.is_empty() && !line.starts_with("socktrace: ");
        let said: Vec<_> = traced.err.lines().filter(own).collect();
        assert_eq!(said.join("\n"), String::from_utf8_lossy(&untraced.stderr).trim_end(), "{what}");
        assert!(!traced.err.contains("LOST"), "{what}");
        fs::read_to_string(lines).unwrap() + &traced.err
    }
}

#[test]
fn every_way_with_every_environment() {
    let programs = Programs::build();
    let talker = programs.path("talker");
    let kinds = ["own", "null", "empty", "cleared", "many", "long", "full"];
    let with = WITH_ENVIRONMENT.iter().flat_map(|way| kinds.map(|kind| (*way, kind)));
    let without = WITHOUT.iter().flat_map(|way| ["own", "cleared"].map(|kind| (*way, kind)));
    for (way, kind) in with.chain(without) {
        let said = programs.start(&[], &[way, kind, &talker]);
        if way == "fexecve" && ["null", "cleared"].contains(&kind) {
            // glibc refuses to do without an environment; it did so both times.
            continue;
        }
        if kind == "full" {
            // One byte more than the kernel takes of a variable.
            assert!(said.contains("talker (not traced: its arguments and environment leave no room"), "{way}: {said}");
            assert!(said.contains("not traced: talker"), "{way}: {said}");
        } else {
            assert_eq!(said.matches("\"greeting\"").count(), 2, "{way} {kind}: {said}");
            assert!(!said.contains("not traced"), "{way} {kind}: {said}");
        }
    }
}

#[test]
fn by_a_socket_too() {
    let programs = Programs::build();
    for (way, kind) in [("execve", "null"), ("vfork", "many"), ("posix_spawn", "null"), ("system", "cleared")] {
        let said = programs.start(&["--transport", "stream"], &[way, kind, &programs.path("talker")]);
        assert_eq!(said.matches("\"greeting\"").count(), 2, "{way} {kind}: {said}");
    }
}

#[test]
fn no_children_are_named_as_such() {
    let programs = Programs::build();
    let said = programs.start(&["--no-children"], &["execve", "own", &programs.path("talker")]);
    assert!(said.contains("talker (not traced: not asked for)"), "{said}");
    assert!(!said.contains("greeting") && !said.contains("socktrace: not traced"), "{said}");
}

/// A program of 32 bits that exits with 42, for i386.
fn program_of_32_bits(path: &Path) {
    const BASE: u32 = 0x0804_8000;
    const HEADERS_LEN: u32 = 52 + 32;
    // mov eax, 1; mov ebx, 42; int 0x80
    let code = [0xb8, 1, 0, 0, 0, 0xbb, 42, 0, 0, 0, 0xcd, 0x80];
    let len = HEADERS_LEN + code.len() as u32;
    let mut bytes = b"\x7fELF\x01\x01\x01".to_vec();
    bytes.resize(16, 0);
    for half in [2_u16, 3] {
        bytes.extend(half.to_le_bytes());
    }
    for word in [1, BASE + HEADERS_LEN, 52, 0, 0] {
        bytes.extend(word.to_le_bytes());
    }
    for half in [52_u16, 32, 1, 0, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    for word in [1, 0, BASE, BASE, len, len, 5, 0x1000] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(code);
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn programs_that_no_probe_gets_into() {
    let test = "programs_that_no_probe_gets_into";
    let programs = Programs::build();
    program_of_32_bits(&programs.folder.path().join("bits32"));
    compile(programs.folder.path(), "static", TALKER, &["-static"]);
    let runs = |name: &str| Command::new(programs.path(name)).status().is_ok_and(|status| status.code() == Some(42));
    for (name, why) in [("bits32", "a 32-bit program"), ("static", "statically linked")] {
        if !runs(name) {
            skipped(test, &format!("{why} does not run here"));
            continue;
        }
        for way in WITH_ENVIRONMENT.iter().chain(&WITHOUT) {
            let said = programs.start(&[], &[way, "own", &programs.path(name)]);
            assert!(said.contains(&format!("{name} (not traced: {why}")), "{way}: {said}");
            assert!(said.contains(&format!("socktrace: not traced: {name} ({why}")), "{way}: {said}");
        }
    }
    // What is no program is no news: the call fails as ever.
    fs::write(programs.path("nothing"), "").unwrap();
    let said = programs.start(&[], &["execve", "own", &programs.path("nothing")]);
    assert!(!said.contains("nothing (not traced"), "{said}");
    fs::set_permissions(programs.path("nothing"), fs::Permissions::from_mode(0o755)).unwrap();
    let said = programs.start(&[], &["execve", "own", &programs.path("nothing")]);
    assert!(said.contains("execve") && said.contains("exec format error (ENOEXEC)"), "{said}");
}

#[test]
fn programs_with_other_rights() {
    let test = "programs_with_other_rights";
    if !rustix::process::geteuid().is_root() {
        return skipped(test, "only root makes files that are another user's");
    }
    if !has("setpriv", test) {
        return;
    }
    let programs = Programs::build();
    let folder = programs.folder.path();
    for (name, mode, group) in [("setuid", 0o4755, None), ("setgid", 0o2755, Some(12345)), ("unreadable", 0o711, None)]
    {
        fs::copy(programs.path("talker"), folder.join(name)).unwrap();
        rustix::fs::chown(folder.join(name), None, group.map(rustix::fs::Gid::from_raw)).unwrap();
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(mode)).unwrap();
        let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        let child = format!("{}; exit $?", programs.path(name));
        let socktrace =
            ["env", "-u", "XDG_RUNTIME_DIR", "HOME=/nowhere", harness::SOCKTRACE, "run", "--", "sh", "-c", &child];
        let traced = harness::outcome(&mut harness::command("setpriv", &[&nobody[..], &socktrace].concat()));
        assert_eq!(traced.code, Some(42), "{name}: {}", traced.err);
        if name == "unreadable" {
            assert_eq!(traced.err.matches("\"greeting\"").count(), 2, "{}", traced.err);
        } else {
            assert!(traced.err.contains(&format!("{name} (not traced: {name}")), "{}", traced.err);
        }
    }
}

#[test]
fn programs_that_cannot_reach_the_probe() {
    let test = "programs_that_cannot_reach_the_probe";
    if !rustix::process::geteuid().is_root() {
        return skipped(test, "chroot(2) is root's");
    }
    let programs = Programs::build();
    // A root directory with the talker and what it is linked to.
    let root = programs.folder.path().join("root");
    let linked = Command::new("ldd").arg(programs.path("talker")).output().unwrap();
    let linked = String::from_utf8(linked.stdout).unwrap();
    let files = linked.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned);
    for file in files.chain([programs.path("talker")]) {
        let copy = root.join(file.trim_start_matches('/'));
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(&file, copy).unwrap();
    }
    let said = programs.start(&[], &["chroot", "own", &programs.path("talker"), root.to_str().unwrap()]);
    assert!(said.contains("talker (not traced: the probe cannot be reached"), "{said}");
}

/// Programs of another user than root, which a program that root runs has become, are recorded; and nobody else of that user
/// gets anything into the recording.
#[test]
fn programs_after_a_change_of_user_and_strangers_of_that_user() {
    let test = "programs_after_a_change_of_user_and_strangers_of_that_user";
    if !rustix::process::geteuid().is_root() {
        return harness::skipped(test, "only root can become another user");
    }
    if !has("setpriv", test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let talker = compile(folder.path(), "talker", TALKER, &[]);
    let stranger = compile(folder.path(), "stranger", STRANGER, &[]);
    let recording = folder.path().join("recording");
    let become_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let wait = format!("echo $PPID; read line; '{}'; '{}' & wait $!", talker.display(), talker.display());
    let mut program = harness::socktrace(&["run", "-o", "/dev/null", "-w", recording.to_str().unwrap(), "--"])
        .args(become_nobody)
        .args(["sh", "-c", &wait])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut own_parent = String::new();
    BufReader::new(program.stdout.as_mut().unwrap()).read_line(&mut own_parent).unwrap();
    let sockets = fs::read_to_string("/proc/net/unix").unwrap();
    let of_run = format!("/{}-", own_parent.trim());
    let socket = sockets.split_whitespace().find(|word| word.contains(&of_run)).expect("the collector's socket");
    let outside = harness::command(become_nobody[0], &become_nobody[1..]).arg(stranger).arg(socket).status().unwrap();
    assert_eq!(outside.code(), Some(0), "it is connected, and cut off");
    drop(program.stdin.take());
    let ended = program.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(42), "{stderr}");
    assert!(stderr.contains("was not started by what is traced"), "{stderr}");
    let events = fs::read_to_string(recording.join("events.jsonl")).unwrap();
    assert_eq!(events.matches(r#""direction":"out""#).count(), 2, "{stderr}\n{events}");
    assert!(!events.contains(r#""type":"lost""#), "{events}");
}
