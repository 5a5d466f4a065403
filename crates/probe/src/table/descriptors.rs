//! Which descriptor leads to which traced socket: one word a descriptor, read without locks.

use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use super::uses::{Place, Places, Uses};
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
    place: Place,
    /// When it was last seen to lead to its socket, nanoseconds. Of duplicates each has its own: what one of them leads
    /// to says nothing of the others.
    checked_ns: AtomicU64,
}

type Chunk = [Entry; CHUNK_LEN];

/// The table, in chunks that are mapped when a descriptor of theirs is first put in place, and stay for good.
struct Table {
    chunks: [AtomicPtr<Chunk>; CHUNKS],
    /// Nothing was ever known of descriptors from here on.
    end: AtomicI32,
}

/// The table while something is traced; null otherwise. This one word is all that decides.
static TABLE: AtomicPtr<Table> = AtomicPtr::new(core::ptr::null_mut());
/// The same table, also while nothing is traced.
static MADE: AtomicPtr<Table> = AtomicPtr::new(core::ptr::null_mut());

/// The highest descriptor that there can be.
pub(crate) const LAST: i32 = (CHUNKS * CHUNK_LEN) as i32 - 1;

/// Whether there can be a place for a descriptor: it is not negative, and not beyond what the table is made for.
pub(crate) fn has_place(fd: i32) -> bool {
    (0..(CHUNKS * CHUNK_LEN) as i32).contains(&fd)
}

impl Table {
    /// An empty one, for good.
    fn map() -> Result<&'static Self, Complaint> {
        // SAFETY: zeroed memory is a valid table.
        Ok(unsafe { &*params::map(size_of::<Self>())?.cast::<Self>() })
    }

    /// The entry of a descriptor, if anything was ever known of one near it.
    #[inline]
    fn entry(&self, fd: i32) -> Option<&Entry> {
        // A negative number is a large unsigned one.
        let index = fd.cast_unsigned() as usize;
        let chunk = self.chunks.get(index / CHUNK_LEN)?.load(Ordering::Acquire);
        // SAFETY: null, or mapped for good; zeroed memory is a valid chunk.
        Some(&unsafe { chunk.as_ref() }?[index % CHUNK_LEN])
    }

    /// The entry of a descriptor that something is to be put in; `None` if there is no place, or no memory, for it.
    fn entry_to_write(&self, fd: i32) -> Option<&Entry> {
        if !has_place(fd) {
            return None;
        }
        let chunk = self.chunk_to_write(fd as usize / CHUNK_LEN)?;
        if fd >= self.end.load(Ordering::Relaxed) {
            self.end.fetch_max(fd + 1, Ordering::AcqRel);
        }
        Some(&chunk[fd as usize % CHUNK_LEN])
    }

    /// The chunk with a number, made if it is not there; `None` if there is no memory for it.
    fn chunk_to_write(&self, number: usize) -> Option<&Chunk> {
        let place = self.chunks.get(number)?;
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

    /// Shows every descriptor from `first` to `last` of which something is known, with its place.
    fn for_each_known(&self, first: i32, last: i32, mut show: impl FnMut(i32, &Place)) {
        let end = last.saturating_add(1).min(self.end.load(Ordering::Acquire));
        let mut fd = first.max(0);
        while fd < end {
            match self.entry(fd) {
                Some(entry) => {
                    if entry.place.get() != Slot::Unknown.pack() {
                        show(fd, &entry.place);
                    }
                    fd += 1;
                }
                // Nothing is known of all the descriptors of its chunk.
                None => fd = (fd as usize + 1).next_multiple_of(CHUNK_LEN) as i32,
            }
        }
    }

    /// Forgets every descriptor.
    fn clear(&self) {
        self.for_each_known(0, LAST, |_, place| {
            if let Some(connection) = Slot::unpack(place.replace(Slot::Unknown.pack())).connection() {
                connection.remove_descriptor();
            }
        });
    }

    #[inline]
    fn get_packed(&self, fd: i32) -> u64 {
        match self.entry(fd) {
            Some(entry) => entry.place.get(),
            None => if has_place(fd) { Slot::Unknown } else { Slot::Other }.pack(),
        }
    }

    /// Puts a slot in place and gives what was there. Where there is no memory for the place, what the slot led to has one
    /// descriptor less, and the descriptor goes on being unknown: calls that only sockets answer ask the kernel.
    fn replace(&self, fd: i32, slot: Slot) -> Slot {
        if slot == Slot::Unknown && self.entry(fd).is_none() {
            return Slot::unpack(self.get_packed(fd));
        }
        match self.entry_to_write(fd) {
            Some(entry) => Slot::unpack(entry.place.replace(slot.pack())),
            None => {
                leads_nowhere(slot);
                Slot::Other
            }
        }
    }
}

impl Places for Table {
    fn uses(&self, word: u64) -> Option<&Uses> {
        Slot::unpack(word).connection().map(|connection| &connection.uses)
    }

    fn each(&self, mut show: impl FnMut(&Place)) {
        self.for_each_known(0, LAST, |_, place| show(place));
    }

