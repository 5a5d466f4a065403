//! The kernel's ring buffer, read until the end.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use aya::Pod;
use aya::maps::{HashMap, MapData, RingBuf};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::time::ClockId;
use socktrace_collect::join::Joined;
use socktrace_event::{Event, Failed, Layer, Lost, Origin, Sink, Source, Stop, Taken};

use crate::load::{Options, Programs};
use crate::records::Record;
use crate::tell::{Teller, nanoseconds};

/// What a recording says that its events came from.
pub const KIND: &str = "bpf";
/// The kernel wakes nobody for a few records: they are looked for this often.
const LOOK: Duration = Duration::from_millis(10);
/// How often sockets are looked for that are gone, and losses.
const TICK: Duration = Duration::from_millis(100);
/// Records that are taken between two looks at the rest.
const BATCH: usize = 4096;
/// How long the end may take, and each look for what was said before a connection was closed.
const MAX_DRAIN: Duration = Duration::from_secs(2);

/// `struct loss_key`: process and reason.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LossKey {
    pid: u32,
    reason: u32,
}

/// `struct loss`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Loss {
    events: u64,
    bytes: u64,
    first: u64,
    last: u64,
}

// SAFETY: integers without padding.
unsafe impl Pod for LossKey {}
// SAFETY: as above.
unsafe impl Pod for Loss {}

pub(crate) type LossMap = HashMap<MapData, LossKey, Loss>;

/// `enum reason`
fn why(reason: u32) -> &'static str {
    match reason {
        1 => "the ring buffer was full",
        2 => "the program's memory could not be read",
        _ => "too many processes are traced",
    }
}

/// Events of the processes that a [`Control`](crate::Control) traces.
pub struct Kernel {
    records: RingBuf<MapData>,
    losses: LossMap,
    /// What was told of them.
    told: std::collections::HashMap<LossKey, Loss>,
    programs: Programs,
    found: Receiver<(u32, Vec<u8>)>,
    teller: Teller,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").field("teller", &self.teller).finish_non_exhaustive()
    }
}

impl Kernel {
    pub(crate) fn new(
        records: RingBuf<MapData>,
        losses: LossMap,
        programs: Programs,
        found: Receiver<(u32, Vec<u8>)>,
        options: &Options,
    ) -> Self {
        let told = std::collections::HashMap::new();
        Self { records, losses, told, programs, found, teller: Teller::new(options.max_bytes) }
    }

    /// Takes what is there, some of it; returns how many records that was.
    fn take<S: Sink>(&mut self, sink: &mut S) -> Result<usize, socktrace_event::End<S::Error>> {
        while let Ok((pid, sockets)) = self.found.try_recv() {
            self.teller.found(pid, &sockets, sink)?;
        }
        let mut count = 0;
        while count < BATCH
            && let Some(bytes) = self.records.next()
        {
            count += 1;
            match Record::parse(&bytes) {
                Some(record) => self.teller.take(&record, sink)?,
                None => {
                    sink.event(&Event::bad_frame("a record of the kernel's that is none of ours", bytes.len()), b"")?
                }
            }
        }
        Ok(count)
    }

    /// Takes all that was there when it was called, and perhaps more.
    fn drain<S: Sink>(&mut self, sink: &mut S) -> Taken<S::Error> {
        let end = Instant::now() + MAX_DRAIN;
        while self.take(sink)? > 0 {
            if Instant::now() > end {
                let reason = "the ring buffer was not read to its end: there was always more";
                return sink.event(&Event::lost(reason), b"");
            }
        }
        Ok(())
    }

    /// Looks for what the kernel does not say by itself.
    fn look<S: Sink>(&mut self, sink: &mut S) -> Taken<S::Error> {
        self.teller.set_clock();
        self.teller.stale(false, sink)?;
        self.closed(sink)?;
        self.lost(sink)
    }

    fn closed<S: Sink>(&mut self, sink: &mut S) -> Taken<S::Error> {
        let mut known = self.teller.inodes();
        if known.is_empty() {
            return Ok(());
        }
        let time = nanoseconds(ClockId::Monotonic);
        // Without it, connections have no end in the recording, and all their bytes.
        let Ok(alive) = self.programs.list("alive") else { return Ok(()) };
        let inode = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_ne_bytes);
        let alive: HashSet<u64> = alive.chunks_exact(size_of::<u64>()).map(inode).collect();
        known.retain(|inode| !alive.contains(inode));
        if known.is_empty() {
            return Ok(());
        }
        // What was said on them before they were closed comes first.
        self.drain(sink)?;
        self.teller.gone(&known, time, sink)
    }

    fn lost<S: Sink>(&mut self, sink: &mut S) -> Taken<S::Error> {
        for (key, loss) in self.losses.iter().flatten() {
            let told = self.told.entry(key).or_default();
            let (events, bytes) = (loss.events - told.events, loss.bytes - told.bytes);
            if (events, bytes) == (0, 0) {
                continue;
            }
            let since = if told.last == 0 { loss.first } else { told.last };
            *told = loss;
            let lost = Lost {
                events: Some(events),
                bytes: Some(bytes),
                reason: Some(why(key.reason).into()),
                since_ns: Some(since),
                until_ns: Some(loss.last),
                ..Lost::default()
            };
            self.teller.lost(key.pid, lost, sink)?;
        }
        Ok(())
    }

    fn run_until<S: Sink>(&mut self, stop: &Stop, sink: &mut S) -> Result<Taken<S::Error>, io::Error> {
        let mut looked = Instant::now();
        let mut flushed = true;
        loop {
            let count = match self.take(sink) {
                Ok(count) => count,
                Err(end) => return Ok(Err(end)),
            };
            flushed &= count == 0;
            if looked.elapsed() >= TICK || (count == 0 && !flushed) {
                if looked.elapsed() >= TICK {
                    looked = Instant::now();
                    if let Err(end) = self.look(sink) {
                        return Ok(Err(end));
                    }
                }
                match sink.flush() {
                    Ok(all) => flushed = all,
                    Err(end) => return Ok(Err(end)),
                }
            }
            if stop.reason().is_some() {
                return Ok(Ok(()));
            }
            if count == 0 {
                self.wait(stop)?;
            }
        }
    }

    fn wait(&self, stop: &Stop) -> io::Result<()> {
        let mut descriptors =
            [PollFd::from_borrowed_fd(self.records.as_fd(), PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        let timeout = Timespec::try_from(LOOK).map_err(io::Error::other)?;
        match poll(&mut descriptors, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// What is left when nothing more is to come.
    fn finish<S: Sink>(&mut self, sink: &mut S) -> Taken<S::Error> {
        self.drain(sink)?;
        self.look(sink)?;
        self.teller.stale(true, sink)?;
        sink.flush().map(|_| ())
    }
}

impl Source for Kernel {
    type Error = io::Error;

    fn origin(&self) -> Origin<'_> {
        Origin { path: Path::new(""), kind: KIND }
    }

    fn run<S: Sink + ?Sized>(mut self, stop: &Stop, sink: &mut S) -> Result<&'static str, Failed<io::Error, S::Error>> {
        let sink = &mut Joined::default().before(sink);
        let taken = self.run_until(stop, sink).map_err(Failed::Source)?;
        match taken.and_then(|()| self.finish(sink)) {
            Ok(()) => Ok(stop.reason().unwrap_or("stop")),
            Err(end) => end.reason(),
        }
    }
}
