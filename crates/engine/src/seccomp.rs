//! What a process's seccomp filters say to the calls that Frida makes in it (seccomp(2)).

use std::io;

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Modes, as in proc_pid_status(5).
pub const STRICT: u32 = 1;
pub const FILTERED: u32 = 2;

/// `PTRACE_SECCOMP_GET_FILTER` (ptrace(2)); root's, with CONFIG_CHECKPOINT_RESTORE.
const GET_FILTER: libc::c_uint = 0x420c;
/// BPF_MAXINSNS of linux/bpf_common.h.
const MAX_INSTRUCTIONS: usize = 4096;
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// Words of memory that a filter has (BPF_MEMWORDS).
const MEMORY_WORDS: usize = 16;

/// Calls that Frida makes to get a library and threads in, and that the probe makes to report and to know sockets, each with
/// its number and first arguments.
const CALLS: [(&str, libc::c_long, [u64; 4]); 44] = [
    ("mmap", libc::SYS_mmap, [0, 4096, 3, 0x22]),
    ("mprotect", libc::SYS_mprotect, [0x1000, 4096, 5, 0]),
    ("munmap", libc::SYS_munmap, [0x1000, 4096, 0, 0]),
    ("madvise", libc::SYS_madvise, [0x1000, 4096, 4, 0]),
    ("memfd_create", libc::SYS_memfd_create, [0x1000, 1, 0, 0]),
    ("ftruncate", libc::SYS_ftruncate, [100, 4096, 0, 0]),
    ("openat", libc::SYS_openat, [0xffff_ff9c, 0x1000, 0x80000, 0]),
    ("newfstatat", libc::SYS_newfstatat, [0xffff_ff9c, 0x1000, 0x1000, 0]),
    ("readlink", libc::SYS_readlink, [0x1000, 0x1000, 4096, 0]),
    ("getdents64", libc::SYS_getdents64, [100, 0x1000, 4096, 0]),
    ("read", libc::SYS_read, [100, 0x1000, 4096, 0]),
    ("write", libc::SYS_write, [100, 0x1000, 4096, 0]),
    ("pread64", libc::SYS_pread64, [100, 0x1000, 4096, 0]),
    ("fstat", libc::SYS_fstat, [100, 0x1000, 0, 0]),
    ("lseek", libc::SYS_lseek, [100, 0, 0, 0]),
    ("close", libc::SYS_close, [100, 0, 0, 0]),
    ("dup", libc::SYS_dup, [100, 0, 0, 0]),
    ("fcntl", libc::SYS_fcntl, [100, 1, 0, 0]),
    ("eventfd2", libc::SYS_eventfd2, [0, 0x80800, 0, 0]),
    ("poll", libc::SYS_poll, [0x1000, 1, 0, 0]),
    ("socket", libc::SYS_socket, [1, 0x80801, 0, 0]),
    ("socketpair", libc::SYS_socketpair, [1, 0x80001, 0, 0x1000]),
    ("connect", libc::SYS_connect, [100, 0x1000, 110, 0]),
    ("sendmsg", libc::SYS_sendmsg, [100, 0x1000, 0x4040, 0]),
    ("recvmsg", libc::SYS_recvmsg, [100, 0x1000, 0, 0]),
    ("sendto", libc::SYS_sendto, [100, 0x1000, 1, 0x4000]),
    ("recvfrom", libc::SYS_recvfrom, [100, 0x1000, 1, 0]),
    ("getsockopt", libc::SYS_getsockopt, [100, 1, 17, 0x1000]),
    ("getsockname", libc::SYS_getsockname, [100, 0x1000, 0x1000, 0]),
    ("getpeername", libc::SYS_getpeername, [100, 0x1000, 0x1000, 0]),
    ("clone", libc::SYS_clone, [0x003d_0f00, 0x1000, 0x1000, 0x1000]),
    ("clone3", libc::SYS_clone3, [0x1000, 88, 0, 0]),
    ("set_robust_list", libc::SYS_set_robust_list, [0x1000, 24, 0, 0]),
    ("futex", libc::SYS_futex, [0x1000, 129, 1, 0]),
    ("prctl", libc::SYS_prctl, [15, 0x1000, 0, 0]),
    ("rt_sigprocmask", libc::SYS_rt_sigprocmask, [0, 0x1000, 0x1000, 8]),
    ("rt_sigaction", libc::SYS_rt_sigaction, [11, 0x1000, 0x1000, 8]),
    ("getpid", libc::SYS_getpid, [0, 0, 0, 0]),
    ("gettid", libc::SYS_gettid, [0, 0, 0, 0]),
    ("tgkill", libc::SYS_tgkill, [1, 1, 0, 0]),
    ("sched_yield", libc::SYS_sched_yield, [0, 0, 0, 0]),
    ("clock_gettime", libc::SYS_clock_gettime, [1, 0x1000, 0, 0]),
    ("prlimit64", libc::SYS_prlimit64, [0, 7, 0, 0x1000]),
    ("exit", libc::SYS_exit, [0, 0, 0, 0]),
];

