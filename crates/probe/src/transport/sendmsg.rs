//! One frame in one sendmsg(2), from where its parts lie.

use rustix::fd::BorrowedFd;
use rustix::io::{Errno, IoSlice};
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

/// Parts of a frame.
pub(crate) const MAX_FRAME_PARTS: usize = 23;
/// Bytes of a datagram that are the kernel's (unix_dgram_sendmsg keeps 32 of SO_SNDBUF) or the frame's own.
pub(super) const FRAME_OVERHEAD: usize = 4096;
/// Payload bytes of one frame, at the most.
pub(crate) const MAX_CHUNK: usize = 65536;

/// What to do about a send that failed.
pub(super) enum Failure {
    Again,
    Full,
    /// Not the server's doing.
    Unmapped,
    Gone,
}

pub(super) fn failure(errno: Errno) -> Failure {
    match errno {
        Errno::INTR => Failure::Again,
        Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM => Failure::Full,
        Errno::FAULT => Failure::Unmapped,
        _ => Failure::Gone,
    }
}

pub(super) fn send_once(fd: BorrowedFd<'_>, frame: &[&[u8]]) -> Result<usize, Errno> {
    send_with(fd, frame, &mut SendAncillaryBuffer::default())
}

pub(super) fn send_with(
    fd: BorrowedFd<'_>,
    frame: &[&[u8]],
    ancillary: &mut SendAncillaryBuffer<'_, '_, '_>,
) -> Result<usize, Errno> {
    let mut parts = [IoSlice::new(&[]); MAX_FRAME_PARTS];
    for (to, part) in parts.iter_mut().zip(frame) {
        *to = IoSlice::new(part);
    }
    sendmsg(fd, &parts[..frame.len()], ancillary, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
}
