//! The sockets that are traced: a pool of records that grows, read without locks.
//!
//! A record's description never changes while anybody can see it: a socket that is bound or connected gets a new
//! record. Records are reused round robin, as late as possible, and every reuse changes the record's generation, so a
//! thread that was blocked in a call while its connection was closed still finds what it was, or learns that it
//! cannot know any more. Nothing has to be given back by a thread that is cancelled or jumps out of a signal handler.

use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use gttr::{Direction, MAX_CONN_ID_LEN};

use super::uses::Uses;
use crate::process;
use crate::sys::confined::is_confined;
use crate::sys::params::{self, Complaint};
use crate::sys::text::Text;
use crate::table::name::{Identity, MAX_PATH_LEN, connection_id};

/// What a socket is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Made by socket(2), perhaps bound; nothing has moved.
    Idle,
    /// Accepts connections.
    Listening,
    /// Bytes may move.
    Open,
}

/// Socket types of socket(2), which are the same on every architecture but MIPS.
pub(crate) const SOCK_STREAM: u32 = 1;
pub(crate) const SOCK_DGRAM: u32 = 2;
pub(crate) const SOCK_SEQPACKET: u32 = 5;

/// What does not change about a record.
pub(crate) struct Description {
    pub(crate) kind: Kind,
    /// Inode number of the socket; what a descriptor is checked against.
    pub(crate) inode: u64,
    /// SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET (socket(2)).
    pub(crate) socket_type: u32,
    /// Inode number of the other end, of a socketpair(2); 0: it is none.
    pub(crate) mate: u64,
    /// The descriptor it was first seen as.
    pub(crate) fd: i32,
    /// What made it known, `accept4` say.
    pub(crate) how: &'static str,
    /// Since when it has been known as what it is here, nanoseconds since the Unix epoch.
    pub(crate) since_ns: u64,
    /// Whether `socket_paths` asks for it. Only a datagram socket is kept without: single messages may be asked for.
    pub(crate) wanted: bool,
    pub(crate) path: Text<MAX_PATH_LEN>,
    pub(crate) id: Text<MAX_CONN_ID_LEN>,
}

/// A traced socket.
#[repr(align(64))]
pub(crate) struct Connection {
    pub(super) uses: Uses,
    /// The start of the probe that it was made in.
    epoch: AtomicU32,
    /// The transport's session in which its open or listen frame was delivered; 0: in none.
    announced: AtomicU32,
    /// Bytes moved in and out.
    moved: [AtomicU64; 2],
    /// Whether it was told that nothing more can be received.
    has_ended: AtomicBool,
    description: UnsafeCell<Description>,
}

/// One use of a record: the record's address, and its generation at the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handle {
    connection: NonNull<Connection>,
    generation: u32,
}

/// Bits of a user-space address: the kernel gives none above them that was not asked for by a hint (mmap(2)).
const ADDRESS_BITS: u32 = 47;
/// Records are aligned to so many bits (`repr(align)`), which an address does not need.
const ALIGNMENT_BITS: u32 = 6;
/// What is left of 62 bits: the two bits below a packed handle are the table's.
const GENERATION_BITS: u32 = 62 - (ADDRESS_BITS - ALIGNMENT_BITS);
const GENERATION_MASK: u32 = (1 << GENERATION_BITS) - 1;

impl Handle {
    /// As 62 bits, never 0.
    #[inline]
    pub(crate) fn pack(self) -> u64 {
        u64::from(self.generation) << (ADDRESS_BITS - ALIGNMENT_BITS)
            | self.connection.as_ptr() as u64 >> ALIGNMENT_BITS
    }

    /// What [`Handle::pack`] packed.
    #[inline]
    pub(crate) fn unpack(bits: u64) -> Self {
        let address = (bits << ALIGNMENT_BITS) & ((1 << ADDRESS_BITS) - 1);
        // SAFETY: only what `pack` gave is unpacked, which was the address of a record.
        let connection = unsafe { NonNull::new_unchecked(address as *mut Connection) };
        Self { connection, generation: (bits >> (ADDRESS_BITS - ALIGNMENT_BITS)) as u32 }
    }

