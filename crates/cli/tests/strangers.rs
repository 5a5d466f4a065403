//! Recordings, names and command lines that somebody else has made up: they end, in bounded memory, and drive no terminal.

mod harness;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use gttr::Direction::{In, Out};
use harness::{Outcome, Recording, SOCKTRACE, Traffic, compile, run, socktrace, until};

/// Address space of a command that reads what strangers have made, in KiB.
const MEMORY: &str = "2097152";
/// Time that it has, in seconds: far more than it takes.
const TIME: &str = "60";

fn bounded(args: &[&str]) -> Outcome {
    let script = format!(
        "ulimit -v {MEMORY}; exec timeout -k 1 {TIME} \"$0\" \"$@\" | head -c 4000000; exit ${{PIPESTATUS[0]}}"
    );
    let output =
        Command::new("bash").args(["-c", &script, SOCKTRACE]).args(args).stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Outcome { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Runs every command that reads a recording, and hands on what came of it.
fn every_reader(folder: &Path, mut check: impl FnMut(&str, Outcome)) {
    let rec = folder.join("rec");
    let (rec, pcapng, pftrace) = (rec.to_str().unwrap(), folder.join("o.pcapng"), folder.join("o.pftrace"));
    let (pcapng, pftrace) = (pcapng.to_str().unwrap(), pftrace.to_str().unwrap());
    let all: [&[&str]; 8] = [
        &["show", rec],
        &["show", "-A", rec],
        &["show", "-X", rec],
        &["show", "--json", rec],
        &["show", "--grep", "zz", rec],
        &["show", "--path", "/*", rec],
        &["export", rec, "-o", pcapng],
        &["export", rec, "-o", pftrace],
    ];
    for args in all {
        check(&args.join(" "), bounded(args));
    }
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("rec")).unwrap();
    folder
}

fn data(size: u64) -> String {
    format!(
        r#"{{"type":"data","ts_ms":1,"fd":3,"direction":"out","path":"/p","conn_id":"c","size":{size},"total":{size},"pid":1,"seq":1,"ts_ns":5}}"#
    ) + "\n"
}

#[test]
fn events_that_are_no_file_of_lines() {
    type Make = fn(&Path);
    let kinds: [(&str, Make); 5] = [
        ("a FIFO", |path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success())),
        ("a link to a device", |path| symlink("/dev/zero", path).unwrap()),
        ("a directory", |path| fs::create_dir(path).unwrap()),
        ("a hole of 1 TiB", |path| File::create(path).unwrap().set_len(1 << 40).unwrap()),
        ("a line without an end", |path| fs::write(path, vec![b'x'; 8 << 20]).unwrap()),
    ];
    for (kind, make) in kinds {
        let folder = folder();
        make(&folder.path().join("rec/events.jsonl"));
        every_reader(folder.path(), |what, outcome| {
            assert_eq!(outcome.code, Some(1), "{kind}, {what}: {outcome:?}");
            assert!(
                outcome.err.contains("events.jsonl") || outcome.err.contains("longer than any"),
                "{kind}: {}",
                outcome.err
            );
        });
    }
}

