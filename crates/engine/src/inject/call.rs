//! What a thread was doing that is interrupted for our work, and how it goes on with it as if nothing had been.
//!
//! Most system calls are restarted exactly: the kernel says so by what it leaves in `rax`, and keeps the time that is left
//! where there is one (restart_syscall(2)). It does so when the thread is let go with the registers that it had, at a stop in
//! which signals are looked at: should one have come meanwhile that has a handler, the call ends by it as it would have. Some
//! calls end with EINTR after a stop, though no handler has run (signal(7), "Interruption of system calls and library functions
//! by stop signals"). Of those we say in `rax` that they are to be restarted unless a handler runs, with the time that is left.

use std::io;
use std::time::Duration;

use libc::{c_long, user_regs_struct};

use super::memory::Memory;
use super::objects::u64_at;

/// Codes that stay inside the kernel (include/linux/errno.h).
pub(super) const ERESTARTNOHAND: i64 = -514;
const EINTR: i64 = -(libc::EINTR as i64);
/// Not in libc.
const SYS_IO_PGETEVENTS: c_long = 333;
/// IORING_ENTER_EXT_ARG, io_uring_enter(2): the fifth argument leads to a time, too.
const URING_ARGUMENT: u64 = 8;
/// Bytes of what it leads to, the last eight of which lead to the time.
const URING_ARGUMENT_LEN: usize = 24;
const TIME_AT: usize = 16;
/// Bytes of that and of a time.
pub(super) const NOTES_LEN: usize = URING_ARGUMENT_LEN + 16;

/// Where a call that EINTR ends after a stop has its time limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    None,
    /// Milliseconds, in this argument.
    Millis(usize),
    /// A `struct timespec` at the address in this argument.
    Timespec(usize),
    /// The socket's option: SO_RCVTIMEO or SO_SNDTIMEO. The call ends with this when it is over.
    Socket(libc::c_int, i64),
    /// io_uring_enter(2)'s.
    Uring,
}

/// The calls that EINTR ends after a stop (signal(7)), though no handler has run.
const ENDED: [(c_long, Limit); 29] = {
    use Limit::*;
    const AGAIN: i64 = -(libc::EAGAIN as i64);
    const IN_PROGRESS: i64 = -(libc::EINPROGRESS as i64);
    [
        (libc::SYS_epoll_wait, Millis(3)),
        (libc::SYS_epoll_pwait, Millis(3)),
        (libc::SYS_epoll_pwait2, Timespec(3)),
        (libc::SYS_rt_sigtimedwait, Timespec(2)),
        (libc::SYS_semop, None),
        (libc::SYS_semtimedop, Timespec(3)),
        (libc::SYS_io_getevents, Timespec(4)),
        (SYS_IO_PGETEVENTS, Timespec(4)),
        (libc::SYS_io_uring_enter, Uring),
        // Those only where the kernel cannot write the rest of the time back.
        (libc::SYS_ppoll, Timespec(2)),
        (libc::SYS_pselect6, Timespec(4)),
        (libc::SYS_read, Socket(libc::SO_RCVTIMEO, AGAIN)),
        (libc::SYS_readv, Socket(libc::SO_RCVTIMEO, AGAIN)),
        (libc::SYS_recvfrom, Socket(libc::SO_RCVTIMEO, AGAIN)),
        (libc::SYS_recvmsg, Socket(libc::SO_RCVTIMEO, AGAIN)),
        (libc::SYS_recvmmsg, Socket(libc::SO_RCVTIMEO, AGAIN)),
        (libc::SYS_accept, Socket(libc::SO_RCVTIMEO, AGAIN)),
        (libc::SYS_accept4, Socket(libc::SO_RCVTIMEO, AGAIN)),
        (libc::SYS_write, Socket(libc::SO_SNDTIMEO, AGAIN)),
        (libc::SYS_writev, Socket(libc::SO_SNDTIMEO, AGAIN)),
        (libc::SYS_sendto, Socket(libc::SO_SNDTIMEO, AGAIN)),
        (libc::SYS_sendmsg, Socket(libc::SO_SNDTIMEO, AGAIN)),
        (libc::SYS_sendmmsg, Socket(libc::SO_SNDTIMEO, AGAIN)),
        (libc::SYS_connect, Socket(libc::SO_SNDTIMEO, IN_PROGRESS)),
        (libc::SYS_msgrcv, None),
        (libc::SYS_msgsnd, None),
        (libc::SYS_futex, None),
        (libc::SYS_mq_timedreceive, None),
        (libc::SYS_mq_timedsend, None),
    ]
};

