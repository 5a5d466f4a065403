//! Signals that end a collector.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::{flag, low_level};
use socktrace_event::Stop;

/// A request that SIGINT and SIGTERM make too. The second of them ends the process at once, as if by default.
///
/// Also keeps SIGXFSZ from ending the process: a write beyond the file size limit then fails with `EFBIG`
/// (setrlimit(2)).
///
/// # Errors
///
/// No descriptors left.
pub fn stop_on_signals() -> io::Result<Stop> {
    let stop = Stop::new()?;
    let (second, handle) = (Arc::new(AtomicBool::new(false)), stop.handle());
    for (signal, number) in [(SIGINT, SIGINT as usize), (SIGTERM, SIGTERM as usize)] {
        // The order matters: each signal first looks for an earlier one, then leaves its mark.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&second))?;
        flag::register(signal, Arc::clone(&second))?;
        flag::register_usize(signal, Arc::clone(&handle.reason), number)?;
        low_level::pipe::register(signal, handle.wake.try_clone()?)?;
    }
    flag::register(SIGXFSZ, Arc::default())?;
    Ok(stop)
}