#[test]
fn numbers_out_of_range_and_lines_of_any_kind() {
    let folder = folder();
    let events = folder.path().join("rec/events.jsonl");
    let mut lines = String::new();
    for number in ["0", "1", "18446744073709551615", "9223372036854775808", "4294967295", "-1", "1e999", "0.5"] {
        for kind in
            ["data", "lost", "open", "close", "start", "fork", "exit", "bad_frame", "host_init", "host_shutdown"]
        {
            lines += &format!(
                r#"{{"type":"{kind}","ts_ms":1,"conn_id":"c","direction":"in","path":"/p","pid":1,"seq":1,"size":{number},"total":{number},"offset":{number},"bytes":{number},"events":{number},"reason":"r"}}"#
            );
            lines += "\n";
            for field in ["ts_ms", "ts_ns", "entered_ns", "duration_ns", "seq", "part", "parts", "uncaptured", "inode"]
            {
                let time = if field == "ts_ms" { "" } else { r#""ts_ms":1,"# };
                lines += &format!(
                    r#"{{"type":"{kind}",{time}"conn_id":"c","direction":"out","pid":1,"size":3,"{field}":{number}}}"#
                );
                lines += "\n";
            }
        }
    }
    lines += &format!("{}\n", "[".repeat(1_000_000));
    lines += &format!("{{\"type\":\"data\",\"ts_ms\":1,\"new\":{}\n", "[".repeat(100_000));
    lines += &format!(
        r#"{{"type":"data","ts_ms":1,"conn_id":"c","direction":"in","fds":[{}{{"fd":1}}]}}"#,
        r#"{"fd":1},"#.repeat(400_000)
    );
    lines += "\n[\"data\",1]\nnull\n\n";
    let mut bytes = lines.into_bytes();
    bytes.extend(b"{\"type\":\"data\",\"ts_ms\":1,\"new\":\"\xff\xfe\x9b31m\"}\n");
    fs::write(&events, bytes).unwrap();
    fs::write(folder.path().join("rec/c.out.bin"), "abc").unwrap();
    every_reader(folder.path(), |what, outcome| {
        assert_eq!(outcome.code, Some(0), "{what}: {}", outcome.err);
        assert!(outcome.err.contains("lines are no events"), "{what}: {}", outcome.err);
        check_printable(what, &outcome);
    });
}

#[test]
fn payload_files_that_are_none() {
    let folder = folder();
    let (events, payload) = (folder.path().join("rec/events.jsonl"), folder.path().join("rec/c.out.bin"));
    fs::write(folder.path().join("secret"), "SECRET").unwrap();
    for size in [3, 1 << 40, u64::MAX] {
        fs::write(&events, data(size)).unwrap();
        for kind in 0..5 {
            let _ = fs::remove_file(&payload);
            match kind {
                0 => assert!(Command::new("mkfifo").arg(&payload).status().unwrap().success()),
                1 => symlink("/dev/zero", &payload).unwrap(),
                2 => symlink("../secret", &payload).unwrap(),
                3 => File::create(&payload).unwrap().set_len(1 << 40).unwrap(),
                _ => {}
            }
            every_reader(folder.path(), |what, outcome| {
                assert_eq!(outcome.code, Some(0), "{size}, {kind}, {what}: {}", outcome.err);
                assert!(!outcome.out.contains("SECRET"), "{what}");
                if what.contains("-X") {
                    assert!(outcome.out.contains("payload file"), "{size}, {kind}: {}", outcome.out);
                }
            });
        }
    }
}

fn check_printable(what: &str, outcome: &Outcome) {
    let drives = |c: char| {
        c.is_control() && c != '\n'
            || "\u{200e}\u{200f}\u{61c}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}"
                .contains(c)
    };
    for text in [&outcome.out, &outcome.err] {
        assert!(!text.contains(drives), "{what}: {text:?}");
    }
}

#[test]
fn no_text_of_a_recording_drives_the_terminal() {
    const HOSTILE: &str = "\x1b]0;pwn\x07\x1b[2J\u{9b}31m\u{202e}\u{2066}\x7f\r\u{61c}";
    let folder = folder();
    let texts = "path conn_id file how raw exe comm call flags truncated security socket_type peer_exe peer_conn_id reason error \
                 sock out_dir version omits sock_type new";
    let mut lines = String::new();
    for kind in
        "host_init init start ready listen open data close fork error lost bad_frame exit exec host_shutdown".split(' ')
    {
        let mut event = serde_json::json!({"type": kind, "ts_ms": 1, "ts_ns": 5, "pid": 7, "tid": 7, "seq": 1, "fd": 1,
            "direction": "out", "size": 3, "events": 1, "bytes": 1, "peer_pid": 9, "fds": [{"fd": 1, "what": HOSTILE}]});
        for field in texts.split_whitespace() {
            event[field] = format!("seen{HOSTILE}").into();
        }
        lines += &format!("{event}\n{}\r\n", event);
    }
    fs::write(folder.path().join("rec/events.jsonl"), lines).unwrap();
    every_reader(folder.path(), |what, outcome| check_printable(what, &outcome));
}

#[test]
fn no_argument_drives_the_terminal() {
    let folder = folder();
    fs::write(folder.path().join("rec/events.jsonl"), data(0)).unwrap();
    for name in [&b"named\x1b]0;pwn\x07\xc2\x9b31m\xe2\x80\xae\x7f"[..], b"named\x9b31m\xff"] {
        let name = OsStr::from_bytes(name);
        let glued = |before: &str| {
            let mut text = OsString::from(before);
            text.push(name);
            text
        };
        fs::write(folder.path().join(name), "").unwrap();
        let inside = Path::new(name).join("x").into_os_string();
        let rec = OsString::from("rec");
        let os = |text: &str| OsString::from(text);
        let all: Vec<Vec<OsString>> = vec![
            vec![os("show"), name.to_owned()],
            vec![os("show"), glued("--")],
            vec![os("show"), rec.clone(), os("--pid"), name.to_owned()],
            vec![os("show"), rec.clone(), os("--grep"), glued("[z-a]")],
            vec![os("show"), rec.clone(), os("--path"), glued("[z-a]")],
            vec![os("show"), rec.clone(), os("-o"), inside.clone()],
            vec![os("export"), rec.clone(), os("-o"), inside.clone(), os("--format"), os("pcapng")],
            vec![os("export"), rec.clone(), os("-o"), name.to_owned()],
            vec![os("run"), os("-w"), inside.clone(), os("--"), os("true")],
            vec![os("run"), os("-o"), inside.clone(), os("--"), os("true")],
            vec![os("run"), os("--"), inside.clone()],
            vec![os("server"), inside.clone(), os("out")],
            vec![os("server"), name.to_owned(), os("out")],
            vec![os("agent"), os("-o"), inside.clone()],
            vec![os("attach"), os("--name"), name.to_owned()],
            vec![os("attach"), os("--for"), name.to_owned(), os("1")],
            vec![os("completions"), name.to_owned()],
            vec![name.to_owned()],
        ];
        for args in all {
            let output = socktrace(&[]).args(&args).current_dir(folder.path()).output().unwrap();
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap_or_else(|_| panic!("{args:?}"));
            let outcome = Outcome { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) };
            check_printable(&format!("{args:?}"), &outcome);
            assert!(outcome.code != Some(0) && outcome.err.contains("named"), "{args:?}: {outcome:?}");
        }
    }
}

