//! Live in Wireshark: `run -w -`, FIFOs, and the extcap interface.

mod harness;

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use harness::wireshark::is_there;
use harness::{LIMIT, SOCKTRACE, has, outcome, run, until};

/// Says its arguments to itself over a path, one after the other, and tells standard output.
const TALKER: &str = r#"
import os, socket, sys
server = socket.socket(socket.AF_UNIX); server.bind(sys.argv[1]); server.listen()
client = socket.socket(socket.AF_UNIX); client.connect(sys.argv[1])
peer, _ = server.accept()
for word in sys.argv[2:]:
    client.sendall(b"*1\r\n$%d\r\n%s\r\n" % (len(word), word.encode()))
    peer.recv(1000)
    peer.sendall(b"+" + word.encode() + b"\r\n")
    client.recv(1000)
print("said", len(sys.argv) - 2, flush=True)
"#;

struct Talker {
    folder: tempfile::TempDir,
}

impl Talker {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("talker.py"), TALKER).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn command_line(&self, words: &str) -> String {
        format!("python3 {} {} {words}", self.path("talker.py"), self.path("redis.sock"))
    }
}

fn is_ready(test: &str) -> bool {
    is_there(test) && has("python3", test)
}

/// A shell's command line, in an environment without the user's settings.
fn shell(line: &str, home: &Path) -> Command {
    let mut command = harness::command("sh", &["-c", line]);
    command.env("HOME", home).env_remove("XDG_CONFIG_HOME");
    command
}

#[test]
fn packets_on_standard_output() {
    if !is_ready("packets_on_standard_output") {
        return;
    }
    let talker = Talker::new();
    let tshark = "tshark -i - -Y resp -T fields -e resp.string -e resp.bulk_string.length";
    let line = format!("{SOCKTRACE} run -w - -- {} one two | {tshark}", talker.command_line(""));
    let live = outcome(&mut shell(&line, talker.folder.path()));
    assert_eq!(live.code, Some(0), "{}", live.err);
    // The program's words are on standard error, and nothing else is with the packets.
    assert!(live.err.contains("said 2"), "{}", live.err);
    let lines: Vec<_> = live.out.lines().map(str::trim).collect();
    assert_eq!(lines.len(), 4, "{}", live.out);
    assert!(!live.err.contains("redis.sock"), "no lines beside packets: {}", live.err);
}

#[test]
fn packets_come_while_the_program_runs() {
    if !is_ready("packets_come_while_the_program_runs") {
        return;
    }
    let talker = Talker::new();
    let fifo = talker.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    // The program ends when it is told to, which it is once its words were seen.
    let go = talker.path("go");
    let line = format!("{} one; while ! test -e {go}; do sleep 0.05; done", talker.command_line(""));
    let mut traced = harness::socktrace(&["run", "-w", &fifo, "--format", "pcapng", "--", "sh", "-c", &line]);
    let mut traced = traced.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let home = tempfile::tempdir().unwrap();
    let mut tshark = shell(&format!("tshark -l -i {fifo} -Y resp -T fields -e resp.string"), home.path());
    let mut tshark = tshark.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut seen = [0; 4];
    tshark.stdout.as_mut().unwrap().read_exact(&mut seen).unwrap();
    fs::write(&go, "").unwrap();
    assert!(traced.wait().unwrap().success());
    assert!(tshark.wait().unwrap().success());
    let (mut out, mut err) = (String::new(), String::new());
    traced.stdout.unwrap().read_to_string(&mut out).unwrap();
    traced.stderr.unwrap().read_to_string(&mut err).unwrap();
    // Standard output is free here, and lines are shown as with a directory.
    assert_eq!(out, "said 1\n");
    assert!(err.contains("redis.sock"), "{err}");
}

#[test]
fn a_file_is_like_an_export() {
    if !is_ready("a_file_is_like_an_export") {
        return;
    }
    let talker = Talker::new();
    let file = talker.path("live.pcapng");
    let words = talker.command_line("a b c");
    let args: Vec<_> = ["run", "-w", &file, "-o", "/dev/null", "--"].into_iter().chain(words.split(' ')).collect();
    assert_eq!(run(&args).code, Some(0));
    let dir = talker.path("rec");
    fs::remove_file(talker.path("redis.sock")).unwrap();
    let args: Vec<_> = ["run", "-w", &dir, "-o", "/dev/null", "--"].into_iter().chain(words.split(' ')).collect();
    assert_eq!(run(&args).code, Some(0));
    let exported = talker.path("exported.pcapng");
    assert_eq!(run(&["export", &dir, "-o", &exported]).code, Some(0));
    let packets = |file: &str| {
        let fields = ["tcp.stream", "tcp.srcport", "tcp.dstport", "tcp.seq", "tcp.ack", "tcp.flags", "tcp.payload"];
        let args = ["-r", file, "-T", "fields"].into_iter().chain(fields.iter().flat_map(|field| ["-e", field]));
        harness::wireshark::tshark(&args.collect::<Vec<_>>()).out
    };
    assert!(packets(&file).lines().count() >= 3 + 6);
    assert_eq!(packets(&file), packets(&exported));
}

#[test]
fn what_does_not_go_together_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let dir = run(&["run", "-w", "-", "--format", "dir", "--", "true"]);
    assert!(dir.code == Some(125) && dir.err.contains("a directory cannot be standard output"), "{dir:?}");
    let decode = run(&["run", "-w", "-", "--decode", "x=what", "--", "true"]);
    assert!(decode.code == Some(125) && decode.err.contains("neither a port nor one of"), "{decode:?}");
    let unwritable = folder.path().join("no/such.pcapng");
    let unwritable = run(&["run", "-w", unwritable.to_str().unwrap(), "--", "true"]);
    assert!(unwritable.code == Some(125) && unwritable.err.contains("cannot be written"), "{unwritable:?}");
    let format = run(&["run", "--format", "pcapng", "--", "true"]);
    assert!(format.code == Some(2) && format.err.contains("--record"), "{format:?}");
}

