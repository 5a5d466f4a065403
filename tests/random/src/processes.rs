//! Other processes: forked, vforked, spawned, executed; and every way to end.

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_void};
use std::sync::OnceLock;

use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::actor::{Actor, Socket, outcome};
use crate::log::{self, Moved};
use crate::undeclared::{close_range, quick_exit};
use crate::{ancillary, script, twice};

/// This program's file.
static PROGRAM: OnceLock<CString> = OnceLock::new();
const TRUE: &CStr = c"/bin/true";

/// Descriptors below are the program's own, and standard input and output.
pub const FIRST_FD: c_int = 64;
/// One of those: by it a child says that it has closed what it inherited.
const READY_FD: c_int = FIRST_FD - 1;

/// How deep processes are nested.
const MAX_DEPTH: usize = 2;

/// Remembers the program's file.
pub fn set_program(program: CString) {
    // Set once, when the program begins.
    let _ = PROGRAM.set(program);
}

fn program() -> &'static CStr {
    PROGRAM.get().expect("set when the program begins")
}

/// A way for a process to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Return from main.
    Return,
    /// exit(3).
    Exit,
    /// _exit(2).
    ExitAtOnce,
    /// quick_exit(3).
    QuickExit,
    /// `exit_group(2)` by syscall(2).
    ExitByNumber,
    /// abort(3).
    Abort,
    /// A signal that nobody handles.
    Terminate,
    /// SIGKILL to itself.
    Kill,
    /// Another program, which ends at once.
    ExecuteTrue,
    /// This program, which goes on with what it inherits.
    ExecuteItself,
    /// pthread_exit(3) of the last thread.
    LastThread,
}

impl Ending {
    const OF_CHILDREN: [Self; 11] = [
        Self::Exit,
        Self::ExitAtOnce,
        Self::ExitAtOnce,
        Self::QuickExit,
        Self::ExitByNumber,
        Self::Abort,
        Self::Terminate,
        Self::Kill,
        Self::ExecuteTrue,
        Self::ExecuteItself,
        Self::LastThread,
    ];
    const OF_MAIN: [Self; 11] = [
        Self::Return,
        Self::Return,
        Self::Exit,
        Self::ExitAtOnce,
        Self::QuickExit,
        Self::ExitByNumber,
        Self::Abort,
        Self::Terminate,
        Self::Kill,
        Self::ExecuteTrue,
        Self::ExecuteItself,
    ];

    /// One that a main thread can make.
    pub fn of_main(actor: &mut Actor) -> Self {
        actor.rng.of(&Self::OF_MAIN)
    }
}

/// Ends the process; `Return` and `LastThread` are for the caller, and give the status.
pub fn end(actor: &mut Actor, ending: Ending) -> c_int {
    let status = actor.rng.below(100) as c_int;
    actor.result(format_args!("ends {ending:?}"));
    // SAFETY: ends the process.
    unsafe {
        match ending {
            Ending::Return | Ending::LastThread => {}
            Ending::Exit => libc::exit(status),
            Ending::ExitAtOnce => libc::_exit(status),
            Ending::QuickExit => quick_exit(status),
            Ending::ExitByNumber => {
                libc::syscall(libc::SYS_exit_group, status as c_long);
            }
            Ending::Abort => libc::abort(),
            Ending::Terminate => {
                libc::kill(libc::getpid(), libc::SIGTERM);
            }
            Ending::Kill => {
                libc::kill(libc::getpid(), libc::SIGKILL);
            }
            Ending::ExecuteTrue => {
                libc::execv(TRUE.as_ptr(), [TRUE.as_ptr(), std::ptr::null()].as_ptr());
                libc::_exit(99);
            }
            Ending::ExecuteItself => {
                let arguments = Arguments::new(actor, 8);
                libc::execv(program().as_ptr(), arguments.pointers().as_ptr());
                libc::_exit(99);
            }
        }
    }
    status
}

/// The command line by which this program goes on with a thread's sockets.
struct Arguments(Vec<CString>);

impl Arguments {
    fn new(actor: &Actor, count: usize) -> Self {
        let (account, results) = log::descriptors();
        let fds: Vec<String> = actor.sockets.iter().flat_map(|socket| &socket.fds).map(c_int::to_string).collect();
        let words = [
            "continue".into(),
            format!("{account},{results}"),
            actor.seed.to_string(),
            format!("{}.{}x", actor.key, actor.op),
            actor.dir.display().to_string(),
            actor.run.to_string(),
            format!("{},{}", actor.depth + 1, u8::from(actor.is_alone)),
            count.to_string(),
            fds.join(","),
            script::kept().unwrap_or_else(|| "-".into()),
        ];
        let texts = words.into_iter().map(|word| CString::new(word).expect("no NUL in it"));
        Self(std::iter::once(program().to_owned()).chain(texts).collect())
    }

