//! Where lines go: a terminal, a pipe or a file, which may be slow, full or gone.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use anstream::{AutoStream, ColorChoice};
use anyhow::{Context, Result};
use socktrace_server::notice;

/// How much waits for a slow reader while a program is traced, in bytes: beyond that, lines are dropped and counted,
/// because the program must not wait.
const MAX_WAITING: usize = 64 << 20;

/// The default destination.
#[derive(Clone, Copy, Debug)]
pub enum Default {
    Stdout,
    Stderr,
}

/// A destination, opened.
pub struct Destination {
    writer: Box<dyn Write + Send>,
    /// Whether to write in colour.
    pub colour: bool,
    /// Whether it is where nobody will read anything: /dev/null (null(4)).
    pub is_null: bool,
}

impl Destination {
    /// Any writer, without colour.
    pub fn to(writer: Box<dyn Write + Send>) -> Self {
        Self { writer, colour: false, is_null: false }
    }

    /// # Errors
    ///
    /// The file cannot be made.
    pub fn open(file: Option<&Path>, default: Default, colour: ColorChoice) -> Result<Self> {
        let is_on = |auto: ColorChoice| match colour {
            ColorChoice::Auto => auto != ColorChoice::Never,
            chosen => chosen != ColorChoice::Never,
        };
        Ok(match (file, default) {
            (Some(path), _) => {
                let file = File::create(path).with_context(|| format!("{}: cannot be written", path.display()))?;
                let auto = if file.is_terminal() { AutoStream::choice(&io::stderr()) } else { ColorChoice::Never };
                let is_null = is_null(&file);
                Self { writer: Box::new(file), colour: is_on(auto), is_null }
            }
            (None, Default::Stdout) => Self {
                writer: Box::new(io::stdout()),
                colour: is_on(AutoStream::choice(&io::stdout())),
                is_null: false,
            },
            (None, Default::Stderr) => Self {
                writer: Box::new(io::stderr()),
                colour: is_on(AutoStream::choice(&io::stderr())),
                is_null: false,
            },
        })
    }

    /// A thread that writes, so that nobody else waits for the reader.
    pub fn in_background(self) -> Output {
        let queue = Arc::new(Queue::default());
        let (theirs, writer) = (Arc::clone(&queue), self.writer);
        // Without a thread there is nothing to be seen, and a program that has to be traced may still run.
        let thread = thread::Builder::new().name("output".into()).spawn(move || drain(&theirs, writer));
        Output { queue, thread: thread.ok() }
    }

    /// Writes at once; false: the reader has gone or cannot take any more.
    pub fn write(&mut self, bytes: &[u8]) -> bool {
        written(self.writer.write_all(bytes).and_then(|()| self.writer.flush()))
    }
}

fn is_null(file: &File) -> bool {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    const NULL: u64 = libc::makedev(1, 3);
    file.metadata().is_ok_and(|metadata| metadata.file_type().is_char_device() && metadata.rdev() == NULL)
}

/// A reader that has gone is no error, and anything else is said once.
fn written(result: io::Result<()>) -> bool {
    match result {
        Ok(()) => true,
        Err(error) => {
            if error.kind() != io::ErrorKind::BrokenPipe {
                notice(&format!("the output cannot be written: {error}: nothing more is shown"));
            }
            false
        }
    }
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// Blocks of lines dropped since the last that was not.
    dropped: u64,
    closed: bool,
    gone: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn drain(queue: &Queue, mut writer: Box<dyn Write + Send>) {
    let mut bytes = Vec::new();
    loop {
        let mut state = queue.lock();
        while state.waiting.is_empty() && !state.closed {
            state = queue.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.waiting.is_empty() {
            return;
        }
        bytes.clear();
        std::mem::swap(&mut bytes, &mut state.waiting);
        drop(state);
        if !written(writer.write_all(&bytes).and_then(|()| writer.flush())) {
            let mut state = queue.lock();
            (state.gone, state.waiting) = (true, Vec::new());
            return;
        }
    }
}

/// Lines on their way.
pub struct Output {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

impl Output {
    /// Hands whole lines on; never waits.
    pub fn write(&self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut state = self.queue.lock();
        if state.gone || self.thread.is_none() {
            return;
        }
        if state.waiting.len() + bytes.len() > MAX_WAITING && !state.waiting.is_empty() {
            state.dropped += bytes.iter().filter(|&&b| b == b'\n').count() as u64;
            return;
        }
        if let dropped @ 1.. = std::mem::take(&mut state.dropped) {
            let note = format!("… {dropped} lines are not shown: the output did not take them\n");
            state.waiting.extend_from_slice(note.as_bytes());
        }
        state.waiting.extend_from_slice(bytes);
        drop(state);
        self.queue.changed.notify_one();
    }

    /// Hands bytes on that are no lines; never waits. False: they are dropped, because too much is waiting.
    pub fn write_whole(&self, bytes: &[u8]) -> bool {
        let mut state = self.queue.lock();
        if state.gone || self.thread.is_none() {
            return true;
        }
        if state.waiting.len() + bytes.len() > MAX_WAITING && !state.waiting.is_empty() {
            return false;
        }
        state.waiting.extend_from_slice(bytes);
        drop(state);
        self.queue.changed.notify_one();
        true
    }

    /// Waits until all is written, and returns how many lines never will be.
    pub fn finish(mut self) -> u64 {
        let mut state = self.queue.lock();
        state.closed = true;
        let dropped = state.dropped;
        drop(state);
        self.queue.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        dropped
    }
}