/// Those of them that an injected probe does not make, whose ring is handed over from outside.
const OF_FRIDA: [&str; 16] = [
    "connect",
    "sendmsg",
    "madvise",
    "newfstatat",
    "getdents64",
    "write",
    "pread64",
    "lseek",
    "dup",
    "eventfd2",
    "poll",
    "socketpair",
    "clone3",
    "set_robust_list",
    "prctl",
    "rt_sigaction",
];

/// The first call that one of a process's `count` filters would end it for.
///
/// # Errors
///
/// The filters may not be read.
pub fn deadly_call(pid: u32, count: u32) -> io::Result<Option<&'static str>> {
    let filters = filters(Pid::from_raw(pid.cast_signed()), count)?;
    Ok(first_deadly(&filters, |_| true))
}

/// The same of what puts a probe in from outside, and of the probe itself, in a process of which a thread is stopped.
///
/// # Errors
///
/// The filters may not be read.
pub fn call_deadly_to_inject(stopped: u32, count: u32) -> io::Result<Option<&'static str>> {
    let filters = filters_of_stopped(Pid::from_raw(stopped.cast_signed()), count)?;
    Ok(first_deadly(&filters, |name| !OF_FRIDA.contains(&name)))
}

fn first_deadly(filters: &[Vec<libc::sock_filter>], is_made: impl Fn(&str) -> bool) -> Option<&'static str> {
    let is_deadly = |filter: &Vec<libc::sock_filter>, number: libc::c_long, arguments: [u64; 4]| {
        let result = evaluate(filter, &data(number, arguments));
        // What cannot be told is taken for the worst. The action of a trap is the program's own handler's.
        let action = result.map_or(libc::SECCOMP_RET_KILL_PROCESS, |result| result & libc::SECCOMP_RET_ACTION_FULL);
        matches!(action, libc::SECCOMP_RET_KILL_PROCESS | libc::SECCOMP_RET_KILL_THREAD | libc::SECCOMP_RET_TRAP)
    };
    let mut calls = CALLS.iter().filter(|(name, ..)| is_made(name));
    let call = calls.find(|(_, number, args)| filters.iter().any(|filter| is_deadly(filter, *number, *args)));
    call.map(|(name, ..)| *name)
}

/// `struct seccomp_data`, by its 32-bit words.
fn data(number: libc::c_long, arguments: [u64; 4]) -> [u32; 16] {
    let mut words = [0; 16];
    (words[0], words[1]) = (number as u32, AUDIT_ARCH_X86_64);
    for (to, argument) in words[4..].chunks_exact_mut(2).zip(arguments) {
        (to[0], to[1]) = (argument as u32, (argument >> 32) as u32);
    }
    words
}

/// Reads them, with the process stopped for a moment, as Frida itself stops it afterwards.
fn filters(pid: Pid, count: u32) -> io::Result<Vec<Vec<libc::sock_filter>>> {
    ptrace::seize(pid, ptrace::Options::empty())?;
    let read = || -> io::Result<_> {
        ptrace::interrupt(pid)?;
        loop {
            match waitpid(pid, Some(WaitPidFlag::__WALL))? {
                WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(_, Signal::SIGTRAP) => break,
                WaitStatus::Stopped(_, signal) => ptrace::cont(pid, signal)?,
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {
                    return Err(io::Error::from(io::ErrorKind::NotFound));
                }
                _ => {}
            }
        }
        filters_of_stopped(pid, count)
    };
    let result = read();
    // It may have ended.
    let _ = ptrace::detach(pid, None);
    result
}

fn filters_of_stopped(pid: Pid, count: u32) -> io::Result<Vec<Vec<libc::sock_filter>>> {
    (0..count).map(|index| filter(pid, index)).collect()
}

