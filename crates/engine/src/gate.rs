//! Holds a new program at its entry point until Frida is in it.
//!
//! The program is our child, so that its terminal, signals and exit status are as without us; `frida -f` would make it
//! somebody else's. The loader has done its work at the entry point, so that there is a libc to hook, and nothing of
//! the program's own has run. There it spins, rather than being stopped: Frida has threads of its own to run in it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// `int3`
const BREAKPOINT: [u8; 1] = [0xcc];
/// `jmp .`
const SPIN: [u8; 2] = [0xeb, 0xfe];

/// A program that is held.
#[derive(Debug)]
pub struct Held {
    pid: Pid,
    memory: File,
    entry: u64,
    original: [u8; 2],
}

/// Why a program is not held.
#[derive(Debug)]
pub enum NotHeld {
    /// It ended first.
    Ended(ExitStatus),
    Failed(io::Error),
}

impl<E: Into<io::Error>> From<E> for NotHeld {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Lets a program that was started `traced` run up to its entry point.
///
/// # Errors
///
/// See [`NotHeld`].
pub fn hold(pid: u32) -> Result<Held, NotHeld> {
    let pid = Pid::from_raw(pid.cast_signed());
    // The stop that follows execve(2).
    wait_for_trap(pid, false)?;
    let entry = entry_point(pid)?;
    let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
    let mut original = [0; 2];
    memory.read_exact_at(&mut original, entry)?;
    memory.write_all_at(&BREAKPOINT, entry)?;
    wait_for_trap(pid, true)?;
    let mut registers = ptrace::getregs(pid)?;
    registers.rip = entry;
    ptrace::setregs(pid, registers)?;
    memory.write_all_at(&SPIN, entry)?;
    ptrace::detach(pid, None)?;
    Ok(Held { pid, memory, entry, original })
}

/// Waits until the program stops at a breakpoint, handing signals on to it.
fn wait_for_trap(pid: Pid, go_on: bool) -> Result<(), NotHeld> {
    let mut signal = None;
    let mut go_on = go_on;
    loop {
        if go_on {
            ptrace::cont(pid, signal)?;
        }
        match wait(pid)? {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => return Ok(()),
            WaitStatus::Stopped(_, other) => (signal, go_on) = (Some(other), true),
            WaitStatus::Exited(_, code) => return Err(NotHeld::Ended(ExitStatus::from_raw(code << 8))),
            WaitStatus::Signaled(_, signal, _) => return Err(NotHeld::Ended(ExitStatus::from_raw(signal as i32))),
            _ => go_on = false,
        }
    }
}

fn wait(pid: Pid) -> Result<WaitStatus, Errno> {
    loop {
        match waitpid(pid, None) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// Where the program's own code begins (getauxval(3)).
fn entry_point(pid: Pid) -> io::Result<u64> {
    let vector = fs::read(format!("/proc/{pid}/auxv"))?;
    let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
    let entry = vector.chunks_exact(16).find(|pair| word(&pair[..8]) == libc::AT_ENTRY);
    entry.map(|pair| word(&pair[8..])).ok_or_else(|| io::Error::other("no AT_ENTRY in the auxiliary vector"))
}

impl Held {
    /// Lets it go.
    ///
    /// # Errors
    ///
    /// See [`NotHeld`].
    pub fn release(self) -> Result<(), NotHeld> {
        ptrace::seize(self.pid, ptrace::Options::empty())?;
        ptrace::interrupt(self.pid)?;
        loop {
            match wait(self.pid)? {
                WaitStatus::Exited(_, code) => return Err(NotHeld::Ended(ExitStatus::from_raw(code << 8))),
                WaitStatus::Signaled(_, signal, _) => return Err(NotHeld::Ended(ExitStatus::from_raw(signal as i32))),
                WaitStatus::PtraceEvent(..) => break,
                // A signal that came first is the program's.
                WaitStatus::Stopped(_, Signal::SIGTRAP) => break,
                WaitStatus::Stopped(_, signal) => ptrace::cont(self.pid, signal)?,
                _ => {}
            }
        }
        self.memory.write_all_at(&self.original, self.entry)?;
        ptrace::detach(self.pid, None)?;
        Ok(())
    }
}
