//! Agents that hand over what is no ring, or a ring that they change under the server's hands, beside one that does as
//! it should and is to be recorded as if it were alone.

mod harness;

use std::convert::Infallible;
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gttr::{Direction, Ext, ExtWriter, Frame, FrameType};
use harness::{Server, data, encode, noise, until};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::Value;
use socktrace_collect::{SockType, listen};
use socktrace_event::{Event, EventType, Sink, Source, Stop, Taken};
use socktrace_ring::{MAX_RING_LEN, MIN_RING_LEN, Memory, PAGE_LEN, Words, Writer, create};

/// What the well-behaved agent says at a time, in bytes, and how often while the others do their worst.
const MESSAGE_LEN: usize = 500;
const MIN_MESSAGES: u64 = 5000;
/// Rings that one agent hands over.
const MANY: usize = 1000;
/// The server's own memory, beside the rings', in KiB.
const MAX_RSS_KIB: u64 = 64 << 10;
/// The share of one core that it may take when nobody says anything, however many rings hold something unfinished.
const MAX_IDLE_SHARE: f64 = 0.2;
/// So many half seconds it may take to come to that: less than the server waits for what is unfinished.
const REST_LOOKS: usize = 10;

fn announce_by(agent: &UnixStream, fd: BorrowedFd<'_>) {
    let frame = encode(&Frame { conn: b"announce", ..Frame::new(FrameType::Ring, 1) });
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    let len = sendmsg(agent, &[std::io::IoSlice::new(&frame)], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
    assert_eq!(len, frame.len());
}

/// Hands a ring over by a connection of its own, which goes on.
fn announce(server: &Server, fd: impl AsFd) -> UnixStream {
    let agent = server.stream();
    announce_by(&agent, fd.as_fd());
    agent
}

fn put(writer: &Writer, frame: &[u8]) {
    let mut record = loop {
        match writer.reserve(frame.len(), 0) {
            Ok(record) => break record,
            Err(_) => thread::yield_now(),
        }
    };
    record.push(frame);
    record.commit();
}

/// Words of a ring, as who has it mapped may write to them.
#[derive(Clone, Copy)]
struct Scribbler(Memory);

impl Scribbler {
    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(8 * index < PAGE_LEN + self.0.ring_len());
        let base: *const Words = self.0.words();
        // SAFETY: a word of the mapping, which is never unmapped here; all who use it use atomics.
        unsafe { AtomicU64::from_ptr(base.cast_mut().cast::<u64>().add(index)) }
    }
}

fn memfd(len: u64, seals: SealFlags, begins: &[u64]) -> OwnedFd {
    let fd = memfd_create(c"hostile", MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, len).unwrap();
    let bytes: Vec<u8> = begins.iter().flat_map(|word| word.to_le_bytes()).collect();
    rustix::io::pwrite(&fd, &bytes, 0).unwrap();
    fcntl_add_seals(&fd, seals).unwrap();
    fd
}

/// What is no ring: each is refused, and said to be.
fn no_rings() -> Vec<OwnedFd> {
    let magic = u64::from_le_bytes(*b"GTTRring");
    let sealed = SealFlags::SHRINK | SealFlags::GROW;
    let (min, page) = (MIN_RING_LEN as u64, PAGE_LEN as u64);
    vec![
        memfd(page + min, SealFlags::empty(), &[magic, min]),
        memfd(page + min, SealFlags::GROW, &[magic, min]),
        memfd(page + min, sealed, &[magic, 16 * min]),
        memfd(page + min, sealed, &[]),
        memfd(page + min / 2, sealed, &[magic, min]),
        memfd(page, sealed, &[magic, 0]),
        memfd(page + (MAX_RING_LEN as u64) * 2, sealed, &[magic, MAX_RING_LEN as u64 * 2]),
        memfd(1 << 40, sealed, &[magic, 1 << 40]),
        // A head that is nowhere.
        memfd(page + min, sealed, &[magic, min, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]),
        File::open("/proc/self/exe").unwrap().into(),
        File::open("/dev/zero").unwrap().into(),
        File::open("/").unwrap().into(),
        UnixStream::pair().unwrap().0.into(),
    ]
}