    /// The record, if it has not been reused.
    #[inline]
    pub(crate) fn get(self) -> Option<&'static Connection> {
        // SAFETY: records stay mapped for good.
        let connection = unsafe { self.connection.as_ref() };
        connection.uses.is_of(self.generation).then_some(connection)
    }
}

/// Records in chunks, each twice as long as the one before it: the first has [`FIRST_LEN`].
struct Pool {
    chunks: [AtomicPtr<Connection>; MAX_CHUNKS],
    /// Records that there are.
    len: AtomicU32,
    /// Records that lead somewhere.
    used: AtomicU32,
    cursor: AtomicU32,
}

/// Records of the first chunk, some 20 KiB: what is not needed is not taken from what the program may have (RLIMIT_DATA).
const FIRST_LEN: u32 = 16;
/// No record is used again before so many were used.
const RESTING_LEN: u32 = 256;
/// Two records for each of the most descriptors that a table has room for.
const MAX_CHUNKS: usize = 20;

static POOL: Pool = Pool {
    chunks: [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_CHUNKS],
    len: AtomicU32::new(0),
    used: AtomicU32::new(0),
    cursor: AtomicU32::new(0),
};

/// How many records lead somewhere.
pub(super) fn used() -> &'static AtomicU32 {
    &POOL.used
}

impl Pool {
    /// The record at an index below `len`.
    fn at(&self, index: u32) -> Option<&'static Connection> {
        let from_first = index + FIRST_LEN;
        let chunk = (from_first / FIRST_LEN).ilog2();
        let first = self.chunks.get(chunk as usize)?.load(Ordering::Acquire);
        let offset = from_first - (FIRST_LEN << chunk);
        // SAFETY: null, or mapped with so many zeroed records for good; a zeroed record is a valid one.
        (!first.is_null()).then(|| unsafe { &*first.add(offset as usize) })
    }

    /// Adds a chunk, so that there are more than `len` records; whether there are.
    #[cold]
    fn grow(&self, len: u32) -> bool {
        let chunk = (len + FIRST_LEN) / FIRST_LEN;
        let number = chunk.ilog2() as usize;
        let Some(slot) = self.chunks.get(number) else { return false };
        let records = FIRST_LEN << number;
        let Ok(made) = params::map(records as usize * size_of::<Connection>()) else { return false };
        if slot.compare_exchange(core::ptr::null_mut(), made.cast(), Ordering::AcqRel, Ordering::Acquire).is_err() {
            // Another thread was first.
            // SAFETY: mapped a moment ago with this length, and nobody's.
            unsafe { params::unmap(made, records as usize * size_of::<Connection>()) };
        }
        self.len.fetch_max(len + records, Ordering::AcqRel);
        true
    }
}

/// Counts the starts of the probe.
static EPOCH: AtomicU32 = AtomicU32::new(0);

/// The start of the probe that this is in: a number that no other has had.
fn epoch() -> u32 {
    EPOCH.load(Ordering::Acquire)
}

/// From here on, records are of a new start.
pub(super) fn begin_epoch() {
    EPOCH.fetch_add(1, Ordering::AcqRel);
}

/// Makes the first records.
pub(crate) fn init() -> Result<(), Complaint> {
    if POOL.len.load(Ordering::Acquire) != 0 || POOL.grow(0) {
        return Ok(());
    }
    Err("no memory for the probe in this process")
}

/// Makes at least so many records, for a program that is about to be unable to have more.
pub(crate) fn make_room(records: u32) {
    let enough = records.max(4 * POOL.used.load(Ordering::Relaxed));
    let mut len = POOL.len.load(Ordering::Acquire);
    while len < enough && POOL.grow(len) {
        len = POOL.len.load(Ordering::Acquire);
    }
}

/// What a new record is made of.
pub(crate) struct New<'a> {
    pub(crate) kind: Kind,
    pub(crate) inode: u64,
    pub(crate) socket_type: u32,
    pub(crate) mate: u64,
    pub(crate) fd: i32,
    pub(crate) how: &'static str,
    pub(crate) wanted: bool,
    pub(crate) path: &'a [u8],
    pub(crate) ts_ns: u64,
}

