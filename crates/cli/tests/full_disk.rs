//! `socktrace run` on a disk that fills up: what is lost is said once, and to the byte.

mod harness;

use std::fs;

use harness::disk::{Disk, is_root};
use harness::{compile, run, skipped};
use serde_json::Value;

/// Sends itself 200 messages of 8 KiB.
const TALKER: &str = r#"
#include <sys/socket.h>
int main(void) {
    int pair[2];
    static char buffer[8192];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) return 1;
    for (int i = 0; i < 200; i++)
        if (send(pair[0], buffer, sizeof buffer, 0) != sizeof buffer
            || recv(pair[1], buffer, sizeof buffer, MSG_WAITALL) != sizeof buffer) return 2;
    return 42;
}
"#;
const SENT: u64 = 200 * 8192;

fn lines(folder: &std::path::Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("events.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Events of agents.
fn count(events: &[Value]) -> u64 {
    events.iter().filter(|event| !event["type"].as_str().unwrap().starts_with("host_")).count() as u64
}

#[test]
fn what_is_lost_is_said_once() {
    if !is_root() {
        return skipped("what_is_lost_is_said_once", "only root can mount a disk");
    }
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), "talker", TALKER, &[]);
    let program = program.to_str().unwrap();
    let disk = Disk::mount_in(folder.path(), "disk", c"size=400k,mode=0700");
    for transport in ["shm", "stream"] {
        let record = |out: &str| run(&["run", "-o", "/dev/null", "--transport", transport, "-w", out, "--", program]);
        let whole = folder.path().join(format!("whole-{transport}"));
        assert_eq!(record(whole.to_str().unwrap()).code, Some(42));
        let all = count(&lines(&whole));
        let out = disk.path().join("out");
        let cut = record(out.to_str().unwrap());
        assert_eq!(cut.code, Some(42), "{}", cut.err);
        let events = lines(&out);
        let recorded = count(&events) - events.iter().filter(|event| event["type"] == "lost").count() as u64;
        let size = |name: &std::ffi::OsStr| fs::metadata(out.join(name)).unwrap().len();
        let files = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name());
        let written: u64 = files.filter(|name| name.to_string_lossy().ends_with(".bin")).map(|name| size(&name)).sum();
        let lost = format!(
            "socktrace: {} events and {} payload bytes could not be written to {} and are lost",
            all - recorded,
            2 * SENT - written,
            out.display()
        );
        let said: Vec<_> = cut.err.lines().collect();
        assert!(said.len() == 2 && said[0].contains("no space left for") && said[1] == lost, "{lost}:\n{}", cut.err);
        fs::remove_dir_all(&out).unwrap();
    }
}
