//! Real programs, watched by socktrace and strace(1) at once: what either says of their AF_UNIX sockets is the same.
//!
//! Preloaded, the probe is there from the beginning, and so is strace. Frida attaches to a running program by ptrace(2)
//! and lets go of it, then strace joins; what they say from then on is compared.

use std::fs::{self, File, Permissions};
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use rustix::process::{Signal, getuid};
use serde_json::{Value, json};
use socktrace_e2e::{
    Frida, Observed, Oracle, PATIENCE, Process, Program, Server, SockType, Stage, Strace, children, find_program,
    has_programs, preload_files, send_signal, until,
};

/// Bytes of a large value or result. strace has to show what one call moves.
const LARGE: usize = 300_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Engine {
    Preload,
    Frida,
}

/// The user that servers run as which refuse to be root's: of every Linux system.
const NOBODY: (&str, u32) = ("nobody", 65534);

/// A test of one engine: programs, what watches them, and what was seen.
struct Scene {
    stage: Stage,
    engine: Engine,
    recorder: Server,
    parameters: Value,
    preload: PathBuf,
    since_ns: u64,
    seen: Vec<Observed>,
    /// What strace saw of programs that are not traced.
    others: Vec<Observed>,
}

/// A server program, watched.
struct Watched {
    strace: Strace,
    /// Where strace has not started it.
    process: Option<Process>,
}

impl Watched {
    fn pid(&self) -> u32 {
        self.process.as_ref().map_or_else(|| self.strace.program(), Process::pid)
    }
}

fn program(name: &str) -> PathBuf {
    find_program(name).unwrap_or_else(|| panic!("{name} was here a moment ago"))
}

