//! Where everything lies in a ring's memory, and the ways to get at it.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{HEADER_LEN, PAGE_LEN, RING_MAGIC, is_ring_len};

/// A pair of words that change together.
#[repr(C, align(16))]
#[derive(Debug, Default)]
pub struct Pair(pub(super) [AtomicU64; 2]);

impl Pair {
    /// Both words, which need not be of the same moment: an exchange says whether they were.
    #[inline]
    pub fn read(&self) -> [u64; 2] {
        [self.0[0].load(Ordering::Acquire), self.0[1].load(Ordering::Acquire)]
    }

    /// Writes `new` if `old` is there.
    ///
    /// # Errors
    ///
    /// What is there instead.
    #[inline]
    pub fn exchange(&self, old: [u64; 2], new: [u64; 2]) -> Result<(), [u64; 2]> {
        let found = exchange(self, old, new);
        if found == old { Ok(()) } else { Err(found) }
    }

    /// The first word.
    #[inline]
    pub(super) fn first(&self) -> u64 {
        self.0[0].load(Ordering::Acquire)
    }

    /// Writes the first word, after all that this thread has written before.
    #[inline]
    pub(super) fn set_first(&self, word: u64) {
        self.0[0].store(word, Ordering::Release);
    }

    /// Writes 0 and `second`, in an order in which an exchange that is made with what was there before never finds half of it.
    pub(super) fn reset(&self, second: u64) {
        self.0[1].store(second, Ordering::Relaxed);
        self.0[0].store(0, Ordering::Relaxed);
    }
}

/// `lock cmpxchg16b`, which core only has where it is inlined.
#[cfg(target_arch = "x86_64")]
#[inline]
fn exchange(at: &Pair, old: [u64; 2], new: [u64; 2]) -> [u64; 2] {
    let [mut low, mut high] = old;
    // SAFETY: 16 aligned bytes, which are atomics. The compiler keeps rbx for itself, so it is put back.
    unsafe {
        core::arch::asm!(
            "xchg rsi, rbx",
            "lock cmpxchg16b xmmword ptr [rdi]",
            "mov rbx, rsi",
            in("rdi") at,
            inout("rsi") new[0] => _,
            in("rcx") new[1],
            inout("rax") low,
            inout("rdx") high,
            options(nostack),
        );
    }
    [low, high]
}

#[cfg(not(target_arch = "x86_64"))]
compile_error!("rings have been built for x86_64 only: src/ring/memory.rs has what another architecture needs");

/// What the reader says of the writers' process ids ([`Words::numbers`]).
pub mod numbers {
    /// Nothing yet.
    pub const UNKNOWN: u32 = 0;
    /// They are the same numbers where it is.
    pub const SAME: u32 = 1;
    /// They are not (pid_namespaces(7)): each process that is forked announces itself.
    pub const OTHER: u32 = 2;
}

/// The page of positions. Both sides map it writable, so what is read of it may be anything.
#[repr(C)]
#[derive(Debug)]
pub struct Words {
    magic: AtomicU64,
    ring_len: AtomicU64,
    _to_64: [u64; 6],
    /// Where the next record begins, and what the state of the last one was when it was taken.
    pub(super) tail: Pair,
    _to_128: [u64; 6],
    /// Up to where everything was read and is on record.
    pub(super) head: AtomicU64,
    /// 1 while the reader sleeps and asks to be woken, by futex(2) or by its socket.
    pub sleeps: AtomicU32,
    /// Counts the times that there was new room; writers wait for it (futex(2)).
    pub room: AtomicU32,
    /// Writers that wait for room.
    pub waiting: AtomicU32,
    /// 1 when the reader has stopped as it was told to: nobody need wait for another.
    pub stopped: AtomicU32,
    /// Whether the writers' process ids are those that the reader sees: one of the values in [`numbers`].
    pub numbers: AtomicU32,
    /// 1 when the writers hold a lock (flock(2)) on another open file description of the memory than the reader was given:
    /// as long as it is held, there are writers, whether or not they are connected.
    pub locked: AtomicU32,
    /// 1 since a reader that goes by this lock, and can be woken by futex(2) at `sleeps`, has taken the ring.
    pub taken: AtomicU32,
    _to_192: [u32; 7],
    /// Events that were not recorded and that no frame has told yet.
    pub lost_events: AtomicU64,
    /// Their bytes.
    pub lost_bytes: AtomicU64,
    /// When the first was lost, nanoseconds since the Unix epoch; 0: none was.
    pub lost_since: AtomicU64,
    /// When the last was.
    pub lost_until: AtomicU64,
}