/// A system call that a thread is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub number: c_long,
    pub arguments: [u64; 6],
    stack: u64,
}

impl Call {
    /// As proc_pid_syscall(5) has it; `None`: the thread runs, or waits in none.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let number = words.next()?.parse().ok().filter(|&number| number >= 0)?;
        let mut hex = words.map_while(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok());
        let mut next = || hex.next();
        let arguments = [next()?, next()?, next()?, next()?, next()?, next()?];
        Some(Self { number, arguments, stack: next()? })
    }

    /// By the registers of a thread that was stopped; `None`: it was in none.
    pub fn of(registers: &user_regs_struct) -> Option<Self> {
        let number = registers.orig_rax.cast_signed();
        (number >= 0).then_some(Self {
            number,
            arguments: [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9],
            stack: registers.rsp,
        })
    }

    /// How well the thread can be interrupted in it: the less, the better.
    pub fn rank(&self) -> u32 {
        match self.limit() {
            None | Some(Limit::None) => 0,
            Some(Limit::Socket(..)) => 2,
            Some(_) => 1,
        }
    }

    fn limit(&self) -> Option<Limit> {
        ENDED.iter().find(|(number, _)| *number == self.number).map(|(_, limit)| *limit)
    }
}

/// How a thread goes on.
#[derive(Clone, Copy, Debug)]
pub(super) struct GoOn {
    pub registers: user_regs_struct,
    pub with: With,
}

/// Where the kernel has written the time that was left of a call when it was interrupted, and how many of its smaller units a
/// second has.
fn written_back(call: &Call) -> Option<(u64, u32)> {
    const MICROS: u32 = 1_000_000;
    const NANOS: u32 = 1_000_000_000;
    let (argument, in_second) = match call.number {
        libc::SYS_select => (4, MICROS),
        libc::SYS_pselect6 => (4, NANOS),
        libc::SYS_ppoll => (2, NANOS),
        _ => return None,
    };
    Some((call.arguments[argument], in_second)).filter(|&(at, _)| at != 0)
}

/// Takes what a thread was held for off the time at an address.
pub(super) fn shorten(memory: &Memory, at: u64, in_second: u32, by: Duration) -> io::Result<()> {
    let mut bytes = [0; 16];
    memory.read(at, &mut bytes)?;
    let unit = u64::from(1_000_000_000 / in_second);
    let nanos = u64_at(&bytes, 0).saturating_mul(1_000_000_000).saturating_add(u64_at(&bytes, 8).saturating_mul(unit));
    let left = nanos.saturating_sub(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX));
    bytes[..8].copy_from_slice(&(left / 1_000_000_000).to_le_bytes());
    bytes[8..].copy_from_slice(&(left % 1_000_000_000 / unit).to_le_bytes());
    memory.write(at, &bytes)
}

/// What has to be seen to for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum With {
    Nothing,
    /// This has to be in the notes: a time, which an argument leads to now.
    Notes([u8; NOTES_LEN]),
    /// The time at this address, with so many units to a second, is to be less by what the thread was held for.
    Less(u64, u32),
    /// The call is a socket's that has this option, and ends with this, unless it is over before.
    Option(libc::c_int, i64),
}