/// Makes a record with one descriptor; `None` if there is no memory for it.
pub(crate) fn allocate(new: &New<'_>) -> Option<Handle> {
    let mut len = POOL.len.load(Ordering::Acquire);
    // As many records rest as are in use, and many in any case, so that a thread that was blocked in a call finds whose bytes
    // it has.
    let is_full = POOL.used.load(Ordering::Relaxed) >= len / 2;
    let reuses_early = len < RESTING_LEN && POOL.cursor.load(Ordering::Relaxed) >= len;
    if (is_full || reuses_early) && !is_confined() {
        POOL.grow(len);
        len = POOL.len.load(Ordering::Acquire);
    }
    for _ in 0..len {
        let index = POOL.cursor.fetch_add(1, Ordering::Relaxed) % len;
        let connection = POOL.at(index)?;
        let Some(generation) = connection.uses.claim(GENERATION_MASK, &POOL.used) else { continue };
        connection.epoch.store(epoch(), Ordering::Relaxed);
        connection.announced.store(0, Ordering::Relaxed);
        connection.moved.iter().for_each(|moved| moved.store(0, Ordering::Relaxed));
        connection.has_ended.store(false, Ordering::Relaxed);
        let identity = Identity {
            fd: new.fd,
            ts_ms: new.ts_ns / 1_000_000,
            pid: process::who().pid,
            inode: new.inode,
            count: process::own().connections.fetch_add(1, Ordering::Relaxed) + 1,
            mate: new.mate,
        };
        let mut path = Text::new();
        path.push(new.path);
        let description = Description {
            kind: new.kind,
            inode: new.inode,
            socket_type: new.socket_type,
            mate: new.mate,
            fd: new.fd,
            how: new.how,
            since_ns: new.ts_ns,
            wanted: new.wanted,
            path,
            id: connection_id(new.path, &identity),
        };
        // SAFETY: the record was free and is claimed; handles to its former uses no longer lead here.
        unsafe { connection.description.get().write(description) };
        return Some(Handle { connection: NonNull::from(connection), generation });
    }
    None
}

impl Connection {
    pub(crate) fn description(&self) -> &Description {
        // SAFETY: written before the handle that led here was given out, and not again before the pool has gone
        // round, which `Handle::get` notices.
        unsafe { &*self.description.get() }
    }

    /// Whether it is of a time before the probe was stopped and started anew.
    pub(crate) fn is_of_former_start(&self) -> bool {
        self.epoch.load(Ordering::Relaxed) != epoch()
    }

    pub(crate) fn kind(&self) -> Kind {
        self.description().kind
    }

    /// One more descriptor leads here.
    pub(crate) fn add_descriptor(&self) {
        self.uses.add();
    }

    /// One descriptor less; whether it was the last. Its id and path stay readable until the pool has gone round.
    pub(crate) fn remove_descriptor(&self) -> bool {
        self.uses.remove(&POOL.used)
    }

    /// Notes bytes moved; how many had been before.
    pub(crate) fn add_moved(&self, direction: Direction, bytes: u64) -> u64 {
        self.moved[usize::from(direction == Direction::Out)].fetch_add(bytes, Ordering::Relaxed)
    }

    /// Makes it this call's to tell that nothing more can be received: whether it is, once for each record.
    pub(crate) fn claim_end(&self) -> bool {
        !self.has_ended.swap(true, Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn is_announced_in(&self, session: u32) -> bool {
        self.announced.load(Ordering::Relaxed) == session
    }

    pub(crate) fn set_announced_in(&self, session: u32) {
        self.announced.store(session, Ordering::Relaxed);
    }

    /// Makes it this thread's to announce it in a session: whether it is. `from` is the session that it was announced in.
    pub(crate) fn claim_announcement(&self, from: u32, session: u32) -> bool {
        self.announced.compare_exchange(from, session, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    pub(crate) fn announced_in(&self) -> u32 {
        self.announced.load(Ordering::Relaxed)
    }
}
