//! Random operations on AF_UNIX sockets: what they do is decided by a seed, and accounted for.
//!
//! ```text
//! socktrace-random ACCOUNT DIR seeds=FROM..TO [size=N] [keep=KEY:NUMBER,…]
//! socktrace-random ACCOUNT DIR coverage
//! ```
//!
//! For each seed a process is forked that does N operations (a third of the seeds: in three threads), among them
//! calls that fail, and processes and threads of its own. It begins when there is a file DIR/go, as the other workload
//! does. ACCOUNT gets a JSON object for each thing that a recording has to say (log.rs), `ACCOUNT` with the extension
//! `results` the results of every call, which are the same in every run of the same seed. Lines of one thread or
//! process begin with the seed and its key; lines of different ones are mixed as time would have it.

mod actor;
mod ancillary;
mod coverage;
mod failures;
mod files;
mod log;
mod processes;
mod receiving;
mod ring;
mod rng;
mod script;
mod sending;
mod signals;
mod sockets;
mod twice;
mod undeclared;
mod waiting;

use std::ffi::{CString, c_int};
use std::ops::Range;
use std::os::fd::IntoRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use actor::Actor;
use processes::{Ending, FIRST_FD};

/// How long one seed may take. Far beyond what it needs, even on a loaded machine.
const PATIENCE: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };
/// How often is looked for the file that lets the program begin.
const LOOK: Duration = Duration::from_millis(5);
/// Operations of a seed, unless told otherwise.
const SIZE: usize = 150;

/// What the command line asks for.
struct Request {
    account: PathBuf,
    dir: PathBuf,
    seeds: Range<u64>,
    size: usize,
    /// Every operation once, instead of seeds.
    coverage: bool,
}

fn main() -> ExitCode {
    log::report_panics();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let program = std::env::current_exe().expect("the program's own file");
    processes::set_program(CString::new(program.as_os_str().as_bytes()).expect("a path has no NUL"));
    if words.first().is_some_and(|word| word == "continue") {
        return status(processes::go_on(&words[1..]));
    }
    let request = match parse(&words) {
        Ok(request) => request,
        Err(complaint) => {
            eprintln!("socktrace-random: {complaint}");
            eprintln!("usage: socktrace-random ACCOUNT DIR seeds=FROM..TO [size=N] [keep=KEY:NUMBER,…]");
            eprintln!("       socktrace-random ACCOUNT DIR coverage");
            return ExitCode::from(2);
        }
    };
    run(&request)
}

fn status(number: c_int) -> ExitCode {
    // The low eight bits are what wait(2) gives.
    ExitCode::from(number as u8)
}

fn parse(words: &[String]) -> Result<Request, String> {
    let [account, dir, options @ ..] = words else { return Err("ACCOUNT and DIR are missing".into()) };
    let mut request = Request { account: account.into(), dir: dir.into(), seeds: 0..0, size: SIZE, coverage: false };
    for option in options {
        let complaint = || format!("{option}: not understood");
        match option.split_once('=') {
            Some(("seeds", range)) => {
                let (from, to) = range.split_once("..").ok_or_else(complaint)?;
                request.seeds = from.parse().map_err(|_| complaint())?..to.parse().map_err(|_| complaint())?;
            }
            Some(("size", number)) => request.size = number.parse().map_err(|_| complaint())?,
            Some(("keep", list)) => script::keep(list),
            None if option == "coverage" => request.coverage = true,
            _ => return Err(complaint()),
        }
    }
    if request.seeds.is_empty() && !request.coverage {
        Err("seeds=FROM..TO is missing, or empty".into())
    } else {
        Ok(request)
    }
}

fn run(request: &Request) -> ExitCode {
    // A core file of each seed that ends by abort(3) helps nobody.
    let nothing = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(rustix::process::Resource::Core, nothing).expect("a lower limit");
    while !request.dir.join("go").exists() {
        std::thread::sleep(LOOK);
    }
    if let Err(complaint) = log::begin(&request.account) {
        eprintln!("socktrace-random: {complaint}");
        return ExitCode::from(2);
    }
    let run = std::process::id();
    log::note("start", run.into());
    let dir = std::fs::canonicalize(&request.dir).expect("the directory of the file `go`");
    if request.coverage {
        // Relative names are in there.
        std::env::set_current_dir(&dir).expect("the directory of the file `go`");
        occupy_low_descriptors();
        coverage::run(&mut Actor::new(0, "0", dir.clone(), run));
    }
    for seed in request.seeds.clone() {
        log::set_seed(seed);
        // SAFETY: the child ends by itself, or returns from main.
        match unsafe { libc::fork() } {
            0 => return status(run_seed(seed, &dir, run, request.size)),
            pid if pid > 0 => match wait_for(pid) {
                Some(ending) => log::result("-", format_args!("status {ending:#x}")),
                None => {
                    eprintln!("socktrace-random: seed {seed} does not come to its end");
                    return ExitCode::FAILURE;
                }
            },
            _ => {
                eprintln!("socktrace-random: fork: {}", std::io::Error::last_os_error());
                return ExitCode::FAILURE;
            }
        }
    }
    log::note("end", 0);
    ExitCode::SUCCESS
}

/// A seed's status, unless it hangs; then it is killed with all of its processes.
fn wait_for(pid: c_int) -> Option<c_int> {
    let pidfd = pidfd_open(Pid::from_raw(pid).expect("a child's pid"), PidfdFlags::empty()).expect("a child");
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    let ended = loop {
        match poll(&mut fds, Some(&PATIENCE)) {
            Err(rustix::io::Errno::INTR) => {}
            ended => break ended == Ok(1),
        }
    };
    if !ended {
        // SAFETY: the group is the child's own.
        unsafe { libc::kill(-pid, libc::SIGKILL) };
    }
    let mut status = 0;
    // SAFETY: the status is this function's.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    ended.then_some(status)
}

fn run_seed(seed: u64, dir: &Path, run: u32, size: usize) -> c_int {
    rustix::process::setpgid(None, None).expect("a process group of its own");
    let dir = dir.join(seed.to_string());
    std::fs::create_dir_all(&dir).and_then(|()| std::env::set_current_dir(&dir)).expect("a directory for the seed");
    occupy_low_descriptors();
    signals::install();
    let mut main = Actor::new(seed, "0", dir, run);
    if seed.is_multiple_of(3) {
        main.is_alone = false;
        std::thread::scope(|scope| {
            for number in 1..=2 {
                let mut actor = Actor::new(seed, &format!("0.t{number}"), main.dir.clone(), run);
                actor.is_alone = false;
                scope.spawn(move || script::run(&mut actor, size / 4));
            }
            script::run(&mut main, size / 2);
        });
    } else {
        script::run(&mut main, size);
    }
    main.seed_op(0);
    let ending = Ending::of_main(&mut main);
    processes::end(&mut main, ending)
}

/// Numbers that differ with and without tracing, because Frida has some of its own, are not the seed's.
pub fn occupy_low_descriptors() {
    use rustix::fs::{CWD, Mode, OFlags, openat};
    // Each takes the lowest number that is free.
    while openat(CWD, "/dev/null", OFlags::RDWR, Mode::empty()).expect("/dev/null").into_raw_fd() < FIRST_FD {}
}
