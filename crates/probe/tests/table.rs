//! The table in every order that threads can come in (loom): src/table/uses.rs, with places and records of the model's.

#[path = "../src/table/uses.rs"]
mod uses;

use std::ops::Deref;
use std::sync::atomic::Ordering;

use loom::sync::Arc;
use loom::sync::atomic;
use loom::thread;
use uses::{Place, Places, Uses};

/// loom's atomics, which take `SeqCst` for `AcqRel`. A load that has to come after this thread's own changes in the one order
/// that all threads see is here a change, too, which is at least that.
macro_rules! atomic {
    ($name:ident, $type:ty) => {
        #[derive(Default)]
        struct $name(atomic::$name);

        impl $name {
            fn load(&self, order: Ordering) -> $type {
                if order == Ordering::SeqCst { self.0.fetch_add(0, order) } else { self.0.load(order) }
            }
        }

        impl Deref for $name {
            type Target = atomic::$name;

            fn deref(&self) -> &Self::Target {
                &self.0
            }
        }
    };
}

atomic!(AtomicU32, u32);
atomic!(AtomicU64, u64);

/// Of generations, all bits count.
const MASK: u32 = u32::MAX;
/// How often a thread is interrupted at most in one order: more find nothing new here, and take hours.
const INTERRUPTIONS: usize = 3;

#[derive(Default)]
struct Table {
    places: [Place; 2],
    records: [Uses; 3],
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
    /// The word of a record that was claimed.
    fn claim(&self, record: usize) -> Option<u64> {
        let generation = self.records[record].claim(MASK, &self.used)?;
        Some(u64::from(generation) << 8 | (record as u64 + 1))
    }

    /// One whose first place leads to its first record.
    fn with_one() -> (Arc<Self>, u64) {
        let table = Arc::new(Self::default());
        let word = table.claim(0).unwrap();
        table.places[0].replace(word);
        (table, word)
    }

    /// As dup(2) does: the second place is to lead where the first does.
    fn duplicate(&self, word: u64) {
        let Some(record) = self.uses(word) else { return };
        record.add();
        assert_eq!(self.places[1].replace(word), 0);
        self.catch_up(word, Some(&self.places[1]));
    }

    /// As close(2) does; whether it was the record's last place.
    fn close(&self, place: usize) -> bool {
        let word = self.places[place].replace(0);
        word != 0 && self.uses(word).expect("what a place leads to is in use").remove(&self.used)
    }

    /// As bind(2) and connect(2) do.
    fn redescribe(&self, word: u64, record: usize) -> Option<Result<(), u64>> {
        let new = self.claim(record).expect("nobody else takes it");
        self.succeed(word, new, Some(&self.places[0]))
    }
}

fn in_every_order(run: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(INTERRUPTIONS);
    model.check(run);
}

#[test]
fn a_duplicate_follows_the_record_that_takes_the_others_place() {
    in_every_order(|| {
        let (table, old) = Table::with_one();
        let other = Arc::clone(&table);
        let duplicating = thread::spawn(move || other.duplicate(old));
        assert_eq!(table.redescribe(old, 1), Some(Ok(())));
        duplicating.join().unwrap();
        let new = table.places[0].get();
        assert_eq!(new & 0xff, 2);
        let is_duplicated = table.places[1].get() != 0;
        // A duplicate of a record that was free by then is none: the socket would have been found anew.
        assert!(!is_duplicated || table.places[1].get() == new);
        assert_eq!((table.close(0), table.close(1)), (!is_duplicated, is_duplicated));
        assert!((0..3).all(|record| table.claim(record).is_some()), "no record is left over");
    });
}

#[test]
fn a_record_that_a_duplicate_leads_to_does_not_look_free() {
    in_every_order(|| {
        let (table, old) = Table::with_one();
        let other = Arc::clone(&table);
        let duplicating = thread::spawn(move || other.duplicate(old));
        table.redescribe(old, 1);
        let new = table.places[0].get();
        table.close(0);
        if table.places[1].get() == new {
            assert_eq!(table.claim(1), None);
        }
        duplicating.join().unwrap();
    });
}

#[test]
fn of_two_new_descriptions_one_is_first() {
    in_every_order(|| {
        let (table, old) = Table::with_one();
        let other = Arc::clone(&table);
        let redescribe = move |table: &Table, record| {
            let result = table.redescribe(old, record);
            // Also whoever was second goes on with a descriptor that leads to the first one's record.
            result.and_then(Result::err).inspect(|word| assert_eq!(table.places[0].get(), *word));
            result
        };
        let first = thread::spawn(move || redescribe(&other, 1));
        let second = redescribe(&table, 2);
        let first = first.join().unwrap();
        // Who comes when all is over finds the record in no use that it knows, or the one that was first.
        let winner = table.places[0].get();
        let of = |record: u64, result| match result {
            Some(Ok(())) => assert_eq!(winner & 0xff, record),
            Some(Err(other)) => assert_eq!(winner, other),
            None => panic!("nobody has used the old record again"),
        };
        of(2, first);
        of(3, second);
        assert!(first != second && table.close(0));
        assert!((0..3).all(|record| table.claim(record).is_some()), "no record is left over");
    });
}

#[test]
fn what_is_closed_meanwhile_leaves_nothing() {
    in_every_order(|| {
        let (table, old) = Table::with_one();
        let other = Arc::clone(&table);
        let closing = thread::spawn(move || other.close(0));
        table.redescribe(old, 1);
        closing.join().unwrap();
        table.close(0);
        assert!((0..3).all(|record| table.claim(record).is_some()), "no record is left over");
    });
}

#[test]
fn a_record_that_is_used_again_is_not_taken_for_the_one_before() {
    in_every_order(|| {
        let (table, old) = Table::with_one();
        let other = Arc::clone(&table);
        let using_again = thread::spawn(move || {
            other.redescribe(old, 1);
            // A stranger's socket.
            other.claim(0).expect("free since its place was moved")
        });
        // A call that looks up what its descriptor leads to.
        let word = table.places[0].get();
        if table.uses(word).is_none() {
            assert_ne!(table.places[0].get(), word);
        }
        let strangers = using_again.join().unwrap();
        assert!(strangers != old && table.uses(old).is_none() && table.uses(strangers).is_some());
    });
}

#[test]
fn a_free_record_is_claimed_once() {
    in_every_order(|| {
        let table = Arc::new(Table::default());
        let other = Arc::clone(&table);
        let claiming = thread::spawn(move || other.claim(0));
        let claimed = [table.claim(0), claiming.join().unwrap()];
        assert_eq!(claimed.iter().flatten().count(), 1);
    });
}
