//! The same conversation under every limit, filter, namespace and user, on small stacks, after every kind of exec: what
//! the program prints and how it ends is the same as untraced, and what it says is recorded, or said not to be.
//!
//! The program is e2e/matrix/matrix.c, its arguments are what it does, one after the other. Each setting comes on its own,
//! and in combinations that a seed decides, the same in every run; `SOCKTRACE_SEED=N` or `FROM..TO` has others.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::geteuid;
use socktrace_e2e::{Needs, Recording, Stage, announce_skipped};

/// Combinations of a seed.
const COMBINATIONS: usize = 60;
/// Of Frida's, which takes half a second for each.
const COMBINATIONS_BY_FRIDA: usize = 8;
/// The seeds where none is asked for.
const SEEDS: std::ops::Range<u64> = 1..4;
/// Seconds that a program may take, which needs some hundredths.
const PATIENCE: &str = "60";

const LIMITS: [&[&str]; 30] = [
    &["nofile=5"],
    &["nofile=6"],
    &["nofile=7"],
    &["nofile=8"],
    &["nofile=9"],
    &["nofile=10"],
    &["nofile=11"],
    &["nofile=12"],
    &["nofile=13"],
    &["nofile=14"],
    &["nofile=15"],
    &["nofile=16"],
    &["fsize=0"],
    &["fsize=8192"],
    &["fsize=1048576"],
    &["as=6291456"],
    &["as=8388608"],
    &["as=16777216"],
    &["as=33554432"],
    &["as=1073741824"],
    &["stack=65536"],
    &["stack=1048576"],
    &["memlock=0"],
    &["lock", "memlock=0"],
    &["nproc=1"],
    // The probe's own private memory is some 200 KiB, and what the program may have beside it is its own.
    &["data=1048576"],
    &["data=4194304"],
    &["core=0"],
    &["sigpending=0"],
    &["lock"],
];
/// Filters that a program can be executed under.
const FILTERS: [&str; 2] = ["filter=allow", "filter=old"];
/// Filters that leave it what it does.
const NARROW_FILTERS: [&str; 2] = ["filter=kill", "filter=refuse"];
const NAMESPACES: [&str; 6] =
    ["unshare=user", "unshare=mount", "unshare=pid", "unshare=net", "unshare=ipc", "unshare=uts"];
/// Contexts of makecontext(3), threads, and signal stacks, these in addition to what the kernel needs.
const STACKS: [&str; 7] = ["on=c:4096", "on=c:6144", "on=c:8192", "on=t:16384", "on=s:1024", "on=s:2048", "on=s:8192"];
/// Kinds of exec that take next to no stack of their own: those that look for a file in PATH want PATH_MAX.
const SMALL_EXECS: [&str; 5] = ["exec=execve", "exec=execv", "exec=fexecve", "exec=execveat", "exec=syscall"];
const EXECS: [&str; 15] = [
    "exec=execve",
    "exec=execv",
    "exec=execvp",
    "exec=execvpe",
    "exec=execl",
    "exec=execlp",
    "exec=execle",
    "exec=fexecve",
    "exec=execveat",
    "exec=syscall",
    "exec=posix_spawn",
    "exec=system",
    "exec=popen",
    "exec=vfork",
    "fork",
];
const ENVIRONMENTS: [&str; 4] = ["env=keep", "env=null", "env=empty", "env=big"];
/// Somebody else, for root.
const OTHER_USER: &str = "setuid=65534";

type Words = Vec<String>;

fn words<'a>(parts: impl IntoIterator<Item = &'a str>) -> Words {
    parts.into_iter().map(str::to_owned).collect()
}

/// Where programs find little more than themselves.
fn make_root(stage: &Stage, program: &Path) -> String {
    let root = stage.path("root");
    let copy = |from: &Path, to: &str| {
        let to = root.join(to.trim_start_matches('/'));
        fs::create_dir_all(to.parent().expect("a file below the root")).expect("a directory for it");
        fs::copy(from, &to).unwrap_or_else(|error| panic!("{}: {error}", to.display()));
    };
    copy(program, "matrix");
    // "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)", "/lib64/ld-linux-x86-64.so.2 (0x…)"
    let libraries = Command::new("ldd").arg(program).output().expect("ldd is libc's");
    for library in String::from_utf8_lossy(&libraries.stdout).split_whitespace().filter(|word| word.starts_with('/')) {
        copy(Path::new(library), library);
    }
    format!("chroot={}", root.display())
}

