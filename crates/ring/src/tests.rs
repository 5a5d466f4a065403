use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;

struct Ring {
    memory: Memory,
    fd: rustix::fd::OwnedFd,
}

impl Ring {
    fn new(len: usize) -> Self {
        let (fd, memory) = create(len).unwrap();
        Self { memory, fd }
    }

    fn writer(&self) -> Writer {
        Writer::new(self.memory)
    }

    /// As the server does, by a mapping of its own.
    fn reader(&self) -> Reader {
        Reader::new(map(self.fd.as_fd()).unwrap()).unwrap()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the tests' readers and writers are gone, but for the readers' own mappings.
        unsafe { unmap(self.memory) };
    }
}

fn put(writer: &Writer, frame: &[u8]) -> Result<(), Full> {
    let mut record = writer.reserve(frame.len(), 7)?;
    let (one, other) = frame.split_at(frame.len() / 3);
    record.push(one);
    record.push(other);
    record.commit();
    Ok(())
}

fn take(reader: &mut Reader, buffer: &mut [u8]) -> Option<Vec<u8>> {
    match reader.next(buffer) {
        Step::Frame(len) => Some(buffer[..len].to_vec()),
        Step::Empty => None,
        step => panic!("{step:?}"),
    }
}

#[test]
fn frames_come_out_as_they_went_in_round_after_round() {
    let ring = Ring::new(MIN_RING_LEN);
    let (writer, mut reader) = (ring.writer(), ring.reader());
    let mut buffer = vec![0; writer.max_frame_len()];
    for round in 0..10_000_usize {
        let frame: Vec<u8> = (0..1 + round * 37 % 5000).map(|at| (at ^ round) as u8).collect();
        put(&writer, &frame).unwrap();
        assert_eq!(take(&mut reader, &mut buffer), Some(frame));
        reader.free();
    }
    assert_eq!(take(&mut reader, &mut buffer), None);
    let longest = vec![1; writer.max_frame_len()];
    put(&writer, &longest).unwrap();
    assert_eq!(take(&mut reader, &mut buffer), Some(longest));
}

#[test]
fn a_full_ring_says_so_and_loses_nothing() {
    let ring = Ring::new(MIN_RING_LEN);
    let (writer, mut reader) = (ring.writer(), ring.reader());
    let mut buffer = vec![0; writer.max_frame_len()];
    let frames = (0_u64..).take_while(|n| put(&writer, &n.to_le_bytes()).is_ok()).count();
    assert_eq!(frames, MIN_RING_LEN / 32);
    assert_eq!(put(&writer, b"more"), Err(Full));
    for n in 0..frames as u64 {
        assert_eq!(take(&mut reader, &mut buffer).unwrap(), n.to_le_bytes());
        assert_eq!(put(&writer, b"more"), Err(Full), "what is read is not given back yet");
    }
    reader.free();
    assert_eq!(put(&writer, b"more"), Ok(()));
}

#[test]
fn a_reader_that_takes_over_begins_at_what_is_not_on_record() {
    let ring = Ring::new(MIN_RING_LEN);
    let writer = ring.writer();
    let mut buffer = vec![0; writer.max_frame_len()];
    let mut first = ring.reader();
    for frame in [b"one", b"two", b"six"] {
        put(&writer, frame).unwrap();
    }
    assert_eq!(take(&mut first, &mut buffer).unwrap(), b"one");
    first.free();
    assert_eq!(take(&mut first, &mut buffer).unwrap(), b"two");
    let second = &mut ring.reader();
    assert_eq!(take(second, &mut buffer).unwrap(), b"two");
    assert_eq!(take(second, &mut buffer).unwrap(), b"six");
    assert_eq!(take(second, &mut buffer), None);
}

