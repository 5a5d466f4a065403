//! Files that are made: nobody else can write to any of them, nor read what holds payload, whatever the umask.

mod harness;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use harness::{Recording, SOCKTRACE, Traffic, command, outcome};

/// What is made, and its permissions at most and at least.
type Made = (&'static str, u32, u32);

/// A command in the folder, and what it makes there.
const MAKERS: &[(&str, &[Made])] = &[
    ("run -w out -- true", &[("out", 0o700, 0o700), ("out/events.jsonl", 0o600, 0o600)]),
    ("run -w out.pcapng -- true", &[("out.pcapng", 0o600, 0o600)]),
    ("run -o lines -- true", &[("lines", 0o600, 0o600)]),
    ("show REC -o shown", &[("shown", 0o600, 0o600)]),
    ("export REC -o x.pcapng", &[("x.pcapng", 0o600, 0o600)]),
    ("export REC -o x.pftrace", &[("x.pftrace", 0o600, 0o600)]),
    ("agent -o agent.js", &[("agent.js", 0o644, 0o600)]),
    (
        "man --dir man",
        &[("man", 0o755, 0o700), ("man/socktrace.1", 0o644, 0o600), ("man/socktrace-run.1", 0o644, 0o600)],
    ),
    ("extcap --install", &[("extcap/socktrace", 0o755, 0o700), ("extcap", 0o755, 0o700)]),
];

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).mode() & 0o7777
}

#[test]
fn of_whatever_is_made() {
    let recording = Recording::of(&[Traffic::of(7, "/bin/x")]);
    for umask in ["0", "022", "077"] {
        for (words, made) in MAKERS {
            let folder = tempfile::tempdir().unwrap();
            // What says where extcaps are put.
            let wireshark = folder.path().join("tshark");
            let says = format!("#!/bin/sh\necho 'Personal Extcap path:\t{}/extcap'\n", folder.path().display());
            fs::write(&wireshark, says).unwrap();
            fs::set_permissions(&wireshark, fs::Permissions::from_mode(0o755)).unwrap();
            let script = format!("umask {umask}; cd \"$0\"; PATH=$PWD:$PATH; {SOCKTRACE} {words}");
            let script = script.replace("REC", &recording.path);
            // Twice: what is there keeps less or gets no more.
            for time in 1..=2 {
                let result = outcome(&mut command("sh", &["-c", &script, folder.path().to_str().unwrap()]));
                assert_eq!(result.code, Some(0), "umask {umask}, {words}: {}", result.err);
                for (name, most, least) in *made {
                    let mode = mode(&folder.path().join(name));
                    let is_right = mode & !most == 0 && mode & least == *least;
                    assert!(is_right, "umask {umask}, {words}, time {time}: {name} has mode {mode:04o}");
                }
            }
        }
    }
}