#[test]
fn by_time_whatever_the_order_of_arrival() {
    // Two processes' events lie far apart in the file, as after a collector that was slow.
    let (mut one, mut other) =
        (Traffic::of(1, "/one").open("a", "/p", "connect", &[]), Traffic::of(2, "/two").open("b", "/p", "accept", &[]));
    for _ in 0..5000 {
        one = one.data("a", "/p", Out, b"x");
        other = other.data("b", "/p", In, b"x");
    }
    let recording = Recording::of(&[one, other]);
    let shown = recording.show(&["--time", "epoch"]);
    let times: Vec<&str> = shown
        .out
        .lines()
        .filter(|line| line.contains(" bytes ") || line.contains(" byte "))
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!((times.len(), &*shown.err), (10_000, ""));
    assert!(times.is_sorted());
    let json = recording.show(&["--json"]).out;
    let times: Vec<u64> = json
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["ts_ns"].as_u64())
        .collect();
    assert!(times.len() == 10_006 && times.is_sorted());
}

#[test]
fn names_are_shown_and_matched_as_people_write_them() {
    let of = |pid, path| {
        Traffic::of(pid, "/usr/bin/caf\u{e9}").open(&format!("c{pid}"), path, "connect", &[]).data(
            &format!("c{pid}"),
            path,
            Out,
            b"x",
        )
    };
    let recording =
        Recording::of(&[of(1, "/tmp/\\xc3\\xa9.sock"), of(2, "@a\\x01b"), of(3, "@a\\x5cx01b"), of(4, "@\\x000\\xff")]);
    let shown = recording.show(&[]).out;
    for (pid, name) in [(1, "/tmp/é.sock"), (2, "@a\\x01b"), (3, "@a\\\\x01b"), (4, "@\\x000\\xff")] {
        assert!(shown.contains(&format!("café[{pid}] → {name} 1 byte \"x\"")), "{name}: {shown}");
    }
    for (glob, pid) in [("/tmp/é.*", 1), ("/tmp/?.sock", 1), (r"@a\\x01b", 3), ("@a?b", 2)] {
        let some = recording.show(&["--path", glob]).out;
        assert!(some.matches("→").count() == 1 && some.contains(&format!("[{pid}] →")), "{glob}: {some}");
    }
}

