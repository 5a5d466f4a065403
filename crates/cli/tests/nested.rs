//! socktrace under socktrace: each records the program, once, and nothing of the other's.

mod harness;

use std::fs;
use std::path::Path;

use harness::{compile, frida, run};

/// Sends a word to itself, in a child that executes it anew, too. Ends with 42.
const PROGRAM: &str = r#"
#include <string.h>
#include <unistd.h>
#include <sys/socket.h>
#include <sys/wait.h>

int main(int argc, char **argv) {
    int pair[2], status = 0;
    char byte[8];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) return 1;
    if (write(pair[0], argv[1], strlen(argv[1])) < 0 || read(pair[1], byte, sizeof byte) < 0) return 2;
    if (argc > 2) {
        if (!fork()) execl(argv[0], argv[0], argv[2], (char *)0);
        wait(&status);
    }
    return status ? 3 : 42;
}
"#;

/// Which words went over sockets, and how often each: sent and received.
fn words(shown: &Path) -> Vec<(&'static str, usize)> {
    let text = fs::read_to_string(shown).unwrap();
    let lines = |word: &str| text.lines().filter(|line| line.ends_with(&format!("\"{word}\""))).count();
    let words = ["first", "second"].map(|word| (word, lines(word)));
    assert!(!text.contains("/sock "), "a collector's socket is recorded: {text}");
    assert!(!text.contains("LOST"), "{text}");
    words.into()
}

fn each_records_it_once(outer: &[&str], inner: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "program", PROGRAM, &["-w"]);
    let shown = [folder.path().join("outer"), folder.path().join("inner")];
    let [outer_file, inner_file] = shown.each_ref().map(|path| path.to_str().unwrap());
    let mut args = vec!["run", "-o", outer_file];
    args.extend(outer);
    args.extend(["--", harness::SOCKTRACE, "run", "-o", inner_file]);
    args.extend(inner);
    args.extend(["--", program.to_str().unwrap(), "first"]);
    // The second is a program that the first one executes.
    args.push("second");
    let traced = run(&args);
    assert_eq!(traced.code, Some(3), "{}", traced.err);
    for shown in &shown {
        assert_eq!(words(shown), [("first", 2), ("second", 2)], "{}", fs::read_to_string(shown).unwrap());
    }
}

#[test]
fn run_in_run() {
    each_records_it_once(&[], &[]);
    each_records_it_once(&["--transport", "stream"], &["--transport", "stream"]);
}

#[test]
fn with_frida() {
    let Some(frida) = frida("with_frida") else { return };
    let frida = ["--engine", "frida", "--frida", &frida];
    each_records_it_once(&frida, &[]);
    each_records_it_once(&[], &frida);
}

#[test]
fn run_in_run_in_run() {
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "program", PROGRAM, &["-w"]);
    let files = ["a", "b", "c"].map(|name| folder.path().join(name));
    let mut args = Vec::new();
    for file in &files {
        if !args.is_empty() {
            args.push(harness::SOCKTRACE);
        }
        args.extend(["run", "-o", file.to_str().unwrap(), "--"]);
    }
    args.extend([program.to_str().unwrap(), "first"]);
    assert_eq!(run(&args).code, Some(42));
    for file in &files {
        assert_eq!(words(file), [("first", 2), ("second", 0)]);
    }
}

#[test]
fn recordings_have_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "program", PROGRAM, &["-w"]);
    let [outer, inner] = ["outer", "inner"].map(|name| folder.path().join(name));
    let [outer_name, inner_name] = [&outer, &inner].map(|path| path.to_str().unwrap());
    let program = program.to_str().unwrap();
    run(&["run", "-w", outer_name, "--", harness::SOCKTRACE, "run", "-w", inner_name, "--", program, "first"]);
    let payloads = |folder: &Path| {
        let mut payloads: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_name().to_string_lossy().ends_with(".bin"))
            .map(|entry| (entry.file_name(), fs::read(entry.path()).unwrap()))
            .collect();
        payloads.sort();
        payloads
    };
    assert_eq!(payloads(&outer), payloads(&inner));
    assert_eq!(payloads(&outer).len(), 2);
}
