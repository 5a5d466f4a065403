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

/// Where the call is on the stack (high half) and the position of the record, both without what they are aligned to; 0: none.
static OPEN: [AtomicU64; NOTES] = [const { AtomicU64::new(0) }; NOTES];
/// Where those write who have no note.
static NOWHERE: AtomicU64 = AtomicU64::new(0);

/// A thread that is about to begin a record.
pub(super) struct Unfinished {
    /// Its note; [`NOWHERE`] if it has none.
    note: &'static AtomicU64,
    /// Where its call is on the stack, as in a note.
    frame: u64,
}

impl Unfinished {
    /// Gives up what the thread left unfinished. `frame` is where the call is on the stack.
    #[inline(always)]
    pub(super) fn new(writer: &Writer, tid: u32, frame: usize) -> Self {
        let line = tid % (NOTES as u32 / IN_LINE) * IN_LINE;
        let note = &OPEN[(line + tid / (NOTES as u32 / IN_LINE) % IN_LINE) as usize];
        let found = note.load(Ordering::Relaxed);
        let note = if found == 0 || settle(writer, tid, frame, (note, found)) { note } else { &NOWHERE };
        Self { note, frame: (frame as u64) >> ALIGNMENT << 32 }
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
    OPEN.iter().chain([&NOWHERE]).any(|note| note.load(Ordering::Relaxed) != 0)
}

/// The threads whose notes these were are not in the child.
pub(super) fn after_fork() {
    OPEN.iter().for_each(|note| note.store(0, Ordering::Relaxed));
}
