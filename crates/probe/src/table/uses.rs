//! How descriptors and records lead to each other: words that are changed one at a time, without locks.
//!
//! A descriptor's place holds what it leads to, packed. A record counts the places that lead to it, and its uses, so that
//! who holds a word of a former use learns that it is one. A socket that gets a new description gets a new record: the old
//! one names its successor, and every place is moved there. Who makes a further place lead to a record looks for a
//! successor after that, because whoever moved the places may not have seen this one.
//!
//! Tests compile this with atomics of their own (tests/table.rs, tests/fork.rs).

use core::sync::atomic::Ordering;

use super::{AtomicU32, AtomicU64};

/// What a descriptor leads to, as a word; 0: nothing is known.
#[derive(Default)]
pub(super) struct Place(AtomicU64);

impl Place {
    #[inline]
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Writes a word and gives the one that was there.
    pub(super) fn replace(&self, word: u64) -> u64 {
        self.0.swap(word, Ordering::AcqRel)
    }

    /// Writes a word if `expected` is there; whether it was.
    pub(super) fn replace_if(&self, expected: u64, word: u64) -> bool {
        self.0.compare_exchange(expected, word, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// Who uses a record. All zeroes: nobody.
#[derive(Default)]
pub(super) struct Uses {
    /// Counts the uses of the record. Never begins anew while the process lives, also when the probe is stopped and started.
    generation: AtomicU32,
    /// Places that lead here; 0: free.
    places: AtomicU32,
    /// The word of the record of the same socket that has taken this one's place; 0: none has.
    successor: AtomicU64,
}

impl Uses {
    /// Makes a free record the caller's, with one place: its generation, of which `mask` are the bits that count. `None`: it
    /// is in use. `used` counts the records that are.
    pub(super) fn claim(&self, mask: u32, used: &AtomicU32) -> Option<u32> {
        let is_free = self.places.load(Ordering::Relaxed) == 0
            && self.places.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if !is_free {
            return None;
        }
        used.fetch_add(1, Ordering::Relaxed);
        // One more use; the claim above makes this thread the only one to write it.
        let generation = (self.generation.load(Ordering::Relaxed) + 1) & mask;
        self.generation.store(generation, Ordering::Release);
        self.successor.store(0, Ordering::Relaxed);
        Some(generation)
    }

    #[inline]
    pub(super) fn is_of(&self, generation: u32) -> bool {
        self.generation.load(Ordering::Acquire) == generation
    }

    /// One more place leads here.
    pub(super) fn add(&self) {
        self.places.fetch_add(1, Ordering::SeqCst);
    }

    /// One less; whether it was the last.
    pub(super) fn remove(&self, used: &AtomicU32) -> bool {
        let less = |n: u32| n.checked_sub(1);
        let was_last = self.places.fetch_update(Ordering::AcqRel, Ordering::Relaxed, less) == Ok(1);
        if was_last {
            used.fetch_sub(1, Ordering::Relaxed);
        }
        was_last
    }

    fn has_others(&self) -> bool {
        self.places.load(Ordering::SeqCst) > 1
    }

    fn successor(&self) -> Option<u64> {
        Some(self.successor.load(Ordering::SeqCst)).filter(|&word| word != 0)
    }
}

/// Places, and the records that they lead to.
pub(super) trait Places {
    /// The record that a word leads to, if it is still in the use that the word speaks of.
    fn uses(&self, word: u64) -> Option<&Uses>;

    /// Shows every place of which something is known.
    fn each(&self, show: impl FnMut(&Place));

    /// How many records are in use.
    fn used(&self) -> &AtomicU32;

    /// Makes every place that leads to `old`, of which `at` is one, lead to `new`.
    fn move_all(&self, old: u64, new: u64, at: Option<&Place>) {
        let Some(before) = self.uses(old) else { return };
        let move_one = |place: &Place| {
            if place.get() != old {
                return;
            }
            // Counted first: the new record must not look free in between.
            let after = self.uses(new);
            if let Some(after) = after {
                after.add();
            }
            let left = if place.replace_if(old, new) { Some(before) } else { after };
            if let Some(left) = left {
                left.remove(self.used());
            }
        };
        if before.has_others() { self.each(move_one) } else { at.into_iter().for_each(move_one) }
    }

    /// Makes the record `new`, which was claimed for this, take the place of `old`, unless another has: the word of that one
    /// then. `None`: `old` is in another use by now.
    fn succeed(&self, old: u64, new: u64, at: Option<&Place>) -> Option<Result<(), u64>> {
        let changed =
            self.uses(old)?.successor.compare_exchange(0, new, Ordering::SeqCst, Ordering::SeqCst).map(|_| ());
        // Whoever was first may not have come to it yet.
        self.move_all(old, changed.err().unwrap_or(new), at);
        // The claim counted one place; those that were moved are counted, too.
        self.uses(new)?.remove(self.used());
        Some(changed)
    }

    /// `at` was made to lead to `word`, whose record another thread may have replaced at the same time, when it did not see
    /// this place.
    fn catch_up(&self, mut word: u64, at: Option<&Place>) {
        while let Some(next) = self.uses(word).and_then(Uses::successor) {
            self.move_all(word, next, at);
            word = next;
        }
    }
}