/// What settings there are here.
struct Settings {
    chroot: String,
    is_root: bool,
}

impl Settings {
    /// Every setting on its own.
    fn singles(&self) -> Vec<Words> {
        let mut all = Vec::new();
        let mut add = |parts: &[&str]| all.push(words(parts.iter().copied()));
        for limit in LIMITS {
            add(&[limit, &["talk=a", "exec=execve", "talk=b"]].concat());
        }
        for filter in FILTERS {
            add(&["talk=a", filter, "talk=b", "exec=execve", "talk=c"]);
        }
        for filter in NARROW_FILTERS {
            add(&["talk=a", filter, "talk=b"]);
            add(&[filter, "talk=a"]);
        }
        add(&["strict=a"]);
        for namespace in NAMESPACES.iter().filter(|&&name| self.is_root || name == "unshare=user") {
            add(&["talk=a", namespace, "talk=b", "fork", "talk=c", "exec=execve", "talk=d"]);
        }
        if self.is_root {
            add(&["talk=a", &self.chroot, "talk=b", "exec=execve", "talk=c"]);
            add(&[OTHER_USER, "talk=a", "exec=execve", "talk=b"]);
            add(&["talk=a", OTHER_USER, "talk=b"]);
            add(&["exec=execve", OTHER_USER, "talk=a"]);
            add(&["lock", OTHER_USER, "memlock=0", "talk=a", "exec=execve", "talk=b"]);
        }
        for stack in STACKS {
            add(&[stack, "talk=a"]);
        }
        for exec in SMALL_EXECS {
            for stack in STACKS {
                add(&[stack, exec, "talk=a"]);
            }
        }
        for exec in EXECS {
            for environment in ENVIRONMENTS {
                add(&["talk=a", environment, exec, "talk=b"]);
            }
        }
        all
    }

    /// Settings for Frida, which follows no exec, and whose agent maps tens of MiB, whatever the program's limits of memory
    /// are.
    fn singles_by_frida(&self) -> Vec<Words> {
        let limits_memory = |word: &String| word.starts_with("as=") || word.starts_with("data=");
        let executes = |word: &String| word.starts_with("exec=");
        let mut all = self.singles();
        all.retain(|words| !words.iter().any(|word| limits_memory(word) || executes(word)));
        // Those that end with an exec have their first half to themselves.
        for limit in LIMITS.iter().filter(|limit| !limit.iter().any(|word| limits_memory(&(*word).to_owned()))) {
            all.push(words([*limit, &["talk=a"]].concat()));
        }
        all
    }

    /// A combination of some.
    fn combination(&self, random: &mut Random, has_exec: bool) -> Words {
        let mut all: Vec<&str> = Vec::new();
        let limits_memory = |limit: &[&str]| limit[0].starts_with("as=") || limit[0].starts_with("data=");
        for _ in 0..random.below(3) {
            all.extend(
                Some(random.one_of(&LIMITS)).filter(|limit| has_exec || !limits_memory(limit)).into_iter().flatten(),
            );
        }
        if random.below(3) == 0 {
            all.push(random.one_of(&FILTERS));
        }
        if random.below(4) == 0 {
            let namespace = random.one_of(&NAMESPACES);
            let may = self.is_root || namespace == "unshare=user";
            all.extend(may.then_some([namespace, "fork"]).into_iter().flatten());
        }
        let first_settings = all.len();
        if self.is_root && random.below(4) == 0 {
            all.push(if random.below(2) == 0 { OTHER_USER } else { &self.chroot });
        }
        if random.below(2) == 0 {
            all.insert(random.below(first_settings + 1), "talk=a");
        }
        if has_exec && random.below(3) > 0 {
            all.push(random.one_of(&ENVIRONMENTS));
            if random.below(2) == 0 {
                all.extend([random.one_of(&STACKS), random.one_of(&SMALL_EXECS)]);
            } else {
                all.push(random.one_of(&EXECS));
            }
        }
        if random.below(4) == 0 {
            all.push(random.one_of(&NARROW_FILTERS));
        }
        // Memory for a stack cannot be had after every filter; the program says so, the same each time.
        if random.below(3) == 0 {
            all.push(random.one_of(&STACKS));
        }
        all.push("talk=z");
        words(all)
    }
}