/// How the thread is to go on that was stopped with these registers, if it was in its call for so long. `notes` is memory of
/// ours for a time; 0: there is none, and a limit in memory stays what it is.
pub(super) fn go_on(stopped: &user_regs_struct, waited: Duration, memory: &Memory, notes: u64) -> GoOn {
    let mut registers = *stopped;
    let mut with = With::Nothing;
    let Some(call) = Call::of(stopped) else { return GoOn { registers, with } };
    match stopped.rax.cast_signed() {
        ERESTARTNOHAND => {
            if let Some((at, in_second)) = written_back(&call) {
                with = With::Less(at, in_second);
            }
        }
        EINTR => {
            let Some(limit) = call.limit() else { return GoOn { registers, with } };
            registers.rax = ERESTARTNOHAND.cast_unsigned();
            match limit {
                Limit::None => {}
                Limit::Millis(argument) => {
                    if let limit @ 1.. = call.arguments[argument] as i32 {
                        let waited = i32::try_from(waited.as_millis()).unwrap_or(i32::MAX);
                        set_argument(&mut registers, argument, limit.saturating_sub(waited).max(0) as u64);
                    }
                }
                Limit::Timespec(argument) => {
                    if let Some(limit) = timespec(memory, call.arguments[argument]).filter(|_| notes != 0) {
                        with = With::Notes(with_time([0; URING_ARGUMENT_LEN], limit.saturating_sub(waited)));
                        set_argument(&mut registers, argument, notes + URING_ARGUMENT_LEN as u64);
                    }
                }
                Limit::Uring => {
                    if let Some((mut argument, limit)) = uring_limit(memory, &call).filter(|_| notes != 0) {
                        argument[TIME_AT..].copy_from_slice(&(notes + URING_ARGUMENT_LEN as u64).to_le_bytes());
                        with = With::Notes(with_time(argument, limit.saturating_sub(waited)));
                        registers.r8 = notes;
                    }
                }
                Limit::Socket(option, end) => with = With::Option(option, end),
            }
        }
        _ => {}
    }
    GoOn { registers, with }
}

fn set_argument(registers: &mut user_regs_struct, argument: usize, value: u64) {
    let register = match argument {
        0 => &mut registers.rdi,
        1 => &mut registers.rsi,
        2 => &mut registers.rdx,
        3 => &mut registers.r10,
        4 => &mut registers.r8,
        _ => &mut registers.r9,
    };
    *register = value;
}

/// A time, if there is one that is not over.
fn timespec(memory: &Memory, at: u64) -> Option<Duration> {
    let mut bytes = [0; 16];
    if at == 0 {
        return None;
    }
    memory.read(at, &mut bytes).ok()?;
    let (seconds, nanos) = (u64_at(&bytes, 0), u64_at(&bytes, 8));
    Some(Duration::new(seconds, u32::try_from(nanos).ok()?))
}

/// `struct io_uring_getevents_arg`, and the time that it leads to, if there is one.
fn uring_limit(memory: &Memory, call: &Call) -> Option<([u8; URING_ARGUMENT_LEN], Duration)> {
    let mut argument = [0; URING_ARGUMENT_LEN];
    if call.arguments[3] & URING_ARGUMENT == 0 {
        return None;
    }
    memory.read(call.arguments[4], &mut argument).ok()?;
    Some((argument, timespec(memory, u64_at(&argument, TIME_AT))?))
}

/// An argument of io_uring_enter(2)'s, and a time behind it.
fn with_time(argument: [u8; URING_ARGUMENT_LEN], time: Duration) -> [u8; NOTES_LEN] {
    let mut notes = [0; NOTES_LEN];
    notes[..URING_ARGUMENT_LEN].copy_from_slice(&argument);
    notes[URING_ARGUMENT_LEN..].copy_from_slice(&timespec_of(time));
    notes
}

