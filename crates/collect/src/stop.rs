//! How the receiving loop is told to end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::{flag, low_level};

/// What [`Stop::reason`] is when no signal but a [`StopHandle`] asked.
const ASKED: usize = usize::MAX;

/// A request to end, and a descriptor that becomes readable with it (the self-pipe trick).
#[derive(Debug)]
pub struct Stop {
    reason: Arc<AtomicUsize>,
    readable: UnixStream,
    wake: Arc<UnixStream>,
}

/// Asks a [`Stop`]'s loop to end, from any thread.
#[derive(Clone, Debug)]
pub struct StopHandle {
    reason: Arc<AtomicUsize>,
    wake: Arc<UnixStream>,
}

impl Stop {
    /// A request that only a [`StopHandle`] makes.
    ///
    /// # Errors
    ///
    /// No descriptors left.
    pub fn new() -> io::Result<Self> {
        let (readable, wake) = UnixStream::pair()?;
        // A full pipe is as good a wake-up as another byte in it.
        wake.set_nonblocking(true)?;
        Ok(Self { reason: Arc::default(), readable, wake: Arc::new(wake) })
    }

    /// A request that SIGINT and SIGTERM make too. The second of them ends the process at once, as if by default.
    ///
    /// Also keeps SIGXFSZ from ending the process: a write beyond the file size limit then fails with `EFBIG`
    /// (setrlimit(2)).
    ///
    /// # Errors
    ///
    /// No descriptors left.
    pub fn on_signals() -> io::Result<Self> {
        let stop = Self::new()?;
        let second = Arc::new(AtomicBool::new(false));
        for (signal, number) in [(SIGINT, SIGINT as usize), (SIGTERM, SIGTERM as usize)] {
            // The order matters: each signal first looks for an earlier one, then leaves its mark.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&second))?;
            flag::register(signal, Arc::clone(&second))?;
            flag::register_usize(signal, Arc::clone(&stop.reason), number)?;
            low_level::pipe::register(signal, stop.wake.try_clone()?)?;
        }
        flag::register(SIGXFSZ, Arc::default())?;
        Ok(stop)
    }

    /// A handle to make the request with.
    pub fn handle(&self) -> StopHandle {
        StopHandle { reason: Arc::clone(&self.reason), wake: Arc::clone(&self.wake) }
    }

    /// Why to end: `SIGINT`, `SIGTERM` or `stop`; None while there is no reason.
    pub fn reason(&self) -> Option<&'static str> {
        const INT: usize = SIGINT as usize;
        const TERM: usize = SIGTERM as usize;
        match self.reason.load(Ordering::SeqCst) {
            INT => Some("SIGINT"),
            TERM => Some("SIGTERM"),
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
