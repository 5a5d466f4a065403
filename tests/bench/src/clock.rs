//! Clocks, in nanoseconds, and processors.

use std::io;

/// Which clock.
#[derive(Clone, Copy, Debug)]
pub enum Clock {
    /// CLOCK_MONOTONIC.
    Monotonic,
    /// CPU time of this process.
    OwnCpu,
}

/// What a clock says (clock_gettime(2)).
pub fn now(clock: Clock) -> u64 {
    let id = match clock {
        Clock::Monotonic => libc::CLOCK_MONOTONIC,
        Clock::OwnCpu => libc::CLOCK_PROCESS_CPUTIME_ID,
    };
    // Both exist.
    read(id).unwrap_or(0)
}

fn read(id: libc::clockid_t) -> Option<u64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: room for the time.
    let result = unsafe { libc::clock_gettime(id, &raw mut time) };
    (result == 0).then_some(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// CPU time of a process, user and system (clock_getcpuclockid(3)); 0 if it has ended.
pub fn cpu_of(pid: u32) -> u64 {
    let mut id = 0;
    // SAFETY: room for the clock.
    let result = unsafe { libc::clock_getcpuclockid(pid as libc::pid_t, &raw mut id) };
    if result == 0 { read(id).unwrap_or(0) } else { 0 }
}

/// Keeps this process to one processor (sched_setaffinity(2)), and what it executes.
///
/// # Errors
///
/// There is no such processor.
pub fn pin(cpu: usize) -> io::Result<()> {
    // SAFETY: all zeroes is an empty set, which is then added to, and given at its size.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
