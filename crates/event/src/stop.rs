//! How a source is told to end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Numbers of signals (signal(7)).
const SIGINT: usize = 2;
const SIGTERM: usize = 15;
/// What stands for the reason when no signal but a [`StopHandle`] asked.
const ASKED: usize = usize::MAX;

/// A request to end, and a descriptor that becomes readable with it (the self-pipe trick).
#[derive(Debug)]
pub struct Stop {
    handle: StopHandle,
    readable: UnixStream,
}

/// Asks a [`Stop`]'s source to end, from any thread.
#[derive(Clone, Debug)]
pub struct StopHandle {
    /// Why: a signal's number; 0: there is no reason yet. For signal handlers.
    pub reason: Arc<AtomicUsize>,
    /// Whoever changes `reason` writes a byte to it.
    pub wake: Arc<UnixStream>,
}

impl Stop {
    /// A request that a [`StopHandle`] makes.
    ///
    /// # Errors
    ///
    /// No descriptors left.
    pub fn new() -> io::Result<Self> {
        let (readable, wake) = UnixStream::pair()?;
        // A full pipe is as good a wake-up as another byte in it.
        wake.set_nonblocking(true)?;
        Ok(Self { handle: StopHandle { reason: Arc::default(), wake: Arc::new(wake) }, readable })
    }

    /// A handle to make the request with.
    pub fn handle(&self) -> StopHandle {
        self.handle.clone()
    }

    /// Why to end: `SIGINT`, `SIGTERM` or `stop`; None while there is no reason.
    pub fn reason(&self) -> Option<&'static str> {
        match self.handle.reason.load(Ordering::SeqCst) {
            SIGINT => Some("SIGINT"),
            SIGTERM => Some("SIGTERM"),
            ASKED => Some("stop"),
            _ => None,
        }
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }
}

impl StopHandle {
    /// Makes the request.
    pub fn stop(&self) {
        self.reason.store(ASKED, Ordering::SeqCst);
        let _ = io::Write::write(&mut &*self.wake, &[0]);
    }
}
