//! A process that forks while another of its threads is anywhere in the table: that thread is not in the child, and what it
//! has begun stays as it is (src/table/uses.rs, with atomics that a thread can end at).

#[path = "../src/table/uses.rs"]
mod uses;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

use uses::{Place, Places, Uses};

thread_local! {
    /// How many more words the thread may change.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The end of a thread.
struct Gone;

fn step() {
    let left = LEFT.get();
    if left == 0 {
        std::panic::resume_unwind(Box::new(Gone));
    }
    LEFT.set(left - 1);
}

macro_rules! atomic {
    ($name:ident, $type:ty) => {
        #[derive(Default)]
        struct $name(std::sync::atomic::$name);

        #[allow(dead_code, reason = "each has what the other needs")]
        impl $name {
            fn load(&self, order: Ordering) -> $type {
                self.0.load(order)
            }

            fn store(&self, value: $type, order: Ordering) {
                step();
                self.0.store(value, order);
            }

            fn swap(&self, value: $type, order: Ordering) -> $type {
                step();
                self.0.swap(value, order)
            }

            fn fetch_add(&self, value: $type, order: Ordering) -> $type {
                step();
                self.0.fetch_add(value, order)
            }

            fn fetch_sub(&self, value: $type, order: Ordering) -> $type {
                step();
                self.0.fetch_sub(value, order)
            }

            fn compare_exchange(&self, old: $type, new: $type, one: Ordering, other: Ordering) -> Result<$type, $type> {
                step();
                self.0.compare_exchange(old, new, one, other)
            }

            fn fetch_update(
                &self,
                one: Ordering,
                other: Ordering,
                update: impl FnMut($type) -> Option<$type>,
            ) -> Result<$type, $type> {
                step();
                self.0.fetch_update(one, other, update)
            }
        }
    };
}

atomic!(AtomicU32, u32);
atomic!(AtomicU64, u64);

#[derive(Default)]
struct Table {
    places: [Place; 2],
    records: [Uses; 2],
    used: AtomicU32,
}

impl Places for Table {
    fn uses(&self, word: u64) -> Option<&Uses> {
        let record = self.records.get((word & 0xff).checked_sub(1)? as usize)?;
        record.is_of((word >> 8) as u32).then_some(record)
    }

    fn each(&self, show: impl FnMut(&Place)) {
        self.places.iter().filter(|place| place.get() != 0).for_each(show);
    }

    fn used(&self) -> &AtomicU32 {
        &self.used
    }
}

impl Table {
    fn claim(&self, record: usize) -> Option<u64> {
        let generation = self.records[record].claim(u32::MAX, &self.used)?;
        Some(u64::from(generation) << 8 | (record as u64 + 1))
    }
}

#[test]
fn no_record_that_a_place_leads_to_looks_free_in_the_child() {
    let mut ends = 0;
    for left in 0.. {
        let table = Table::default();
        let old = table.claim(0).unwrap();
        table.places[0].replace(old);
        // A thread that duplicates the descriptor, and then connects the socket.
        LEFT.set(left);
        let done = catch_unwind(AssertUnwindSafe(|| {
            table.uses(old).unwrap().add();
            table.places[1].replace(old);
            table.catch_up(old, Some(&table.places[1]));
            let new = table.claim(1).unwrap();
            table.succeed(old, new, Some(&table.places[0]));
        }));
        LEFT.set(usize::MAX);
        // The child goes on, and closes what it has.
        for place in &table.places {
            let word = place.get();
            if word != 0 {
                assert!(table.claim((word & 0xff) as usize - 1).is_none(), "after {left} changes");
                assert_eq!(place.replace(0), word);
                table.uses(word).expect("what a place leads to is in use").remove(&table.used);
            }
        }
        ends += 1;
        if done.is_ok() {
            break;
        }
    }
    assert!(ends > 10, "{ends} places to end at");
}
