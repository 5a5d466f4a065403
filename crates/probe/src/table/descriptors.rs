//! Which descriptor leads to which traced socket: one word a descriptor, read without locks.

use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, Ordering};

use crate::process;
use crate::sys::confined::is_confined;
use crate::sys::params::{self, Complaint};
use crate::table::connection::{self, Connection, Handle};

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
    #[inline]
    fn pack(self) -> u64 {
        match self {
            Self::Unknown => 0,
            Self::Other => 1,
            Self::Foreign => 5,
            Self::Arrived => 2,
            Self::Traced(handle) => handle.pack() << 2 | 3,
        }
    }

    /// What `pack` packed.
    #[inline]
    pub(crate) fn unpack(bits: u64) -> Self {
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

/// Descriptors of one chunk of the table, 16 KiB: what is not needed is not taken from what the program may have.
const CHUNK_LEN: usize = 1024;
/// Chunks: descriptors below 4,194,304. The kernel's own bound is fs.nr_open, 1,048,576 by default (proc_sys_fs(5)).
const CHUNKS: usize = 4096;

struct Entry {
    slot: AtomicU64,
    /// When it was last seen to lead to its socket, nanoseconds. Of duplicates each has its own: what one of them leads
    /// to says nothing of the others.
    checked_ns: AtomicU64,
}

type Chunk = [Entry; CHUNK_LEN];

/// The table, in chunks that are mapped when a descriptor of theirs is first put in place, and stay for good.
struct Table {
    chunks: [AtomicPtr<Chunk>; CHUNKS],
}

/// The table while something is traced; null otherwise. This one word is all that decides.
static TABLE: AtomicPtr<Table> = AtomicPtr::new(core::ptr::null_mut());
/// The same table, also while nothing is traced.
static MADE: AtomicPtr<Table> = AtomicPtr::new(core::ptr::null_mut());

/// Makes the table, with room for the descriptors that most programs have; nothing is traced before [`begin`].
pub(crate) fn init() -> Result<(), Complaint> {
    if MADE.load(Ordering::Acquire).is_null() {
        let made = params::map(size_of::<Table>())?.cast::<Table>();
        MADE.store(made, Ordering::Release);
    }
    // What a thread put in place while the probe was being stopped.
    clear();
    connection::begin_epoch();
    match chunk_to_write(0) {
        Some(_) => Ok(()),
        None => Err("no memory for the probe in this process"),
    }
}

/// From here on, hooks report.
pub(crate) fn begin() {
    TABLE.store(MADE.load(Ordering::Acquire), Ordering::Release);
}

/// Nothing is traced any more. The table stays mapped, for threads that are in the middle of a call.
pub(crate) fn stop() {
    TABLE.store(core::ptr::null_mut(), Ordering::Release);
    clear();
}

/// Forgets every descriptor.
fn clear() {
    for chunk in made().into_iter().flat_map(|table| &table.chunks) {
        // SAFETY: null, or mapped for good; zeroed memory is a valid chunk.
        for entry in unsafe { chunk.load(Ordering::Acquire).as_ref() }.into_iter().flatten() {
            if entry.slot.load(Ordering::Relaxed) == Slot::Unknown.pack() {
                continue;
            }
            if let Some(connection) = Slot::unpack(entry.slot.swap(Slot::Unknown.pack(), Ordering::AcqRel)).connection()
            {
                connection.remove_descriptor();
            }
        }
    }
}

/// Whether anything is traced.
#[inline]
pub(crate) fn is_tracing() -> bool {
    !TABLE.load(Ordering::Acquire).is_null()
}

/// Whether the table is this process's. A vforked child closes descriptors of its own, while the table in the shared memory
/// is its parent's.
pub(crate) fn owns_descriptors() -> bool {
    // Hooks of a preloaded probe run before it is started, or although it could not be.
    is_tracing() && !process::who().is_guest
}

fn made() -> Option<&'static Table> {
    // SAFETY: null, or mapped for good; zeroed memory is a valid table.
    unsafe { MADE.load(Ordering::Acquire).as_ref() }
}

/// Whether there can be a place for a descriptor: it is not negative, and not beyond what the table is made for.
pub(crate) fn has_place(fd: i32) -> bool {
    (0..(CHUNKS * CHUNK_LEN) as i32).contains(&fd)
}

/// The chunk with a number, made if it is not there; `None` if there is no memory for it.
fn chunk_to_write(number: usize) -> Option<&'static Chunk> {
    let place = made()?.chunks.get(number)?;
    let mut chunk = place.load(Ordering::Acquire);
    if chunk.is_null() {
        if is_confined() {
            return None;
        }
        let mapped = params::map(size_of::<Chunk>()).ok()?.cast::<Chunk>();
        match place.compare_exchange(core::ptr::null_mut(), mapped, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => chunk = mapped,
            Err(other) => {
                // Another thread was first.
                // SAFETY: mapped a moment ago with this length, and nobody's.
                unsafe { params::unmap(mapped.cast(), size_of::<Chunk>()) };
                chunk = other;
            }
        }
    }
    // SAFETY: mapped for good; zeroed memory is a valid chunk.
    Some(unsafe { &*chunk })
}

/// The entry of a descriptor, if anything was ever known of one near it.
#[inline]
fn at(fd: i32) -> Option<&'static Entry> {
    // SAFETY: null, or mapped for good.
    let table = unsafe { TABLE.load(Ordering::Acquire).as_ref() }?;
    entry_in(table, fd)
}

