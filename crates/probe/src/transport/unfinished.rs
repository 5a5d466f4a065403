//! Records that a signal handler jumped out of (siglongjmp(3)).
//!
//! Nobody would finish such a record, and the server would wait for it. So each thread notes where it begins one, and
//! gives it up when it comes back and cannot be in a handler that merely interrupted it.
//!
//! A program that leaves a handler by swapcontext(3) on another stack and later comes back to finish is taken for one
//! that jumped only if that stack lies close above the old one.

use core::sync::atomic::{AtomicU64, Ordering};

use socktrace_ring::Writer;

use crate::process;
use crate::process::clock::now_ns;
use crate::process::losses::Cause;
use crate::sys::confined::is_confined;
use crate::sys::is_on_alternate_stack;

/// Notes, by thread id: threads whose ids are equal to this modulus share one, and then only the first has it.
const NOTES: usize = 1024;
/// Notes in a cache line; threads made one after the other have theirs in different ones.
const IN_LINE: u32 = 8;
/// What lies at least between a call and one that a handler makes in the middle of it, in bytes: the kernel's frame of a
/// signal, with the processor's registers.
const SIGNAL_FRAME: isize = 1024;
/// No jump goes further up the stack, in bytes: what is further away is another stack.
const FURTHEST_JUMP: isize = 1 << 20;
/// Stacks and records are aligned to this many bits.
const ALIGNMENT: u32 = 4;

/// The notes of all threads.
struct Notes {
    /// Where the call is on the stack (high half) and the position of the record, both without what they are aligned to; 0:
    /// none.
    open: [AtomicU64; NOTES],
    /// Where those write who have no note.
    nowhere: AtomicU64,
}

static ALL: Notes = Notes::none();

impl Notes {
    const fn none() -> Self {
        Self { open: [const { AtomicU64::new(0) }; NOTES], nowhere: AtomicU64::new(0) }
    }

    /// Gives up what a thread left unfinished. `frame` is where its call is on the stack.
    #[inline(always)]
    fn begin(&'static self, writer: &Writer, tid: u32, frame: usize) -> Unfinished {
        let line = tid % (NOTES as u32 / IN_LINE) * IN_LINE;
        let note = &self.open[(line + tid / (NOTES as u32 / IN_LINE) % IN_LINE) as usize];
        let found = note.load(Ordering::Relaxed);
        let is_free = found == 0 || settle(writer, tid, frame, (note, found));
        Unfinished { note: if is_free { note } else { &self.nowhere }, frame: (frame as u64) >> ALIGNMENT << 32 }
    }

    fn is_any(&self) -> bool {
        self.open.iter().chain([&self.nowhere]).any(|note| note.load(Ordering::Relaxed) != 0)
    }
}

/// A thread that is about to begin a record.
pub(super) struct Unfinished {
    /// Its note; [`Notes::nowhere`] if it has none.
    note: &'static AtomicU64,
    /// Where its call is on the stack, as in a note.
    frame: u64,
}

impl Unfinished {
    /// Gives up what the thread left unfinished. `frame` is where the call is on the stack.
    #[inline(always)]
    pub(super) fn new(writer: &Writer, tid: u32, frame: usize) -> Self {
        ALL.begin(writer, tid, frame)
    }

    /// A record may begin at a position.
    #[inline(always)]
    pub(super) fn at(&self, position: u64) {
        self.note.store(self.frame | u64::from((position >> ALIGNMENT) as u32), Ordering::Relaxed);
    }

    /// It is finished, or there was no room for it.
    #[inline(always)]
    pub(super) fn done(&self) {
        // Not before the record is.
        self.note.store(0, Ordering::Release);
    }
}

