//! The system calls that rustix keeps to itself, because only a libc is expected to make them.

pub(crate) mod address;
pub(crate) mod confined;
pub(crate) mod libc;
pub(crate) mod library;
pub(crate) mod params;
pub(crate) mod scratch;
pub(crate) mod sock_diag;
pub(crate) mod text;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::io::Errno;

use crate::arch::call::syscall;
use crate::arch::{number, valgrind};
use confined::is_confined;

/// Every signal's bit, as rt_sigprocmask(2) takes it.
pub(crate) type SignalSet = u64;

const SIG_BLOCK: usize = 0;
const SIG_SETMASK: usize = 2;

/// `rt_sigprocmask(SIG_BLOCK)` of every signal; the mask that was in force.
pub(crate) fn hold_off_signals() -> SignalSet {
    hold_off(!0)
}

/// `rt_sigprocmask(SIG_BLOCK)`; the mask that was in force.
pub(crate) fn hold_off(signals: SignalSet) -> SignalSet {
    let mut before: SignalSet = 0;
    let args = [SIG_BLOCK, &raw const signals as usize, &raw mut before as usize, size_of_val(&signals), 0, 0];
    // SAFETY: both point to a signal set of the size given.
    unsafe { syscall(number::RT_SIGPROCMASK, args) };
    before
}

/// `rt_sigprocmask(SIG_SETMASK)` of a mask that [`hold_off`] gave.
pub(crate) fn set_signal_mask(mask: SignalSet) {
    // SAFETY: points to a signal set of the size given.
    unsafe { syscall(number::RT_SIGPROCMASK, [SIG_SETMASK, &raw const mask as usize, 0, size_of_val(&mask), 0, 0]) };
}

/// `clock_gettime(2)` by a system call.
pub(crate) fn clock_gettime(clock: i32) -> Timespec {
    let mut now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: room for what it gives.
    unsafe { syscall(number::CLOCK_GETTIME, [clock as usize, &raw mut now as usize, 0, 0, 0, 0]) };
    now
}

/// Whether this thread may read the time-stamp counter (`PR_GET_TSC`, prctl(2)).
pub(crate) fn may_read_counter() -> bool {
    const PR_GET_TSC: usize = 25;
    const PR_TSC_SIGSEGV: u32 = 2;
    let mut mode = 0_u32;
    // SAFETY: room for what it gives.
    unsafe { syscall(number::PRCTL, [PR_GET_TSC, &raw mut mode as usize, 0, 0, 0, 0]) };
    mode != PR_TSC_SIGSEGV
}

/// The process id, as the kernel has it.
pub(crate) fn raw_pid() -> u32 {
    rustix::process::getpid().as_raw_nonzero().get().cast_unsigned()
}

/// Bytes of a thread's name with its NUL (TASK_COMM_LEN).
pub(crate) const COMM_LEN: usize = 16;

/// `prctl(PR_GET_NAME)`: the name of the calling thread, with a NUL behind it.
pub(crate) fn thread_name() -> [u8; COMM_LEN] {
    const PR_GET_NAME: usize = 16;
    let mut name = [0; COMM_LEN];
    // SAFETY: room for what it gives.
    unsafe { syscall(number::PRCTL, [PR_GET_NAME, &raw mut name as usize, 0, 0, 0, 0]) };
    name
}

/// Whether this is a handler on the stack that signals have to themselves (sigaltstack(2)).
pub(crate) fn is_on_alternate_stack() -> bool {
    const SS_ONSTACK: usize = 1;
    // A `stack_t`: pointer, flags, size.
    let mut stack = [0_usize; 3];
    // SAFETY: room for a `stack_t`.
    unsafe { syscall(number::SIGALTSTACK, [0, &raw mut stack as usize, 0, 0, 0, 0]) };
    // Flags are an int, with padding behind it.
    stack[1] & SS_ONSTACK != 0
}

