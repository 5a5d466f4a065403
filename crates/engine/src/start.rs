//! A program that is started as a child of ours and does not notice: same terminal, signals, environment but for one variable.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, pthread_sigmask, sigaction};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::low_level::siginfo::Cause;

use crate::Error;

/// Whether SIGPIPE was ignored when we were started: Rust's runtime ignores it before `main` and has std::process set
/// it back to the default in children, which is not always what the program would find without us.
static SIGPIPE_WAS_IGNORED: AtomicBool = AtomicBool::new(false);

/// Which of standard input, output and error were closed when we were started: Rust's runtime opens /dev/null in their
/// place, which the program would not find without us.
static WERE_CLOSED: [AtomicBool; 3] = [const { AtomicBool::new(false) }; 3];

#[used]
#[unsafe(link_section = ".init_array")]
static NOTE: extern "C" fn() = note_what_there_is;

/// Before Rust's runtime.
extern "C" fn note_what_there_is() {
    SIGPIPE_WAS_IGNORED.store(is_ignored(libc::SIGPIPE), Ordering::Relaxed);
    for (number, was_closed) in (0..).zip(&WERE_CLOSED) {
        // SAFETY: only asks.
        was_closed.store(unsafe { libc::fcntl(number, libc::F_GETFD) } == -1, Ordering::Relaxed);
    }
}

/// Whether a signal is ignored.
pub fn is_ignored(signal: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: only asks; zeroed memory is a valid sigaction.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Signals that are the program's to act on, not ours: caught, so that its dispositions stay the default ones, unless
/// they were ignored before, as nohup(1) has it.
#[derive(Debug)]
pub struct Signals {
    caught: SignalsInfo<WithOrigin>,
    /// What a program started now has to be given back.
    sigttou: Option<SigAction>,
    mask: SigSet,
}

impl Signals {
    /// Catches them from here on, for a program that is started next.
    ///
    /// # Errors
    ///
    /// No descriptors left.
    pub fn catch() -> io::Result<Self> {
        let ours = [SIGINT, SIGQUIT, SIGTERM, SIGHUP].into_iter().filter(|&signal| !is_ignored(signal));
        let caught = SignalsInfo::<WithOrigin>::new(ours)?;
        // A shell among the programs makes itself the terminal's foreground; we still write to it.
        let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
        // SAFETY: ignoring a signal runs no code.
        let sigttou = unsafe { sigaction(Signal::SIGTTOU, &ignore) }.ok();
        let mask = SigSet::thread_get_mask()?;
        Ok(Self { caught, sigttou, mask })
    }
}

/// What a program reads from and writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    /// What we do.
    Ours,
    /// Its standard output goes to standard error, because ours is taken.
    OutputToError,
    /// Nothing: nobody is there to answer it, nor to read what it says.
    None,
}

/// What to start.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// Where it is.
    pub path: &'a Path,
    /// What it is given, with its name as the user gave it.
    pub arguments: &'a [OsString],
    /// What it reads from and writes to.
    pub streams: Streams,
}

/// What is different from a program that nobody traces.
#[derive(Clone, Copy, Debug, Default)]
pub struct With<'a> {
    /// LD_PRELOAD; None: as it is.
    pub preload: Option<&'a OsStr>,
    /// Whether it stops before its first instruction, with us as its tracer.
    pub traced: bool,
}

