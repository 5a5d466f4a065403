//! Output directories that others own or may write to are refused, with one line that says what to do.

mod harness;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;

use gttr::Direction;
use harness::{Server, data, skipped, sum, until};

/// Another user.
const NOBODY: u32 = 65534;
const EVERYTHING: [&str; 3] = ["events.jsonl", "events.journal", "c.in.bin"];

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

/// The server does not start; it says so in one line with this in it, and has written nothing.
fn assert_refused(dir: &Path, out: &Path, why: &str) {
    let listing = |out: &Path| {
        let entries = fs::read_dir(out).unwrap().map(|entry| entry.unwrap());
        let all = entries.map(|entry| (entry.file_name(), entry.metadata().unwrap().len()));
        let mut all: Vec<_> = all.filter(|(_, len)| *len > 0).collect();
        all.sort();
        all
    };
    let before = listing(out);
    let (code, stderr) = Server::refused(dir, out, "dgram");
    assert_eq!((code, stderr.lines().count()), (Some(1), 1), "{stderr}");
    assert!(stderr.contains(why) && stderr.contains(out.to_str().unwrap()), "{stderr}");
    assert_eq!(listing(out), before);
    assert!(!dir.join("sock").exists());
}

fn is_root(test: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        skipped(test);
    }
    is_root
}

#[test]
fn a_directory_that_others_may_write_to_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    for wide in [0o777, 0o1777, 0o775, 0o702] {
        chmod(&out, wide);
        assert_refused(dir.path(), &out, "other users may write to it");
    }
    chmod(&out, 0o755);
    let mut server = Server::start_in(dir, "dgram", "true");
    server.stop();
    // Who may look into it is the user's own decision; the files are closed.
    assert_eq!((mode(&server.out), mode(&server.out.join("events.jsonl"))), (0o755, 0o600));
}

#[test]
fn a_directory_of_another_user_is_refused() {
    if !is_root("a_directory_of_another_user_is_refused") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    chmod(&out, 0o700);
    chown(&out, Some(NOBODY), None).unwrap();
    assert_refused(dir.path(), &out, "belongs to user 65534");
    // One that does not exist is made in it, and is ours.
    let mut server = Server::start_in(tempfile::tempdir_in(&out).unwrap(), "dgram", "true");
    assert_eq!(fs::metadata(&server.out).unwrap().uid(), 0);
    server.stop();
}

#[test]
fn a_link_is_followed_if_it_is_ours() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("real")).unwrap();
    symlink("real", dir.path().join("out")).unwrap();
    let mut server = Server::start_in(dir, "dgram", "true");
    server.stop();
    let (dir, out) = (server.dir.path(), &server.out);
    assert!(dir.join("real/events.jsonl").exists());
    if !is_root("a_link_is_followed_if_it_is_ours (of another user)") {
        return;
    }
    lchown(out, Some(NOBODY), None).unwrap();
    assert_refused(dir, out, "a symbolic link that belongs to user 65534");
}

#[test]
fn files_that_others_own_or_may_write_to_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    for name in ["events.jsonl", "events.journal"] {
        let file = out.join(name);
        fs::write(&file, "").unwrap();
        chmod(&file, 0o666);
        assert_refused(dir.path(), &out, "others may write to it");
        fs::remove_file(&file).unwrap();
        fs::remove_file(out.join("events.jsonl")).ok();
    }
    if is_root("files_that_others_own_or_may_write_to_are_refused (of another user)") {
        fs::write(out.join("events.jsonl"), "").unwrap();
        chown(out.join("events.jsonl"), Some(NOBODY), None).unwrap();
        assert_refused(dir.path(), &out, "belongs to another user");
    }
}

#[test]
fn a_payload_file_that_others_may_write_to_costs_only_itself() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    for (name, mode) in [("open.in.bin", 0o606), ("readable.in.bin", 0o644)] {
        fs::write(out.join(name), "before").unwrap();
        chmod(&out.join(name), mode);
    }
    let mut server = Server::start_in(dir, "dgram", "true");
    let agent = server.datagrams();
    for conn in ["open", "readable", "fine"] {
        agent.send(&data(conn.as_bytes(), Direction::In, b"12345")).unwrap();
    }
    until("told", || server.stderr().contains("open.in.bin: the payload file belongs to another user"));
    let events = server.stop_and_get_agents_events();
    assert_eq!(sum(&events, "bytes", |e| e["type"] == "lost" && e["conn_id"] == "open"), 5);
    assert_eq!((server.payload("open.in.bin"), server.payload("fine.in.bin")), (b"before".into(), b"12345".into()));
    assert_eq!(server.payload("readable.in.bin"), b"before12345");
    assert_eq!(mode(&server.out.join("readable.in.bin")), 0o600);
}

/// Modes are what they have to be under any umask, in one step or, where it takes from the owner, in two.
#[test]
fn the_umask_does_not_matter() {
    for umask in ["0", "077", "0277", "0777"] {
        let dir = tempfile::tempdir().unwrap();
        let mut server = Server::start_in(dir, "dgram", &format!("umask {umask}"));
        server.datagrams().send(&data(b"c", Direction::In, b"12345")).unwrap();
        until("recorded", || server.events_so_far().len() == 2);
        assert_eq!(mode(&server.out), 0o700, "umask {umask}");
        for name in EVERYTHING {
            assert_eq!(mode(&server.out.join(name)), 0o600, "{name}, umask {umask}");
        }
        server.stop();
    }
}
