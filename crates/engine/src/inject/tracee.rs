//! A thread of another process, stopped by ptrace(2) to do work of ours, and let go as it was.
//!
//! One thread is enough: nothing here needs the others to stand still. It is chosen so that what it is doing can be
//! interrupted without a trace (see `call`). Whoever stops it has to be the one who lets it go: the kernel knows a tracer by
//! its thread, and lets go of all that it holds when that ends.

use std::fs;
use std::io;
use std::mem::zeroed;
use std::time::{Duration, Instant};

use libc::{c_int, c_long, c_void, user_regs_struct};
use socktrace_event::proc_text;

use super::call::{Call, ERESTARTNOHAND, GoOn, With, go_on, shorten};
use super::memory::{Mapping, Memory};
use super::objects::u64_at;

/// How long a thread is waited for that is to stop: it may be in the kernel, at a disk.
const MAX_STOP: Duration = Duration::from_secs(2);
/// How long a function of ours may take in it.
const MAX_CALL: Duration = Duration::from_secs(10);
/// How often it is looked whether it has stopped: at first at once, for it mostly takes some microseconds.
const SPINS: u32 = 2000;
const LOOK: Duration = WATCH;
/// How often a thread that is watched is looked at: what it waits for comes to it later by as much.
const WATCH: Duration = Duration::from_micros(500);
/// Threads that are tried, if one cannot be stopped.
const MAX_TRIED: usize = 4;

/// Of linux/ptrace.h, which libc does not have.
const EVENT_STOP: c_int = 128;
const GET_SIGMASK: libc::c_uint = 0x420a;
const SET_SIGMASK: libc::c_uint = 0x420b;
const GET_RSEQ: libc::c_uint = 0x420f;
/// Of linux/elf.h: all of the registers that XSAVE knows.
const NT_X86_XSTATE: c_long = 0x202;
/// Bytes of them, AMX's tiles included.
const MAX_XSTATE: usize = 16 << 10;
/// The code segment of 64-bit programs.
const USER_CS: u64 = 0x33;
/// What the System V ABI wants to be clear when a function is called: the direction flag; and no single steps.
const FLAGS: u64 = 0x400 | 0x100;
const WORD: usize = size_of::<u64>();

/// Why a thread cannot be had, or does not do what it is to do.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("{0}: {1}")]
    Failed(&'static str, #[source] io::Error),
    #[error("has ended")]
    Ended,
    #[error(
        "does not stop: all of its threads wait in the kernel for something that nothing interrupts, a disk or vfork(2)'s child, say"
    )]
    Busy,
    #[error("runs 32-bit code, for which there is no probe")]
    Narrow,
    #[error("runs with a shadow stack, over which nothing can be called from outside")]
    ShadowStack,
    #[error("what was put into it was ended by signal {0}: please report this")]
    Fault(c_int),
    #[error("what was put into it does not come back")]
    Stuck,
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> Refused {
    move |error| match error.raw_os_error() {
        Some(libc::ESRCH) => Refused::Ended,
        _ => Refused::Failed(what, error),
    }
}

/// A stopped thread, as it was when it stopped.
#[derive(Debug)]
pub(super) struct Stopped {
    pid: u32,
    tid: u32,
    registers: user_regs_struct,
    /// Vector registers and the like.
    extended: Vec<u8>,
    /// Signals that it blocks.
    mask: u64,
    /// Since when it has been in its call.
    since: Instant,
    /// Since when it is held.
    held: Instant,
    /// The address of a `syscall` instruction.
    gate: u64,
    /// A SIGSTOP came, which is not to be lost.
    is_to_stop: bool,
    /// Whether it is stopped where the kernel looks at signals, and restarts calls.
    is_at_signals: bool,
}