/// Keeps to no rule until told to stop, with a new ring whenever the server has had enough of the last.
fn scribble(server: &Server, seed: u64, stop: &AtomicBool) {
    let mut random = noise(seed, 1 << 16).into_iter().cycle();
    let mut number = || u64::from_le_bytes(std::array::from_fn(|_| random.next().unwrap()));
    while !stop.load(Ordering::Relaxed) {
        let (fd, memory) = create(MIN_RING_LEN).unwrap();
        let (ring, writer) = (Scribbler(memory), Writer::new(memory));
        let _agent = announce(server, fd);
        for _ in 0..50 {
            // Something that is worth reading, and while it is read,
            for _ in 0..20 {
                let frame = data(format!("scribble{seed}").as_bytes(), Direction::In, &[b'x'; 251]);
                if let Ok(mut record) = writer.reserve(frame.len(), 0) {
                    record.push(&frame);
                    record.commit();
                }
            }
            // its headers, its bytes, and now and then the positions are changed.
            for _ in 0..200 {
                let value = [number(), 1 << 63 | (number() & 0xfff) << 32, number() & 0xfff0, 0][number() as usize % 4];
                ring.word(PAGE_LEN / 8 + number() as usize % 4096).store(value, Ordering::Relaxed);
            }
            if number().is_multiple_of(8) {
                ring.word(8 + number() as usize % 9).store(number() & !15, Ordering::Relaxed);
                // It makes no sense to the writer either any more.
                break;
            }
            thread::sleep(Duration::from_micros(500));
        }
    }
}

/// Frames that a ring may have, and that lead nowhere.
fn hostile_frames() -> Vec<Vec<u8>> {
    let long = vec![b'n'; 65535];
    let names =
        [b"../../x".as_slice(), b"..", b"/etc/x", b"a\0b", b"", b".hidden", b"events.jsonl\n", &[0xff; 300], &long];
    let mut frames: Vec<_> = names.iter().map(|name| data(name, Direction::Out, b"hostile")).collect();
    frames.extend(
        names.map(|name| {
            encode(&Frame { path: name, conn: name, payload: b"hostile", ..Frame::new(FrameType::Data, 1) })
        }),
    );
    frames.push(b"no frame".to_vec());
    frames.push(encode(&Frame { conn: b"announce", ..Frame::new(FrameType::Ring, 1) }));
    frames
}

fn good_frame(number: u64) -> Vec<u8> {
    let mut ext = [0; 64];
    let mut ext = ExtWriter::new(&mut ext);
    ext.put(Ext::Pid(4_000_000));
    ext.put(Ext::Seq(number + 1));
    let payload = noise(number, MESSAGE_LEN);
    let frame = Frame::new(FrameType::Data, 1);
    encode(&Frame {
        fd: 3,
        direction: Direction::Out,
        path: b"/tmp/good",
        conn: b"good",
        payload: &payload,
        ext: ext.finish(),
        ..frame
    })
}

/// Memory that the server has for itself, in KiB.
fn own_memory_kib(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The share of one core that the server takes for half a second (proc(5), stat).
fn cpu_share(server: &Server) -> f64 {
    let ticks = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", server.pid())).unwrap();
        let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum::<u64>()
    };
    let (before, since) = (ticks(), Instant::now());
    thread::sleep(Duration::from_millis(500));
    (ticks() - before) as f64 / rustix::param::clock_ticks_per_second() as f64 / since.elapsed().as_secs_f64()
}

#[test]
fn hostile_rings_harm_nobody_else() {
    let server = &mut Server::start("stream");
    let (stop, said) = (&AtomicBool::new(false), &AtomicU64::new(0));
    let (fd, memory) = create(1 << 20).unwrap();
    let good = announce(server, fd);
    let mut max_rss = 0;
    let dead = thread::spawn(rustix::thread::gettid).join().unwrap().as_raw_nonzero().get().unsigned_abs();
    let here = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
    let mut held = Vec::new();
    thread::scope(|scope| {
        let running = &*server;
        let sayer = scope.spawn(move || {
            let writer = Writer::new(memory);
            while !stop.load(Ordering::Relaxed) || said.load(Ordering::Relaxed) < MIN_MESSAGES {
                let number = said.load(Ordering::Relaxed);
                put(&writer, &good_frame(number));
                said.store(number + 1, Ordering::Relaxed);
                // Not to fill the disk.
                thread::sleep(Duration::from_micros(20));
            }
        });
        let scribblers = [1, 2].map(|seed| scope.spawn(move || scribble(running, seed, stop)));

        held.extend(no_rings().into_iter().map(|fd| announce(running, fd)));

        // The largest there is, of which every byte is claimed at once.
        let (fd, memory) = create(MAX_RING_LEN).unwrap();
        let huge = Scribbler(memory);
        huge.word(PAGE_LEN / 8).store(1 << 63 | 0x1fff_ffff << 32, Ordering::Relaxed);
        huge.word(8).store(MAX_RING_LEN as u64, Ordering::Release);
        held.push(announce(running, fd));

        // Unfinished for good, by a thread that is gone, by one that is there, and by none.
        for tid in [dead, here, 0] {
            let (fd, memory) = create(MIN_RING_LEN).unwrap();
            let writer = Writer::new(memory);
            let _ = writer.reserve(100, tid).unwrap();
            put(&writer, &data(format!("behind{tid}").as_bytes(), Direction::In, b"behind it"));
            held.push(announce(running, fd));
        }

        let (fd, memory) = create(1 << 20).unwrap();
        held.push(announce(running, fd));
        hostile_frames().iter().for_each(|frame| put(&Writer::new(memory), frame));

        // One agent, many rings, each with something that nobody finishes.
        let agent = running.stream();
        for _ in 0..MANY {
            let (fd, memory) = create(MIN_RING_LEN).unwrap();
            let writer = Writer::new(memory);
            put(&writer, &data(b"many", Direction::In, b"m"));
            let _ = writer.reserve(100, here).unwrap();
            announce_by(&agent, fd.as_fd());
            // SAFETY: nothing of this process uses it any more.
            unsafe { socktrace_ring::unmap(memory) };
            max_rss = max_rss.max(own_memory_kib(running));
        }
        held.push(agent);

        // Handed over, and gone.
        for _ in 0..100 {
            let (fd, memory) = create(MIN_RING_LEN).unwrap();
            put(&Writer::new(memory), &data(b"gone", Direction::In, b"g"));
            drop(announce(running, fd));
            max_rss = max_rss.max(own_memory_kib(running));
        }
        until("a record of a dead thread is stepped over", || {
            running.events_so_far().iter().any(|event| event["conn_id"] == format!("behind{dead}"))
        });
        stop.store(true, Ordering::Relaxed);
        sayer.join().unwrap();
        scribblers.into_iter().for_each(|scribbler| scribbler.join().unwrap());
    });
    let comes_to_rest = (0..REST_LOOKS).any(|_| cpu_share(server) < MAX_IDLE_SHARE);
    assert!(comes_to_rest, "the server is busy for nothing");
    max_rss = max_rss.max(own_memory_kib(server));
    assert!(max_rss < MAX_RSS_KIB, "{max_rss} KiB");

    let events = server.stop_and_get_agents_events();
    drop((good, held));
    check(server, &events, said.load(Ordering::Relaxed), dead);
}