/// Numbers that a seed decides (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("below a usize")
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// The seeds to make combinations of.
fn seeds() -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("SOCKTRACE_SEED") else { return SEEDS };
    let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("SOCKTRACE_SEED={text}: neither N nor FROM..TO"));
    match text.split_once("..") {
        Some((from, to)) => number(from)..number(to),
        None => number(&text)..number(&text) + 1,
    }
}

/// One way to trace.
#[derive(Clone, Copy, Debug)]
struct Way {
    engine: &'static str,
    transport: &'static str,
}

const PRELOAD_SHM: Way = Way { engine: "preload", transport: "shm" };
const PRELOAD_STREAM: Way = Way { engine: "preload", transport: "stream" };
const FRIDA_SHM: Way = Way { engine: "frida", transport: "shm" };
const FRIDA_STREAM: Way = Way { engine: "frida", transport: "stream" };

/// A directory for one run, in which anybody may make files, and one of the same name in the small root.
fn make_dir(stage: &Stage, name: &str) -> PathBuf {
    let dir = stage.path(name);
    for dir in [&dir, &stage.path("root").join(name)] {
        fs::create_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        fs::set_permissions(dir, Permissions::from_mode(0o777)).expect("the directory is ours");
    }
    dir
}

fn run(command: &mut Command, dir: &Path, program: &Path, words: &Words) -> Output {
    command.arg(program).arg(dir).arg(format!("stderr={}", dir.join("stderr").display())).args(words);
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn within_patience(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-s", "KILL", PATIENCE]).arg(program);
    command
}

/// What is wrong with a combination, traced.
fn differences(stage: &Stage, number: &str, program: &Path, words: &Words, ways: &[Way]) -> Vec<String> {
    let dir = make_dir(stage, &format!("{number}.untraced"));
    let untraced = run(&mut within_patience("env"), &dir, program, words);
    let own_words = fs::read(dir.join("stderr")).unwrap_or_default();
    let mut wrong = Vec::new();
    for way in ways {
        let dir = make_dir(stage, &format!("{number}.{}.{}", way.engine, way.transport));
        let mut command = within_patience(Needs::Socktrace.path());
        command.args(["run", "--engine", way.engine, "--transport", way.transport]);
        if way.engine == "frida" {
            command.arg("--frida").arg(Needs::Frida.path());
        }
        command.arg("-o").arg(dir.join("view")).arg("-w").arg(dir.join("recording")).arg("--");
        let traced = run(&mut command, &dir, program, words);
        let mut add = |what: String| wrong.push(format!("{way:?} {}: {what}: {}", words.join(" "), dir.display()));
        if status(&traced) != status(&untraced) {
            add(format!("ended with {:?}, untraced {:?}", traced.status, untraced.status));
        }
        let [is, was] = [&traced, &untraced].map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        if is != was {
            let at = is.lines().zip(was.lines()).position(|(a, b)| a != b);
            let at = at.unwrap_or_else(|| is.lines().count().min(was.lines().count()));
            add(format!("line {at} is {:?}, untraced {:?}", is.lines().nth(at), was.lines().nth(at)));
        }
        let own = fs::read(dir.join("stderr")).unwrap_or_default();
        if own != own_words {
            add(format!("on its standard error: {:?}", String::from_utf8_lossy(&own)));
        }
        let missing = missing(&dir.join("recording"), &is);
        if !missing.is_empty() && !names_a_gap(&dir, &traced) {
            add(format!("not recorded, and not said: {}", missing.join(", ")));
        }
    }
    wrong
}

/// As a shell has it.
fn status(output: &Output) -> Option<i32> {
    output.status.code().or_else(|| output.status.signal().map(|signal| 128 + signal))
}

/// What was said, at both ends, and is not in the recording.
fn missing(recording: &Path, output: &str) -> Vec<String> {
    let mut bytes = Vec::new();
    for entry in fs::read_dir(recording).into_iter().flatten().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "bin") {
            bytes.extend(fs::read(entry.path()).unwrap_or_default());
        }
    }
    let said = output.lines().filter_map(|line| {
        let line = line.strip_prefix("popen: ").unwrap_or(line);
        line.strip_prefix("strictly ").unwrap_or(line).strip_prefix("said ")
    });
    let mut missing: Vec<String> = said
        .filter(|text| bytes.windows(text.len()).filter(|window| *window == text.as_bytes()).count() != 2)
        .map(str::to_owned)
        .collect();
    missing.dedup();
    missing
}

