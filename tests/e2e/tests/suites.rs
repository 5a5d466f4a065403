//! Python's own tests of sockets, subprocesses and event loops: traced, each of them passes, fails or is skipped exactly
//! as it does untraced.
//!
//! Debian packages them as libpython3.11-testsuite. The default is what has to do with sockets and processes and takes a
//! minute; with `SOCKTRACE_WHOLE_SUITE=1` all of [`WHOLE`] runs as well. Many of those tests want things to be done in a
//! time of their choice: that is for a machine with nothing else to do.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socktrace_e2e::{Needs, Process, Stage, announce_skipped};

/// Far beyond what the slowest of them takes, even on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Left out, each with its reason.
const LEFT_OUT: [(&str, &str); 2] = [
    ("*VSOCK*", "they wait for ever in virtual machines whose host does not forward vsock(7), untraced as well"),
    ("*test_prompt_cancellation", "they want 0.1 s to be enough, of which the load of the machine decides"),
];

/// What else of Python's tests makes sockets, processes or threads.
const WHOLE: [&str; 15] = [
    "test_asyncio",
    "test_multiprocessing_fork",
    "test_multiprocessing_forkserver",
    "test_concurrent_futures",
    "test_socketserver",
    "test_logging",
    "test_os",
    "test_posix",
    "test_signal",
    "test_threading",
    "test_faulthandler",
    "test_pty",
    "test_fcntl",
    "test_selectors",
    "test_epoll",
];

#[derive(Clone, Copy, Debug)]
enum Engine {
    Untraced,
    Preload,
    Frida,
}

/// A Python that has its tests.
fn python() -> Option<PathBuf> {
    // The distribution's first: its tests are packages of the distribution's, too.
    ["/usr/bin/python3", "python3"].map(PathBuf::from).into_iter().find(|python| {
        let command = Command::new(python).args(["-c", "import test.test_socket"]).stderr(Stdio::null()).status();
        command.is_ok_and(|status| status.success())
    })
}

/// Tests that run.
struct Run {
    engine: Engine,
    process: Process,
    python: PathBuf,
    junit: PathBuf,
    output: PathBuf,
}

impl Run {
    fn start(stage: &Stage, engine: Engine, python: &Path, modules: &[&str]) -> Self {
        // A directory for each, as some of them make files where they are.
        let dir = stage.path(&format!("{engine:?}"));
        std::fs::create_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        let mut command = match engine {
            Engine::Untraced => Command::new(python),
            Engine::Preload | Engine::Frida => {
                let name = if matches!(engine, Engine::Frida) { "frida" } else { "preload" };
                let mut command = Command::new(Needs::Socktrace.path());
                command.args(["run", "--engine", name, "-o", "view.txt", "-w", "recording", "--"]).arg(python);
                command
            }
        };
        command.args(["-m", "test", "-v", "--junit-xml", "junit.xml"]);
        command.args(LEFT_OUT.iter().flat_map(|(pattern, _)| ["--ignore", pattern])).args(modules).current_dir(&dir);
        let output = dir.join("output.txt");
        let process = Process::start_command(&mut command, Stdio::null(), &output);
        Self { engine, process, python: python.into(), junit: dir.join("junit.xml"), output }
    }

    /// Waits for their end. What became of each test.
    #[track_caller]
    fn outcomes(mut self) -> BTreeMap<String, Vec<String>> {
        self.process.wait_for(PATIENCE);
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/junit_outcomes.py");
        let read = Command::new(&self.python).arg(script).arg(&self.junit).output().expect("python starts");
        serde_json::from_slice(&read.stdout).unwrap_or_else(|_| {
            panic!("{:?}: the tests did not come to their end: {}", self.engine, self.output.display())
        })
    }
}

/// Sets the limit that login shells and services have by default: where the hard limit is the soft one, as in some
/// containers, the agent's descriptor must have a number that the program could have, and a test that asks what is open
/// under each of them finds it (docs/design.md).
fn limit_descriptors() {
    const DEFAULT: u64 = 1024;
    let limit = getrlimit(Resource::Nofile);
    let soft = Rlimit { current: Some(DEFAULT.min(limit.maximum.unwrap_or(u64::MAX))), ..limit };
    setrlimit(Resource::Nofile, soft).expect("lowering the soft limit is allowed");
}

fn compare(test: &str, modules: &[&str]) {
    let Some(python) = python() else {
        return announce_skipped(test, "Python's own tests (Debian: libpython3.11-testsuite) are not installed");
    };
    limit_descriptors();
    let stage = Stage::new();
    // All at once: they mostly wait.
    let start = |engine| Run::start(&stage, engine, &python, modules);
    let [untraced, preload, frida] = [Engine::Untraced, Engine::Preload, Engine::Frida].map(start);
    let untraced = untraced.outcomes();
    assert!(untraced.values().flatten().any(|outcome| outcome == "passed"), "none passes untraced");
    let mut differences = Vec::new();
    for traced in [preload, frida] {
        let engine = traced.engine;
        let traced = traced.outcomes();
        let names = untraced.keys().chain(traced.keys().filter(|name| !untraced.contains_key(*name)));
        for name in names.filter(|name| untraced.get(*name) != traced.get(*name)) {
            let [is, was] = [&traced, &untraced].map(|all| all.get(name).map(|outcomes| outcomes.join(", ")));
            differences.push(format!("{name}: untraced {was:?}, {engine:?} {is:?}"));
        }
    }
    assert!(differences.is_empty(), "{}\n  {}", stage.path("").display(), differences.join("\n  "));
}

#[test]
fn python_socket() {
    compare("python_socket", &["test_socket", "test_socketserver"]);
}

#[test]
fn python_subprocess() {
    compare("python_subprocess", &["test_subprocess"]);
}

#[test]
fn python_asyncio() {
    let modules =
        ["unix_events", "streams", "server", "subprocess", "sock_lowlevel", "sendfile", "selector_events", "events"];
    let modules = modules.map(|module| format!("test_asyncio.test_{module}"));
    compare("python_asyncio", &modules.each_ref().map(String::as_str));
}

#[test]
fn python_whole() {
    if std::env::var_os("SOCKTRACE_WHOLE_SUITE").is_some_and(|wanted| wanted == "1") {
        compare("python_whole", &WHOLE);
    }
}