    fn pointers(&self) -> Vec<*const c_char> {
        self.0.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    }
}

/// Goes on with what [`Arguments`] says; ends the process.
pub fn go_on(words: &[String]) -> c_int {
    let [files, seed, key, dir, run, depth, count, fds, kept] = words else {
        eprintln!("socktrace-random: `continue` takes nine arguments, and only this program gives them");
        return 2;
    };
    let numbers = |text: &str| -> Vec<c_int> { text.split(',').filter_map(|word| word.parse().ok()).collect() };
    if let [account, results] = numbers(files)[..] {
        log::go_on(account, results);
    }
    if kept != "-" {
        script::keep(kept);
    }
    let seed = seed.parse().unwrap_or(0);
    log::set_seed(seed);
    log::note("executed", std::process::id().into());
    crate::occupy_low_descriptors();
    crate::signals::install();
    let mut actor = Actor::new(seed, key, dir.into(), run.parse().unwrap_or(0));
    if let [depth, is_alone] = numbers(depth)[..] {
        (actor.depth, actor.is_alone) = (depth as usize, is_alone != 0);
    }
    for fd in numbers(fds) {
        // Those with FD_CLOEXEC are not there any more.
        let kind = ancillary::kind_of(fd);
        if kind >= 0 {
            let at = actor.adopt(fd, kind);
            actor.sockets[at].listens = rustix::net::sockopt::socket_acceptconn(crate::actor::unseen(fd)) == Ok(true);
        }
    }
    script::run(&mut actor, count.parse().unwrap_or(0));
    actor.seed_op(0);
    end(&mut actor, Ending::Return)
}

/// The copy of a thread in a forked child.
fn copy(actor: &Actor) -> Actor {
    let mut child = Actor::new(actor.seed, &format!("{}.{}", actor.key, actor.op), actor.dir.clone(), actor.run);
    (child.sockets, child.is_alone, child.depth) = (actor.sockets.clone(), actor.is_alone, actor.depth + 1);
    child
}

fn wait_for(actor: &Actor, what: &str, pid: c_int) {
    let mut status = 0;
    // SAFETY: the status is this function's.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    actor.result(format_args!("{what} {} status {status:#x}", waited == pid));
}

/// Waits for children that run beside this process.
pub fn wait_for_children(actor: &mut Actor) {
    for (pid, op) in std::mem::take(&mut actor.children) {
        wait_for(actor, &format!("child of {op}"), pid);
    }
}

/// A child that goes on with what it inherits, while this process waits.
pub fn forked(actor: &mut Actor) {
    if actor.depth >= MAX_DEPTH {
        return;
    }
    let count = 1 + actor.rng.below(12);
    let ending = actor.rng.of(&Ending::OF_CHILDREN);
    let mut child = copy(actor);
    let pid = if ending == Ending::LastThread {
        // Not on this thread's stack: in the child that is free for new threads.
        let job = Box::into_raw(Box::new(Job { child, count, pid: -1 }));
        let (mut thread, argument) = (0, job.cast());
        let start = fork_in_thread as extern "C-unwind" fn(*mut c_void) -> *mut c_void;
        // SAFETY: the thread has ended when this function goes on; pthread_create takes the same function whether or
        // not it may unwind.
        unsafe {
            let start: extern "C" fn(*mut c_void) -> *mut c_void = std::mem::transmute(start);
            assert_eq!(libc::pthread_create(&raw mut thread, std::ptr::null(), start, argument), 0, "a thread");
            libc::pthread_join(thread, std::ptr::null_mut());
            Box::from_raw(job).pid
        }
    } else {
        // SAFETY: the child does what this process could do, and ends.
        match unsafe { libc::fork() } {
            0 => {
                run_child(&mut child, count);
                end(&mut child, ending);
                unreachable!("{ending:?} ends the process");
            }
            pid => pid,
        }
    };
    wait_for(actor, "forked", pid);
}

fn run_child(child: &mut Actor, count: usize) {
    script::set_copy();
    script::run(child, count);
    child.seed_op(0);
}

struct Job {
    child: Actor,
    count: usize,
    pid: c_int,
}

unsafe extern "C-unwind" {
    fn pthread_exit(value: *mut c_void) -> !;
}

