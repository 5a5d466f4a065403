//! Frames on a stream: a frame that went out in part is finished before the next begins.

use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use rustix::fd::BorrowedFd;

use super::sendmsg::{FRAME_OVERHEAD, Failure, MAX_CHUNK, failure, send_once};
use super::{lock, stall};
use crate::process::losses::Cause;
use crate::sys::copy_if_there;
use crate::sys::params::{self, Complaint};

/// Room for the longest frame.
const LEN: usize = MAX_CHUNK + 2 * FRAME_OVERHEAD;

/// What is left of a frame that the server did not take in time: `left` bytes from `from` on.
struct Outbox {
    /// Room for [`LEN`] bytes; null until it is mapped.
    bytes: AtomicPtr<u8>,
    from: AtomicUsize,
    left: AtomicUsize,
}

static OUTBOX: Outbox = Outbox::none();

impl Outbox {
    const fn none() -> Self {
        Self { bytes: AtomicPtr::new(core::ptr::null_mut()), from: AtomicUsize::new(0), left: AtomicUsize::new(0) }
    }

    fn init(&self) -> Result<(), Complaint> {
        if self.bytes.load(Ordering::Acquire).is_null() {
            self.bytes.store(params::map(LEN)?, Ordering::Release);
        }
        Ok(())
    }

    /// Sends what is left, and then a frame, as the only thread that does.
    fn send(&self, fd: BorrowedFd<'_>, frame: &[&[u8]], broken: fn()) -> Result<(), Cause> {
        self.finish_begun(fd, broken)?;
        let total: usize = frame.iter().map(|part| part.len()).sum();
        let sent = loop {
            match send_once(fd, frame) {
                Ok(sent) => break sent,
                Err(errno) => again(fd, failure(errno), broken)?,
            }
        };
        if sent < total {
            if !self.keep_rest(frame, sent) {
                // The server has the beginning of a frame that has no end: it hears of that by the stream's.
                broken();
                return Err(Cause::Unmapped);
            }
            // A stall here loses nothing: the rest is kept.
            let _ = self.finish_begun(fd, broken);
        }
        stall::went_through(fd);
        Ok(())
    }

    fn finish_begun(&self, fd: BorrowedFd<'_>, broken: fn()) -> Result<(), Cause> {
        loop {
            let (from, left) = (self.from.load(Ordering::Relaxed), self.left.load(Ordering::Relaxed));
            if left == 0 {
                return Ok(());
            }
            // SAFETY: `keep_rest` wrote these bytes of the mapping, and whoever has the turn has it alone.
            let rest = unsafe { core::slice::from_raw_parts(self.bytes.load(Ordering::Acquire).add(from), left) };
            match send_once(fd, &[rest]) {
                Ok(sent) => {
                    self.from.store(from + sent, Ordering::Relaxed);
                    self.left.store(left - sent, Ordering::Relaxed);
                }
                Err(errno) => again(fd, failure(errno), broken)?,
            }
        }
    }

    /// Whether it could be kept.
    fn keep_rest(&self, frame: &[&[u8]], sent: usize) -> bool {
        let (mut skip, mut kept) = (sent, 0);
        for part in frame {
            let rest = &part[skip.min(part.len())..];
            skip -= part.len() - rest.len();
            // Frames fit by construction; the bound keeps a mistake there from becoming one here.
            let len = rest.len().min(LEN - kept);
            // SAFETY: within the mapping, which nothing else refers to while this thread has the turn.
            if !unsafe { copy_if_there(rest.as_ptr(), self.bytes.load(Ordering::Acquire).add(kept), len) } {
                return false;
            }
            kept += len;
        }
        self.from.store(0, Ordering::Relaxed);
        self.left.store(kept, Ordering::Relaxed);
        true
    }
}

pub(super) fn init() -> Result<(), Complaint> {
    OUTBOX.init()
}

/// Forgets what is left, when the stream that it belongs to is gone.
pub(super) fn clear() {
    OUTBOX.left.store(0, Ordering::Relaxed);
}

/// Sends a frame; one that has begun counts as delivered, and its rest goes first next time. `broken` is called, before
/// anybody else can send, when nothing more can go out on this stream.
pub(super) fn send(fd: BorrowedFd<'_>, frame: &[&[u8]], broken: fn()) -> Result<(), Cause> {
    let _turn = lock::take()?;
    OUTBOX.send(fd, frame, broken)
}

fn again(fd: BorrowedFd<'_>, failure: Failure, broken: fn()) -> Result<(), Cause> {
    match failure {
        Failure::Again => Ok(()),
        Failure::Full => stall::wait_for_room(fd),
        Failure::Unmapped => Err(Cause::Unmapped),
        Failure::Gone => {
            broken();
            Err(Cause::Absent)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn new() -> Outbox {
        let outbox = Outbox::none();
        outbox.init().unwrap();
        outbox
    }

    fn broken() {
        panic!("the stream is whole");
    }

    #[test]
    fn a_frame_that_goes_out_in_part_is_finished_before_the_next() {
        let (ours, mut servers) = UnixStream::pair().unwrap();
        let outbox = new();
        let frame = |number: u8| [number; 60_000];
        let mut sent = vec![];
        for number in 0.. {
            let frame = frame(number);
            let (one, other) = frame.split_at(1000);
            match outbox.send(ours.as_fd(), &[one, other], broken) {
                Ok(()) => sent.push(number),
                // Whoever does not read in the time of a stall hears no more.
                Err(cause) => {
                    assert_eq!(cause, Cause::Stalled);
                    break;
                }
            }
        }
        assert_ne!(outbox.left.load(Ordering::Relaxed), 0, "the last went out in part");
        let reading = std::thread::spawn(move || {
            let mut bytes = vec![];
            servers.read_to_end(&mut bytes).unwrap();
            bytes
        });
        // As soon as the server reads, the rest goes first.
        while outbox.send(ours.as_fd(), &[&frame(200)], broken).is_err() {}
        drop(ours);
        sent.push(200);
        assert!(reading.join().unwrap() == sent.into_iter().flat_map(frame).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_kept_of_a_frame_is_what_was_not_sent() {
        let outbox = new();
        for (sent, rest) in [(0, &b"abcdef"[..]), (1, b"bcdef"), (2, b"cdef"), (5, b"f"), (6, b"")] {
            assert!(outbox.keep_rest(&[b"ab", b"", b"cdef"], sent));
            // SAFETY: written a moment ago.
            let kept = unsafe {
                core::slice::from_raw_parts(outbox.bytes.load(Ordering::Relaxed), outbox.left.load(Ordering::Relaxed))
            };
            assert_eq!(kept, rest);
        }
    }
}