/// What a thread that is killed may leave: nothing written, a header that the next writer saw to, half a frame.
#[test]
fn an_unfinished_record_costs_itself_only() {
    for is_followed in [false, true] {
        for written in [0, 5] {
            let ring = Ring::new(MIN_RING_LEN);
            let (writer, mut reader) = (ring.writer(), ring.reader());
            let mut buffer = vec![0; writer.max_frame_len()];
            put(&writer, b"before").unwrap();
            let mut record = writer.reserve(100, 42).unwrap();
            record.push(&[1; 5][..written]);
            if is_followed {
                put(&writer, b"after").unwrap();
            }
            assert_eq!(take(&mut reader, &mut buffer).unwrap(), b"before");
            assert_eq!(reader.next(&mut buffer), Step::Unfinished { tid: 42 });
            assert!(reader.step_over());
            assert_eq!(take(&mut reader, &mut buffer).as_deref(), is_followed.then_some(&b"after"[..]));
            assert_eq!(reader.next(&mut buffer), Step::Empty);
            assert!(!reader.step_over());
        }
    }
}

#[test]
fn a_record_that_was_given_up_is_left_out() {
    let ring = Ring::new(MIN_RING_LEN);
    let (writer, mut reader) = (ring.writer(), ring.reader());
    let mut buffer = vec![0; writer.max_frame_len()];
    let at = std::cell::Cell::new(0);
    let left = || drop(writer.reserve_noting(100, 42, |position| at.set(position)).unwrap());
    left();
    assert_eq!(writer.unfinished(at.get()), Some(42));
    put(&writer, b"after").unwrap();
    assert_eq!(writer.unfinished(at.get()), Some(42));
    assert!(!writer.abandon(at.get(), 43));
    assert!(writer.abandon(at.get(), 42));
    assert!(!writer.abandon(at.get(), 42));
    let mut short = writer.reserve(10, 1).unwrap();
    short.push(b"short");
    short.commit();
    assert_eq!(reader.next(&mut buffer), Step::Void);
    assert_eq!(take(&mut reader, &mut buffer).unwrap(), b"after");
    assert_eq!(reader.next(&mut buffer), Step::Void);
    assert_eq!(reader.next(&mut buffer), Step::Empty);
    reader.free();
    assert_eq!(writer.unfinished(at.get()), None);
    // The last one has no header yet.
    left();
    assert!(writer.abandon(at.get(), 42));
    put(&writer, b"after").unwrap();
    assert_eq!(writer.unfinished(at.get()), None);
    assert_eq!(reader.next(&mut buffer), Step::Void);
    assert_eq!(take(&mut reader, &mut buffer).unwrap(), b"after");
    // Nothing was begun there.
    assert_eq!(writer.unfinished(reader.position()), None);
}

