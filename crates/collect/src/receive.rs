//! Bytes from sockets, without a runtime: a thread that blocks in poll(2) and takes what arrives, so that agents need
//! not wait, and the caller's thread, which decodes and hands on.

mod ancillary;
mod dgram;
mod handoff;
mod ring;
#[doc(hidden)]
pub mod rings;
mod senders;
mod stream;
#[doc(hidden)]
pub mod writers;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use socktrace_event::{Before, Event, Failed, Layer, Origin, Sink, Source, Stop, StopHandle, Taken};

use crate::bad_frames::BadFrames;
use crate::decode;
use crate::join::Joined;
use crate::listen::{Bound, SockType};
use crate::owners::Owners;
use crate::sender::Sender;
use handoff::{Arrived, Handoff};
use rings::Rings;
use senders::{Attributed, Senders};
use writers::Announcer;

/// With nothing new for so long, what is held back is flushed: long enough to catch the next event of a busy agent,
/// too short for anybody who watches.
const IDLE_FLUSH: Duration = Duration::from_millis(5);
/// What is held back is flushed after so long also when there is always something new.
const MAX_FLUSH: Duration = Duration::from_millis(100);
/// How often a sink that could not pass everything on is asked to try again.
const RETRY_FLUSH: Duration = Duration::from_millis(200);
/// How often an unfinished frame is looked at, at the end.
const UNFINISHED_POLL: Duration = Duration::from_millis(1);
/// How long the end may take, however much agents have left in their sockets.
const MAX_DRAIN: Duration = Duration::from_secs(2);

/// Where bytes come from.
trait Socket: AsFd + Send {
    /// Takes some of what has arrived, without blocking on the socket, and returns how many things that was:
    /// datagrams, reads, agents that came or went. Zero: nothing is there.
    ///
    /// # Errors
    ///
    /// Those after which the socket is of no use.
    fn receive(&mut self, to: &Handoff) -> io::Result<usize>;

    /// When `receive` is to be called although nothing arrives.
    fn retry_after(&self) -> Option<Duration>;

    /// From now on agents cannot send (they get EPIPE, and so know what they lost); what they have sent stays.
    fn shut(&mut self);
}

/// Why receiving has ended, and whether all that agents had sent was received.
struct Drained {
    reason: &'static str,
    complete: bool,
}

/// Receives from a socket, and from the rings that are handed over there, until `stop` says so, then drains it.
///
/// The drain ends when all that has arrived is taken, after at most 2 s. Events go to the sink on the caller's thread.
impl Source for &Bound {
    /// The socket, poll(2) or epoll(7) has failed.
    type Error = io::Error;

    fn origin(&self) -> Origin<'_> {
        Bound::origin(self)
    }

    fn run<S: Sink + ?Sized>(self, stop: &Stop, sink: &mut S) -> Result<&'static str, Failed<io::Error, S::Error>> {
        let mut socket: Box<dyn Socket + '_> = match self.sock_type() {
            SockType::Dgram => Box::new(dgram::Datagrams::new(self.as_fd())),
            SockType::Stream => Box::new(stream::Agents::new(self).map_err(Failed::Source)?),
        };
        let sink = &mut BadFrames::default().before(Joined::default().before(sink));
        let handoff = Handoff::default();
        let mut streams = decode::Streams::default();
        let (end, taken) = thread::scope(|scope| {
            let receiver = thread::Builder::new().name("receive".into()).spawn_scoped(scope, || {
                let _closer = handoff.closer();
                let reason = receive_until(stop, socket.as_mut(), &handoff)?;
                let complete = drain(socket.as_mut(), &handoff)?;
                Ok(Drained { reason, complete })
            })?;
            let mut release = Release { handoff: &handoff, stop: stop.handle(), is_done: false };
            let taken = hand_on(&handoff, self.sock_type(), &mut streams, sink);
            release.is_done = taken.is_ok();
            drop(release);
            Ok((receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), taken))
        })
        .map_err(Failed::Source)?;
        match taken.and_then(|()| finish(&mut streams, &end, sink)) {
            Ok(()) => end.map(|end| end.reason).map_err(Failed::Source),
            Err(end) => end.reason(),
        }
    }
}

/// Reports what is left when nothing more will come.
fn finish<S: Sink>(
    streams: &mut decode::Streams,
    end: &io::Result<Drained>,
    sink: &mut Before<BadFrames, S>,
) -> Taken<S::Error> {
    streams.finish(sink)?;
    if matches!(end, Ok(Drained { complete: false, .. })) {
        let reason = "the server had to stop before it had read all that agents had sent";
        sink.event(&Event::lost(reason), b"")?;
    }
    sink.layer.report(true, &mut sink.sink)?;
    sink.flush()?;
    Ok(())
}

/// Lets the receiving thread end when the recording one has failed, which would wait for it for ever.
struct Release<'a> {
    handoff: &'a Handoff,
    stop: StopHandle,
    /// Whether it has not.
    is_done: bool,
}