impl Words {
    /// Where the next record begins.
    pub fn tail_position(&self) -> u64 {
        self.tail.read()[0]
    }

    /// Up to where everything was read and is on record.
    pub fn head_position(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }

    /// Notes events that were lost at a time, and their bytes, for the reader to tell should the writers not come to it.
    pub fn note_losses(&self, events: u64, bytes: u64, ts_ns: u64) {
        self.lost_bytes.fetch_add(bytes, Ordering::Relaxed);
        let _ = self.lost_since.compare_exchange(0, ts_ns, Ordering::Relaxed, Ordering::Relaxed);
        self.lost_until.store(ts_ns, Ordering::Relaxed);
        self.lost_events.fetch_add(events, Ordering::Release);
    }

    /// A frame has told of these.
    pub fn told_losses(&self, events: u64, bytes: u64) {
        self.lost_events.fetch_sub(events, Ordering::Relaxed);
        self.lost_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.lost_since.store(0, Ordering::Relaxed);
    }
}

const _: () = {
    assert!(core::mem::offset_of!(Words, tail) == 64);
    assert!(core::mem::offset_of!(Words, head) == 128);
    assert!(core::mem::offset_of!(Words, numbers) == 152);
    assert!(core::mem::offset_of!(Words, lost_events) == 192);
    assert!(size_of::<Words>() <= PAGE_LEN);
};

/// A ring's memory as it is mapped.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    base: *mut u8,
    ring_len: usize,
}

// SAFETY: what it leads to is shared between processes, and only read and written as that demands.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// A memory that is mapped at `base`: the page, and the ring twice, so that a record that goes over its end lies in
    /// one piece.
    ///
    /// # Safety
    ///
    /// It is mapped so, readable and writable, stays so, and cannot become shorter (`F_SEAL_SHRINK`, fcntl(2)).
    pub(super) unsafe fn new(base: *mut u8, ring_len: usize) -> Option<Self> {
        (is_ring_len(ring_len) && base.cast::<Pair>().is_aligned()).then_some(Self { base, ring_len })
    }

    /// Makes it a ring; it is zeroed.
    pub fn format(&self) {
        self.words().ring_len.store(self.ring_len as u64, Ordering::Relaxed);
        self.words().magic.store(u64::from_le_bytes(RING_MAGIC), Ordering::Release);
    }

    /// Whether it is a ring of its length.
    pub fn is_ring(&self) -> bool {
        let words = self.words();
        words.magic.load(Ordering::Acquire) == u64::from_le_bytes(RING_MAGIC)
            && words.ring_len.load(Ordering::Relaxed) == self.ring_len as u64
    }

    /// The page of positions.
    #[inline]
    pub fn words(&self) -> &Words {
        // SAFETY: `new`'s promise; atomics, of which any bytes are valid ones.
        unsafe { &*self.base.cast() }
    }

    /// Where it is mapped.
    pub(super) fn base(&self) -> *mut u8 {
        self.base
    }

    /// Bytes of the ring.
    #[inline]
    pub fn ring_len(&self) -> usize {
        self.ring_len
    }

    /// The byte at a position; as many as the ring has follow it in one piece.
    #[inline]
    pub(super) fn at(&self, position: u64) -> *mut u8 {
        let offset = position as usize & (self.ring_len - 1);
        // SAFETY: within the mapping.
        unsafe { self.base.add(PAGE_LEN + offset) }
    }

    /// The header of the record at a position.
    #[inline]
    pub(super) fn header(&self, position: u64) -> &Pair {
        debug_assert!(position.is_multiple_of(HEADER_LEN as u64));
        // SAFETY: within the mapping, and aligned as positions of records are.
        unsafe { &*self.at(position).cast() }
    }
}