#[test]
fn a_reader_that_goes_does_not_end_the_program() {
    let talker = Talker::new();
    if !has("python3", "a_reader_that_goes_does_not_end_the_program") {
        return;
    }
    let line = format!("{SOCKTRACE} run -w - -- {} | true", talker.command_line("word"));
    let gone = outcome(&mut shell(&line, talker.folder.path()));
    assert!(gone.err.contains("said 1"), "{}", gone.err);
}

/// The extcap interface as Wireshark has it, installed for a user who has nothing else.
#[test]
fn an_interface_of_wiresharks() {
    if !is_ready("an_interface_of_wiresharks") {
        return;
    }
    let talker = Talker::new();
    let home = tempfile::tempdir().unwrap();
    let installed = outcome(&mut shell(&format!("{SOCKTRACE} extcap --install"), home.path()));
    assert_eq!(installed.code, Some(0), "{}", installed.err);
    let script = Path::new(installed.out.trim()).to_owned();
    assert!(script.starts_with(home.path()) && script.ends_with("extcap/socktrace"), "{}", script.display());
    assert_eq!(fs::metadata(&script).unwrap().permissions().mode() & 0o777, 0o755);
    let interfaces = outcome(&mut shell("tshark -D", home.path()));
    assert!(interfaces.out.contains("socktrace (AF_UNIX sockets of a program)"), "{}", interfaces.out);
    let linktypes = outcome(&mut shell("tshark -i socktrace -L", home.path()));
    assert!(linktypes.out.contains("RAW") || linktypes.err.contains("RAW"), "{linktypes:?}");
    let capture = |options: &str| {
        let line = format!("tshark -i socktrace {options} -Y resp -T fields -e _ws.col.Info");
        outcome(&mut shell(&line, home.path()))
    };
    let command = format!("-o 'extcap.socktrace.command:{}'", talker.command_line("one two"));
    let seen = capture(&command);
    assert_eq!(seen.out.lines().count(), 4, "{seen:?}");
    assert!(seen.out.contains("Response: one"), "{}", seen.out);
    fs::remove_file(talker.path("redis.sock")).unwrap();
    let filtered = capture(&format!("{command} -o 'extcap.socktrace.path:/elsewhere/* /nowhere'"));
    assert_eq!(filtered.out, "", "{filtered:?}");
    fs::remove_file(talker.path("redis.sock")).unwrap();
    let renamed = capture(&format!("{command} -o 'extcap.socktrace.decode:*.sock=60100'"));
    assert_eq!(renamed.out, "", "{renamed:?}");
    let nothing = capture("");
    assert!(nothing.err.contains("nothing to trace"), "{nothing:?}");
}

#[test]
fn what_wireshark_asks() {
    let asked = |args: &[&str]| run(&[&["extcap"], args].concat());
    let interfaces = asked(&["--extcap-interfaces", "--extcap-version=4.0"]).out;
    assert!(interfaces.contains("interface {value=socktrace}"), "{interfaces}");
    assert!(asked(&["--extcap-dlts", "--extcap-interface", "socktrace"]).out.contains("dlt {number=101}"));
    let config = asked(&["--extcap-config", "--extcap-interface", "socktrace"]).out;
    for option in ["--command", "--pid", "--name", "--path", "--decode", "--max-bytes"] {
        assert!(config.contains(&format!("{{call={option}}}")), "{config}");
    }
    let other = asked(&["--extcap-dlts", "--extcap-interface", "eth0"]);
    assert!(other.code == Some(1) && other.err.contains("eth0: no such interface"), "{other:?}");
    let fifo = asked(&["--capture", "--extcap-interface", "socktrace"]);
    assert!(fifo.code == Some(2) && fifo.err.contains("--fifo"), "{fifo:?}");
    assert_eq!(asked(&[]).code, Some(2));
}

/// Wireshark stops an extcap with SIGTERM: the program that it has started ends, too.
#[test]
fn a_capture_is_stopped() {
    if !has("python3", "a_capture_is_stopped") {
        return;
    }
    let talker = Talker::new();
    let (fifo, pid) = (talker.path("fifo"), talker.path("pid"));
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let line = format!("{} word; echo $$ > {pid}; exec sleep {LIMIT}", talker.command_line(""));
    let args = ["extcap", "--capture", "--extcap-interface", "socktrace", "--fifo", &fifo, "--command", &line];
    let mut extcap = Command::new(SOCKTRACE).args(args).stdin(Stdio::null()).spawn().unwrap();
    let mut packets = fs::File::open(&fifo).unwrap();
    let mut header = [0; 4];
    packets.read_exact(&mut header).unwrap();
    assert_eq!(header, [0x0a, 0x0d, 0x0d, 0x0a]);
    until("the program runs", || fs::read_to_string(&pid).is_ok_and(|text| text.ends_with('\n')));
    assert!(Command::new("kill").arg(extcap.id().to_string()).status().unwrap().success());
    let mut rest = Vec::new();
    packets.read_to_end(&mut rest).unwrap();
    let _ = extcap.wait().unwrap();
    assert!(rest.windows(4).any(|four| four == b"word"));
    let program = fs::read_to_string(&pid).unwrap();
    assert!(!Path::new("/proc").join(program.trim()).exists());
}
