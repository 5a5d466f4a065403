//! `make install` and `make uninstall`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use socktrace_e2e::{Needs, has_programs};

/// Not the default, so that a default that is used by mistake is noticed.
const PREFIX: &str = "/opt/a b";

/// As root with sudo, which often has no cargo: what is built is installed. Not where the umask is another one.
fn make(target: &str, destination: &Path) {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("a crate is in a folder");
    let mut command = Command::new("sh");
    command.args(["-c", "umask 077; exec make \"$@\"", "make"]).arg("-C").arg(project).arg(target);
    command.arg(format!("DESTDIR={}", destination.display())).arg(format!("PREFIX={PREFIX}"));
    command.env_clear().env("PATH", "/usr/bin:/bin");
    let built = Needs::Server.path().parent().and_then(Path::parent).expect("it is in target/release").to_owned();
    let output = command.env("CARGO_TARGET_DIR", built).output().expect("make starts");
    assert!(output.status.success(), "make {target}: {}", String::from_utf8_lossy(&output.stderr));
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

#[test]
fn what_is_installed_works_and_goes_again() {
    if !has_programs("what_is_installed_works_and_goes_again", &["make"]) {
        return;
    }
    let destination = tempfile::tempdir().expect("a temporary folder");
    make("install", destination.path());
    let at = |name: &str| destination.path().join(PREFIX.trim_start_matches('/')).join(name);

    let run = |program: &str, args: &[&str]| {
        let output = Command::new(at(program)).args(args).output().expect("it is installed");
        assert!(output.status.success(), "{program} {args:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(run("bin/socktrace", &["--version"]).starts_with("socktrace "));
    assert!(run("bin/socktrace-server", &["--version"]).starts_with("socktrace-server "));
    let agent = fs::read_to_string(at("share/socktrace/agent.js")).expect("it is text");
    assert!(run("bin/socktrace", &["agent"]) == agent, "agent.js is not what `socktrace agent` writes: run make");
    let traced = "import socket; a, b = socket.socketpair(); a.send(b'installed'); b.recv(9)";
    let view = destination.path().join("view.txt");
    run("bin/socktrace", &["run", "-o", view.to_str().expect("text"), "--", "/usr/bin/python3", "-c", traced]);
    assert!(fs::read_to_string(&view).expect("run wrote it").contains("\"installed\""));
    fs::remove_file(view).expect("it is ours");

    // Every subcommand has its page.
    let pages = fs::read_to_string(at("share/man/man1/socktrace.1")).expect("the page of the whole");
    for name in ["run", "attach", "show", "export", "extcap", "agent", "server", "completions", "man"] {
        assert!(pages.contains(&format!("socktrace\\-{name}(1)")), "{name}");
        assert!(at(&format!("share/man/man1/socktrace-{name}.1")).is_file(), "{name}");
    }
    let bash = at("share/bash-completion/completions/socktrace");
    let loaded = Command::new("bash").args(["-c", ". \"$1\" && complete -p socktrace", "bash"]).arg(bash).output();
    assert!(loaded.expect("bash starts").status.success());
    for (completions, of) in [
        ("zsh/site-functions/_socktrace", "#compdef socktrace"),
        ("fish/vendor_completions.d/socktrace.fish", "complete -c socktrace"),
    ] {
        assert!(fs::read_to_string(at("share").join(completions)).expect("it is text").contains(of), "{completions}");
    }
    // Others are to use it, whatever the umask of who installs it.
    for file in files(destination.path()) {
        let mode = fs::metadata(&file).expect("it is there").permissions().mode();
        assert!(mode & 0o044 == 0o044, "{}: {mode:o}", file.display());
    }

    fs::write(at("bin/another"), "").expect("a file beside ours");
    make("uninstall", destination.path());
    assert_eq!(files(destination.path()), [at("bin/another")]);
    assert!(!at("share/socktrace").exists());
}
