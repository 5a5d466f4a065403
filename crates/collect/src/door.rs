//! Rings that are handed over in this process, by whoever has put a probe into another one and has taken its ring from there.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gttr::{Ext, ExtWriter, Frame, FrameType};
use rustix::event::{EventfdFlags, eventfd};

use crate::sender::Sender;

/// Bytes of the frame that an agent hands a ring over with, at the most.
const MAX_FRAME_LEN: usize = 128;
/// What it says.
const ANNOUNCE: &[u8] = b"announce";

/// A way to a running [`Source`](socktrace_event::Source) for rings, beside its socket.
#[derive(Clone, Debug)]
pub struct Door(Arc<Inside>);

#[derive(Debug)]
struct Inside {
    waiting: Mutex<Vec<Handed>>,
    /// Readable while something waits (eventfd(2)).
    bell: OwnedFd,
}

/// A ring, and whose it is.
#[derive(Debug)]
pub(crate) struct Handed {
    pub(crate) ring: OwnedFd,
    pub(crate) sender: Sender,
    /// As an agent would have sent it.
    pub(crate) frame: Vec<u8>,
}

impl Door {
    pub(crate) fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Inside { waiting: Mutex::default(), bell })))
    }

    /// Hands over a ring: the memory, the process that writes to it, and the number by which that knows itself.
    ///
    /// # Errors
    ///
    /// The source cannot be told (eventfd(2)).
    pub fn hand_over(&self, ring: OwnedFd, sender: Sender, number: u32) -> io::Result<()> {
        let mut buffer = [0; MAX_FRAME_LEN];
        let mut ext = ExtWriter::new(&mut buffer);
        ext.put(Ext::Pid(number));
        let frame = Frame { conn: ANNOUNCE, ext: ext.finish(), ..Frame::new(FrameType::Ring, 0) };
        let mut bytes = [0; MAX_FRAME_LEN];
        let len = frame.encode(&mut bytes).map_err(|_| io::ErrorKind::InvalidData)?;
        self.lock().push(Handed { ring, sender, frame: bytes[..len].to_vec() });
        rustix::io::write(&self.0.bell, &1_u64.to_ne_bytes())?;
        Ok(())
    }

    /// What was handed over since it was last asked for.
    pub(crate) fn take(&self) -> Vec<Handed> {
        // Before the list is looked at: what comes behind that rings anew.
        let _ = rustix::io::read(&self.0.bell, &mut [0_u8; 8]);
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Handed>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.bell.as_fd()
    }
}
