//! Handlers: one that counts SIGPIPE, one that writes to a socket whatever it interrupts, one that jumps.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};

use crate::actor::inode_of;
use crate::log::{self, Moved};
use crate::twice;

thread_local! {
    static BROKEN_PIPES: Cell<u32> = const { Cell::new(0) };
}

/// Where the handler writes; -1: nowhere.
static OUTLET: AtomicI32 = AtomicI32::new(-1);
static OUTLET_INODE: AtomicU64 = AtomicU64::new(0);
/// Times that the handler may write still: its socket's queue must not fill.
static LEFT: AtomicI32 = AtomicI32::new(0);

/// Writes at most: an eighth of what a stream's queue takes of small messages.
const WRITES: i32 = 30;

/// Makes a blocked call go on after the handler (SA_RESTART).
pub const WRITES_AND_RESTARTS: c_int = libc::SIGUSR1;
/// Makes a blocked call fail with EINTR.
pub const WRITES_AND_INTERRUPTS: c_int = libc::SIGUSR2;
/// Leaves a blocked call by siglongjmp(3).
pub const JUMPS: c_int = libc::SIGWINCH;

/// Installs the handlers.
pub fn install() {
    let handle = |signal: c_int, handler: extern "C" fn(c_int), flags: c_int| {
        // SAFETY: zeroes are a valid sigaction, and the handlers do only what signal-safety(7) allows.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = flags;
            assert_eq!(libc::sigaction(signal, &raw const action, std::ptr::null_mut()), 0, "signal {signal}");
        }
    };
    handle(libc::SIGPIPE, count, libc::SA_RESTART);
    handle(WRITES_AND_RESTARTS, write, libc::SA_RESTART);
    handle(libc::SIGVTALRM, write, libc::SA_RESTART);
    handle(libc::SIGALRM, write, libc::SA_RESTART);
    handle(WRITES_AND_INTERRUPTS, write, 0);
    handle(JUMPS, jump, 0);
}

extern "C" fn count(_signal: c_int) {
    BROKEN_PIPES.set(BROKEN_PIPES.get() + 1);
}

/// SIGPIPEs of this thread since the last look.
pub fn take_broken_pipes() -> u32 {
    BROKEN_PIPES.replace(0)
}

/// From now on the handler writes here. -1: nowhere.
pub fn set_outlet(fd: c_int) {
    OUTLET.store(-1, Relaxed);
    if fd >= 0 {
        OUTLET_INODE.store(inode_of(fd), Relaxed);
        // One handler may interrupt the other.
        log::shared(inode_of(fd));
        LEFT.store(WRITES, Relaxed);
        OUTLET.store(fd, Relaxed);
    }
}

/// Whether the handler has begun to write since there is somewhere to.
pub fn has_written() -> bool {
    LEFT.load(Relaxed) < WRITES
}

extern "C" fn write(signal: c_int) {
    let fd = OUTLET.load(Relaxed);
    if fd < 0 || LEFT.fetch_sub(1, Relaxed) <= 0 {
        return;
    }
    // SAFETY: the thread's own errno, kept for what is interrupted; the buffer lives here.
    unsafe {
        let errno = *libc::__errno_location();
        let data = [b'h', b'a', b'n', b'd', b'l', b'e', b'r', signal as u8];
        let sent = libc::send(fd, data.as_ptr().cast::<c_void>(), data.len(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
        if sent == data.len() as isize {
            let inode = OUTLET_INODE.load(Relaxed);
            log::moved(&Moved { inode, direction: "out", call: "send", data: &data, ..Moved::default() });
        }
        *libc::__errno_location() = errno;
    }
}

extern "C" fn jump(_signal: c_int) {
    twice::jump_back();
}
