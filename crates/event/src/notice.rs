//! Lines for the user on standard error.

use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::printable::sentence;

static SILENT: AtomicBool = AtomicBool::new(false);

/// From now on [`notice`] writes nothing: for tests that make a server complain by the thousand.
#[doc(hidden)]
pub fn silence_notices() {
    SILENT.store(true, Ordering::Relaxed);
}

/// Writes one line to standard error, with the program's name before it. Whatever names and messages from elsewhere are in
/// it, it is one line and printable.
///
/// Not `eprintln!`, which panics when standard error is closed or on a full disk: the server goes on.
pub fn notice(text: &str) {
    if SILENT.load(Ordering::Relaxed) {
        return;
    }
    let program = std::env::args_os().next();
    let program = program.as_deref().and_then(|p| Path::new(p).file_name()).and_then(|p| p.to_str());
    let line = format!("{}: {}\n", sentence(program.unwrap_or("socktrace-server")), sentence(text));
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// So many lines about one thing are enough to see what is the matter.
const MAX_LINES: u32 = 8;

/// Lines about one thing that agents may cause any number of times: the first few are written, and that there are more.
#[derive(Debug, Default)]
pub struct Limited(u32);

impl Limited {
    /// Writes the next line about it, if it is one of the first.
    pub fn notice(&mut self, text: impl FnOnce() -> String) {
        self.0 = self.0.saturating_add(1);
        if self.0 < MAX_LINES {
            notice(&text());
        } else if self.0 == MAX_LINES {
            notice(&format!("{} (and more such lines, which are left out)", text()));
        }
    }
}
