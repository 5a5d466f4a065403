//! The ring in every order that its writers and its reader can come in (loom).
//!
//! Writer and reader are those of src/, compiled with a memory of the model's: pairs of words change at one moment, as by
//! `lock cmpxchg16b`, and between any two looks at them another thread may come. That is x86-64, where loads and stores of
//! one thread are seen in their order; which of them need `Acquire` or `Release` elsewhere the model does not say.

#![allow(dead_code, reason = "the sources have more than the model calls")]

#[path = "../src/layout.rs"]
mod layout;
#[path = "../src/reader.rs"]
mod reader;
#[path = "../src/writer.rs"]
mod writer;

use std::cell::UnsafeCell;
use std::sync::atomic::Ordering;

use layout::{HEADER_LEN, record_len, stamp, state};
use loom::sync::atomic::AtomicU64;
use loom::thread;
use reader::{Reader, Step};
use writer::{Full, Writer};

/// Two records of one word each, with their headers, fill the ring.
const RING_LEN: usize = 64;
/// Bytes of a frame.
const FRAME_LEN: usize = 8;
/// How often a thread is interrupted at most in one order: more find nothing new here, and take hours.
const INTERRUPTIONS: usize = 3;

/// A pair of words.
#[derive(Debug)]
struct Pair {
    /// Where loom may let another thread go on.
    step: AtomicU64,
    words: UnsafeCell<[u64; 2]>,
}

impl Pair {
    fn new() -> Self {
        Self { step: AtomicU64::new(0), words: UnsafeCell::new([0; 2]) }
    }

    /// Does something to both words at one moment.
    fn at_once<R>(&self, action: impl FnOnce(&mut [u64; 2]) -> R) -> R {
        self.step.fetch_add(0, Ordering::AcqRel);
        // SAFETY: one thread of the model runs at a time, up to its next step.
        action(unsafe { &mut *self.words.get() })
    }

    fn read(&self) -> [u64; 2] {
        [self.first(), self.at_once(|words| words[1])]
    }

    fn exchange(&self, old: [u64; 2], new: [u64; 2]) -> Result<(), [u64; 2]> {
        self.at_once(|words| {
            let found = *words;
            if found == old {
                *words = new;
            }
            if found == old { Ok(()) } else { Err(found) }
        })
    }

    fn first(&self) -> u64 {
        self.at_once(|words| words[0])
    }

    fn set_first(&self, word: u64) {
        self.at_once(|words| words[0] = word);
    }

    fn reset(&self, second: u64) {
        self.at_once(|words| words[1] = second);
        self.set_first(0);
    }
}

#[derive(Debug)]
struct Words {
    tail: Pair,
    head: AtomicU64,
}

impl Words {
    fn tail_position(&self) -> u64 {
        self.tail.read()[0]
    }
}

#[derive(Debug)]
struct Mapped {
    words: Words,
    headers: [Pair; RING_LEN / HEADER_LEN],
    bytes: UnsafeCell<[u64; RING_LEN / 8]>,
}

/// What both sides have mapped; it lives as long as one run of the model.
#[derive(Clone, Copy, Debug)]
struct Memory(*const Mapped);

// SAFETY: one thread of the model runs at a time.
unsafe impl Send for Memory {}

impl Memory {
    fn words(&self) -> &Words {
        // SAFETY: it outlives the run's threads.
        unsafe { &(*self.0).words }
    }

    fn ring_len(&self) -> usize {
        RING_LEN
    }

    fn is_ring(&self) -> bool {
        true
    }

    fn at(&self, position: u64) -> *mut u8 {
        // SAFETY: as above, and within the ring.
        unsafe { (*self.0).bytes.get().cast::<u8>().add(position as usize % RING_LEN) }
    }

    fn header(&self, position: u64) -> &Pair {
        // SAFETY: as above.
        unsafe { &(*self.0).headers[position as usize % RING_LEN / HEADER_LEN] }
    }
}

/// Runs `run` with a new ring in every order.
fn in_every_order(run: impl Fn(Memory) + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(INTERRUPTIONS);
    model.check(move || {
        let mapped = Mapped {
            words: Words { tail: Pair::new(), head: AtomicU64::new(0) },
            headers: std::array::from_fn(|_| Pair::new()),
            bytes: UnsafeCell::new([0; RING_LEN / 8]),
        };
        run(Memory(&raw const mapped));
    });
}

fn put(writer: &Writer, tid: u32, frame: u64) -> Result<(), Full> {
    let mut record = writer.reserve(FRAME_LEN, tid)?;
    record.push(&frame.to_le_bytes());
    record.commit();
    Ok(())
}

