//! `socktrace show`: a recorded directory, once or as it grows.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::io::Errno;
use socktrace_event::notice;
use socktrace_recording::{Ordered, Recorded};

use crate::args::ShowArgs;
use crate::filter::{Scope, Selection};
use crate::live::explain;
use crate::output::{Default, Destination, Lines, ORDERING_TIME, Written};
use crate::view::{Style, View};

/// Lines are written when they take so much, in bytes.
const WRITE_LEN: usize = 64 << 10;
/// What is added to a recording all the time is put in order as far as it is older than this: servers write every 100 ms.
const LAG: Duration = Duration::from_millis(200);

/// `socktrace show`
pub fn show(args: &ShowArgs) -> Result<ExitCode> {
    let (scope, selection) = (Scope::new(&args.filter)?, Selection::new(&args.filter)?);
    // Before the first read, so that nothing is written between it and the wait.
    let growth = args.follow.then(|| Growth::watch(&args.dir)).transpose()?;
    let mut ordered = Ordered::open(&args.dir)?;
    let destination = Destination::open(args.view.output.as_deref(), Default::Stdout, args.view.color.into())?;
    let style = Style::new(&args.view, destination.colour, false);
    let view = View::new(&args.view, style, selection);
    let mut shown = Shown { dir: &args.dir, scope, view, destination, lines: Lines::default() };
    let end = match shown.all(&mut ordered).and_then(|end| match (&growth, end) {
        (Some(growth), End::Reached) if !ordered.has_ended => shown.growth(&mut ordered, growth),
        _ => Ok(end),
    }) {
        Ok(end) => end,
        Err(error) => {
            // What could be read is shown.
            shown.write();
            return Err(error);
        }
    };
    match end {
        End::Reached | End::Removed => {}
        End::Written(Written::Failed) => return Ok(ExitCode::FAILURE),
        End::Written(_) => return Ok(ExitCode::SUCCESS),
    }
    shown.view.finish(&mut shown.lines);
    match shown.write() {
        Written::All => {}
        Written::Failed => return Ok(ExitCode::FAILURE),
        Written::Gone => return Ok(ExitCode::SUCCESS),
    }
    shown.tell(&ordered, end == End::Removed);
    Ok(ExitCode::SUCCESS)
}

/// Why no more is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// That was all.
    Reached,
    /// There is no recording any more, which has been said.
    Removed,
    /// Lines could not be written.
    Written(Written),
}

/// What is shown, and where.
struct Shown<'a> {
    dir: &'a Path,
    scope: Scope,
    view: View,
    destination: Destination,
    lines: Lines,
}

impl Shown<'_> {
    /// Shows what is there.
    fn all(&mut self, ordered: &mut Ordered) -> Result<End> {
        while let Some(recorded) = ordered.next_event()? {
            self.event(&recorded);
            if self.lines.bytes.len() >= WRITE_LEN
                && let failed @ (Written::Gone | Written::Failed) = self.write()
            {
                return Ok(End::Written(failed));
            }
        }
        Ok(match self.write() {
            Written::All => End::Reached,
            failed => End::Written(failed),
        })
    }

    /// Shows what is added, until the recording ends.
    fn growth(&mut self, ordered: &mut Ordered, growth: &Growth) -> Result<End> {
        let shown = self.dir.display();
        loop {
            let has_come = ordered.read_added()?;
            let lag = if has_come { LAG } else { Duration::ZERO };
            while let Some(recorded) = ordered.next_added(lag.as_nanos() as u64) {
                self.event(&recorded);
            }
            if let failed @ (Written::Gone | Written::Failed) = self.write() {
                return Ok(End::Written(failed));
            }
            if has_come {
                // What comes within that is put in order with it.
                growth.wait(Some(ORDERING_TIME))?;
                continue;
            }
            if ordered.has_ended {
                return Ok(End::Reached);
            }
            if !ordered.recording().is_in_place() {
                if !self.dir.join("events.jsonl").exists() {
                    notice(&format!("{shown}: its events.jsonl has been removed: nothing more can be shown"));
                    return Ok(End::Removed);
                }
                notice(&format!("{shown}: its events.jsonl has been emptied or replaced: what is there now is shown"));
                *ordered = Ordered::open(self.dir)?;
                match self.all(ordered)? {
                    End::Reached if !ordered.has_ended => continue,
                    end => return Ok(end),
                }
            }
            growth.wait(None)?;
        }
    }

    fn event(&mut self, recorded: &Recorded) {
        let event = recorded.event();
        if self.scope.lets_through(&event) {
            let payload = recorded.payload(self.view.needed_bytes());
            self.view.show(&event, &payload.bytes, payload.missing, Some(recorded.line()), &mut self.lines);
        } else {
            self.view.hide(&event);
        }
    }

    fn write(&mut self) -> Written {
        if self.lines.bytes.is_empty() {
            return Written::All;
        }
        let written = self.destination.write(&self.lines.bytes);
        self.lines.clear();
        written
    }

    /// Says what is not there, and why nothing was shown.
    fn tell(&self, ordered: &Ordered, is_removed: bool) {
        let shown = self.dir.display();
        let (late, has_ended, torn) = (ordered.late, ordered.has_ended, ordered.torn_len());
        let recording = ordered.recording();
        if recording.unreadable() > 0 {
            notice(&format!("{shown}/events.jsonl: {} lines are no events and are left out", recording.unreadable()));
        }
        if late > 0 {
            notice(&format!(
                "{shown}: {late} events stand after later ones: too much lies between them to be put in order"
            ));
        }
        if torn > 0 {
            notice(&format!("{shown}/events.jsonl: the last line is cut off and is left out"));
        } else if !has_ended && !is_removed {
            notice(&format!("{shown}: its recording has not ended, or was cut off"));
        }
        self.view.losses().iter().for_each(|sentence| notice(sentence));
        self.view.unseen().iter().for_each(|sentence| notice(sentence));
        if let Some(silence) = self.view.silence() {
            explain(silence, "no probe was heard of in this recording");
        }
    }
}

/// Tells when the directory has grown (inotify(7)).
struct Growth(rustix::fd::OwnedFd);

impl Growth {
    fn watch(folder: &Path) -> Result<Self> {
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC).context("inotify_init1(2)")?;
        // Of the directory and of what is in it.
        let flags = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::DELETE
            | inotify::WatchFlags::MOVE
            | inotify::WatchFlags::DELETE_SELF
            | inotify::WatchFlags::MOVE_SELF;
        match inotify::add_watch(&inotify, folder, flags) {
            Ok(_) => Ok(Self(inotify)),
            // Recording::open says what is wrong with it.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => Ok(Self(inotify)),
            Err(error) => Err(error).with_context(|| format!("{}: cannot be watched", folder.display())),
        }
    }

    /// Waits until something has happened there, or the time is over; what exactly does not matter.
    fn wait(&self, time: Option<Duration>) -> io::Result<()> {
        let timeout = time.and_then(|time| Timespec::try_from(time).ok());
        match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], timeout.as_ref()) {
            Ok(0) | Err(Errno::INTR) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let mut events = [0; 4096];
        match rustix::io::read(&self.0, &mut events) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