impl Drop for Release<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.handoff.abandon();
            self.stop.stop();
        }
    }
}

fn receive_until(stop: &Stop, source: &mut dyn Socket, to: &Handoff) -> io::Result<&'static str> {
    loop {
        if let Some(reason) = stop.reason() {
            return Ok(reason);
        }
        if source.receive(to)? > 0 {
            // Where something was, there is mostly more: it is not worth a poll(2) to know.
            continue;
        }
        wait(source.as_fd(), stop.as_fd(), source.retry_after())?;
    }
}

/// Receives what has already arrived; returns whether that was all.
fn drain(source: &mut dyn Socket, to: &Handoff) -> io::Result<bool> {
    source.shut();
    let start = Instant::now();
    while source.receive(to)? > 0 {
        if start.elapsed() > MAX_DRAIN {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Decodes what arrives and hands it on, until nothing more will come.
fn hand_on<S: Sink>(
    from: &Handoff,
    sock_type: SockType,
    streams: &mut decode::Streams,
    sink: &mut S,
) -> Taken<S::Error> {
    // Since when something is held back, and whether the sink has said that it is stuck.
    let mut held_since: Option<Instant> = None;
    let mut stuck = false;
    let mut arrived = Arrived::default();
    let mut rings = Rings::default();
    let (mut senders, mut owners) = (Senders::default(), Owners::default());
    let mut is_last = false;
    while !is_last {
        let flush_in = match held_since {
            Some(since) => Some(MAX_FLUSH.saturating_sub(since.elapsed()).min(IDLE_FLUSH)),
            None => stuck.then_some(RETRY_FLUSH),
        };
        let look_in = rings.look_in();
        is_last = !from.take(&mut arrived, flush_in.into_iter().chain(look_in).min(), &rings.sleeping());
        let mut is_idle = arrived.is_empty();
        for (part, bytes) in arrived.iter_mut() {
            let (sender, pid) = (part.sender.unwrap_or(Sender::UNKNOWN), part.sender.map(|sender| sender.pid));
            if let Some(fd) = part.fd.take() {
                rings.add(&fd, part.from, sender, &Announcer::of(bytes, pid, &mut senders), sink)?;
            }
            owners.sender(sender, part.from);
            let attributed = Attributed { senders: &mut senders, owners: &mut owners, sender: pid };
            let sink = &mut attributed.before(&mut *sink);
            match sock_type {
                SockType::Dgram => decode::datagram(bytes, part.sent_len, sink)?,
                SockType::Stream if part.end => {
                    rings.agent_gone(part.from);
                    streams.end(part.from, sink)?;
                }
                SockType::Stream => streams.feed(part.from, sender, bytes, sink)?,
            }
        }
        // What cannot be written stays in the rings: their writers may wait for it.
        let start = Instant::now();
        while !stuck && rings.take(&mut owners, sink)? {
            is_idle = false;
            if rings.is_pressing() {
                stuck = !sink.flush()?;
                held_since = None;
                if !stuck {
                    rings.free();
                }
            } else {
                held_since.get_or_insert(start);
            }
            if start.elapsed() > IDLE_FLUSH {
                break;
            }
        }
        if is_last {
            drain_rings(&mut rings, &mut stuck, &mut owners, sink)?;
        }
        let now = Instant::now();
        if !arrived.is_empty() {
            held_since.get_or_insert(now);
        }
        let overdue = held_since.is_some_and(|since| now - since >= MAX_FLUSH);
        if overdue || is_last || (is_idle && flush_in.is_some()) {
            stuck = !sink.flush()?;
            held_since = None;
            if !stuck {
                rings.free();
            }
        }
    }
    rings.finish(sink)
}

/// Hands on what is in the rings by now; a thread that is at a frame has the time to finish it, or to be gone.
fn drain_rings<S: Sink>(rings: &mut Rings, stuck: &mut bool, owners: &mut Owners, sink: &mut S) -> Taken<S::Error> {
    let (start, ends) = (Instant::now(), rings.ends());
    while !*stuck && start.elapsed() < MAX_DRAIN && !ends.iter().all(|end| rings.is_past(end)) {
        if !rings.take(owners, sink)? {
            thread::sleep(UNFINISHED_POLL);
        }
        if rings.is_pressing() {
            *stuck = !sink.flush()?;
            if !*stuck {
                rings.free();
            }
        }
    }
    // Whatever that takes and wherever it can be written: nobody else will.
    rings.take_abandoned(owners, sink)
}

/// Waits until something has arrived, a stop is asked for, or the time is over.
fn wait(source: BorrowedFd<'_>, stop: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<()> {
    let mut fds = [PollFd::from_borrowed_fd(source, PollFlags::IN), PollFd::from_borrowed_fd(stop, PollFlags::IN)];
    let timeout = timeout.map(|t| Timespec { tv_sec: 0, tv_nsec: t.subsec_nanos().into() });
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