#[test]
fn many_writers_lose_and_mix_nothing() {
    const WRITERS: u32 = 4;
    const FRAMES: u32 = 30_000;
    let ring = Ring::new(MIN_RING_LEN);
    let done = AtomicBool::new(false);
    let mut last: HashMap<u32, u32> = HashMap::new();
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|number| {
                let writer = ring.writer();
                scope.spawn(move || {
                    for count in 0..FRAMES {
                        let len = 8 + count as usize * 13 % 300;
                        let mut frame = vec![number as u8 ^ count as u8; len];
                        frame[..4].copy_from_slice(&number.to_le_bytes());
                        frame[4..8].copy_from_slice(&count.to_le_bytes());
                        while put(&writer, &frame).is_err() {
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let reading = scope.spawn(|| {
            let mut reader = ring.reader();
            let mut buffer = vec![0; ring.writer().max_frame_len()];
            loop {
                let ends = done.load(Ordering::Acquire);
                match reader.next(&mut buffer) {
                    Step::Frame(len) => {
                        let (frame, word) = (&buffer[..len], |at: usize| buffer[at..at + 4].try_into().unwrap());
                        let (number, count) = (u32::from_le_bytes(word(0)), u32::from_le_bytes(word(4)));
                        assert_eq!(len, 8 + count as usize * 13 % 300);
                        assert!(frame[8..].iter().all(|&byte| byte == number as u8 ^ count as u8));
                        let before = last.insert(number, count);
                        assert_eq!(before.map_or(0, |before| before + 1), count, "writer {number}");
                        if count % 7 == 0 {
                            reader.free();
                        }
                    }
                    Step::Unfinished { .. } => std::thread::yield_now(),
                    Step::Empty if ends => break,
                    Step::Empty => {
                        reader.free();
                        std::thread::yield_now();
                    }
                    step => panic!("{step:?}"),
                }
            }
        });
        for writer in writers {
            writer.join().unwrap();
        }
        done.store(true, Ordering::Release);
        reading.join().unwrap();
    });
    assert!((0..WRITERS).all(|number| last[&number] == FRAMES - 1));
}

#[test]
fn only_rings_are_mapped() {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
    let memfd = |len: usize, seals| {
        let fd = memfd_create(c"x", MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&fd, len as u64).unwrap();
        fcntl_add_seals(&fd, seals).unwrap();
        map(fd.as_fd()).map(|_| ())
    };
    let sealed = SealFlags::SHRINK | SealFlags::GROW;
    assert_eq!(memfd(PAGE_LEN + MIN_RING_LEN, SealFlags::GROW), Err(Untrusted::NotSealed));
    assert_eq!(memfd(PAGE_LEN + MIN_RING_LEN + 16, sealed), Err(Untrusted::Length));
    assert_eq!(memfd(0, sealed), Err(Untrusted::Length));
    assert_eq!(memfd(PAGE_LEN + MIN_RING_LEN, sealed), Err(Untrusted::Layout));
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    assert_eq!(map(file.as_fd()).map(|_| ()), Err(Untrusted::NotSealed));
    assert!(create(MIN_RING_LEN - 1).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever a writer puts into the memory, the reader ends, and takes no more than there is.
    #[test]
    fn a_hostile_writer_gets_nowhere(
        words in proptest::collection::vec((any::<prop::sample::Index>(), any_word()), 1..40),
        frames in proptest::collection::vec(1..600_usize, 0..20),
    ) {
        let ring = Ring::new(MIN_RING_LEN);
        let (writer, mut reader) = (ring.writer(), ring.reader());
        for len in frames {
            put(&writer, &vec![5; len]).unwrap();
        }
        for (at, word) in words {
            // Half of them where the positions and the first records are.
            let offset = at.index((PAGE_LEN + MIN_RING_LEN) / 8);
            let offset = if offset % 2 == 0 { offset % 64 } else { PAGE_LEN / 8 + offset % 512 };
            // SAFETY: in the mapping; what a writer may do.
            unsafe {
                let base: *const Words = ring.memory.words();
                std::sync::atomic::AtomicU64::from_ptr(base.cast_mut().cast::<u64>().add(offset)).store(word, Ordering::Relaxed);
            }
        }
        let mut buffer = vec![0; writer.max_frame_len()];
        let mut taken = 0;
        for _ in 0..MIN_RING_LEN {
            match reader.next(&mut buffer) {
                Step::Frame(len) => taken += len,
                Step::Void => {}
                Step::Unfinished { .. } => if !reader.step_over() { break },
                Step::Empty | Step::Corrupt => break,
            }
            reader.free();
        }
        prop_assert!(taken <= MIN_RING_LEN);
    }
}

fn any_word() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0..0x1000_u64).prop_map(|n| n * 16),
        (0..0x2_0000_u64, any::<u32>()).prop_map(|(len, tid)| 1 << 63 | len << 32 | u64::from(tid)),
        (0..0x2_0000_u64, any::<u32>()).prop_map(|(len, tid)| len << 32 | u64::from(tid)),
    ]
}

#[test]
fn a_frame_that_was_put_back_is_next_again() {
    let ring = Ring::new(MIN_RING_LEN);
    let (writer, mut reader, mut buffer) = (ring.writer(), ring.reader(), vec![0; MIN_RING_LEN]);
    put(&writer, b"first").unwrap();
    put(&writer, b"second").unwrap();
    assert_eq!(take(&mut reader, &mut buffer).as_deref(), Some(&b"first"[..]));
    reader.free();
    assert_eq!(take(&mut reader, &mut buffer).as_deref(), Some(&b"second"[..]));
    reader.put_back(b"second".len());
    // Given back was what is before it.
    reader.free();
    assert!(!reader.is_empty());
    assert_eq!(take(&mut reader, &mut buffer).as_deref(), Some(&b"second"[..]));
    assert!(reader.is_empty());
}