impl Start<'_> {
    /// Starts the program.
    ///
    /// # Errors
    ///
    /// Those of fork(2) and execve(2).
    pub fn spawn(&self, signals: &Signals, with: With<'_>) -> io::Result<Child> {
        let mut command = self.command(with.preload);
        self.prepare(&mut command, signals, with.traced);
        command.spawn()
    }

    fn command(&self, preload: Option<&OsStr>) -> Command {
        let (name, arguments) = self.arguments.split_first().map_or((OsStr::new(""), &[][..]), |(n, a)| (&**n, a));
        let mut command = Command::new(self.path);
        command.arg0(name).args(arguments);
        if let Some(preload) = preload {
            command.env("LD_PRELOAD", preload);
        }
        match self.streams {
            Streams::Ours => {}
            Streams::OutputToError => {
                command.stdout(io::stderr());
            }
            Streams::None => {
                command.stdin(Stdio::null()).stdout(Stdio::null());
            }
        }
        command
    }

    /// What is to be as it was when we were started.
    fn prepare(&self, command: &mut Command, signals: &Signals, traced: bool) {
        let (mask, sigttou) = (signals.mask, signals.sigttou);
        let sigpipe = SIGPIPE_WAS_IGNORED.load(Ordering::Relaxed);
        let mut closed = WERE_CLOSED.each_ref().map(|was_closed| was_closed.load(Ordering::Relaxed));
        match self.streams {
            Streams::Ours => {}
            Streams::OutputToError => closed[1] = false,
            Streams::None => (closed[0], closed[1]) = (false, false),
        }
        let before_exec = move || {
            for (number, _) in (0..).zip(closed).filter(|(_, was_closed)| *was_closed) {
                // SAFETY: what the runtime has opened there is used by nobody in this child.
                unsafe { libc::close(number) };
            }
            if sigpipe {
                // SAFETY: ignoring a signal runs no code.
                unsafe {
                    sigaction(Signal::SIGPIPE, &SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty()))
                }?;
            }
            if let Some(before) = &sigttou {
                // SAFETY: the disposition we were started with.
                unsafe { sigaction(Signal::SIGTTOU, before) }?;
            }
            pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
            if traced {
                allow_tracers();
                nix::sys::ptrace::traceme()?;
            }
            Ok(())
        };
        // SAFETY: system calls only, on memory that was there before the fork.
        unsafe { command.pre_exec(before_exec) };
    }
}

/// Lets any process of the user's attach where only ancestors may (Yama's ptrace_scope 1): Frida is none. Lasts until
/// the program asks otherwise; on a kernel without Yama there is nothing to allow.
fn allow_tracers() {
    // SAFETY: takes two numbers.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY, 0, 0, 0) };
}

/// A program that was started.
#[derive(Debug)]
pub struct Program {
    /// The program, or how it has ended already.
    pub state: Result<Child, ExitStatus>,
    /// Why it goes on untraced, if it does.
    pub untraced: Option<Error>,
}

impl From<Child> for Program {
    fn from(child: Child) -> Self {
        Self { state: Ok(child), untraced: None }
    }
}

impl Program {
    /// Waits for its end, and meanwhile hands on signals that were meant for it.
    ///
    /// Those that a terminal sends it has already got. What comes after its end is for us.
    ///
    /// # Errors
    ///
    /// None but a wait(2) that fails.
    pub fn wait(self, signals: Signals) -> io::Result<ExitStatus> {
        let mut child = match self.state {
            Ok(child) => child,
            Err(status) => return Ok(status),
        };
        let pidfd = Pid::from_raw(child.id().cast_signed()).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let mut caught = signals.caught;
        // Ends with the process. Should there be no thread left, the program goes on without.
        let _ = thread::Builder::new().name("signals".into()).spawn(move || hand_on(&mut caught, pidfd.as_ref()));
        child.wait()
    }
}

fn hand_on(caught: &mut SignalsInfo<WithOrigin>, program: Option<&OwnedFd>) {
    for origin in caught.forever() {
        if origin.cause == Cause::Kernel {
            continue;
        }
        let signal = rustix::process::Signal::from_named_raw(origin.signal);
        let sent = program.zip(signal).is_some_and(|(program, signal)| pidfd_send_signal(program, signal).is_ok());
        if !sent {
            // The program has ended and its table is being written to somebody who does not read.
            let _ = signal_hook::low_level::emulate_default_handler(origin.signal);
        }
    }
}