    fn used(&self) -> &AtomicU32 {
        connection::used()
    }
}

/// A slot was not put in place.
fn leads_nowhere(slot: Slot) {
    if let Some(connection) = slot.connection() {
        connection.remove_descriptor();
    }
}

/// Makes the table, with room for the descriptors that most programs have; nothing is traced before [`begin`].
pub(crate) fn init() -> Result<(), Complaint> {
    let table = match made() {
        Some(table) => table,
        None => Table::map()?,
    };
    MADE.store(core::ptr::from_ref(table).cast_mut(), Ordering::Release);
    // What a thread put in place while the probe was being stopped.
    table.clear();
    connection::begin_epoch();
    table.chunk_to_write(0).map(|_| ()).ok_or("no memory for the probe in this process")
}

/// From here on, hooks report.
pub(crate) fn begin() {
    TABLE.store(MADE.load(Ordering::Acquire), Ordering::Release);
}

/// Nothing is traced any more. The table stays mapped, for threads that are in the middle of a call.
pub(crate) fn stop() {
    TABLE.store(core::ptr::null_mut(), Ordering::Release);
    if let Some(table) = made() {
        table.clear();
    }
}

fn made() -> Option<&'static Table> {
    // SAFETY: null, or mapped for good.
    unsafe { MADE.load(Ordering::Acquire).as_ref() }
}

/// The table, while something is traced.
#[inline(always)]
fn table() -> Option<&'static Table> {
    // SAFETY: null, or mapped for good.
    unsafe { TABLE.load(Ordering::Acquire).as_ref() }
}

/// Whether anything is traced.
#[inline]
pub(crate) fn is_tracing() -> bool {
    table().is_some()
}

/// Whether the table is this process's. A vforked child closes descriptors of its own, while the table in the shared memory
/// is its parent's.
pub(crate) fn owns_descriptors() -> bool {
    // Hooks of a preloaded probe run before it is started, or although it could not be.
    is_tracing() && !process::who().is_guest
}

#[inline]
fn entry(fd: i32) -> Option<&'static Entry> {
    table()?.entry(fd)
}

/// Calls a function for every descriptor from `first` to `last` of which something is known.
pub(crate) fn for_each_known(first: i32, last: i32, mut call: impl FnMut(i32, Slot)) {
    if let Some(table) = table() {
        table.for_each_known(first, last, |fd, place| call(fd, Slot::unpack(place.get())));
    }
}

/// When a descriptor was last seen to lead to its socket.
#[inline]
pub(crate) fn checked_ns(fd: i32) -> u64 {
    entry(fd).map_or(0, |entry| entry.checked_ns.load(Ordering::Relaxed))
}

/// Whether it is time to look again whether a descriptor leads to its socket.
#[inline]
pub(crate) fn is_check_due(fd: i32, now_ns: u64, interval_ns: u64) -> bool {
    now_ns.wrapping_sub(checked_ns(fd)) >= interval_ns
}

/// Notes that this is the look.
pub(crate) fn set_checked(fd: i32, now_ns: u64) {
    if let Some(entry) = entry(fd) {
        entry.checked_ns.store(now_ns, Ordering::Relaxed);
    }
}

/// Whether a descriptor is known to lead to something that is not traced: [`Slot::Other`] or [`Slot::Foreign`]. So does
/// each while nothing is traced, and a negative number.
#[inline(always)]
pub(crate) fn is_other(fd: i32) -> bool {
    // Nothing is called here: a hook's way past needs no frame on the stack then.
    let Some(table) = table() else { return true };
    match table.entry(fd) {
        Some(entry) => entry.place.get() & 3 == 1,
        // Of one that has no place, that; of one near which nothing was ever known, nothing.
        None => !has_place(fd),
    }
}

/// What is known of a descriptor; of all while nothing is traced, and of one beyond the table, that it is not traced.
#[inline]
pub(crate) fn get(fd: i32) -> Slot {
    Slot::unpack(get_packed(fd))
}

/// The same, packed.
#[inline]
pub(crate) fn get_packed(fd: i32) -> u64 {
    table().map_or(Slot::Other.pack(), |table| table.get_packed(fd))
}

/// Puts a slot in place and gives what was there. Where it cannot be put in place, what it led to has one descriptor less.
pub(crate) fn replace(fd: i32, slot: Slot) -> Slot {
    match table() {
        Some(table) => table.replace(fd, slot),
        None => {
            leads_nowhere(slot);
            Slot::Other
        }
    }
}

/// Puts a slot in place if `expected` is there; whether it was.
pub(crate) fn replace_if(fd: i32, expected: Slot, slot: Slot) -> bool {
    table()
        .and_then(|table| table.entry_to_write(fd))
        .is_some_and(|entry| entry.place.replace_if(expected.pack(), slot.pack()))
}

