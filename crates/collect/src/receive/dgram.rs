//! Datagrams, many to a system call.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};

use super::Socket;
use super::ancillary::{Came, Control};
use super::handoff::{Handoff, Part};

/// Datagrams to a system call: beyond some dozens its cost vanishes beside that of the datagrams.
const BATCH: usize = 32;
/// Room for each, in bytes: more than the default net.core.wmem_max lets anybody send.
const SLOT_LEN: usize = 256 << 10;

/// A datagram socket and the memory it is received into.
pub(super) struct Datagrams<'a> {
    socket: BorrowedFd<'a>,
    /// BATCH slots. The kernel gives memory to the pages that are touched, so that small datagrams use little of it.
    slots: Vec<u8>,
    lens: [usize; BATCH],
    came: [Came; BATCH],
}

impl<'a> Datagrams<'a> {
    pub(super) fn new(socket: BorrowedFd<'a>) -> Self {
        Self { socket, slots: vec![0; BATCH * SLOT_LEN], lens: [0; BATCH], came: Default::default() }
    }
}

impl AsFd for Datagrams<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket
    }
}

impl Socket for Datagrams<'_> {
    fn receive(&mut self, to: &Handoff) -> io::Result<usize> {
        let count = match recvmmsg(self.socket, &mut self.slots, &mut self.lens, &mut self.came) {
            Ok(count) => count,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            // Memory comes back; a descriptor that is no socket never does.
            Err(Errno::NOMEM | Errno::NOBUFS) => {
                std::thread::sleep(Duration::from_millis(10));
                0
            }
            Err(e) => return Err(e.into()),
        };
        let slots = self.slots.chunks_exact(SLOT_LEN).zip(&self.lens[..count]).zip(&mut self.came);
        to.put(slots.map(|((slot, &sent_len), came)| {
            let len = sent_len.min(SLOT_LEN);
            (Part::datagram(len, sent_len, std::mem::take(came)), &slot[..len])
        }))?;
        Ok(count)
    }

    fn retry_after(&self) -> Option<Duration> {
        None
    }

    fn shut(&mut self) {
        let _ = shutdown(self.socket, Shutdown::Read);
    }
}

/// recvmmsg(2), which rustix does not have: receives datagrams into `slots` of SLOT_LEN bytes each and their lengths as
/// sent, which may be more, into `lens`, what came with each into `came`; returns their count.
fn recvmmsg(
    socket: BorrowedFd<'_>,
    slots: &mut [u8],
    lens: &mut [usize; BATCH],
    came: &mut [Came; BATCH],
) -> Result<usize, Errno> {
    let mut controls = [Control::EMPTY; BATCH];
    // SAFETY: both are plain C structs for which all zeroes is a value: null pointers with lengths of zero.
    let (mut vectors, mut messages): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) = unsafe { std::mem::zeroed() };
    let mut used = 0;
    let headers = vectors.iter_mut().zip(&mut messages).zip(&mut controls);
    for (slot, ((vector, message), control)) in slots.chunks_exact_mut(SLOT_LEN).zip(headers) {
        control.use_for(&mut message.msg_hdr);
        *vector = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() };
        message.msg_hdr.msg_iov = vector;
        message.msg_hdr.msg_iovlen = 1;
        used += 1;
    }
    // MSG_TRUNC as a flag asks for the length as sent (recv(2)).
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: `used` headers are filled in; each points to one vector, and that to a slot of its own, and to
    // a buffer of its own for what comes with it, all of which outlive the call. No address is asked for.
    let count = unsafe { libc::recvmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), used, flags, std::ptr::null_mut()) };
    let Ok(count) = usize::try_from(count) else {
        return Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO));
    };
    for ((len, came), message) in lens.iter_mut().zip(came).zip(&messages[..count]) {
        *len = message.msg_len as usize;
        *came = Came::with(&message.msg_hdr);
    }
    Ok(count)
}
