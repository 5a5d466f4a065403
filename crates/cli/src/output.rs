//! Where lines go: a terminal, a pipe or a file, which may be slow, full or gone.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anstream::AutoStream;
use anstream::stream::RawStream;
use anyhow::{Error, Result, anyhow};
use clap::ColorChoice;
use socktrace_event::{End, PathError, Taken, errno, notice};
use socktrace_recording::private;
use socktrace_view::{Lines, Printer};

use crate::args::ViewArgs;

/// How much waits for a slow reader while a program is traced, in bytes: beyond that, lines are dropped and counted,
/// because the program must not wait.
const MAX_WAITING: usize = 64 << 20;
/// Lines of a traced program wait so long for earlier ones: what several processes do in a few milliseconds arrives process
/// by process. Nobody sees the difference.
pub const ORDERING_TIME: Duration = Duration::from_millis(20);

/// In messages.
pub const STDOUT: &str = "standard output";

/// A writer whose errors say what could not be written.
pub struct Named<W> {
    writer: W,
    name: String,
}

impl<W> Named<W> {
    pub fn new(writer: W, name: impl ToString) -> Self {
        Self { writer, name: name.to_string() }
    }

    fn name<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| match error.kind() {
            // Is tried again.
            io::ErrorKind::Interrupted => error,
            kind => io::Error::new(kind, format!("{}: {}", self.name, errno::explain(&error))),
        })
    }
}

impl<W: Write> Write for Named<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = self.writer.write(bytes);
        self.name(result)
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.writer.flush();
        self.name(result)
    }
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

    /// What is named by `-o`, else standard output or standard error.
    ///
    /// # Errors
    ///
    /// The file cannot be made.
    pub fn open(args: &ViewArgs, is_stdout: bool) -> Result<Self> {
        let (writer, knows_colour, is_null): (Box<dyn Write + Send>, _, _) = match &args.output {
            Some(path) => {
                let file = private::create(path)?;
                let (knows_colour, is_null) = (file.is_terminal() && knows_colour(&io::stderr()), is_null(&file));
                (Box::new(Named::new(file, path.display())), knows_colour, is_null)
            }
            None if is_stdout => (Box::new(Named::new(io::stdout(), STDOUT)), knows_colour(&io::stdout()), false),
            None => (Box::new(Named::new(io::stderr(), "standard error")), knows_colour(&io::stderr()), false),
        };
        let colour = match args.color {
            ColorChoice::Auto => knows_colour,
            chosen => chosen == ColorChoice::Always,
        };
        Ok(Self { writer, colour, is_null })
    }

    /// A thread that writes, so that nobody else waits for the reader. What comes within `ordering` is written by time.
    pub fn in_background(self, ordering: Duration) -> Output {
        let queue = Arc::new(Queue::default());
        let (theirs, writer) = (Arc::clone(&queue), self.writer);
        // Without a thread there is nothing to be seen, and a program that has to be traced may still run.
        let thread = thread::Builder::new().name("output".into()).spawn(move || drain(&theirs, writer, ordering));
        Output { queue, thread: thread.ok() }
    }
}

/// Writes at once.
impl Printer for Destination {
    type Error = Error;

    fn print(&mut self, lines: &Lines) -> Taken<Error> {
        write(&mut *self.writer, &lines.bytes)
    }
}

/// Whether a stream leads to a terminal that shows colours, and the environment does not ask for none.
fn knows_colour(stream: &impl RawStream) -> bool {
    AutoStream::choice(stream) != anstream::ColorChoice::Never
}

fn is_null(file: &File) -> bool {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    let null = rustix::fs::makedev(1, 3);
    file.metadata().is_ok_and(|metadata| metadata.file_type().is_char_device() && metadata.rdev() == null)
}

/// A reader that has gone is no error: it has enough.
fn write(writer: &mut dyn Write, bytes: &[u8]) -> Taken<Error> {
    writer.write_all(bytes).and_then(|()| writer.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => End::Enough,
        _ => {
            let why = errno::explain(&error);
            End::Failed(anyhow!("the output cannot be written: {why}: nothing more is shown"))
        }
    })
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Lines,
    /// Bytes that are on their way, those that wait for earlier ones included.
    len: usize,
    /// Lines dropped since the last that was not.
    dropped: u64,
    closed: bool,
    gone: bool,
}

impl State {
    fn has_room(&self, len: usize) -> bool {
        self.len == 0 || self.len + len <= MAX_WAITING
    }