/// A time as `struct timespec` has it.
fn timespec_of(time: Duration) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&time.as_secs().to_le_bytes());
    bytes[8..].copy_from_slice(&u64::from(time.subsec_nanos()).to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopped_in(number: c_long, result: i64) -> user_regs_struct {
        // SAFETY: plain numbers.
        let zeroed: user_regs_struct = unsafe { std::mem::zeroed() };
        user_regs_struct { orig_rax: number as u64, rax: result.cast_unsigned(), rip: 0x1002, ..zeroed }
    }

    #[test]
    fn what_is_left_to_the_kernel() {
        let own = std::process::id();
        let memory = Memory::of(own, own).unwrap();
        let after = |stopped: &user_regs_struct| go_on(stopped, Duration::from_millis(300), &memory, 0x5000);
        let is_same =
            |a: &user_regs_struct, b: &user_regs_struct| (a.rax, a.rip, a.orig_rax) == (b.rax, b.rip, b.orig_rax);
        // ERESTARTSYS, ERESTART_RESTARTBLOCK, and what is over, whether well or not.
        let codes = [-512, -516, 0, 17, -(libc::EBADF as i64)];
        for stopped in codes.map(|code| stopped_in(libc::SYS_read, code)) {
            assert!(is_same(&after(&stopped).registers, &stopped));
        }
        let stopped = stopped_in(libc::SYS_getppid, EINTR);
        assert!(is_same(&after(&stopped).registers, &stopped));
        let waits = after(&stopped_in(libc::SYS_semop, EINTR)).registers;
        assert_eq!(
            (waits.rax.cast_signed(), waits.rip, waits.orig_rax),
            (ERESTARTNOHAND, 0x1002, libc::SYS_semop as u64)
        );
        // Not in a call.
        let runs = user_regs_struct { orig_rax: u64::MAX, ..stopped_in(0, EINTR) };
        assert_eq!(after(&runs).registers.rax.cast_signed(), EINTR);
    }

    #[test]
    fn with_the_time_that_is_left() {
        let own = std::process::id();
        let memory = Memory::of(own, own).unwrap();
        let after = |stopped: &user_regs_struct| go_on(stopped, Duration::from_millis(300), &memory, 0x5000);
        for (given, left) in [(1000, 700), (200, 0), (-1, -1), (0, 0)] {
            let wait = user_regs_struct { r10: given as u32 as u64, ..stopped_in(libc::SYS_epoll_wait, EINTR) };
            assert_eq!(after(&wait).registers.r10 as i32, left);
        }
        let time = timespec_of(Duration::from_millis(1500));
        let wait = user_regs_struct { rdx: time.as_ptr() as u64, ..stopped_in(libc::SYS_rt_sigtimedwait, EINTR) };
        let gone_on = after(&wait);
        let With::Notes(notes) = gone_on.with else { panic!("{:?}", gone_on.with) };
        assert_eq!((gone_on.registers.rdx, &notes[24..]), (0x5018, &timespec_of(Duration::from_millis(1200))[..]));
        let wait = after(&stopped_in(libc::SYS_rt_sigtimedwait, EINTR));
        assert_eq!((wait.registers.rdx, wait.with), (0, With::Nothing));
    }

    #[test]
    fn the_time_of_being_held() {
        let own = std::process::id();
        let memory = Memory::of(own, own).unwrap();
        for (unit, by, left) in [
            (1_000_000, 300_000, (0, 900_000)),
            (1_000_000, 2_000_000, (0, 0)),
            (1_000_000_000, 150_000_000, (1, 50_000_000)),
        ] {
            let time = [1_u64, u64::from(unit) / 5];
            let by = Duration::from_nanos(by * u64::from(1_000_000_000 / unit));
            shorten(&memory, time.as_ptr() as u64, unit, by).unwrap();
            // SAFETY: ours; written from outside.
            assert_eq!(unsafe { std::ptr::read_volatile(&raw const time) }, [left.0, left.1]);
        }
    }

    #[test]
    fn what_the_kernel_says_of_a_call() {
        let call = Call::parse("232 0x4 0x7ffd 0x1 0xffffffff 0x0 0x8 0x7ffe 0x7f01\n").unwrap();
        assert_eq!((call.number, call.arguments[3], call.stack), (232, 0xffff_ffff, 0x7ffe));
        assert_eq!((Call::parse("running\n"), Call::parse("-1 0x7ffe 0x7f01\n")), (None, None));
        assert!(call.rank() > Call { number: libc::SYS_futex + 1000, ..call }.rank());
    }
}