fn filter(pid: Pid, index: u32) -> io::Result<Vec<libc::sock_filter>> {
    let mut filter = vec![libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 }; MAX_INSTRUCTIONS];
    // SAFETY: room for as many instructions as a filter may have.
    let len = unsafe { libc::ptrace(GET_FILTER, pid.as_raw(), u64::from(index), filter.as_mut_ptr()) };
    filter.truncate(usize::try_from(len).map_err(|_| io::Error::last_os_error())?);
    Ok(filter)
}

/// What a filter answers; None if it has something that a seccomp filter does not have, or does not end.
fn evaluate(filter: &[libc::sock_filter], data: &[u32; 16]) -> Option<u32> {
    let (mut a, mut x, mut memory) = (0_u32, 0_u32, [0_u32; MEMORY_WORDS]);
    let mut at = 0;
    // Jumps go forward only, so that it ends.
    while let Some(&libc::sock_filter { code, jt, jf, k }) = filter.get(at) {
        at += 1;
        let code = u32::from(code);
        let (class, from_x) = (code & 0x07, code & libc::BPF_X != 0);
        let value = if from_x { x } else { k };
        let load = || match code & 0xe0 {
            libc::BPF_ABS => data.get(k as usize / 4).copied(),
            libc::BPF_IMM => Some(k),
            libc::BPF_MEM => memory.get(k as usize).copied(),
            // The length of what is looked at.
            libc::BPF_LEN => Some(size_of_val(data) as u32),
            _ => None,
        };
        match class {
            libc::BPF_LD => a = load()?,
            libc::BPF_LDX => x = load()?,
            libc::BPF_ST => *memory.get_mut(k as usize)? = a,
            libc::BPF_STX => *memory.get_mut(k as usize)? = x,
            libc::BPF_ALU => {
                a = match code & 0xf0 {
                    libc::BPF_ADD => a.wrapping_add(value),
                    libc::BPF_SUB => a.wrapping_sub(value),
                    libc::BPF_MUL => a.wrapping_mul(value),
                    libc::BPF_DIV => a.checked_div(value)?,
                    libc::BPF_OR => a | value,
                    libc::BPF_AND => a & value,
                    libc::BPF_XOR => a ^ value,
                    libc::BPF_LSH => a.checked_shl(value)?,
                    libc::BPF_RSH => a.checked_shr(value)?,
                    libc::BPF_NEG => a.wrapping_neg(),
                    _ => return None,
                };
            }
            libc::BPF_JMP => {
                let is_so = match code & 0xf0 {
                    libc::BPF_JA => {
                        at += k as usize;
                        continue;
                    }
                    libc::BPF_JEQ => a == value,
                    libc::BPF_JGT => a > value,
                    libc::BPF_JGE => a >= value,
                    libc::BPF_JSET => a & value != 0,
                    _ => return None,
                };
                at += usize::from(if is_so { jt } else { jf });
            }
            libc::BPF_RET => return Some(if code & 0x18 == libc::BPF_A { a } else { k }),
            // BPF_MISC: BPF_TAX or BPF_TXA.
            _ if code & 0x80 != 0 => a = x,
            _ => x = a,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
        libc::sock_filter { code: code as u16, jt, jf, k }
    }

    #[test]
    fn a_filter_that_kills_one_call() {
        let filter = [
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 4, 0, 0),
            step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, AUDIT_ARCH_X86_64, 1, 0),
            step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_KILL_PROCESS, 0, 0),
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::SYS_connect as u32, 0, 1),
            step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_TRAP | 7, 0, 0),
            step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
        ];
        assert_eq!(evaluate(&filter, &data(libc::SYS_connect, [0; 4])), Some(libc::SECCOMP_RET_TRAP | 7));
        assert_eq!(evaluate(&filter, &data(libc::SYS_read, [0; 4])), Some(libc::SECCOMP_RET_ALLOW));
    }

    #[test]
    fn arithmetic_and_memory() {
        // The first argument's low half, less 1, kept and taken back by way of X: 6.
        let filter = [
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 16, 0, 0),
            step(libc::BPF_ALU | libc::BPF_SUB | libc::BPF_K, 1, 0, 0),
            step(libc::BPF_ST, 3, 0, 0),
            step(libc::BPF_LDX | libc::BPF_MEM, 3, 0, 0),
            step(libc::BPF_MISC | libc::BPF_TXA, 0, 0, 0),
            step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_X, 0, 0, 0),
            step(libc::BPF_RET | libc::BPF_A, 0, 0, 0),
        ];
        assert_eq!(evaluate(&filter, &data(0, [7, 0, 0, 0])), Some(6));
        assert_eq!(evaluate(&filter[..6], &data(0, [7, 0, 0, 0])), None);
    }
}