/// What is next, with the frame if it is one.
fn next(reader: &mut Reader) -> (Step, u64) {
    let mut buffer = [0; RING_LEN / 2];
    let step = reader.next(&mut buffer);
    (step, u64::from_le_bytes(*buffer.first_chunk().unwrap()))
}

/// Every frame that there is, and how many records were given up.
fn drain(reader: &mut Reader) -> (Vec<u64>, usize) {
    let (mut frames, mut given_up) = (Vec::new(), 0);
    loop {
        match next(reader) {
            (Step::Frame(FRAME_LEN), frame) => frames.push(frame),
            (Step::Void, _) => given_up += 1,
            (Step::Empty, _) => return (frames, given_up),
            (step, _) => panic!("{step:?}"),
        }
    }
}

#[test]
fn two_writers_and_the_reader() {
    in_every_order(|memory| {
        let writers = [1, 2].map(|tid| thread::spawn(move || put(&Writer::new(memory), tid, tid.into()).unwrap()));
        let mut reader = Reader::new(memory).unwrap();
        let (step, first) = next(&mut reader);
        assert!(matches!(step, Step::Frame(FRAME_LEN) | Step::Empty | Step::Unfinished { .. }), "{step:?}");
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        let (mut frames, given_up) = drain(&mut reader);
        frames.extend(matches!(step, Step::Frame(_)).then_some(first));
        frames.sort_unstable();
        assert_eq!((frames, given_up), (vec![1, 2], 0));
    });
}

#[test]
fn a_place_is_used_again_when_it_was_given_back() {
    in_every_order(|memory| {
        let writer = Writer::new(memory);
        put(&writer, 1, 10).unwrap();
        put(&writer, 1, 11).unwrap();
        let other = thread::spawn(move || put(&Writer::new(memory), 2, 12));
        let mut reader = Reader::new(memory).unwrap();
        assert_eq!(next(&mut reader), (Step::Frame(FRAME_LEN), 10));
        reader.free();
        // The other may have come before there was room.
        let is_in = other.join().unwrap().is_ok();
        put(&writer, 1, 13).map_or_else(|Full| assert!(is_in), |()| assert!(!is_in));
        assert_eq!(drain(&mut reader), (vec![11, if is_in { 12 } else { 13 }], 0));
    });
}

#[test]
fn a_record_that_was_left_is_given_up() {
    in_every_order(|memory| {
        let other = thread::spawn(move || put(&Writer::new(memory), 2, 2).unwrap());
        let writer = Writer::new(memory);
        // A signal handler jumps out before the record is committed, and the thread comes back.
        let position = std::cell::Cell::new(0);
        let _left = writer.reserve_noting(FRAME_LEN, 1, |at| position.set(at)).unwrap();
        assert_eq!(writer.unfinished(position.get()), Some(1));
        assert!(writer.abandon(position.get(), 1) && !writer.abandon(position.get(), 1));
        other.join().unwrap();
        assert_eq!(drain(&mut Reader::new(memory).unwrap()), (vec![2], 1));
    });
}

#[test]
fn a_record_of_a_thread_that_is_gone_is_stepped_over() {
    in_every_order(|memory| {
        let gone = thread::spawn(move || drop(Writer::new(memory).reserve(FRAME_LEN, 1)));
        let other = thread::spawn(move || put(&Writer::new(memory), 2, 2).unwrap());
        gone.join().unwrap();
        let mut reader = Reader::new(memory).unwrap();
        let mut frames = Vec::new();
        // Whose record has no header yet is not known; the one of the thread that is gone is stepped over.
        loop {
            match next(&mut reader) {
                (Step::Frame(_), frame) => frames.push(frame),
                (Step::Unfinished { tid: 1 }, _) => assert!(reader.step_over()),
                (Step::Unfinished { .. }, _) => thread::yield_now(),
                (Step::Empty, _) => break,
                (step, _) => panic!("{step:?}"),
            }
        }
        other.join().unwrap();
        frames.extend(drain(&mut reader).0);
        assert_eq!(frames, [2]);
    });
}

#[test]
fn another_reader_takes_over() {
    in_every_order(|memory| {
        let writer = thread::spawn(move || {
            put(&Writer::new(memory), 1, 1).unwrap();
            put(&Writer::new(memory), 1, 2).unwrap();
        });
        // The first has put the first frame on record, and taken the next, if it was there, when it was killed.
        let mut first = Reader::new(memory).unwrap();
        let (step, _) = next(&mut first);
        first.free();
        next(&mut first);
        let mut second = Reader::new(memory).unwrap();
        writer.join().unwrap();
        let expected = if matches!(step, Step::Frame(_)) { vec![2] } else { vec![1, 2] };
        assert_eq!(drain(&mut second), (expected, 0));
    });
}
