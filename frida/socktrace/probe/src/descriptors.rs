//! Which descriptor leads to which traced socket: one word a descriptor, read without locks.

use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use crate::connection::{Connection, Handle};
use crate::params::{self, Complaint};

/// What is known of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Nothing. A call that only sockets answer makes us ask the kernel; read(2) and write(2) do not.
    Unknown,
    /// Not to be traced: no UNIX socket, or not asked for.
    Other,
    /// Not the program's but Frida's, and so is what arrives on it.
    Foreign,
    /// Came out of a message (SCM_RIGHTS, unix(7)): whatever is done with it first makes us ask the kernel.
    Arrived,
    /// A traced socket.
    Traced(Handle),
}

impl Slot {
    fn pack(self) -> u64 {
        match self {
            Self::Unknown => 0,
            Self::Other => 1,
            Self::Foreign => 5,
            Self::Arrived => 2,
            Self::Traced(handle) => handle.pack() << 2 | 3,
        }
    }

    fn unpack(bits: u64) -> Self {
        match bits & 3 {
            0 => Self::Unknown,
            1 if bits == 5 => Self::Foreign,
            1 => Self::Other,
            2 => Self::Arrived,
            _ => Self::Traced(Handle::unpack(bits >> 2)),
        }
    }

    pub(crate) fn connection(self) -> Option<&'static Connection> {
        match self {
            Self::Traced(handle) => handle.get(),
            _ => None,
        }
    }
}

static SLOTS: AtomicPtr<AtomicU64> = AtomicPtr::new(core::ptr::null_mut());
/// Of each descriptor, when it was last seen to lead to its socket, nanoseconds since the Unix epoch. Of duplicates each
/// has its own: what one of them leads to says nothing of the others.
static CHECKED: AtomicPtr<AtomicU64> = AtomicPtr::new(core::ptr::null_mut());
/// 0 while nothing is traced.
static LEN: AtomicU32 = AtomicU32::new(0);

/// Makes the table; nothing is traced before.
pub(crate) fn init(max_fds: u32) -> Result<(), Complaint> {
    let map = || params::map(max_fds as usize * size_of::<AtomicU64>());
    SLOTS.store(map()?.cast(), Ordering::Relaxed);
    CHECKED.store(map()?.cast(), Ordering::Relaxed);
    LEN.store(max_fds, Ordering::Release);
    Ok(())
}

/// Nothing is traced any more. The table stays mapped, for threads that are in the middle of a call.
pub(crate) fn stop() {
    LEN.store(0, Ordering::Release);
}

/// Descriptors from 0 that are traced.
pub(crate) fn len() -> i32 {
    LEN.load(Ordering::Acquire).cast_signed()
}

#[inline]
fn at(fd: i32) -> Option<&'static AtomicU64> {
    word_of(&SLOTS, fd)
}

#[inline]
fn word_of(table: &AtomicPtr<AtomicU64>, fd: i32) -> Option<&'static AtomicU64> {
    // A negative number is a large unsigned one.
    let index = fd.cast_unsigned();
    if index >= LEN.load(Ordering::Acquire) {
        return None;
    }
    // SAFETY: `init` mapped `LEN` zeroed words for good before it set `LEN`.
    Some(unsafe { &*table.load(Ordering::Relaxed).add(index as usize) })
}

/// When a descriptor was last seen to lead to its socket.
#[inline]
pub(crate) fn checked_ns(fd: i32) -> u64 {
    word_of(&CHECKED, fd).map_or(0, |checked| checked.load(Ordering::Relaxed))
}

/// Whether it is time to look again whether a descriptor leads to its socket.
#[inline]
pub(crate) fn is_check_due(fd: i32, now_ns: u64, interval_ns: u64) -> bool {
    now_ns.wrapping_sub(checked_ns(fd)) >= interval_ns
}

/// Notes that this is the look.
pub(crate) fn set_checked(fd: i32, now_ns: u64) {
    if let Some(checked) = word_of(&CHECKED, fd) {
        checked.store(now_ns, Ordering::Relaxed);
    }
}

/// Whether a descriptor is known to lead to something that is not traced: [`Slot::Other`] or [`Slot::Foreign`].
#[inline(always)]
pub(crate) fn is_other(fd: i32) -> bool {
    at(fd).is_none_or(|slot| slot.load(Ordering::Acquire) & 3 == 1)
}

/// What is known of a descriptor; of one beyond the table, that it is not traced.
#[inline]
pub(crate) fn get(fd: i32) -> Slot {
    at(fd).map_or(Slot::Other, |slot| Slot::unpack(slot.load(Ordering::Acquire)))
}

/// Puts a slot in place and gives what was there.
pub(crate) fn replace(fd: i32, slot: Slot) -> Slot {
    at(fd).map_or(Slot::Other, |word| Slot::unpack(word.swap(slot.pack(), Ordering::AcqRel)))
}

/// Puts a slot in place if `expected` is there; whether it was.
pub(crate) fn replace_if(fd: i32, expected: Slot, slot: Slot) -> bool {
    at(fd).is_some_and(|word| {
        word.compare_exchange(expected.pack(), slot.pack(), Ordering::AcqRel, Ordering::Relaxed).is_ok()
    })
}
