//! What cannot be done is said in one line: what happened, to what, and what to do, in words.

mod harness;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use gttr::Direction;
use harness::disk::{Disk, OTHER_USER, is_root};
use harness::{Outcome, Recording, SOCKTRACE, Traffic, command, outcome, skipped};

/// Commands that write to a path, which stands for `{}`, and whether they make folders on the way to it.
const WRITERS: &[(&str, bool)] = &[
    ("run -w {} -- true", true),
    ("run -w {}.pcapng -- true", false),
    ("run -o {} -- true", false),
    ("show REC -o {}", false),
    ("export REC -o {}.pcapng", false),
    ("export REC -o {}.pftrace", false),
    ("agent -o {}", false),
    ("man --dir {}", true),
    ("server SOCK {}", true),
    ("server {} OUT", false),
];
/// Those that read a recording.
const READERS: &[&str] = &["show {}", "export {} -o x.pcapng"];

/// A folder in which much is wrong, and a copy of the executable that every user can reach.
struct Place {
    dir: tempfile::TempDir,
    recording: Recording,
}

impl Place {
    fn new() -> Self {
        let traffic =
            Traffic::of(7, "/bin/x").open("c:1", "/c", "connect", &[]).data("c:1", "/c", Direction::Out, b"hello");
        let place = Self { dir: tempfile::tempdir().unwrap(), recording: Recording::of(&[traffic]) };
        let dir = place.dir.path();
        chmod(dir, 0o755);
        // By a process of its own: children of other tests would keep the file open for writing.
        assert!(Command::new("cp").arg(SOCKTRACE).arg(dir.join("socktrace")).status().unwrap().success());
        fs::write(dir.join("file"), "no folder, no recording, no program").unwrap();
        for (name, mode) in [("empty", 0o777), ("closed", 0o555), ("unreadable", 0)] {
            fs::create_dir(dir.join(name)).unwrap();
            chmod(&dir.join(name), mode);
        }
        symlink("loop", dir.join("loop")).unwrap();
        chmod(place.recording.folder.path(), 0o755);
        chmod(Path::new(&place.recording.path), 0o755);
        chmod(&place.recording.events(), 0o644);
        place
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// Runs a command of which words stand for paths; `as_user`: as one who is not root.
    fn run(&self, words: &str, as_user: bool) -> Outcome {
        let words = words.replace("REC", &self.recording.path);
        let words = words.replace("SOCK", &self.path("empty/sock")).replace("OUT", &self.path("empty/out"));
        let mut command = command(&self.path("socktrace"), &words.split(' ').collect::<Vec<_>>());
        command.current_dir(self.dir.path().join("empty"));
        if as_user && is_root() {
            command.uid(OTHER_USER).gid(OTHER_USER);
        }
        outcome(&mut command)
    }

    /// It says what is wrong with `path`.
    fn assert_refused(&self, words: &str, path: &str, as_user: bool) -> String {
        let Outcome { code, err, .. } = self.run(words, as_user);
        let said = format!("{words}: {code:?}: {err}");
        assert!(!matches!(code, None | Some(0)), "{said}");
        assert!(err.starts_with("socktrace: ") && err.lines().count() == 1, "{said}");
        assert!(err.contains(path) && !err.contains("os error"), "{said}");
        err
    }

    fn assert_not_written(&self, path: &str, as_user: bool, is_of_folders_too: bool) {
        for (words, makes_folders) in WRITERS {
            if is_of_folders_too || !makes_folders {
                let err = self.assert_refused(&words.replace("{}", path), path, as_user);
                assert!(err.contains("choose"), "{words}: {err}");
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        chmod(&self.dir.path().join("closed"), 0o755);
        chmod(&self.dir.path().join("unreadable"), 0o755);
    }
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_path_that_cannot_be_written_to() {
    let place = Place::new();
    place.assert_not_written(&place.path("missing/x"), false, false);
    place.assert_not_written(&place.path("file/x"), false, true);
    place.assert_not_written(&place.path("loop/x"), false, true);
    place.assert_not_written(&place.path(&"long".repeat(80)), false, true);
    place.assert_not_written(&place.path("closed/x"), true, true);
    // What is there is something else than what is to be made.
    for words in ["run -o {} -- true", "show REC -o {}", "agent -o {}", "server {} OUT"] {
        place.assert_refused(&words.replace("{}", &place.path("empty")), "empty", false);
    }
    for words in ["run -w {} -- true", "server SOCK {}", "man --dir {}", "server {} OUT"] {
        place.assert_refused(&words.replace("{}", &place.path("file")), "file", false);
    }
}

#[test]
fn a_disk_that_cannot_be_written_to() {
    if !is_root() {
        return skipped("a_disk_that_cannot_be_written_to", "only root can mount a disk");
    }
    let place = Place::new();
    let disk = Disk::mount_in(place.dir.path(), "disk", c"size=64k,mode=0755");
    disk.fill();
    for (number, (words, _)) in WRITERS.iter().enumerate() {
        let path = place.path(&format!("disk/{number}"));
        // A socket takes no room, and of `run -o` the program has run all the same.
        if !words.starts_with("server {}") && !words.starts_with("run -o") && !words.contains("-w {}.pcapng") {
            let err = place.assert_refused(&words.replace("{}", &path), &path, false);
            assert!(err.contains("no space left on device (ENOSPC)"), "{err}");
        }
    }
    disk.make_read_only();
    place.assert_not_written(&place.path("disk/y"), false, true);
}

#[test]
fn a_socket_that_cannot_be_bound() {
    let place = Place::new();
    let taken = place.path("taken");
    let _listener = UnixListener::bind(&taken).unwrap();
    let long = place.path(&"x".repeat(100));
    for sock_type in ["dgram", "stream"] {
        let of = |path: &str| format!("server {path} OUT --sock-type {sock_type}");
        assert!(place.assert_refused(&of(&taken), &taken, false).contains("already in use"));
        assert!(place.assert_refused(&of(&long), &long, false).contains("at most 107 bytes"));
    }
}

#[test]
fn a_recording_that_cannot_be_read() {
    let place = Place::new();
    for words in READERS {
        for name in ["missing", "missing/x", "file", "file/x", "empty", "loop", &"long".repeat(80)] {
            let path = place.path(name);
            place.assert_refused(&words.replace("{}", &path), &path, false);
        }
        let path = place.path("unreadable");
        let err = place.assert_refused(&words.replace("{}", &path), &path, true);
        assert!(err.contains("permission denied (EACCES)") && err.contains("root may read it"), "{err}");
    }
}

#[test]
fn a_program_or_process_that_cannot_be_traced() {
    let place = Place::new();
    for (name, mode) in [("closed-program", 0o644), ("script", 0o755)] {
        fs::write(place.path(name), "#!/no/interpreter").unwrap();
        chmod(Path::new(&place.path(name)), mode);
    }
    let long = "long".repeat(80);
    for name in ["missing", "file/x", "empty", "loop", "closed-program", "script", &long] {
        let path = place.path(name);
        place.assert_refused(&format!("run -- {path}"), &path, false);
    }
    place.assert_refused("run -- no-such-program", "no-such-program", false);
    place.assert_refused("run --gadget /no/gadget.so -- true", "/no/gadget.so", false);
    place.assert_refused("attach 2147483647", "process 2147483647", false);
    place.assert_refused("attach --name no-such-name", "no-such-name", false);
    if is_root() {
        let own = std::process::id();
        place.assert_refused(&format!("attach {own}"), &format!("process {own}"), true);
    }
}
