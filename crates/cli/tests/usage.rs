//! The command line itself: help, errors, completions, manual pages, agent.js.

mod harness;

use std::fs;

use harness::run;

#[test]
fn help_has_examples() {
    for args in [&["--help"][..], &["run", "--help"], &["attach", "--help"], &["show", "--help"]] {
        let help = run(args);
        assert_eq!(help.code, Some(0));
        assert!(help.out.contains("Examples:"), "{}", help.out);
    }
    assert_eq!(run(&[]).code, Some(2));
}

#[test]
fn bad_usage() {
    for args in [
        &["run"][..],
        &["run", "--direction", "up", "--", "true"],
        &["run", "--max-bytes", "many", "--", "true"],
        &["run", "--max-fds", "0", "--", "true"],
        &["run", "-A", "-x", "--", "true"],
        &["attach"],
        &["attach", "0"],
        &["attach", "--for", "soon", "1"],
        &["show"],
        &["completions", "csh"],
        &["server", "/tmp/x", "/tmp/y", "--sock-type", "tcp"],
        &["server", "/tmp/x", "/tmp/y", "--no-events", "--no-payload-files"],
        &["run", "--no-events", "--", "true"],
        &["run", "-w", "/tmp/x", "--no-events", "--no-payload-files", "--", "true"],
    ] {
        assert_eq!(run(args).code, Some(2), "{args:?}");
    }
    let glob = run(&["run", "--path", "[", "--", "true"]);
    assert_eq!(glob.code, Some(125));
    assert!(glob.err.contains("--path [: not a pattern"), "{}", glob.err);
    let grep = run(&["run", "--grep", "(", "--", "true"]);
    assert!(grep.code == Some(125) && grep.err.contains("--grep (: not a regular expression"), "{}", grep.err);
}

#[test]
fn completions() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]);
        assert_eq!(script.code, Some(0));
        assert!(script.out.contains("attach") && script.out.contains("max-bytes"), "{shell}");
    }
}

#[test]
fn manual_pages() {
    assert!(run(&["man"]).out.contains(".TH socktrace 1"));
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("man");
    assert_eq!(run(&["man", "--dir", dir.to_str().unwrap()]).code, Some(0));
    for page in ["socktrace.1", "socktrace-run.1", "socktrace-attach.1", "socktrace-show.1"] {
        assert!(!fs::read(dir.join(page)).unwrap().is_empty(), "{page}");
    }
}

#[test]
fn the_agent() {
    let agent = run(&["agent"]).out;
    assert!(agent.contains("rpc.exports"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("agent.js");
    assert_eq!(run(&["agent", "-o", file.to_str().unwrap()]).code, Some(0));
    assert_eq!(fs::read_to_string(file).unwrap(), agent);
    assert!(run(&["agent", "-o", "/no/such/folder/a.js"]).err.contains("/no/such/folder/a.js: cannot be written"));
}

#[test]
fn attach_says_what_is_wrong() {
    let pid = i32::MAX.to_string();
    let gone = run(&["attach", &pid]);
    assert_eq!(gone.code, Some(1));
    assert!(gone.err.contains(&format!("process {pid}: no such process")), "{}", gone.err);
    let unnamed = run(&["attach", "--name", "no-such-name"]);
    assert!(unnamed.err.contains("no process is named no-such-name"), "{}", unnamed.err);
    let own = std::process::id().to_string();
    let no_frida = run(&["attach", "--frida", "/no/frida", &own]);
    assert!(no_frida.err.contains("/no/frida") && no_frida.err.contains("pip install frida-tools"), "{}", no_frida.err);
}