impl Stopped {
    /// Stops a thread of a process: the one that is disturbed least.
    pub fn any_of(pid: u32, mappings: &[Mapping]) -> Result<Self, Refused> {
        let mut threads = threads(pid);
        threads.sort_by_key(|thread| thread.rank);
        let mut last = Refused::Ended;
        for thread in threads.iter().take(MAX_TRIED) {
            match Self::stop(pid, thread.tid, mappings) {
                Ok(stopped) => return Ok(stopped),
                Err(error @ (Refused::Ended | Refused::Busy)) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    fn stop(pid: u32, tid: u32, mappings: &[Mapping]) -> Result<Self, Refused> {
        let (before, slept) = (call_of(pid, tid), slept(pid, tid).unwrap_or_default());
        let now = Instant::now();
        seize(tid)?;
        let mut stopped = Self::interrupt(pid, tid, mappings)?;
        if before.is_some() && before == Call::of(&stopped.registers) {
            stopped.since = now.checked_sub(slept).unwrap_or(now);
        }
        Ok(stopped)
    }

    /// Stops one again that is watched.
    pub fn again(pid: u32, watched: &Watched, mappings: &[Mapping]) -> Result<Self, Refused> {
        let mut stopped = Self::interrupt(pid, watched.thread, mappings)?;
        stopped.since = watched.since;
        Ok(stopped)
    }

    /// Stops a thread that is ours; if that fails, it is not any more.
    fn interrupt(pid: u32, tid: u32, mappings: &[Mapping]) -> Result<Self, Refused> {
        let stopped = Self::try_interrupt(pid, tid, mappings);
        if stopped.is_err() {
            let _ = request(libc::PTRACE_DETACH, tid, 0, 0);
        }
        stopped
    }

    fn try_interrupt(pid: u32, tid: u32, mappings: &[Mapping]) -> Result<Self, Refused> {
        request(libc::PTRACE_INTERRUPT, tid, 0, 0).map_err(failed("PTRACE_INTERRUPT"))?;
        let is_at_signals = loop {
            match wait(tid, MAX_STOP)? {
                Stop::Event => break true,
                // A call of one that is watched ends first.
                Stop::Call => break false,
                // Its own; what we have asked for comes behind it.
                Stop::Signal(signal) => {
                    request(libc::PTRACE_CONT, tid, 0, signal as usize).map_err(failed("PTRACE_CONT"))?;
                }
            }
        };
        let mut thread = Self {
            pid,
            tid,
            // SAFETY: plain numbers.
            registers: unsafe { zeroed() },
            extended: vec![0; MAX_XSTATE],
            mask: 0,
            since: Instant::now(),
            held: Instant::now(),
            gate: 0,
            is_to_stop: false,
            is_at_signals,
        };
        thread.registers = thread.registers_now()?;
        if thread.registers.cs != USER_CS {
            return Err(Refused::Narrow);
        }
        if has_shadow_stack(pid, tid) {
            return Err(Refused::ShadowStack);
        }
        let mut vector = libc::iovec { iov_base: thread.extended.as_mut_ptr().cast(), iov_len: MAX_XSTATE };
        request(libc::PTRACE_GETREGSET, tid, NT_X86_XSTATE as usize, (&raw mut vector) as usize)
            .map_err(failed("PTRACE_GETREGSET"))?;
        let len = vector.iov_len;
        thread.extended.truncate(len);
        request(GET_SIGMASK, tid, WORD, (&raw mut thread.mask) as usize).map_err(failed("PTRACE_GETSIGMASK"))?;
        thread.gate = gate(pid, tid, &thread.registers, mappings)
            .ok_or_else(|| Refused::Failed("no system call in its memory", io::ErrorKind::NotFound.into()))?;
        Ok(thread)
    }

    /// Where it was.
    pub fn instruction(&self) -> u64 {
        self.registers.rip
    }

    pub fn tid(&self) -> u32 {
        self.tid
    }

    fn registers_now(&self) -> Result<user_regs_struct, Refused> {
        registers_of(self.tid)
    }

    fn set_registers(&self, registers: &user_regs_struct) -> Result<(), Refused> {
        set_registers_of(self.tid, registers)
    }

    fn block(&self, signals: u64) -> Result<(), Refused> {
        let at = (&raw const signals) as usize;
        request(SET_SIGMASK, self.tid, WORD, at).map_err(failed("PTRACE_SETSIGMASK")).map(|_| ())
    }

    /// Lets it run to its next entry into a system call, or its next return from one.
    fn run_to_call(&mut self, until: Instant) -> Result<(), Refused> {
        loop {
            request(libc::PTRACE_SYSCALL, self.tid, 0, 0).map_err(failed("PTRACE_SYSCALL"))?;
            let left = until.saturating_duration_since(Instant::now());
            match wait(self.tid, left)
                .map_err(|error| if let Refused::Busy = error { Refused::Stuck } else { error })?
            {
                Stop::Call => return Ok(()),
                Stop::Event => {}
                // All others are blocked.
                Stop::Signal(libc::SIGSTOP) => self.is_to_stop = true,
                Stop::Signal(signal) => return Err(Refused::Fault(signal)),
            }
        }
    }

    /// Brings it to where the kernel looks at signals, without having it run.
    fn go_to_signals(&mut self) -> Result<(), Refused> {
        if self.is_at_signals {
            return Ok(());
        }
        self.block(u64::MAX)?;
        request(libc::PTRACE_INTERRUPT, self.tid, 0, 0).map_err(failed("PTRACE_INTERRUPT"))?;
        loop {
            request(libc::PTRACE_CONT, self.tid, 0, 0).map_err(failed("PTRACE_CONT"))?;
            match wait(self.tid, MAX_STOP)? {
                Stop::Event => return Ok(()),
                Stop::Call => {}
                Stop::Signal(libc::SIGSTOP) => self.is_to_stop = true,
                Stop::Signal(signal) => return Err(Refused::Fault(signal)),
            }
        }
    }

    /// Has it make a system call: what that returns.
    pub fn system_call(&mut self, number: c_long, arguments: [u64; 6]) -> Result<i64, Refused> {
        self.is_at_signals = false;
        self.block(u64::MAX)?;
        let [rdi, rsi, rdx, r10, r8, r9] = arguments;
        let rax = number as u64;
        let rip = self.gate;
        self.set_registers(&user_regs_struct {
            rip,
            rax,
            orig_rax: u64::MAX,
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            ..self.registers
        })?;
        let until = Instant::now() + MAX_CALL;
        self.run_to_call(until)?;
        self.run_to_call(until)?;
        Ok(self.registers_now()?.rax.cast_signed())
    }

    /// Has it call a function with two arguments on a stack of its own: what that returns. It comes back to `door`, which
    /// keeps the result in `rbx`, and stops itself where `is_back` is true.
    pub fn call(
        &mut self,
        memory: &Memory,
        function: u64,
        arguments: [u64; 2],
        stack_end: u64,
        door: u64,
        is_back: impl Fn(u64) -> bool,
    ) -> Result<u64, Refused> {
        self.is_at_signals = false;
        self.block(u64::MAX)?;
        // As behind a call: the stack's end is a multiple of 16 below the return address.
        let rsp = stack_end - 2 * WORD as u64 - WORD as u64;
        memory.write(rsp, &door.to_le_bytes()).map_err(failed("its stack"))?;
        self.set_registers(&user_regs_struct {
            rip: function,
            rsp,
            rdi: arguments[0],
            rsi: arguments[1],
            rax: 0,
            orig_rax: u64::MAX,
            eflags: self.registers.eflags & !FLAGS,
            ..self.registers
        })?;
        let until = Instant::now() + MAX_CALL;
        loop {
            request(libc::PTRACE_CONT, self.tid, 0, 0).map_err(failed("PTRACE_CONT"))?;
            match self.wait_until(until)? {
                Stop::Event | Stop::Call => {}
                Stop::Signal(libc::SIGSTOP) => {
                    let registers = self.registers_now()?;
                    if is_back(registers.rip) {
                        self.is_at_signals = true;
                        return Ok(registers.rbx);
                    }
                    self.is_to_stop = true;
                }
                Stop::Signal(signal) => return Err(Refused::Fault(signal)),
            }
        }
    }

    fn wait_until(&self, until: Instant) -> Result<Stop, Refused> {
        let left = until.saturating_duration_since(Instant::now());
        wait(self.tid, left).map_err(|error| if let Refused::Busy = error { Refused::Stuck } else { error })
    }

    /// Lets it go on with what it was doing. `notes`: memory of ours that stays, for a time that it waits for. What cannot be
    /// done at once is returned, to be waited for.
    pub fn release(mut self, memory: &Memory, notes: u64) -> Result<Option<Watched>, Refused> {
        let GoOn { mut registers, with } = go_on(&self.registers, self.since.elapsed(), memory, notes);
        let mut watched = None;
        match with {
            With::Nothing => {}
            With::Notes(bytes) => memory.write(notes, &bytes).map_err(failed("its memory"))?,
            // Of others the time is the program's own, and was read by the kernel only.
            With::Less(at, in_second) => {
                let _ = shorten(memory, at, in_second, self.held.elapsed());
            }
            With::Option(option, end) => {
                let limit = self.socket_limit(memory, option, notes)?;
                watched = limit.map(|limit| Watched { thread: self.tid, since: self.since, limit, end });
            }
        }
        if Call::of(&registers).is_none() {
            self.leave_sequence(memory, &mut registers);
        }
        self.go_to_signals()?;
        let mut vector = libc::iovec { iov_base: self.extended.as_mut_ptr().cast(), iov_len: self.extended.len() };
        let at = (&raw mut vector) as usize;
        request(libc::PTRACE_SETREGSET, self.tid, NT_X86_XSTATE as usize, at).map_err(failed("PTRACE_SETREGSET"))?;
        self.set_registers(&registers)?;
        self.block(self.mask)?;
        if watched.is_none() {
            request(libc::PTRACE_DETACH, self.tid, 0, 0).map_err(failed("PTRACE_DETACH"))?;
        }
        if self.is_to_stop {
            // SAFETY: kill(2) touches no memory.
            unsafe { libc::kill(self.pid.cast_signed(), libc::SIGSTOP) };
        }
        Ok(watched)
    }

    /// How long the call on a socket that it is in waits at the most.
    fn socket_limit(&mut self, memory: &Memory, option: c_int, notes: u64) -> Result<Option<Duration>, Refused> {
        if notes == 0 {
            return Ok(None);
        }
        let descriptor = self.registers.rdi;
        let (value, len) = (notes, notes + 2 * WORD as u64);
        memory.write(len, &(2 * WORD as u32).to_le_bytes()).map_err(failed("its memory"))?;
        let arguments = [descriptor, libc::SOL_SOCKET as u64, option as u64, value, len, 0];
        if self.system_call(libc::SYS_getsockopt, arguments)? != 0 {
            return Ok(None);
        }
        let mut limit = [0; 2 * WORD];
        memory.read(value, &mut limit).map_err(failed("its memory"))?;
        let limit = Duration::from_secs(u64_at(&limit, 0)) + Duration::from_micros(u64_at(&limit, WORD));
        Ok((!limit.is_zero()).then_some(limit))
    }

    /// Where it was in the middle of a restartable sequence (rseq(2)), that is begun anew, as after any other interruption.
    fn leave_sequence(&self, memory: &Memory, registers: &mut user_regs_struct) {
        const SEQUENCE_AT: u64 = 8;
        let mut configuration = [0_u8; 24];
        let at = configuration.as_mut_ptr() as usize;
        // Not before Linux 5.13; programs hardly use it there.
        if request(GET_RSEQ, self.tid, configuration.len(), at).is_err() {
            return;
        }
        let area = u64_at(&configuration, 0);
        let sequence = if area == 0 { 0 } else { memory.word(area + SEQUENCE_AT).unwrap_or(0) };
        let mut critical = [0; 32];
        if sequence == 0 || memory.read(sequence, &mut critical).is_err() {
            return;
        }
        let (start, len, abort) = (u64_at(&critical, 8), u64_at(&critical, 16), u64_at(&critical, 24));
        if registers.rip.wrapping_sub(start) < len && memory.write(area + SEQUENCE_AT, &[0; 8]).is_ok() {
            registers.rip = abort;
        }
    }
}

/// A thread that goes on in a call on a socket with a time limit (SO_RCVTIMEO, SO_SNDTIMEO). The kernel would end it with
/// EINTR where it was interrupted, or give it all the time anew; so it stays ours until the call is over.
#[derive(Debug)]
pub(super) struct Watched {
    thread: u32,
    since: Instant,
    limit: Duration,
    /// What the call returns when the time is over.
    end: i64,
}

impl Watched {
    /// Lets it go on, and waits until the call is over, or its time is, or `is_wanted` says that it is to be stopped again.
    /// Whether it is still in its call.
    pub fn see_to_end(&self, mut is_wanted: impl FnMut() -> bool) -> bool {
        let is_in_call = self.see(&mut is_wanted).unwrap_or(false);
        if !is_in_call {
            let _ = request(libc::PTRACE_DETACH, self.thread, 0, 0);
        }
        is_in_call
    }

    fn see(&self, is_wanted: &mut dyn FnMut() -> bool) -> Result<bool, Refused> {
        let resume = |signal: c_int| {
            request(libc::PTRACE_SYSCALL, self.thread, 0, signal as usize).map_err(failed("PTRACE_SYSCALL"))
        };
        let mut has_begun = false;
        resume(0)?;
        loop {
            match wait(self.thread, WATCH) {
                Ok(Stop::Call) if has_begun && !self.begins_anew()? => return Ok(false),
                Ok(Stop::Call) => has_begun = !has_begun,
                Ok(Stop::Signal(signal)) => {
                    resume(signal)?;
                    continue;
                }
                Ok(Stop::Event) => {}
                Err(Refused::Busy) if self.since.elapsed() >= self.limit => return self.end().map(|()| false),
                Err(Refused::Busy) if is_wanted() => return Ok(true),
                Err(Refused::Busy) => continue,
                Err(error) => return Err(error),
            }
            resume(0)?;
        }
    }

    /// Whether the call, which has ended, is to be made again: a signal that is ignored ends it for a thread that is traced, and
    /// for no other.
    fn begins_anew(&self) -> Result<bool, Refused> {
        let registers = registers_of(self.thread)?;
        if registers.rax.cast_signed() != -i64::from(libc::EINTR) || has_signal_to_handle(self.thread) {
            return Ok(false);
        }
        // So that the kernel looks at signals in any case, and restarts it there.
        request(libc::PTRACE_INTERRUPT, self.thread, 0, 0).map_err(failed("PTRACE_INTERRUPT"))?;
        let rax = ERESTARTNOHAND.cast_unsigned();
        set_registers_of(self.thread, &user_regs_struct { rax, ..registers })?;
        Ok(true)
    }

    /// The time is over.
    fn end(&self) -> Result<(), Refused> {
        request(libc::PTRACE_INTERRUPT, self.thread, 0, 0).map_err(failed("PTRACE_INTERRUPT"))?;
        let stop = wait(self.thread, MAX_STOP)?;
        let registers = registers_of(self.thread)?;
        if matches!(stop, Stop::Call | Stop::Event) && registers.rax.cast_signed() == -i64::from(libc::EINTR) {
            let rax = self.end.cast_unsigned();
            set_registers_of(self.thread, &user_regs_struct { rax, orig_rax: u64::MAX, ..registers })?;
        }
        Ok(())
    }
}

/// Why a thread has stopped.
#[derive(Clone, Copy, Debug)]
enum Stop {
    /// At a system call, before or behind it.
    Call,
    /// We have asked for it, or all of the process is stopped.
    Event,
    /// A signal is about to be delivered.
    Signal(c_int),
}

/// Waits for a thread to stop. [`Refused::Busy`]: it does not.
fn wait(tid: u32, at_most: Duration) -> Result<Stop, Refused> {
    const CALL: c_int = libc::SIGTRAP | 0x80;
    let start = Instant::now();
    let mut looks = 0;
    loop {
        let mut status = 0;
        // SAFETY: room for a status.
        let waited = unsafe { libc::waitpid(tid.cast_signed(), &raw mut status, libc::__WALL | libc::WNOHANG) };
        match waited {
            0 => {}
            -1 => return Err(Refused::Ended),
            _ if !libc::WIFSTOPPED(status) => return Err(Refused::Ended),
            _ if status >> 16 == EVENT_STOP => return Ok(Stop::Event),
            _ if libc::WSTOPSIG(status) == CALL => return Ok(Stop::Call),
            _ => return Ok(Stop::Signal(libc::WSTOPSIG(status))),
        }
        looks += 1;
        if at_most > WATCH && looks < SPINS {
            std::thread::yield_now();
        } else if looks > 1 && start.elapsed() > at_most {
            return Err(Refused::Busy);
        } else {
            std::thread::sleep(LOOK.min(at_most));
        }
    }
}

fn seize(tid: u32) -> Result<(), Refused> {
    request(libc::PTRACE_SEIZE, tid, 0, libc::PTRACE_O_TRACESYSGOOD as usize)
        .map_err(failed("PTRACE_SEIZE"))
        .map(|_| ())
}

fn registers_of(tid: u32) -> Result<user_regs_struct, Refused> {
    // SAFETY: plain numbers.
    let mut registers: user_regs_struct = unsafe { zeroed() };
    request(libc::PTRACE_GETREGS, tid, 0, (&raw mut registers) as usize).map_err(failed("PTRACE_GETREGS"))?;
    Ok(registers)
}

fn set_registers_of(tid: u32, registers: &user_regs_struct) -> Result<(), Refused> {
    let at = core::ptr::from_ref(registers) as usize;
    request(libc::PTRACE_SETREGS, tid, 0, at).map_err(failed("PTRACE_SETREGS")).map(|_| ())
}

/// ptrace(2).
fn request(what: libc::c_uint, tid: u32, address: usize, data: usize) -> io::Result<c_long> {
    // SAFETY: `address` and `data` are what the request takes: numbers, or memory of the caller's that is long enough.
    let result = unsafe { libc::ptrace(what, tid, address as *mut c_void, data as *mut c_void) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A thread that may be stopped.
struct Candidate {
    tid: u32,
    rank: u32,
}

fn threads(pid: u32) -> Vec<Candidate> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let tids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    tids.map(|tid| Candidate { tid, rank: rank(pid, tid) }).collect()
}

/// How much it disturbs a thread to be stopped.
fn rank(pid: u32, tid: u32) -> u32 {
    /// One that cannot be stopped now, and one that has ended.
    const LAST: u32 = 100;
    let stat = proc_text(&format!("/proc/{pid}/task/{tid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    match state {
        Some('D' | 'Z' | 'X') | None => LAST,
        // As well as any other, but it has something to do.
        Some('R') => 1,
        _ => 2 * call_of(pid, tid).map_or(0, |call| call.rank()),
    }
}

fn call_of(pid: u32, tid: u32) -> Option<Call> {
    Call::parse(&proc_text(&format!("/proc/{pid}/task/{tid}/syscall"))?)
}

/// For how long a thread has been asleep: by the scheduler's clock, which is another one on each processor, so that we look at
/// our own on the same.
fn slept(pid: u32, tid: u32) -> Option<Duration> {
    const PROCESSOR: usize = 36;
    let stat = proc_text(&format!("/proc/{pid}/task/{tid}/stat"))?;
    let processor = stat.rsplit_once(')')?.1.split_whitespace().nth(PROCESSOR)?.parse().ok()?;
    // SAFETY: plain numbers, of which all are allowed.
    let (mut before, mut only): (libc::cpu_set_t, libc::cpu_set_t) = unsafe { (zeroed(), zeroed()) };
    let len = size_of::<libc::cpu_set_t>();
    // SAFETY: room for a set, and its length.
    if unsafe { libc::sched_getaffinity(0, len, &raw mut before) } != 0 {
        return None;
    }
    // SAFETY: a set that is ours; a number beyond it is refused by the kernel.
    let is_there = unsafe {
        libc::CPU_SET(processor, &mut only);
        libc::sched_setaffinity(0, len, &raw const only) == 0
    };
    let own = (std::process::id(), rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs());
    if is_there {
        // It is noted when the thread gives the processor away.
        std::thread::sleep(Duration::from_micros(1));
    }
    let (theirs, ours) = (last_run(pid, tid), last_run(own.0, own.1));
    // SAFETY: as it was.
    unsafe { libc::sched_setaffinity(0, len, &raw const before) };
    Duration::try_from_secs_f64((ours? - theirs?) / 1000.0).ok().filter(|_| is_there)
}

/// When a thread last ran, in milliseconds of its processor's clock.
fn last_run(pid: u32, tid: u32) -> Option<f64> {
    let text = proc_text(&format!("/proc/{pid}/task/{tid}/sched"))?;
    let line = text.lines().find(|line| line.starts_with("se.exec_start"))?;
    line.rsplit(':').next()?.trim().parse().ok()
}

/// Whether there is a signal for a thread that it does not block, and has a handler for (proc_pid_status(5)).
fn has_signal_to_handle(tid: u32) -> bool {
    let status = proc_text(&format!("/proc/{tid}/status")).unwrap_or_default();
    let signals = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        line.and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or(0)
    };
    (signals("SigPnd") | signals("ShdPnd")) & !signals("SigBlk") & signals("SigCgt") != 0
}

fn has_shadow_stack(pid: u32, tid: u32) -> bool {
    let status = proc_text(&format!("/proc/{pid}/task/{tid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("x86_Thread_features:") && line.contains("shstk"))
}

/// A `syscall` instruction in a process's memory: the one that the thread is behind, or the vDSO's.
fn gate(pid: u32, tid: u32, registers: &user_regs_struct, mappings: &[Mapping]) -> Option<u64> {
    const INSTRUCTION: [u8; 2] = [0x0f, 0x05];
    let memory = Memory::of(pid, tid).ok()?;
    let before = registers.rip.wrapping_sub(INSTRUCTION.len() as u64);
    if memory.some(before, INSTRUCTION.len()) == INSTRUCTION {
        return Some(before);
    }
    let is_vdso = |mapping: &&Mapping| mapping.name == "[vdso]";
    let others = mappings.iter().filter(|mapping| mapping.is_executable && mapping.name.contains("libc"));
    mappings.iter().filter(is_vdso).chain(others).find_map(|mapping| {
        let code = memory.some(mapping.start, usize::try_from(mapping.end - mapping.start).ok()?);
        let at = code.windows(INSTRUCTION.len()).position(|bytes| bytes == INSTRUCTION)?;
        Some(mapping.start + at as u64)
    })
}