/// Whether the note is free: what it speaks of is finished, or was left. Otherwise this is a handler in the middle of it,
/// or it is another thread's.
#[cold]
#[inline(never)]
fn settle(writer: &Writer, tid: u32, frame: usize, (note, found): (&AtomicU64, u64)) -> bool {
    let head = writer.memory().words().head_position();
    let ahead = (found as u32).wrapping_sub((head >> ALIGNMENT) as u32);
    let position = head + (u64::from(ahead) << ALIGNMENT);
    if let Some(owner) = writer.unfinished(position) {
        if owner != tid || is_confined() || !was_left(found, frame) {
            return false;
        }
        if writer.abandon(position, tid) {
            // How many bytes it would have had, nobody knows; the connection's next event says it by its offset.
            let now_ns = now_ns();
            process::own().lost.count(0, now_ns, Cause::Left);
            writer.memory().words().note_losses(1, 0, now_ns);
        }
    }
    note.store(0, Ordering::Relaxed);
    true
}

/// Whether the call that made a note is gone: this one lies above it on the same stack, or beside it.
fn was_left(found: u64, frame: usize) -> bool {
    // The halves' difference is right for stacks that are less than 32 GiB apart, and others are too far away.
    let up = ((frame >> ALIGNMENT) as u32).wrapping_sub((found >> 32) as u32).cast_signed();
    let up = (up as isize) << ALIGNMENT;
    (-SIGNAL_FRAME..FURTHEST_JUMP).contains(&up) && !is_on_alternate_stack()
}

/// Whether any thread has a record that is not finished, as far as there are notes.
pub(super) fn is_any() -> bool {
    ALL.is_any()
}

/// The threads whose notes these were are not in the child.
pub(super) fn after_fork() {
    ALL.open.iter().for_each(|note| note.store(0, Ordering::Relaxed));
}

#[cfg(test)]
mod tests {
    use socktrace_ring::{MIN_RING_LEN, Record, create};

    use super::*;

    /// Where a call is on a stack; a handler that interrupts it is below.
    const CALL: usize = 0x7fff_0000;
    const HANDLER: usize = CALL - 0x1000;
    const TID: u32 = 7;
    /// A thread that has the same note.
    const OTHER: u32 = TID + NOTES as u32;

    fn reserve(notes: &'static Notes, writer: &Writer, tid: u32, frame: usize) -> (Unfinished, Record, u64) {
        let unfinished = notes.begin(writer, tid, frame);
        let position = writer.memory().words().tail_position();
        let record = writer.reserve_noting(8, tid, |position| unfinished.at(position)).unwrap();
        (unfinished, record, position)
    }

    #[test]
    fn a_record_is_given_up_when_its_thread_comes_back_elsewhere() {
        process::init().unwrap();
        let notes: &'static Notes = Box::leak(Box::new(Notes::none()));
        let writer = Writer::new(create(MIN_RING_LEN).unwrap().1);
        let lost = || process::own().lost.now().0;
        let (_, _, left) = reserve(notes, &writer, TID, CALL);
        let before = lost();
        // A handler in the middle of it, and another thread, write theirs, and leave it alone.
        for (tid, frame) in [(TID, HANDLER), (OTHER, CALL)] {
            let (unfinished, record, _) = reserve(notes, &writer, tid, frame);
            assert!(core::ptr::eq(unfinished.note, &notes.nowhere));
            record.commit();
            unfinished.done();
        }
        assert_eq!((writer.unfinished(left), lost()), (Some(TID), before));
        // The handler has jumped, to a place further up.
        let (unfinished, mut record, position) = reserve(notes, &writer, TID, CALL + 64);
        assert_eq!((writer.unfinished(left), lost()), (None, before + 1));
        assert!(writer.memory().words().lost_events.load(Ordering::Relaxed) == 1 && notes.is_any());
        record.push(&[0; 8]);
        record.commit();
        unfinished.done();
        assert!(writer.unfinished(position).is_none() && !notes.is_any());
        assert!(core::ptr::eq(notes.begin(&writer, TID, HANDLER).note, unfinished.note), "its own note is free again");
    }
}
