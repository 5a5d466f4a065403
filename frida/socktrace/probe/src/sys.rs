//! The system calls that rustix keeps to itself, because only a libc is expected to make them.

use core::arch::asm;

/// Every signal's bit, as rt_sigprocmask(2) takes it.
pub(crate) type SignalSet = u64;

const SIG_BLOCK: usize = 0;
const SIG_SETMASK: usize = 2;

#[cfg(target_arch = "x86_64")]
mod number {
    pub(super) const RT_SIGPROCMASK: usize = 14;
    #[cfg(feature = "standalone")]
    pub(super) const EXIT_GROUP: usize = 231;
}

#[cfg(target_arch = "x86_64")]
unsafe fn syscall4(number: usize, a: usize, b: usize, c: usize, d: usize) -> usize {
    let result;
    // SAFETY: the kernel keeps every register but these; what the call does is the caller's to answer for.
    unsafe {
        asm!(
            "syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            lateout("rcx") _, lateout("r11") _, options(nostack),
        );
    }
    result
}

/// `rt_sigprocmask(SIG_BLOCK)` of every signal; the mask that was in force.
pub(crate) fn hold_off_signals() -> SignalSet {
    let (all, mut before): (SignalSet, SignalSet) = (!0, 0);
    // SAFETY: both point to a signal set of the size given; on failure `before` stays empty.
    unsafe {
        syscall4(
            number::RT_SIGPROCMASK,
            SIG_BLOCK,
            &raw const all as usize,
            &raw mut before as usize,
            size_of_val(&all),
        )
    };
    before
}

/// `rt_sigprocmask(SIG_SETMASK)` of a mask that [`hold_off_signals`] gave.
pub(crate) fn set_signal_mask(mask: SignalSet) {
    // SAFETY: points to a signal set of the size given.
    unsafe { syscall4(number::RT_SIGPROCMASK, SIG_SETMASK, &raw const mask as usize, 0, size_of_val(&mask)) };
}

/// `exit_group(2)`.
#[cfg(feature = "standalone")]
pub(crate) fn exit_group(status: usize) -> ! {
    loop {
        // SAFETY: ends the process.
        unsafe { syscall4(number::EXIT_GROUP, status, 0, 0, 0) };
    }
}