/// Whether somebody who looks finds out that something is not recorded.
fn names_a_gap(dir: &Path, traced: &Output) -> bool {
    let mut text = String::from_utf8_lossy(&traced.stderr).into_owned();
    text += &String::from_utf8_lossy(&fs::read(dir.join("view")).unwrap_or_default());
    let recording = Recording::read(&dir.join("recording"));
    let is_said = ["not recorded", "not traced", "not heard of since", "LOST", "cannot be"]
        .iter()
        .any(|words| text.contains(words));
    is_said || recording.of_type("lost").next().is_some() || recording.of_type("error").next().is_some()
}

/// Has every core try one combination after the other.
#[track_caller]
fn try_all(stage: &Stage, name: &str, program: &Path, combinations: &[Words], ways: &[Way]) {
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(words) = combinations.get(number) else { break };
                    let found = differences(stage, &format!("{name}{number}"), program, words, ways);
                    wrong.lock().expect("nobody panics with it").extend(found);
                }
            });
        }
    });
    let wrong = wrong.into_inner().expect("nobody panics with it");
    assert!(wrong.is_empty(), "{} of {}:\n  {}", wrong.len(), combinations.len(), wrong.join("\n  "));
}

fn try_them(test: &str, ways: &[Way], combinations: impl FnOnce(&Settings) -> Vec<Words>) {
    let stage = Stage::new();
    fs::set_permissions(stage.path(""), Permissions::from_mode(0o711)).expect("the test's directory is ours");
    // The build's directory may be closed to others, and the program becomes one.
    let program = stage.path("matrix");
    fs::copy(env!("SOCKTRACE_MATRIX"), &program).unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let settings = Settings { chroot: make_root(&stage, &program), is_root: geteuid().is_root() };
    if !settings.is_root {
        announce_skipped(&format!("{test}: namespaces, chroot and setuid"), "needs root");
    }
    try_all(&stage, "c", &program, &combinations(&settings), ways);
}

#[test]
fn each_setting() {
    try_them("each_setting", &[PRELOAD_SHM, PRELOAD_STREAM], Settings::singles);
}

#[test]
fn each_setting_by_frida() {
    try_them("each_setting_by_frida", &[FRIDA_SHM], Settings::singles_by_frida);
}

/// Combinations of all seeds.
fn combinations_of(settings: &Settings, count: usize, has_exec: bool) -> Vec<Words> {
    let of_seed = |seed| {
        let mut random = Random(seed);
        (0..count).map(|_| settings.combination(&mut random, has_exec)).collect::<Vec<_>>()
    };
    seeds().flat_map(of_seed).collect()
}

#[test]
fn combinations() {
    let all = |settings: &Settings| combinations_of(settings, COMBINATIONS, true);
    try_them("combinations", &[PRELOAD_SHM, PRELOAD_STREAM], all);
}

#[test]
fn combinations_by_frida() {
    let all = |settings: &Settings| combinations_of(settings, COMBINATIONS_BY_FRIDA, false);
    try_them("combinations_by_frida", &[FRIDA_SHM, FRIDA_STREAM], all);
}
