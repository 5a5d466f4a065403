//! The folder of `run`: nobody else can write to it, and nobody else can have its name afterwards.

mod harness;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};

use harness::{compile, has, outcome, run, socktrace, until};
use rustix::process::{Pid, Signal, geteuid, kill_process};

/// The folder of a run, by what its program finds in LD_PRELOAD: the one below the parent of all.
fn folder_of(library: &str) -> PathBuf {
    let is_parent = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("socktrace"));
    let mut folders = Path::new(library.trim()).ancestors().skip(1);
    folders.find(|folder| folder.parent().is_some_and(is_parent)).unwrap().to_owned()
}

/// A program under `run` that goes on until it is told something, and the folder.
struct Running {
    socktrace: Child,
    stdin: Option<ChildStdin>,
    folder: PathBuf,
}

impl Running {
    /// `then` is what the shell does when it is told to.
    fn start(then: &str) -> Self {
        let script = format!("echo \"$LD_PRELOAD\"; read line; {then}");
        let mut command = std::process::Command::new(harness::SOCKTRACE);
        command
            .args(["run", "-o", "/dev/null", "--", "sh", "-c", &script])
            .env_remove("TMPDIR")
            .env_remove("LD_PRELOAD");
        let mut socktrace = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(socktrace.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let stdin = socktrace.stdin.take();
        Self { socktrace, stdin, folder: folder_of(&line) }
    }

    fn tell(&mut self) {
        self.stdin.take().unwrap().write_all(b"go\n").unwrap();
    }

    fn kill(&mut self) {
        kill_process(Pid::from_child(&self.socktrace), Signal::KILL).unwrap();
        self.socktrace.wait().unwrap();
    }
}

#[test]
fn the_folder_goes_and_its_parent_stays_ours() {
    let traced = run(&["run", "-o", "/dev/null", "--", "sh", "-c", "echo $LD_PRELOAD"]);
    let folder = folder_of(&traced.out);
    assert!(!folder.exists(), "{}", traced.out);
    let parent = fs::symlink_metadata(folder.parent().unwrap()).unwrap();
    assert!(parent.is_dir() && parent.uid() == geteuid().as_raw() && parent.mode() & 0o022 == 0, "{parent:?}");
    // On the way to it, nobody else can put another folder in the place of one, or make anew what was removed.
    for ancestor in folder.ancestors().skip(2) {
        let ancestor = fs::symlink_metadata(ancestor).unwrap();
        assert!(ancestor.is_dir() && (ancestor.mode() & 0o022 == 0 || ancestor.mode() & 0o1000 != 0), "{ancestor:?}");
    }
}

#[test]
fn whatever_the_umask() {
    let test = "whatever_the_umask";
    if !has("strace", test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let calls = folder.path().join("calls");
    // Made so that nobody else has rights, at once, and so that every program can load from it, at last.
    for umask in ["0", "077", "0777"] {
        let script = format!(
            "umask {umask}; exec strace -e trace=mkdir,mkdirat,openat,creat -o {} {} run -o /dev/null -- sh -c \
             'd=$(realpath ${{LD_PRELOAD%/*}}); stat -c \"%a %n\" ${{d%/*}} $d $d/params $d/socktrace-probe.so'",
            calls.display(),
            harness::SOCKTRACE
        );
        fs::write(&calls, "").unwrap();
        let traced = outcome(&mut harness::command("sh", &["-c", &script]));
        let modes: Vec<_> = traced.out.lines().map(|line| line.split(' ').next().unwrap()).collect();
        assert_eq!(modes, ["755", "755", "644", "755"], "{} {}", traced.out, traced.err);
        let calls = fs::read_to_string(&calls).unwrap();
        let made = |name: &str| calls.lines().filter(|line| line.contains(name)).collect::<Vec<_>>().join("\n");
        assert!(made("params\"").contains("O_EXCL") && made("params\"").contains(", 0600)"), "{calls}");
        assert!(made("mkdir").lines().all(|line| line.contains(", 0700)")), "{calls}");
    }
}

#[test]
fn what_a_killed_one_has_left_is_taken_away() {
    let mut used = Running::start("/bin/true");
    let mut killed = Running::start("/bin/true && /bin/echo executed >&2");
    killed.kill();
    assert!(killed.folder.exists());
    assert_eq!(run(&["run", "-o", "/dev/null", "--", "true"]).code, Some(0));
    // By this run, or by another one that was there first and is about to.
    until("a folder that is nobody's is taken away", || !killed.folder.exists());
    assert!(used.folder.join("params").exists());
    used.tell();
    assert_eq!(used.socktrace.wait().unwrap().code(), Some(0));
    assert!(!used.folder.exists());
    drop(killed.stdin.take());
}

#[test]
fn another_library_by_the_name_is_not_loaded() {
    const MARK: &str = r#"
#include <stdlib.h>
__attribute__((constructor)) static void loaded(void) { abort(); }
"#;
    let folder = tempfile::tempdir().unwrap();
    let library = compile(folder.path(), "other", MARK, &["-shared", "-fPIC"]);
    let (done, go) = (folder.path().join("done"), folder.path().join("go"));
    let script = format!(
        "echo \"$LD_PRELOAD\"; mkfifo {go}; (read x <{go}; /bin/true && /bin/true; echo $? >{done}) >/dev/null 2>&1 &",
        go = go.display(),
        done = done.display()
    );
    let traced = outcome(&mut socktrace(&["run", "-o", "/dev/null", "--", "sh", "-c", &script]));
    let removed = folder_of(&traced.out);
    assert!(!removed.exists(), "{}", traced.err);
    // We can make it anew, being the same user; somebody else cannot even that.
    let named = Path::new(traced.out.trim());
    fs::create_dir_all(named.parent().unwrap()).unwrap();
    fs::copy(&library, named).unwrap();
    fs::write(named.with_file_name("params"), "").unwrap();
    fs::write(&go, "\n").unwrap();
    until("the process that was left behind is done", || fs::read_to_string(&done).is_ok_and(|text| !text.is_empty()));
    fs::remove_dir_all(&removed).unwrap();
    assert_eq!(fs::read_to_string(&done).unwrap(), "0\n");
}
