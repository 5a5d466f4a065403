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

/// What is left of a frame that the server did not take in time: `LEFT` bytes from `FROM` on.
static BYTES: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
static FROM: AtomicUsize = AtomicUsize::new(0);
static LEFT: AtomicUsize = AtomicUsize::new(0);

pub(super) fn init() -> Result<(), Complaint> {
    if BYTES.load(Ordering::Acquire).is_null() {
        BYTES.store(params::map(LEN)?, Ordering::Release);
    }
    Ok(())
}

/// Forgets what is left, when the stream that it belongs to is gone.
pub(super) fn clear() {
    LEFT.store(0, Ordering::Relaxed);
}

/// Sends a frame; one that has begun counts as delivered, and its rest goes first next time. `broken` is called, before
/// anybody else can send, when nothing more can go out on this stream.
pub(super) fn send(fd: BorrowedFd<'_>, frame: &[&[u8]], broken: fn()) -> Result<(), Cause> {
    let _turn = lock::take()?;
    finish_begun(fd, broken)?;
    let total: usize = frame.iter().map(|part| part.len()).sum();
    let sent = loop {
        match send_once(fd, frame) {
            Ok(sent) => break sent,
            Err(errno) => again(fd, failure(errno), broken)?,
        }
    };
    if sent < total {
        if !keep_rest(frame, sent) {
            // The server has the beginning of a frame that has no end: it hears of that by the stream's.
            broken();
            return Err(Cause::Unmapped);
        }
        // A stall here loses nothing: the rest is kept.
        let _ = finish_begun(fd, broken);
    }
    stall::went_through(fd);
    Ok(())
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

fn finish_begun(fd: BorrowedFd<'_>, broken: fn()) -> Result<(), Cause> {
    loop {
        let (from, left) = (FROM.load(Ordering::Relaxed), LEFT.load(Ordering::Relaxed));
        if left == 0 {
            return Ok(());
        }
        // SAFETY: `keep_rest` wrote these bytes of the mapping, and whoever has the turn has it alone.
        let rest = unsafe { core::slice::from_raw_parts(BYTES.load(Ordering::Acquire).add(from), left) };
        match send_once(fd, &[rest]) {
            Ok(sent) => {
                FROM.store(from + sent, Ordering::Relaxed);
                LEFT.store(left - sent, Ordering::Relaxed);
            }
            Err(errno) => again(fd, failure(errno), broken)?,
        }
    }
}

/// Whether it could be kept.
fn keep_rest(frame: &[&[u8]], sent: usize) -> bool {
    let (mut skip, mut kept) = (sent, 0);
    for part in frame {
        let rest = &part[skip.min(part.len())..];
        skip -= part.len() - rest.len();
        // Frames fit by construction; the bound keeps a mistake there from becoming one here.
        let len = rest.len().min(LEN - kept);
        // SAFETY: within the mapping, which nothing else refers to while this thread has the turn.
        if !unsafe { copy_if_there(rest.as_ptr(), BYTES.load(Ordering::Acquire).add(kept), len) } {
            return false;
        }
        kept += len;
    }
    FROM.store(0, Ordering::Relaxed);
    LEFT.store(kept, Ordering::Relaxed);
    true
}
