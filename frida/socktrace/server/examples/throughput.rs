//! How fast the server is, and how much memory it takes: prints one table (docs/benchmarks.md).
//!
//! ```text
//! cargo run --release -p socktrace-server --example throughput [DIR [WHAT]]
//! ```
//!
//! DIR, by default /dev/shm, is where the recordings are made and removed again; WHAT is the beginning of the rows that are
//! wanted, `memory` say. The server runs on core 0, and whoever
//! sends on core 1.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, mem, thread};

use gttr::{Direction, Ext, ExtWriter, Frame, FrameType};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_setaffinity};
use socktrace_collect::{SockType, decode, raise_descriptor_limit};
use socktrace_event::Sink;
use socktrace_recording::{Contents, Recorder};
use socktrace_server::serve;

/// Bytes of each message.
const PAYLOAD_LEN: usize = 64;
/// Frames that are made once and then fed again and again, at least.
const FRAMES: usize = 1 << 16;
/// Frames to a run.
const RUN: usize = 1_000_000;
/// Runs of each kind, of which the median is printed.
const RUNS: usize = 3;
/// Bytes that a ring's consumer takes at a time, about.
const CHUNK: usize = 256 << 10;
/// Datagrams to a system call of the sender, so that it is not the sender that is measured.
const BATCH: usize = 64;

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--serve", sock, out, sock_type] => {
            pin(0);
            serve(Path::new(sock), Path::new(out), sock_type.parse().expect("dgram or stream"), Contents::All)
                .expect("serves");
        }
        [] => measure(Path::new("/dev/shm"), ""),
        [dir] => measure(Path::new(dir), ""),
        [dir, what] => measure(Path::new(dir), what),
        _ => panic!("usage: throughput [DIR [WHAT]]"),
    }
}

fn measure(parent: &Path, what: &str) {
    raise_descriptor_limit();
    println!("from, connections | events a second | CPU time per event | peak RSS");
    for connections in [1, 100, 10_000] {
        let frames = Frames::of(connections);
        let run = || {
            let dir = tempfile::tempdir_in(parent).expect("a directory");
            thread::scope(|scope| scope.spawn(|| from_memory(dir.path(), &frames)).join().expect("runs"))
        };
        let row = name_row("memory", connections);
        if row.starts_with(what) {
            report(&row, run);
        }
    }
    for sock_type in [SockType::Dgram, SockType::Stream] {
        for connections in [1, 10_000] {
            let frames = Frames::of(connections);
            let run = || {
                let dir = tempfile::tempdir_in(parent).expect("a directory");
                from_socket(dir.path(), &frames, sock_type)
            };
            let row = name_row(sock_type.name(), connections);
            if row.starts_with(what) {
                report(&row, run);
            }
        }
    }
}

fn name_row(from: &str, connections: usize) -> String {
    format!("{from}, {connections} connection{}", if connections == 1 { "" } else { "s" })
}

/// One run.
struct Figures {
    elapsed: Duration,
    cpu: Duration,
    /// Of the server's process, in KiB; 0 where it has none of its own.
    peak_rss: u64,
}

fn report(what: &str, mut run: impl FnMut() -> Figures) {
    let mut runs: Vec<Figures> = (0..RUNS).map(|_| run()).collect();
    runs.sort_by_key(|run| run.elapsed);
    let median = &runs[RUNS / 2];
    let rss = runs.iter().map(|run| run.peak_rss).max().unwrap_or(0);
    let rate = RUN as f64 / median.elapsed.as_secs_f64();
    let rss = if rss == 0 { "".to_owned() } else { format!("{:.1} MiB", rss as f64 / 1024.0) };
    println!("{what} | {rate:.0} | {} ns | {rss}", median.cpu.as_nanos() / RUN as u128);
}

/// Data frames as the probe sends them, one behind the other.
struct Frames {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Frames {
    fn of(connections: usize) -> Self {
        let mut frames = Self { bytes: Vec::new(), ends: Vec::new() };
        let count = FRAMES.next_multiple_of(connections);
        let mut ext = [0; 192];
        for n in 0..count {
            let ts_ns = 1_795_414_098_783_545_007 + 900 * n as u64;
            let mut ext = ExtWriter::new(&mut ext);
            for value in [
                Ext::Seq(n as u64 + 1),
                Ext::Pid(30_183),
                Ext::Tid(30_183),
                Ext::TsNs(ts_ns),
                Ext::Call(if n % 2 == 0 { b"send" } else { b"recv" }),
                Ext::Total(PAYLOAD_LEN as u64),
                Ext::Offset((n / 2 * PAYLOAD_LEN) as u64),
                Ext::DurationNs(640),
            ] {
                ext.put(value);
            }
            let conn = format!("_tmp_redis.sock:fd=5:t=1795414098783:p=30183:i=100044:n={}", n / 2 % connections);
            let frame = Frame {
                fd: 5,
                direction: if n % 2 == 0 { Direction::Out } else { Direction::In },
                path: b"/tmp/redis.sock",
                conn: conn.as_bytes(),
                payload: &[b'x'; PAYLOAD_LEN],
                ext: ext.finish(),
                ..Frame::new(FrameType::Data, ts_ns / 1_000_000)
            };
            let at = frames.bytes.len();
            frames.bytes.resize(at + frame.encoded_len(), 0);
            frame.encode(&mut frames.bytes[at..]).expect("there is room");
            frames.ends.push(frames.bytes.len());
        }
        frames
    }