/// `getsockopt(SO_PEERCRED)`: pid, uid and gid of the other end; `None` where there is none. Not rustix's, whose pid
/// may not be 0, as it is for a peer in a pid namespace that cannot be seen from here.
pub(crate) fn peer_credentials(socket: BorrowedFd<'_>) -> Option<[u32; 3]> {
    credentials(socket).filter(|[pid, ..]| *pid != 0)
}

fn credentials(socket: BorrowedFd<'_>) -> Option<[u32; 3]> {
    const SOL_SOCKET: usize = 1;
    const SO_PEERCRED: usize = 17;
    let (mut credentials, mut len) = ([0_u32; 3], size_of::<[u32; 3]>() as u32);
    let fd = socket.as_raw_fd().cast_unsigned() as usize;
    let args = [fd, SOL_SOCKET, SO_PEERCRED, &raw mut credentials as usize, &raw mut len as usize, 0];
    // SAFETY: points to room for a `struct ucred` and to its length.
    let result = unsafe { syscall(number::GETSOCKOPT, args) };
    (result == 0).then_some(credentials)
}

/// Whether nothing more can be received from a socket: the other end was closed or shut, and nothing waits (poll(2)).
pub(crate) fn is_hung_up(fd: i32) -> bool {
    // SAFETY: a call on it has just succeeded; should it be closed by now, poll says so.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let mut ready = [PollFd::new(&fd, PollFlags::IN | PollFlags::RDHUP)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let hung_up = PollFlags::RDHUP | PollFlags::HUP | PollFlags::NVAL;
    poll(&mut ready, Some(&at_once)).is_err() || ready[0].revents().intersects(hung_up)
}

/// The number at an address of the program's, which may lead nowhere.
pub(crate) fn read_u32(at: *const u32) -> Option<u32> {
    if at.is_null() || is_confined() {
        return None;
    }
    let mut value = 0_u32;
    // SAFETY: room for a number.
    let read = unsafe { read_own_memory(at.cast(), (&raw mut value).cast(), size_of::<u32>()) };
    (read == Ok(size_of::<u32>())).then_some(value)
}

/// Copies bytes of the program's that another thread of it may unmap meanwhile; whether they were there. Where
/// the question may not be asked they are taken to be.
///
/// # Safety
///
/// There is room for them at `to`.
pub(crate) unsafe fn copy_if_there(from: *const u8, to: *mut u8, len: usize) -> bool {
    let mut done = 0;
    while done < len && !is_confined() {
        // SAFETY: the caller's promise.
        match unsafe { read_own_memory(from.wrapping_add(done), to.add(done), len - done) } {
            Ok(read @ 1..) => done += read,
            Ok(0) | Err(Errno::FAULT) => return false,
            Err(_) => break,
        }
    }
    // SAFETY: the caller's promise, and the kernel has just read or written these bytes for the program.
    unsafe { to.add(done).copy_from_nonoverlapping(from.add(done), len - done) };
    true
}

/// `process_vm_readv(2)` of this process; how many bytes were read.
unsafe fn read_own_memory(from: *const u8, to: *mut u8, len: usize) -> Result<usize, Errno> {
    let (local, remote) = ([to as usize, len], [from as usize, len]);
    let args = [raw_pid() as usize, &raw const local as usize, 1, &raw const remote as usize, 1, 0];
    // SAFETY: both are one `struct iovec`, and the local one leads to room for so much.
    result_of(unsafe { syscall(number::PROCESS_VM_READV, args) })
}

/// Whether the kernel can read a path of the program's, which may lead nowhere (faccessat(2)).
pub(crate) fn is_path_readable(path: *const core::ffi::c_char) -> bool {
    /// The working directory, and: does it exist?
    const AT_FDCWD: isize = -100;
    const F_OK: usize = 0;
    let args = [AT_FDCWD.cast_unsigned(), path.addr(), F_OK, 0, 0, 0];
    // SAFETY: it reads a string, and says so where there is none.
    let result = unsafe { syscall(number::FACCESSAT, args) }.cast_signed();
    let error = |error: Errno| result.unsigned_abs() as i32 == error.raw_os_error();
    !error(Errno::FAULT) && !error(Errno::NAMETOOLONG)
}