    fn add(&mut self, bytes: &[u8], marks: &[(u64, usize)]) {
        self.waiting.bytes.extend_from_slice(bytes);
        self.waiting.marks.extend_from_slice(marks);
        self.len += bytes.len();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn drain(queue: &Queue, mut writer: Box<dyn Write + Send>, ordering: Duration) {
    let mut held = Ordering::default();
    let mut bytes = Vec::new();
    loop {
        let mut state = queue.lock();
        while state.waiting.bytes.is_empty() && !state.closed {
            state = match held.until_due(ordering) {
                None => queue.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => break,
                Some(time) => queue.changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        let (lines, is_last) = (std::mem::take(&mut state.waiting), state.closed);
        drop(state);
        held.add(&lines, Instant::now());
        bytes.clear();
        held.take(if is_last { Duration::ZERO } else { ordering }, &mut bytes);
        if let Err(end) = write(&mut *writer, &bytes) {
            if let End::Failed(error) = end {
                notice(&error.to_string());
            }
            let mut state = queue.lock();
            (state.gone, state.waiting) = (true, Lines::default());
            return;
        }
        queue.lock().len -= bytes.len();
        if is_last && queue.lock().waiting.bytes.is_empty() {
            return;
        }
    }
}

/// Lines that wait for earlier ones.
#[derive(Default)]
struct Ordering {
    /// By time, and by order of arrival where that is the same.
    lines: BTreeMap<(u64, u64), Vec<u8>>,
    count: u64,
    /// When lines have arrived, and the latest time among them.
    arrivals: VecDeque<(Instant, u64)>,
}

impl Ordering {
    fn add(&mut self, lines: &Lines, now: Instant) {
        let (mut rest, mut latest) = (&*lines.bytes, 0);
        for &(ns, len) in &lines.marks {
            let (line, after) = rest.split_at(len);
            self.lines.insert((ns, self.count), line.to_owned());
            self.count += 1;
            (rest, latest) = (after, latest.max(ns));
        }
        if !lines.marks.is_empty() {
            self.arrivals.push_back((now, latest));
        }
    }

    /// How long until some have waited for long enough.
    fn until_due(&self, ordering: Duration) -> Option<Duration> {
        self.arrivals.front().map(|(arrived, _)| ordering.saturating_sub(arrived.elapsed()))
    }

    fn due(&mut self, ordering: Duration) -> Option<(Instant, u64)> {
        let is_due = self.arrivals.front().is_some_and(|(arrived, _)| arrived.elapsed() >= ordering);
        if is_due { self.arrivals.pop_front() } else { None }
    }

    /// Appends those that have waited for long enough, and all that happened before them.
    fn take(&mut self, ordering: Duration, to: &mut Vec<u8>) {
        let mut until = None;
        while let Some((_, latest)) = self.due(ordering) {
            until = until.max(Some(latest));
        }
        let Some(until) = until else { return };
        while let Some(first) = self.lines.first_entry().filter(|first| first.key().0 <= until) {
            to.extend_from_slice(&first.remove());
        }
    }
}

/// Lines on their way; without a thread, to nobody.
#[derive(Default)]
pub struct Output {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

/// Hands lines on, and never waits but for the end.
impl Printer for Output {
    type Error = PathError;

    fn print(&mut self, lines: &Lines) -> Taken<PathError> {
        let Some(&(first_ns, _)) = lines.marks.first() else { return Ok(()) };
        let mut state = self.queue.lock();
        if state.gone || self.thread.is_none() {
            return Ok(());
        }
        if !state.has_room(lines.bytes.len()) {
            state.dropped += lines.bytes.iter().filter(|&&b| b == b'\n').count() as u64;
            return Ok(());
        }
        if let dropped @ 1.. = std::mem::take(&mut state.dropped) {
            let note = format!("… {dropped} lines are not shown: the output did not take them\n");
            state.add(note.as_bytes(), &[(first_ns, note.len())]);
        }
        state.add(&lines.bytes, &lines.marks);
        drop(state);
        self.queue.changed.notify_one();
        Ok(())
    }

    fn finish(&mut self) -> Result<(), PathError> {
        let unshown = self.close();
        if unshown > 0 {
            notice(&format!("{unshown} lines were not shown: the output did not take them"));
        }
        Ok(())
    }
}

impl Output {
    /// Hands bytes on that are no lines; never waits. False: they are dropped, because too much is waiting.
    pub fn write_whole(&self, bytes: &[u8]) -> bool {
        let mut state = self.queue.lock();
        if state.gone || self.thread.is_none() {
            return true;
        }
        if !state.has_room(bytes.len()) {
            return false;
        }
        state.add(bytes, &[(0, bytes.len())]);
        drop(state);
        self.queue.changed.notify_one();
        true
    }

    /// Waits until all is written, and returns how many lines never will be.
    pub fn close(&mut self) -> u64 {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(all: &[(u64, &str)]) -> Lines {
        let mut lines = Lines::default();
        for (ns, text) in all {
            lines.bytes.extend_from_slice(text.as_bytes());
            lines.mark(*ns);
        }
        lines
    }

    #[test]
    fn lines_that_arrive_late_are_written_by_time() {
        let (mut ordering, mut out) = (Ordering::default(), Vec::new());
        let long_ago = Instant::now().checked_sub(2 * ORDERING_TIME).unwrap();
        ordering.add(&lines(&[(1, "a"), (5, "e"), (5, "f")]), long_ago);
        ordering.add(&lines(&[(2, "b"), (9, "z"), (4, "d")]), Instant::now());
        ordering.take(Duration::from_secs(3600), &mut out);
        assert!(out.is_empty());
        // What is due takes along what happened before.
        ordering.take(ORDERING_TIME, &mut out);
        assert_eq!(out, b"abdef");
        ordering.take(Duration::ZERO, &mut out);
        assert_eq!(out, b"abdefz");
        assert!(ordering.until_due(ORDERING_TIME).is_none());
    }

    #[test]
    fn nothing_is_lost_at_the_end() {
        let (reader, writer) = io::pipe().unwrap();
        let mut output = Destination::to(Box::new(writer)).in_background(Duration::from_secs(3600));
        output.print(&lines(&[(2, "b\n"), (1, "a\n")])).unwrap();
        output.print(&lines(&[(u64::MAX, "table\n"), (0, "first\n")])).unwrap();
        assert_eq!(output.close(), 0);
        assert_eq!(io::read_to_string(reader).unwrap(), "first\na\nb\ntable\n");
    }
}