/// Forks in a thread that Rust's runtime knows nothing of, which may end by pthread_exit(3).
extern "C-unwind" fn fork_in_thread(job: *mut c_void) -> *mut c_void {
    // SAFETY: what `forked` passes, which outlives this thread. Nothing is to be dropped when the thread exits.
    unsafe {
        let job = &mut *job.cast::<Job>();
        job.pid = libc::fork();
        if job.pid == 0 {
            run_child(&mut job.child, job.count);
            end(&mut job.child, Ending::LastThread);
            pthread_exit(std::ptr::null_mut());
        }
    }
    std::ptr::null_mut()
}

/// A child that closes what it inherits and then does its own, while this process does its.
pub fn beside(actor: &mut Actor) {
    if actor.depth >= MAX_DEPTH {
        return;
    }
    let count = 1 + actor.rng.below(20);
    let mut child = copy(actor);
    child.is_alone = true;
    let (ready, is_ready) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
    // SAFETY: the child does what this process could do, and ends.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        rustix::io::dup2(&is_ready, &mut std::mem::ManuallyDrop::new(as_owned(READY_FD))).expect("dup2");
        std::mem::forget((ready, is_ready));
        // Those of other threads, too, which are not in this thread's account.
        log::note("closes all", std::process::id().into());
        for fd in child.sockets.iter().flat_map(|socket| socket.fds.clone()).collect::<Vec<_>>() {
            child.before_end(fd, "close_range");
        }
        // SAFETY: takes numbers.
        let outcome = outcome(|| unsafe { close_range(FIRST_FD as u32, u32::MAX, 0) });
        child.result(format_args!("close_range {outcome}"));
        // Which ends the pipe; the number stays the program's.
        let nothing = openat(CWD, "/dev/null", OFlags::RDWR, Mode::empty()).expect("/dev/null");
        rustix::io::dup2(&nothing, &mut std::mem::ManuallyDrop::new(as_owned(READY_FD))).expect("dup2");
        drop(nothing);
        run_child(&mut child, count);
        let ending =
            child.rng.of(&[Ending::Exit, Ending::ExitAtOnce, Ending::QuickExit, Ending::Kill, Ending::ExecuteItself]);
        end(&mut child, ending);
        unreachable!("{ending:?} ends the process");
    }
    drop(is_ready);
    let _ = rustix::io::read(&ready, &mut [0; 1]);
    actor.children.push((pid, actor.op));
}

/// A descriptor that this program has set aside.
pub fn as_owned(fd: c_int) -> std::os::fd::OwnedFd {
    // SAFETY: a number that the program has set aside.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) }
}

/// Between vfork(2) and exec the child sends something, in memory that is its parent's too.
pub fn vforked(actor: &mut Actor) {
    unsafe extern "C" fn send_something(socket: *mut c_void) {
        // SAFETY: what `vforked` passes.
        unsafe {
            let socket = &*socket.cast::<Socket>();
            let data = *b"vforked";
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            let sent = libc::send(socket.fds[0], data.as_ptr().cast(), data.len(), flags);
            if let Ok(sent @ 1..) = usize::try_from(sent) {
                let inode = socket.inode;
                log::moved(&Moved { inode, direction: "out", call: "send", data: &data[..sent], ..Moved::default() });
            }
        }
    }
    if actor.depth >= MAX_DEPTH {
        return;
    }
    let Some(at) = actor.pick(|socket| !socket.listens) else { return };
    let mut socket = actor.sockets[at].clone();
    let itself = actor.rng.one_in(3);
    let arguments = Arguments::new(actor, 3);
    let texts: Vec<&CStr> = arguments.0.iter().map(CString::as_c_str).collect();
    let argument = (&raw mut socket).cast();
    // SAFETY: `send_something` changes nothing of this process's.
    let pid = unsafe {
        if itself {
            twice::vfork_and_execute(send_something, argument, program(), &texts)
        } else {
            twice::vfork_and_execute(send_something, argument, TRUE, &[TRUE])
        }
    };
    wait_for(actor, "vforked", pid);
}

/// posix_spawn(3) of this program, which goes on with the sockets that it inherits.
pub fn spawned(actor: &mut Actor) {
    if actor.depth >= MAX_DEPTH {
        return;
    }
    let count = 1 + actor.rng.below(6);
    let arguments = Arguments::new(actor, count);
    let pointers = arguments.pointers();
    let mut pid = -1;
    // SAFETY: the arguments are texts and end with null; the environment is the process's.
    let outcome = outcome(|| unsafe {
        let argv = pointers.as_ptr().cast::<*mut c_char>();
        libc::posix_spawn(&raw mut pid, program().as_ptr(), std::ptr::null(), std::ptr::null(), argv, environ)
    });
    actor.result(format_args!("posix_spawn {}", outcome.value));
    wait_for(actor, "spawned", pid);
}

unsafe extern "C" {
    static environ: *const *mut c_char;
}
