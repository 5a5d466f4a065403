//! The sockets that are traced: a fixed pool of records, read without locks.
//!
//! A record's description never changes while anybody can see it: a socket that is bound or connected gets a new
//! record. Records are reused round robin, as late as possible, and every reuse changes the record's generation, so a
//! thread that was blocked in a call while its connection was closed still finds what it was, or learns that it
//! cannot know any more. Nothing has to be given back by a thread that is cancelled or jumps out of a signal handler.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use gttr::{Direction, MAX_CONN_ID_LEN};

use crate::name::{Identity, MAX_PATH_LEN, Text, connection_id};
use crate::params::{self, Complaint};
use crate::process;

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
pub(crate) struct Connection {
    generation: AtomicU32,
    /// Descriptors that lead here; 0: free.
    descriptors: AtomicU32,
    /// The transport's session in which its open or listen frame was delivered; 0: in none.
    announced: AtomicU32,
    /// Bytes moved in and out.
    moved: [AtomicU64; 2],
    /// The record of the same socket that has taken this one's place, packed; 0: none has.
    successor: AtomicU64,
    description: UnsafeCell<Description>,
}

/// One use of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handle {
    index: u32,
    generation: u32,
}

/// Index bits in a packed handle; two bits below it are the table's.
const INDEX_BITS: u32 = 30;

impl Handle {
    /// As 62 bits.
    pub(crate) fn pack(self) -> u64 {
        u64::from(self.generation) << INDEX_BITS | u64::from(self.index)
    }

    pub(crate) fn unpack(bits: u64) -> Self {
        // Both halves were packed from 32 and INDEX_BITS bits.
        Self { index: bits as u32 & ((1 << INDEX_BITS) - 1), generation: (bits >> INDEX_BITS) as u32 }
    }

    /// The record, if it has not been reused.
    pub(crate) fn get(self) -> Option<&'static Connection> {
        let connection = POOL.get(self.index)?;
        (connection.generation.load(Ordering::Acquire) == self.generation).then_some(connection)
    }
}

struct Pool {
    records: AtomicPtr<Connection>,
    len: AtomicU32,
    cursor: AtomicU32,
}

static POOL: Pool =
    Pool { records: AtomicPtr::new(core::ptr::null_mut()), len: AtomicU32::new(0), cursor: AtomicU32::new(0) };

impl Pool {
    fn get(&self, index: u32) -> Option<&'static Connection> {
        if index >= self.len.load(Ordering::Acquire) {
            return None;
        }
        // SAFETY: `init` mapped `len` zeroed records for good, and a zeroed record is a valid one.
        Some(unsafe { &*self.records.load(Ordering::Relaxed).add(index as usize) })
    }
}

/// Makes a pool for as many descriptors; twice as many records, so that closed ones rest before they are reused.
pub(crate) fn init(max_fds: u32) -> Result<(), Complaint> {
    let len = max_fds * 2;
    let records = params::map(len as usize * size_of::<Connection>())?;
    POOL.records.store(records.cast(), Ordering::Relaxed);
    POOL.len.store(len, Ordering::Release);
    Ok(())
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

/// Makes a record with one descriptor.
pub(crate) fn allocate(new: &New<'_>) -> Option<Handle> {
    let len = POOL.len.load(Ordering::Acquire);
    for _ in 0..len {
        let index = POOL.cursor.fetch_add(1, Ordering::Relaxed) % len;
        let connection = POOL.get(index)?;
        let free = connection.descriptors.load(Ordering::Relaxed) == 0;
        if !free || connection.descriptors.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            continue;
        }
        let generation = connection.generation.fetch_add(1, Ordering::AcqRel) + 1;
        connection.announced.store(0, Ordering::Relaxed);
        connection.moved.iter().for_each(|moved| moved.store(0, Ordering::Relaxed));
        connection.successor.store(0, Ordering::Relaxed);
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
        return Some(Handle { index, generation });
    }
    None
}

impl Connection {
    pub(crate) fn description(&self) -> &Description {
        // SAFETY: written before the handle that led here was given out, and not again before the pool has gone
        // round, which `Handle::get` notices.
        unsafe { &*self.description.get() }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.description().kind
    }

    /// One more descriptor leads here.
    pub(crate) fn add_descriptor(&self) {
        self.descriptors.fetch_add(1, Ordering::SeqCst);
    }

    /// One descriptor less; whether it was the last. Its id and path stay readable until the pool has gone round.
    pub(crate) fn remove_descriptor(&self) -> bool {
        let less = |n: u32| n.checked_sub(1);
        self.descriptors.fetch_update(Ordering::AcqRel, Ordering::Relaxed, less) == Ok(1)
    }

    pub(crate) fn has_other_descriptors(&self) -> bool {
        self.descriptors.load(Ordering::SeqCst) > 1
    }

    /// Makes a record take this one's place, unless another has: that one then.
    pub(crate) fn succeed_by(&self, new: Handle) -> Result<(), Handle> {
        let changed = self.successor.compare_exchange(0, new.pack(), Ordering::SeqCst, Ordering::SeqCst);
        changed.map(|_| ()).map_err(Handle::unpack)
    }

    /// The record that has taken this one's place.
    pub(crate) fn successor(&self) -> Option<Handle> {
        match self.successor.load(Ordering::SeqCst) {
            0 => None,
            packed => Some(Handle::unpack(packed)),
        }
    }

    /// Notes bytes moved; how many had been before.
    pub(crate) fn add_moved(&self, direction: Direction, bytes: u64) -> u64 {
        self.moved[usize::from(direction == Direction::Out)].fetch_add(bytes, Ordering::Relaxed)
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
