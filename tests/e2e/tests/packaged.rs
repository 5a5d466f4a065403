//! Tests that Debian packages with GLib, systemd and D-Bus, and hackbench: traced, each of them ends and says what it does
//! untraced.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use socktrace_e2e::{Needs, Recording, Stage, announce_skipped, find_program};

const GLIB: &str = "/usr/libexec/installed-tests/glib";
const SYSTEMD: &str = "/usr/lib/systemd/tests";
const DBUS: &str = "/usr/lib/dbus-1.0/installed-tests/dbus";
/// Seconds that one may take, of which the slowest needs ten.
const PATIENCE: &str = "120";
/// At once: they mostly wait.
const AT_ONCE: usize = 4;

/// No tests, but what they start.
const PROGRAMS_OF_GLIB: [&str; 2] = ["gdbus-connection-flush-helper", "gdbus-testserver"];
/// GLib's tests by the beginning of their names.
const OF_GLIB: [&str; 5] = ["gdbus-", "gsocketclient-slow", "socket", "unix-fd", "unix-streams"];
const OF_SYSTEMD: [&str; 7] = [
    "test-bus-",
    "test-socket-util",
    "test-socket-netlink",
    "test-fd-util",
    "test-io-util",
    "test-varlink",
    "test-copy",
];
const OF_DBUS: [&str; 12] = [
    "test-containers",
    "test-corrupt",
    "test-dbus-daemon",
    "test-fdpass",
    "test-header-fields",
    "test-loopback",
    "test-monitor",
    "test-relay",
    "test-refs",
    "test-sd-activation",
    "test-server-oom",
    "test-uid-permissions",
];

/// What a test program did.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    status: ExitStatus,
    /// By name, in the words of the Test Anything Protocol: `ok`, `not ok`.
    tests: BTreeMap<String, bool>,
}

/// Runs a program in a directory of its own, and leaves there what it printed.
fn run(mut command: Command, dir: &Path) -> Outcome {
    let file = |name: &str| fs::File::create(dir.join(name)).expect("a file in a new directory");
    command.current_dir(dir).env("TMPDIR", dir).env("HOME", dir).env_remove("DBUS_SESSION_BUS_ADDRESS");
    command.stdin(Stdio::null()).stdout(file("output")).stderr(file("errors"));
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let output = String::from_utf8_lossy(&fs::read(dir.join("output")).unwrap_or_default()).into_owned();
    Outcome { status, tests: output.lines().filter_map(outcome).collect() }
}

/// "ok 5 /gdbus/name # SKIP chance did not bring it about": what comes by chance is passed over.
fn outcome(line: &str) -> Option<(String, bool)> {
    let (is_ok, rest) = match line.strip_prefix("not ") {
        Some(rest) => (false, rest),
        None => (true, line),
    };
    let name = rest.strip_prefix("ok ")?.split(" # ").next()?;
    Some((name.to_owned(), is_ok))
}

/// Programs in a folder whose names begin so, each with how it is started.
fn programs(folder: &str, names: &[&str], args: &[&str], environment: &[(&str, String)]) -> Vec<(String, Vec<String>)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    found.retain(|name| names.iter().any(|begin| name.starts_with(begin)) && !name.contains('.'));
    found.retain(|name| !PROGRAMS_OF_GLIB.contains(&&**name) && !name.contains("codegen"));
    found.sort();
    let variables = environment.iter().map(|(name, value)| format!("{name}={value}"));
    let command = |name: &String| {
        let program = format!("{folder}/{name}");
        let args = args.iter().map(|&arg| arg.to_owned());
        ["env".to_owned()].into_iter().chain(variables.clone()).chain([program]).chain(args).collect()
    };
    found.iter().map(|name| (name.clone(), command(name))).collect()
}

/// Runs each of them untraced and preloaded.
fn compare(programs: &[(String, Vec<String>)]) {
    let stage = Stage::new();
    let (next, differences, messages) = (AtomicUsize::new(0), Mutex::new(Vec::new()), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((name, words)) = programs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let [untraced_in, traced_in] = ["untraced", "traced"].map(|how| make_dir(&stage, name, how));
                    let mut untraced = Command::new("timeout");
                    untraced.args(["-s", "KILL", PATIENCE]).args(words);
                    let mut traced = Command::new("timeout");
                    traced.args(["-s", "KILL", PATIENCE]).arg(Needs::Socktrace.path());
                    traced.args(["run", "-o", "view", "-w", "recording", "--no-payload-files", "--"]).args(words);
                    let (was, is) = (run(untraced, &untraced_in), run(traced, &traced_in));
                    let recording = Recording::read(&traced_in.join("recording"));
                    messages.fetch_add(recording.of_type("data").count(), Ordering::Relaxed);
                    if is != was {
                        let what = format!("{name}: {is:?}, untraced {was:?}: {}", traced_in.display());
                        differences.lock().expect("nobody panics with it").push(what);
                    }
                }
            });
        }
    });
    let differences = differences.into_inner().expect("nobody panics with it");
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(messages.into_inner() > 0, "nothing was traced");
}

fn make_dir(stage: &Stage, name: &str, how: &str) -> PathBuf {
    let dir = stage.path(&format!("{name}.{how}"));
    fs::create_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    dir
}

#[test]
fn glib() {
    let environment = ["G_TEST_SRCDIR", "G_TEST_BUILDDIR"].map(|name| (name, GLIB.to_owned()));
    let programs = programs(GLIB, &OF_GLIB, &["--tap"], &environment);
    if programs.is_empty() {
        return announce_skipped("glib", "GLib's own tests (Debian: libglib2.0-tests) are not installed");
    }
    compare(&programs);
}

#[test]
fn systemd() {
    let programs = programs(SYSTEMD, &OF_SYSTEMD, &[], &[]);
    if programs.is_empty() {
        return announce_skipped("systemd", "systemd's own tests (Debian: systemd-tests) are not installed");
    }
    compare(&programs);
}

#[test]
fn dbus() {
    let environment = [("DBUS_TEST_EXEC", DBUS.to_owned()), ("DBUS_TEST_DATA", format!("{DBUS}/data"))];
    let programs = programs(DBUS, &OF_DBUS, &["--tap"], &environment);
    if programs.is_empty() {
        return announce_skipped("dbus", "D-Bus's own tests (Debian: dbus-tests) are not installed");
    }
    compare(&programs);
}

/// Many processes, or threads, that send each other small messages as fast as they can.
#[test]
fn hackbench() {
    let Some(program) = find_program("hackbench") else {
        return announce_skipped("hackbench", "hackbench (Debian: rt-tests) is not installed");
    };
    let command = |how: &str| {
        let args = ["-s", "100", "-l", "100", "-g", "2", "-f", "4", how];
        [program.display().to_string()].into_iter().chain(args.map(str::to_owned)).collect()
    };
    compare(&[("processes".into(), command("--process")), ("threads".into(), command("--threads"))]);
}