#[inline]
fn entry_in(table: &'static Table, fd: i32) -> Option<&'static Entry> {
    // A negative number is a large unsigned one.
    let index = fd.cast_unsigned() as usize;
    let chunk = table.chunks.get(index / CHUNK_LEN)?.load(Ordering::Acquire);
    // SAFETY: null, or mapped for good; zeroed memory is a valid chunk.
    Some(&unsafe { chunk.as_ref() }?[index % CHUNK_LEN])
}

/// The entry of a descriptor that something is to be put in.
fn at_to_write(fd: i32) -> Option<&'static Entry> {
    if fd > HIGHEST.load(Ordering::Relaxed) {
        HIGHEST.fetch_max(fd, Ordering::AcqRel);
    }
    at(fd).or_else(|| {
        let is_there = is_tracing() && has_place(fd);
        is_there.then(|| chunk_to_write(fd as usize / CHUNK_LEN).map(|chunk| &chunk[fd as usize % CHUNK_LEN]))?
    })
}

/// Calls a function for every descriptor from `first` to `last` of which something is known.
pub(crate) fn for_each_known(first: i32, last: i32, mut call: impl FnMut(i32, Slot)) {
    let last = last.min(HIGHEST.load(Ordering::Acquire));
    if !is_tracing() {
        return;
    }
    let Some(table) = made() else { return };
    let mut fd = first.max(0);
    while fd <= last {
        match entry_in(table, fd) {
            Some(entry) => {
                let bits = entry.slot.load(Ordering::Acquire);
                if bits != Slot::Unknown.pack() {
                    call(fd, Slot::unpack(bits));
                }
                fd += 1;
            }
            // Nothing is known of all the descriptors of its chunk.
            None => fd = (fd as usize + 1).next_multiple_of(CHUNK_LEN) as i32,
        }
    }
}

/// The highest descriptor of which anything was ever known.
static HIGHEST: AtomicI32 = AtomicI32::new(-1);

/// The highest descriptor that there can be.
pub(crate) const LAST: i32 = (CHUNKS * CHUNK_LEN) as i32 - 1;

/// When a descriptor was last seen to lead to its socket.
#[inline]
pub(crate) fn checked_ns(fd: i32) -> u64 {
    at(fd).map_or(0, |entry| entry.checked_ns.load(Ordering::Relaxed))
}

/// Whether it is time to look again whether a descriptor leads to its socket.
#[inline]
pub(crate) fn is_check_due(fd: i32, now_ns: u64, interval_ns: u64) -> bool {
    now_ns.wrapping_sub(checked_ns(fd)) >= interval_ns
}

/// Notes that this is the look.
pub(crate) fn set_checked(fd: i32, now_ns: u64) {
    if let Some(entry) = at(fd) {
        entry.checked_ns.store(now_ns, Ordering::Relaxed);
    }
}

/// Whether a descriptor is known to lead to something that is not traced: [`Slot::Other`] or [`Slot::Foreign`]. So does
/// each while nothing is traced, and a negative number.
#[inline(always)]
pub(crate) fn is_other(fd: i32) -> bool {
    // Nothing is called here: a hook's way past needs no frame on the stack then.
    // SAFETY: null, or mapped for good.
    let Some(table) = (unsafe { TABLE.load(Ordering::Acquire).as_ref() }) else { return true };
    match entry_in(table, fd) {
        Some(entry) => entry.slot.load(Ordering::Acquire) & 3 == 1,
        // Of one that has no place, that; of one near which nothing was ever known, nothing.
        None => !has_place(fd),
    }
}

/// What is known of a descriptor; of all while nothing is traced, and of one beyond the table, that it is not traced.
#[inline]
pub(crate) fn get(fd: i32) -> Slot {
    match at(fd) {
        Some(entry) => Slot::unpack(entry.slot.load(Ordering::Acquire)),
        None if !is_tracing() || !has_place(fd) => Slot::Other,
        None => Slot::Unknown,
    }
}

/// The same, packed.
#[inline]
pub(crate) fn get_packed(fd: i32) -> u64 {
    match at(fd) {
        Some(entry) => entry.slot.load(Ordering::Acquire),
        None => get(fd).pack(),
    }
}

/// Puts a slot in place and gives what was there. Where there is no memory for the place, what the slot led to has one
/// descriptor less, and the descriptor goes on being unknown: calls that only sockets answer ask the kernel.
pub(crate) fn replace(fd: i32, slot: Slot) -> Slot {
    if slot == Slot::Unknown && at(fd).is_none() {
        return get(fd);
    }
    match at_to_write(fd) {
        Some(entry) => Slot::unpack(entry.slot.swap(slot.pack(), Ordering::AcqRel)),
        None => {
            if let Some(connection) = slot.connection() {
                connection.remove_descriptor();
            }
            Slot::Other
        }
    }
}

/// Puts a slot in place if `expected` is there; whether it was.
pub(crate) fn replace_if(fd: i32, expected: Slot, slot: Slot) -> bool {
    at_to_write(fd).is_some_and(|entry| {
        entry.slot.compare_exchange(expected.pack(), slot.pack(), Ordering::AcqRel, Ordering::Relaxed).is_ok()
    })
}