fn file(path: &Path) -> File {
    File::create(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

impl Scene {
    fn new(engine: Engine) -> Self {
        let stage = Stage::new();
        // Each engine has the transport that is the harder one for it: descriptors inherited over fork are shared by
        // dgram, and made anew by stream.
        let sock_type = if engine == Engine::Preload { SockType::Stream } else { SockType::Dgram };
        let recorder = Server::start(&stage, sock_type);
        recorder.let_everybody_in();
        let parameters = stage.parameters(json!({ "out_sock_type": sock_type.name(), "max_bytes": 64 << 20 }));
        let preload = preload_files(&stage, &parameters);
        Self { stage, engine, recorder, parameters, preload, since_ns: 0, seen: Vec::new(), others: Vec::new() }
    }

    fn socket(&self, name: &str) -> String {
        self.stage.socket(name).display().to_string()
    }

    /// Starts a server program and has it watched from the time on that `is_up`, or from its beginning.
    fn server(&mut self, name: &str, args: &[&str], user: Option<(&str, u32)>, is_up: impl Fn() -> bool) -> Watched {
        let (path, output) = (program(name), self.stage.path(&format!("{name}.out.txt")));
        let up = || until(&format!("{name} is up ({})", output.display()), || is_up().then_some(()));
        match self.engine {
            Engine::Preload => {
                let user = user.map(|(user, _)| user);
                let program = Program { name, file: &path, args, preload: Some(&self.preload), user };
                let strace = Strace::start(&self.stage, &program, Stdio::null(), file(&output).into());
                up();
                Watched { strace, process: None }
            }
            Engine::Frida => {
                let mut command = Command::new(&path);
                command.args(args);
                if let Some((_, id)) = user {
                    command.uid(id).gid(id);
                }
                let process = Process::start_command(&mut command, Stdio::null(), &output);
                up();
                self.attach(name, process)
            }
        }
    }

    fn attach(&mut self, name: &str, process: Process) -> Watched {
        Frida::new().attach(&self.stage, &format!("{name}.frida"), &self.parameters, process.pid());
        self.recorder.wait_until_ready(process.pid());
        let strace = Strace::attach(&self.stage, name, process.pid());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time after 1970");
        self.since_ns = u64::try_from(now.as_nanos()).expect("a time before 2554");
        Watched { strace, process: Some(process) }
    }

    /// Ends a server program by a signal.
    fn stop(&mut self, watched: Watched, signal: Signal) {
        let Watched { strace, process } = watched;
        self.seen.push(match process {
            None => strace.finish_by(signal),
            Some(mut process) => {
                process.end_by(signal);
                strace.finish()
            }
        });
    }

    /// Runs a client to its end; what it printed. Under Frida only its server is traced, unless it waits for its input
    /// before it does anything else.
    fn client(&mut self, name: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
        let (path, number) = (program(name), self.seen.len() + self.others.len());
        let name = path.file_name().expect("a file").to_string_lossy();
        let name = format!("{name}.{number}");
        let output = self.stage.path(&format!("{name}.out"));
        let preload = (self.engine == Engine::Preload).then_some(&*self.preload);
        let program = Program { name: &name, file: &path, args, preload, user: None };
        let given = self.stage.path(&format!("{name}.in"));
        fs::write(&given, input).unwrap_or_else(|error| panic!("{}: {error}", given.display()));
        let input = File::open(&given).unwrap_or_else(|error| panic!("{}: {error}", given.display()));
        let observed = Strace::start(&self.stage, &program, input.into(), file(&output).into()).finish();
        if preload.is_some() { &mut self.seen } else { &mut self.others }.push(observed);
        fs::read(&output).unwrap_or_else(|error| panic!("{}: {error}", output.display()))
    }

    /// Compares; `at_least` bytes must have been seen, or it was no test.
    #[track_caller]
    fn compare(self, at_least: usize) {
        let oracle = Oracle::new(self.seen, &self.recorder, self.since_ns);
        let oracle = oracle.with_other_ends(&Observed::join(self.others));
        let recording = self.recorder.stop();
        oracle.assert_agrees(&recording);
        assert!(oracle.bytes() >= at_least, "{} bytes are less than this test is about", oracle.bytes());
    }
}

macro_rules! tests {
    ($($preload:ident $frida:ident: $test:ident, $programs:expr;)+) => {
        $(#[test]
        fn $preload() {
            if has_programs(stringify!($preload), &[&["strace"], &$programs[..]].concat()) {
                $test(Engine::Preload);
            }
        }

        #[test]
        fn $frida() {
            if has_programs(stringify!($frida), &[&["strace"], &$programs[..]].concat()) {
                $test(Engine::Frida);
            }
        })+
    };
}

tests! {
    redis_preloaded redis_by_frida: redis, ["redis-server", "redis-cli"];
    dbus_preloaded dbus_by_frida: dbus, ["dbus-daemon", "dbus-send"];
    nginx_preloaded nginx_by_frida: nginx, ["nginx", "curl"];
    postgres_preloaded postgres_by_frida: postgres, ["postgres", "initdb", "psql"];
    x11_preloaded x11_by_frida: x11, ["Xvfb", "xdpyinfo", "xlsfonts", "xprop"];
    standard_streams_preloaded standard_streams_by_frida: standard_streams, ["sort"];
}

fn redis(engine: Engine) {
    let mut scene = Scene::new(engine);
    let (socket, dir) = (scene.socket("redis"), scene.stage.path("").display().to_string());
    let args = ["--port", "0", "--unixsocket", &socket, "--save", "", "--appendonly", "no", "--dir", &dir];
    let redis = scene.server("redis-server", &args, None, || Path::new(&socket).exists());
    assert_eq!(scene.client("redis-cli", &["-s", &socket, "PING"], b""), b"PONG\n");
    let value = "value".repeat(LARGE / 5);
    assert_eq!(scene.client("redis-cli", &["-s", &socket, "-x", "SET", "key"], value.as_bytes()), b"OK\n");
    assert_eq!(scene.client("redis-cli", &["-s", &socket, "GET", "key"], b""), format!("{value}\n").as_bytes());
    let many: Vec<u8> = (0..1000).flat_map(|n| format!("SET key{n} {n}\r\n").into_bytes()).collect();
    scene.client("redis-cli", &["-s", &socket, "--pipe"], &many);
    scene.stop(redis, Signal::TERM);
    scene.compare(2 * LARGE + many.len());
}

fn dbus(engine: Engine) {
    let mut scene = Scene::new(engine);
    let socket = scene.socket("bus");
    let address = format!("unix:path={socket}");
    let config = scene.stage.path("bus.conf");
    let allowed = "<allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/>";
    let policy = format!("<policy context=\"default\">{allowed}</policy>");
    let text = format!("<busconfig><type>session</type><listen>{address}</listen>{policy}</busconfig>");
    fs::write(&config, text).expect("a file in the test's directory");
    let args = ["--nofork", "--nopidfile", "--config-file", config.to_str().expect("a UTF-8 path")];
    let bus = scene.server("dbus-daemon", &args, None, || Path::new(&socket).exists());
    let bus_arg = format!("--bus={address}");
    let to = ["--dest=org.freedesktop.DBus", "--print-reply", "/org/freedesktop/DBus"];
    for member in ["ListNames", "Introspect", "GetId"] {
        let interface = if member == "Introspect" { "Introspectable" } else { "" };
        let member = format!("org.freedesktop.DBus.{interface}.{member}").replace("..", ".");
        scene.client("dbus-send", &[&[&*bus_arg][..], &to, &[&member]].concat(), b"");
    }
    let large = format!("dict:string:string:LARGE,{}", "x".repeat(LARGE / 3));
    let member = "org.freedesktop.DBus.UpdateActivationEnvironment";
    scene.client("dbus-send", &[&[&*bus_arg][..], &to, &[member, &large]].concat(), b"");
    scene.stop(bus, Signal::TERM);
    scene.compare(LARGE / 3);
}

fn x11(engine: Engine) {
    let mut scene = Scene::new(engine);
    let printed = scene.stage.path("Xvfb.out.txt");
    // Among complaints about displays that others have.
    let is_number = |line: &&str| !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_digit());
    let number = || fs::read_to_string(&printed).ok().and_then(|text| text.lines().find(is_number).map(str::to_owned));
    let args = ["-displayfd", "1", "-nolisten", "tcp", "-ac", "-noreset", "-screen", "0", "640x480x24"];
    let xvfb = scene.server("Xvfb", &args, None, || number().is_some());
    let display = format!(":{}", number().expect("it was there"));
    scene.client("xdpyinfo", &["-display", &display], b"");
    scene.client("xlsfonts", &["-display", &display, "-ll"], b"");
    scene.client(
        "xprop",
        &["-display", &display, "-root", "-f", "NAME", "8s", "-set", "NAME", &"x".repeat(LARGE / 3)],
        b"",
    );
    let said = scene.client("xprop", &["-display", &display, "-root", "-len", "1000000", "NAME"], b"");
    assert!(said.len() > LARGE / 3, "{}", said.escape_ascii());
    scene.stop(xvfb, Signal::TERM);
    scene.compare(2 * LARGE / 3);
}

/// Among its workers nginx sends descriptors over a pair, its log goes to a datagram socket, and files by sendfile(2).
fn nginx(engine: Engine) {
    let mut scene = Scene::new(engine);
    let (socket, log) = (scene.socket("nginx"), scene.socket("log"));
    let dir = scene.stage.path("nginx");
    let logged = UnixDatagram::bind(&log).expect("a socket in the test's directory");
    logged.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    // nginx's workers are of another user than root.
    fs::set_permissions(&log, Permissions::from_mode(0o666)).expect("a socket of ours");
    fs::create_dir(&dir).expect("a directory in a new directory");
    fs::write(dir.join("large"), "large".repeat(LARGE / 5)).expect("a file in a new directory");
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary: String = temporary.map(|of| format!("{of}_temp_path {}/{of};\n", dir.display())).concat();
    let (config, dir) = (scene.stage.path("nginx.conf"), dir.display().to_string());
    let text = format!(
        "daemon off; worker_processes 2; pid {dir}/pid; error_log {dir}/error;\nevents {{ }}\n\
         http {{ {temporary} access_log syslog:server=unix:{log}; root {dir}; server {{ listen unix:{socket};\n\
         location /sent/ {{ alias {dir}/; sendfile on; }}\nlocation /written/ {{ alias {dir}/; sendfile off; }} }} }}\n"
    );
    fs::write(&config, text).expect("a file in the test's directory");
    let args = ["-c", config.to_str().expect("a UTF-8 path")];
    let nginx = scene.server("nginx", &args, None, || Path::new(&socket).exists());
    // The workers that it has under Frida are older than its hooks; it makes new ones, and tells the old ones to go.
    let master = nginx.pid();
    let old = until("nginx has its workers", || Some(children(master)).filter(|children| children.len() == 2));
    send_signal(master, Signal::HUP);
    let is_new = |workers: &Vec<u32>| workers.len() == 2 && workers.iter().all(|worker| !old.contains(worker));
    until("nginx has new workers", || Some(children(master)).filter(is_new));
    for location in ["sent", "written", "nowhere"] {
        let url = format!("http://localhost/{location}/large");
        let got = scene.client("curl", &["-s", "--unix-socket", &socket, &url], b"");
        assert_eq!(got.len() == LARGE, location != "nowhere", "{}", got.escape_ascii());
    }
    let mut line = [0; 1000];
    let len = logged.recv(&mut line).expect("a line of nginx's log");
    let line = String::from_utf8_lossy(&line[..len]);
    assert!(line.contains("GET /sent/large"), "{line}");
    scene.stop(nginx, Signal::QUIT);
    scene.compare(2 * LARGE);
}

/// A server that forks a process for each connection, which it has accepted itself.
fn postgres(engine: Engine) {
    let mut scene = Scene::new(engine);
    let (sockets, data) = (scene.stage.sockets().display().to_string(), scene.stage.path("data"));
    let user = getuid().is_root().then_some(NOBODY);
    let mut initdb = Command::new(program("initdb"));
    initdb.args(["--no-sync", "--auth=trust", "--username=tester", "--locale=C", "--pgdata"]).arg(&data);
    if let Some((_, id)) = user {
        fs::create_dir(&data).expect("a directory in the test's directory");
        for dir in [&data, &scene.stage.sockets()] {
            chown(dir, Some(id), Some(id)).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        }
        initdb.uid(id).gid(id).current_dir("/");
    }
    Process::start_command(&mut initdb, Stdio::null(), &scene.stage.path("initdb.txt")).wait_for_success();
    let socket = scene.socket(".s.PGSQL.5432");
    let data = data.display().to_string();
    let args = ["-D", &data, "-k", &sockets, "-c", "listen_addresses=", "-c", "fsync=off"];
    let is_up = || {
        let pid_file = fs::read_to_string(format!("{data}/postmaster.pid")).unwrap_or_default();
        Path::new(&socket).exists() && pid_file.lines().last().is_some_and(|status| status.trim() == "ready")
    };
    let postgres = scene.server("postgres", &args, user, is_up);
    let to = ["-X", "-q", "-A", "-t", "-h", &sockets, "-U", "tester", "-d", "postgres"];
    let large = format!("SELECT repeat('x', {LARGE})");
    let got = scene.client("psql", &[&to[..], &["-c", &large]].concat(), b"");
    assert_eq!(got.len(), LARGE + 1);
    let lines: String = (0..LARGE / 10).map(|n| format!("{n:09}\n")).collect();
    let script = format!("CREATE TABLE t (n text);\nCOPY t FROM STDIN;\n{lines}\\.\nSELECT count(*) FROM t;\n");
    let got = scene.client("psql", &to, script.as_bytes());
    assert_eq!(got, format!("{}\n", LARGE / 10).as_bytes());
    scene.stop(postgres, Signal::INT);
    scene.compare(2 * LARGE);
}

/// A program's standard input and output are sockets: libc's own calls, made by stdio(3), move the bytes.
fn standard_streams(engine: Engine) {
    let mut scene = Scene::new(engine);
    let ((input, mut given), (output, mut printed)) =
        (UnixStream::pair().expect("a pair"), UnixStream::pair().expect("a pair"));
    let (input, output) = (OwnedFd::from(input), OwnedFd::from(output));
    let path = program("sort");
    let sort = match engine {
        Engine::Preload => {
            let program = Program { name: "sort", file: &path, args: &[], preload: Some(&scene.preload), user: None };
            Watched { strace: Strace::start(&scene.stage, &program, input.into(), output.into()), process: None }
        }
        Engine::Frida => {
            let process = Process::spawn(Command::new(&path).stdin(input).stdout(output));
            until("sort waits for its input", || process.is_asleep().then_some(()));
            scene.attach("sort", process)
        }
    };
    let lines: String = (0..LARGE / 10).rev().map(|n| format!("{n:09}\n")).collect();
    let writer = std::thread::spawn(move || given.write_all(lines.as_bytes()).expect("sort takes its input"));
    let mut sorted = String::new();
    printed.read_to_string(&mut sorted).expect("sort's output");
    writer.join().expect("it does not panic");
    assert!(sorted.starts_with("000000000\n000000001\n") && sorted.len() == LARGE, "sort has sorted");
    if let Some(mut process) = sort.process {
        process.wait_for_success();
    }
    scene.seen.push(sort.strace.finish());
    // Not the call that Frida found it waiting in.
    scene.compare(LARGE);
}

/// Bytes that tests of the distribution must have moved to be a test of ours.
const LITTLE: usize = 1000;

/// Programs that are run once each, with the probe from their beginning.
fn one_by_one(test: &str, programs: &[(&str, &[&str])]) {
    let names: Vec<&str> = [("strace", &[][..])].iter().chain(programs).map(|(name, _)| *name).collect();
    if !has_programs(test, &names) {
        return;
    }
    let mut scene = Scene::new(Engine::Preload);
    for (name, args) in programs {
        scene.client(name, args, b"");
    }
    scene.compare(LITTLE);
}

#[test]
fn hackbench() {
    one_by_one("hackbench", &[("hackbench", &["-s", "100", "-l", "20", "-g", "1", "-f", "3"])]);
}

#[test]
fn systemds_own_tests() {
    let tests = ["bus-server", "bus-objects", "fd-util", "socket-util", "varlink"];
    let tests = tests.map(|test| format!("/usr/lib/systemd/tests/test-{test}"));
    one_by_one("systemds_own_tests", &tests.each_ref().map(|test| (&**test, &[][..])));
}

#[test]
fn dbus_own_tests() {
    let tests = ["fdpass", "loopback", "monitor"];
    let tests = tests.map(|test| format!("/usr/lib/dbus-1.0/installed-tests/dbus/test-{test}"));
    one_by_one("dbus_own_tests", &tests.each_ref().map(|test| (&**test, &["--tap"][..])));
}