    /// Frame after frame, again and again.
    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let ends = self.ends.iter().copied();
        let bounds = std::iter::once(0).chain(ends.clone()).zip(ends).cycle();
        bounds.map(|(start, end)| &self.bytes[start..end])
    }
}

/// Frames as they lie in a ring, a chunk at a time, through the decoder to the recorder.
fn from_memory(dir: &Path, frames: &Frames) -> Figures {
    pin(0);
    let mut recorder = Recorder::open(dir, Contents::All).expect("opens");
    let mut stream = decode::Stream::default();
    let (begun, cpu) = (Instant::now(), thread_cpu());
    let mut flushed = begun;
    let (mut left, mut at, mut start) = (RUN, 0, 0);
    while left > 0 {
        if at == frames.ends.len() {
            (at, start) = (0, 0);
        }
        let behind = frames.ends[at..].partition_point(|&end| end <= start + CHUNK).clamp(1, left);
        at = (at + behind).min(frames.ends.len());
        left -= behind;
        let end = frames.ends[at - 1];
        stream.feed(&frames.bytes[start..end], &mut recorder).expect("takes everything");
        start = end;
        if flushed.elapsed() >= Duration::from_millis(100) {
            assert!(recorder.flush().expect("takes everything"));
            flushed = Instant::now();
        }
    }
    recorder.finish("done").expect("takes everything");
    let figures = Figures { elapsed: begun.elapsed(), cpu: thread_cpu() - cpu, peak_rss: 0 };
    assert_recorded(dir);
    figures
}

/// A server in a process of its own, and a sender that waits when the server's queue is full.
fn from_socket(dir: &Path, frames: &Frames, sock_type: SockType) -> Figures {
    pin(1);
    let (sock, out) = (dir.join("sock"), dir.join("out"));
    let mut server = Command::new(env::current_exe().expect("a path"))
        .args(["--serve".as_ref(), sock.as_os_str(), out.as_os_str(), sock_type.name().as_ref()])
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    while !fs::exists(out.join("events.jsonl")).unwrap_or(false) {
        thread::sleep(Duration::from_millis(1));
    }
    let begun = Instant::now();
    match sock_type {
        SockType::Dgram => send_datagrams(&sock, frames),
        SockType::Stream => send_stream(&sock, frames),
    }
    let peak_rss = peak_rss(&server);
    kill_process(Pid::from_child(&server), Signal::TERM).expect("is there");
    let cpu = wait(&mut server);
    let figures = Figures { elapsed: begun.elapsed(), cpu, peak_rss };
    assert_recorded(&out);
    figures
}

fn send_datagrams(sock: &Path, frames: &Frames) {
    let socket = UnixDatagram::unbound().expect("a socket");
    socket.connect(sock).expect("the server is there");
    let mut frames = frames.iter().take(RUN).peekable();
    while frames.peek().is_some() {
        // SAFETY: both are plain C structs for which all zeroes is a value.
        let (mut vectors, mut messages): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) = unsafe { mem::zeroed() };
        let mut count = 0;
        for ((vector, message), frame) in vectors.iter_mut().zip(&mut messages).zip(&mut frames) {
            *vector = libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() };
            (message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen) = (vector, 1);
            count += 1;
        }
        let mut sent = 0;
        while sent < count {
            let (rest, len) = (&mut messages[sent..count], (count - sent) as u32);
            // SAFETY: each of `len` headers points to one vector, and that to a frame, all of which outlive the call.
            let done = unsafe { libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), len, 0) };
            sent += usize::try_from(done).expect("the server takes them");
        }
    }
}

fn send_stream(sock: &Path, frames: &Frames) {
    let mut socket = UnixStream::connect(sock).expect("the server is there");
    let mut chunk = Vec::with_capacity(2 * CHUNK);
    for frame in frames.iter().take(RUN) {
        chunk.extend_from_slice(frame);
        if chunk.len() >= CHUNK {
            socket.write_all(&chunk).expect("the server takes it");
            chunk.clear();
        }
    }
    socket.write_all(&chunk).expect("the server takes it");
}

/// The last event says how much was recorded.
fn assert_recorded(out: &Path) {
    let events = fs::read(out.join("events.jsonl")).expect("events");
    let last = events[..events.len() - 1].rsplit(|&b| b == b'\n').next().expect("a line");
    let last: serde_json::Value = serde_json::from_slice(last).expect("JSON");
    assert_eq!((&last["events"], &last["bytes"]), (&RUN.into(), &(RUN * PAYLOAD_LEN).into()));
}

fn pin(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    // On a machine of one core there is nothing to choose.
    let _ = sched_setaffinity(None, &set);
}

/// CPU time of this thread.
fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// Waits for a process's end; its CPU time.
fn wait(child: &mut Child) -> Duration {
    let (mut status, pid) = (0, child.id() as libc::pid_t);
    // SAFETY: all zeroes is a value of this plain C struct.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    // SAFETY: both pointers lead to values of their type that outlive the call.
    let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    assert_eq!((waited, status), (pid, 0), "the server ends well");
    let time = |t: libc::timeval| Duration::new(t.tv_sec.unsigned_abs(), 1000 * t.tv_usec as u32);
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// The most memory that a process has had, in KiB (proc(5), VmHWM).
fn peak_rss(child: &Child) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("is there");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