/// Whatever is written with payload in it, and by which command.
#[test]
fn outputs_are_their_owners_only() {
    let folder = tempfile::tempdir().unwrap();
    let talk = "#include <sys/socket.h>\n#include <unistd.h>\nint main(void) { int p[2]; char b[9]; socketpair(1, 1, 0, p); write(p[0], \"PASSWORD\", 8); return read(p[1], b, 9) != 8; }";
    compile(folder.path(), "talk", talk, &[]);
    let script = "umask $1; mkdir d$1; cd d$1; S=$0; $S run -w rec -o lines -- ../talk && $S run --json -o json -- ../talk \
        && $S run -w live.pcapng -o /dev/null -- ../talk && $S export rec -o exp.pcapng && $S export rec -o exp.pftrace && $S show rec -A -o shown \
        && $S show rec --json -o json2";
    for umask in ["000", "022", "077", "277"] {
        let done =
            Command::new("bash").args(["-c", script, SOCKTRACE, umask]).current_dir(folder.path()).output().unwrap();
        assert!(done.status.success() || umask == "277", "{}", String::from_utf8_lossy(&done.stderr));
        for name in ["lines", "json", "live.pcapng", "exp.pcapng", "exp.pftrace", "shown", "json2"] {
            let file = folder.path().join(format!("d{umask}")).join(name);
            let Ok(stat) = fs::metadata(&file) else {
                assert_eq!(umask, "277", "{name}");
                continue;
            };
            assert_eq!(stat.permissions().mode() & 0o7777, 0o600, "umask {umask}: {name}");
        }
    }
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let rec = path("d022/rec");
    // What others may write to is left as it is.
    let file = path("others");
    fs::write(&file, "theirs").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    for args in [
        &["show", &rec, "-o", &file][..],
        &["export", &rec, "-o", &file, "--format", "pcapng"],
        &["run", "-o", &file, "--", "true"],
    ] {
        let refused = run(args);
        assert!(
            refused.code != Some(0) && refused.err.contains("other users may write to it (mode 0666)"),
            "{refused:?}"
        );
        assert_eq!(fs::read_to_string(&file).unwrap(), "theirs");
    }
    // What others may read is closed to them.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(run(&["show", &rec, "-o", &file]).code, Some(0));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    // What is no file, or is handed to us, is taken as it is.
    for out in ["/dev/null", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
        let shown = run(&["show", &rec, "-o", out]);
        assert!(shown.code == Some(0) && shown.out.contains("PASSWORD") == (out != "/dev/null"), "{out}: {shown:?}");
    }
    let appended = format!(
        "echo before >{0}; {SOCKTRACE} show {rec} -o /dev/stdout >>{0}; {SOCKTRACE} show {rec} -o >(cat >{0}.2)",
        path("log")
    );
    assert!(Command::new("bash").args(["-c", &appended]).status().unwrap().success());
    let log = fs::read_to_string(path("log")).unwrap();
    assert!(log.starts_with("before\n") && log.contains("PASSWORD"), "{log}");
}

#[test]
fn beyond_a_file_size_limit_the_output_is_named() {
    let mut traffic = Traffic::of(1, "/x").open("c:1", "/c", "connect", &[]);
    for _ in 0..2000 {
        traffic = traffic.data("c:1", "/c", Out, b"0123456789");
    }
    let recording = Recording::of(&[traffic]);
    let out = recording.folder.path().join("o.pcapng");
    for command in ["show $1 -o $2", "export $1 -o $2"] {
        let script = format!("ulimit -S -f 16; exec \"$0\" {command}");
        let args = ["-c", &script, SOCKTRACE, &recording.path, out.to_str().unwrap()];
        let output = Command::new("bash").args(args).output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.code() == Some(1) && err.contains("file too large (EFBIG)"),
            "{command}: {:?} {err}",
            output.status
        );
    }
}

#[test]
fn following_what_is_removed_or_written_anew() {
    let line = |text: &str| format!("{{\"type\":\"error\",\"ts_ms\":1,\"raw\":\"{text}\"}}\n");
    let folder = folder();
    let (rec, out) = (folder.path().join("rec"), folder.path().join("shown"));
    let events = rec.join("events.jsonl");
    fs::write(&events, line("before")).unwrap();
    let args = ["show", "--follow", rec.to_str().unwrap(), "-o", out.to_str().unwrap()];
    let mut follower = socktrace(&args).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(follower.stderr.take().unwrap()).lines().map(Result::unwrap);
    let shows = |text: &str| until(text, || fs::read_to_string(&out).is_ok_and(|shown| shown.contains(text)));
    shows("before");
    let mut file = File::create(&events).unwrap();
    // Once that is seen, what follows may be longer than what was there before.
    assert!(said.next().unwrap().contains("emptied or replaced"));
    file.write_all(line("a longer line that comes afterwards").as_bytes()).unwrap();
    shows("comes afterwards");
    fs::write(rec.join("new"), line("of another file")).unwrap();
    fs::rename(rec.join("new"), &events).unwrap();
    assert!(said.next().unwrap().contains("emptied or replaced"));
    shows("of another file");
    fs::remove_dir_all(&rec).unwrap();
    assert!(said.next().unwrap().contains("has been removed"));
    assert!(follower.wait().unwrap().success());
}