/// What a system call has given, or its error.
pub(crate) fn result_of(result: usize) -> Result<usize, Errno> {
    let result = result.cast_signed();
    usize::try_from(result).map_err(|_| Errno::from_raw_os_error(-(result as i32)))
}

/// Whether a thread of this process is there (tgkill(2) of no signal).
pub(crate) fn is_thread(tid: u32) -> bool {
    // SAFETY: sends nothing.
    unsafe { syscall(number::TGKILL, [raw_pid() as usize, tid as usize, 0, 0, 0, 0]) == 0 }
}

/// Whether this runs under valgrind, which knows few kinds of clone(2).
pub(crate) fn is_under_valgrind() -> bool {
    const RUNNING_ON_VALGRIND: usize = 0x1001;
    valgrind::request([RUNNING_ON_VALGRIND, 0, 0, 0, 0, 0]) != 0
}

/// Waits for a child that clone(2) has made, of which no signal tells the end (`__WCLONE`, wait4(2)).
pub(crate) fn wait_for_child(pid: u32) {
    const WCLONE: usize = 0x8000_0000;
    // SAFETY: wants to know nothing of it.
    while result_of(unsafe { syscall(number::WAIT4, [pid as usize, 0, WCLONE, 0, 0, 0]) }) == Err(Errno::INTR) {}
}

/// Gives the thread a table of descriptors of its own that has nothing in it; whether it has.
pub(crate) fn take_empty_table() -> bool {
    const CLOSE_RANGE_UNSHARE: usize = 2;
    const CLONE_FILES: usize = 0x400;
    /// More than anything that is done there opens.
    const ROOM: usize = 8;
    let all = u32::MAX as usize;
    // SAFETY: the descriptors closed are those of the new table.
    unsafe {
        if syscall(number::CLOSE_RANGE, [0, all, CLOSE_RANGE_UNSHARE, 0, 0, 0]) == 0 {
            return true;
        }
        // Before Linux 5.9, or where a filter refuses that: a copy has to do, with some numbers free in it.
        let has_own = syscall(number::UNSHARE, [CLONE_FILES, 0, 0, 0, 0, 0]) == 0;
        if has_own {
            (0..ROOM).for_each(|fd| {
                syscall(number::CLOSE, [fd, 0, 0, 0, 0, 0]);
            });
        }
        has_own
    }
}

/// A descriptor of this process's as one in the thread's own table (pidfd_getfd(2)).
pub(crate) fn fetch(fd: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: what the calls give are new descriptors.
    unsafe {
        let pidfd = result_of(syscall(number::PIDFD_OPEN, [raw_pid() as usize, 0, 0, 0, 0, 0]))?;
        let pidfd = OwnedFd::from_raw_fd(pidfd as i32);
        let args = [pidfd.as_raw_fd() as usize, fd.cast_unsigned() as usize, 0, 0, 0, 0];
        result_of(syscall(number::PIDFD_GETFD, args)).map(|fd| OwnedFd::from_raw_fd(fd as i32))
    }
}

/// `getsockopt(SO_PEERCRED)` of a socket that has connected to a listening one: the user who listens.
pub(crate) fn listener(socket: BorrowedFd<'_>) -> Option<(u32, u32)> {
    credentials(socket).filter(|[_, uid, _]| *uid != u32::MAX).map(|[pid, uid, _]| (pid, uid))
}

/// `exit_group(2)`.
#[cfg(feature = "standalone")]
pub(crate) fn exit_group(status: usize) -> ! {
    loop {
        // SAFETY: ends the process.
        unsafe { syscall(number::EXIT_GROUP, [status, 0, 0, 0, 0, 0]) };
    }
}