/// Makes a new record take the place of another, for every descriptor that leads there, of which `fd` is one. If another
/// thread was first, the record that it made.
pub(crate) fn succeed(old: Handle, new: Handle, fd: i32) -> Option<Result<Handle, Handle>> {
    let [old, word] = [old, new].map(|handle| Slot::Traced(handle).pack());
    let changed = made()?.succeed(old, word, entry(fd).map(|entry| &entry.place))?;
    Some(changed.map(|()| new).map_err(|other| Handle::unpack(other >> 2)))
}

/// Makes every descriptor that leads to a record, of which `fd` is one, lead elsewhere.
pub(crate) fn move_all(old: Handle, new: Slot, fd: i32) {
    if let Some(table) = made() {
        table.move_all(Slot::Traced(old).pack(), new.pack(), entry(fd).map(|entry| &entry.place));
    }
}

/// A descriptor was made to lead to `slot`, whose record another thread may have replaced at the same time, when it did not
/// see this descriptor.
pub(crate) fn catch_up(fd: i32, slot: Slot) {
    if let Some(table) = made() {
        table.catch_up(slot.pack(), entry(fd).map(|entry| &entry.place));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::connection::{Kind, New, SOCK_STREAM, allocate};

    fn record(fd: i32) -> Handle {
        process::init().unwrap();
        connection::init().unwrap();
        let new = New {
            kind: Kind::Idle,
            inode: 1,
            socket_type: SOCK_STREAM,
            mate: 0,
            fd,
            how: "socket",
            wanted: true,
            path: b"",
            ts_ns: 1,
        };
        allocate(&new).unwrap()
    }

    fn known(table: &Table) -> Vec<(i32, Slot)> {
        let mut known = vec![];
        table.for_each_known(0, LAST, |fd, place| known.push((fd, Slot::unpack(place.get()))));
        known
    }

    #[test]
    fn what_is_put_in_place_is_found() {
        let table = Table::map().unwrap();
        let get = |fd| Slot::unpack(table.get_packed(fd));
        assert_eq!(
            [get(0), get(LAST), get(-1), get(LAST + 1)],
            [Slot::Unknown, Slot::Unknown, Slot::Other, Slot::Other]
        );
        for (fd, slot) in [(5, Slot::Other), (6, Slot::Arrived), (LAST, Slot::Foreign)] {
            assert_eq!((table.replace(fd, slot), get(fd)), (Slot::Unknown, slot));
        }
        assert_eq!(known(table), [(5, Slot::Other), (6, Slot::Arrived), (LAST, Slot::Foreign)]);
        let mut some = vec![];
        table.for_each_known(6, LAST - 1, |fd, _| some.push(fd));
        assert_eq!(some, [6]);
        assert_eq!((table.replace(6, Slot::Unknown), get(6)), (Slot::Arrived, Slot::Unknown));
        assert_eq!((table.replace(-1, Slot::Other), table.replace(LAST + 1, Slot::Other)), (Slot::Other, Slot::Other));
        table.clear();
        assert_eq!(known(table), []);
    }

    #[test]
    fn descriptors_of_one_socket_move_together_and_its_record_ends_with_the_last() {
        let table = Table::map().unwrap();
        let (old, new) = (record(3), record(3));
        let [old_slot, new_slot] = [old, new].map(Slot::Traced);
        let connection = old.get().unwrap();
        table.replace(3, old_slot);
        connection.add_descriptor();
        table.replace(4000, old_slot);
        assert_eq!(known(table), [(3, old_slot), (4000, old_slot)]);
        let at = table.entry(3).map(|entry| &entry.place);
        assert_eq!(table.succeed(old_slot.pack(), new_slot.pack(), at), Some(Ok(())));
        assert_eq!(known(table), [(3, new_slot), (4000, new_slot)]);
        // Who comes later is told which record was first.
        let late = record(3);
        assert_eq!(table.succeed(old_slot.pack(), Slot::Traced(late).pack(), at), Some(Err(new_slot.pack())));
        // The old one is free; it is readable until it is used again, and what leads to it is found to be of before.
        assert_eq!(old.get().map(|connection| connection.description().fd), Some(3));
        table.replace(5, old_slot);
        old.get().unwrap().add_descriptor();
        table.catch_up(old_slot.pack(), table.entry(5).map(|entry| &entry.place));
        assert_eq!(known(table), [(3, new_slot), (5, new_slot), (4000, new_slot)]);
        let connection = new.get().unwrap();
        table.replace(3, Slot::Unknown);
        table.replace(5, Slot::Unknown);
        assert!(!connection.remove_descriptor() && !connection.remove_descriptor());
        assert_eq!(table.replace(4000, Slot::Unknown), new_slot);
        assert!(connection.remove_descriptor());
    }

    #[test]
    fn a_record_that_is_used_again_is_another() {
        let first = record(7);
        assert!(first.get().unwrap().remove_descriptor());
        let again = (0..1_000_000).map(|_| {
            let next = record(8);
            next.get().unwrap().remove_descriptor();
            next
        });
        let again = again.take(1_000_000).find(|next| first.get().is_none() || *next == first);
        assert!(again.is_some_and(|next| next != first) && first.get().is_none());
        assert_eq!(Slot::unpack(Slot::Traced(first).pack()), Slot::Traced(first));
    }
}