fn check(server: &Server, events: &[Value], said: u64, dead: u32) {
    let of = |conn_id: &str| events.iter().filter(|event| event["conn_id"] == conn_id).count() as u64;
    assert_eq!(of("good"), said);
    let numbers = events.iter().filter(|event| event["conn_id"] == "good").map(|event| event["seq"].as_u64().unwrap());
    assert!(numbers.eq(1..=said));
    let payload = server.payload("good.out.bin");
    assert!(payload.chunks(MESSAGE_LEN).eq((0..said).map(|number| noise(number, MESSAGE_LEN))));
    assert_eq!((of("many"), of("gone")), (MANY as u64, 100));

    let lost = |tid: u32| events.iter().any(|event| event["type"] == "lost" && event["tid"] == tid);
    assert!(lost(dead), "the record of a dead thread");
    let said_bad = |what: &str| events.iter().filter(|e| e["error"].as_str().is_some_and(|e| e.contains(what))).count();
    let refused = ["not sealed", "of a length", "not laid out"].map(said_bad);
    // Files and sockets have no seals.
    assert_eq!(refused, [6, 4, 2]);
    // Those who scribble may do so before the server has looked at all.
    assert!(said_bad("left off nowhere") >= 1);
    assert!(said_bad("something else than an agent") >= 1, "the huge one");

    let mut around: Vec<_> = fs::read_dir(server.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    around.sort();
    assert_eq!(around, ["out", "stderr"]);
    for entry in fs::read_dir(&server.out).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let is_ours = name == "events.jsonl" || (name.ends_with(".bin") && !name.starts_with('.') && name.len() < 220);
        assert!(is_ours && entry.file_type().unwrap().is_file(), "{name}");
    }
}

/// Takes its time, as on a machine that has none.
#[derive(Default)]
struct Slow {
    messages: u64,
    losses: u64,
}

impl Sink for Slow {
    type Error = Infallible;

    fn event(&mut self, event: &Event<'_>, _: &[u8]) -> Taken<Infallible> {
        thread::sleep(Duration::from_millis(1));
        self.messages += u64::from(event.kind() == EventType::Data);
        self.losses += u64::from(event.kind() == EventType::Lost);
        Ok(())
    }
}

/// Nobody else takes over the ring of a process that is gone: it is read to its end, however long that takes.
#[test]
fn what_a_process_that_is_gone_has_said_is_taken_by_a_slow_server() {
    /// More than a slow sink takes in the time that a server has for what others could take over, which is 2 s.
    const SAID: u64 = 7000;
    let dir = tempfile::tempdir().unwrap();
    let bound = listen::bind(&dir.path().join("sock"), SockType::Stream).unwrap();
    let (fd, memory) = create(8 << 20).unwrap();
    let writer = Writer::new(memory);
    (0..SAID).for_each(|number| put(&writer, &good_frame(number)));
    let agent = UnixStream::connect(bound.path()).unwrap();
    announce_by(&agent, fd.as_fd());
    drop(agent);
    let stop = Stop::new().unwrap();
    stop.handle().stop();
    let mut slow = Slow::default();
    bound.run(&stop, &mut slow).unwrap();
    assert_eq!((slow.messages, slow.losses), (SAID, 0));
}
