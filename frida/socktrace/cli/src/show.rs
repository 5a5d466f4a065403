//! `socktrace show`: a recorded directory, once or as it grows.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use rustix::fs::inotify;
use rustix::io::Errno;
use socktrace_server::{EventType, Recording, notice};

use crate::args::ShowArgs;
use crate::filter::{Scope, Selection};
use crate::live::explain;
use crate::output::{Default, Destination};
use crate::view::{Style, View};

/// Lines are written when they take so much, in bytes.
const WRITE_LEN: usize = 64 << 10;

/// `socktrace show`
pub fn show(args: &ShowArgs) -> Result<ExitCode> {
    let (mut scope, selection) = (Scope::new(&args.filter)?, Selection::new(&args.filter)?);
    // Before the first read, so that nothing is written between it and the wait.
    let growth = args.follow.then(|| Growth::watch(&args.dir)).transpose()?;
    let mut recording = Recording::open(&args.dir)?;
    let mut destination = Destination::open(args.view.output.as_deref(), Default::Stdout, args.view.color.into())?;
    let style = Style::new(&args.view, destination.colour, false);
    let mut view = View::new(&args.view, style, selection);
    let mut lines = Vec::new();
    let mut has_ended = false;
    loop {
        let line = recording.next_line().with_context(|| format!("{}: cannot be read", args.dir.display()))?;
        let Some(line) = line else {
            if !lines.is_empty() && !destination.write(&lines) {
                return Ok(ExitCode::SUCCESS);
            }
            lines.clear();
            match &growth {
                Some(growth) if !has_ended => growth.wait()?,
                _ => break,
            }
            continue;
        };
        let Some(event) = recording.event(&line) else { continue };
        has_ended = event.kind == EventType::HostShutdown;
        let is_wanted = scope.lets_through(&event);
        let payload = recording.payload(&event, if is_wanted { view.needed_bytes() } else { 0 });
        if is_wanted {
            view.show(&event, &payload.bytes, payload.missing, Some(&line), &mut lines);
        } else {
            view.hide(&event);
        }
        if lines.len() >= WRITE_LEN {
            if !destination.write(&lines) {
                return Ok(ExitCode::SUCCESS);
            }
            lines.clear();
        }
    }
    view.finish(&mut lines);
    if !lines.is_empty() && !destination.write(&lines) {
        return Ok(ExitCode::SUCCESS);
    }
    if recording.unreadable > 0 {
        let (shown, lines) = (args.dir.display(), recording.unreadable);
        notice(&format!("{shown}/events.jsonl: {lines} lines are no events and are left out"));
    }
    if recording.torn_len() > 0 {
        notice(&format!("{}/events.jsonl: the last line is cut off and is left out", args.dir.display()));
    } else if !has_ended {
        notice(&format!("{}: its recording has not ended, or was cut off", args.dir.display()));
    }
    view.losses().iter().for_each(|sentence| notice(sentence));
    view.unseen().iter().for_each(|sentence| notice(sentence));
    if let Some(silence) = view.silence() {
        explain(silence, "no probe was heard of in this recording");
    }
    Ok(ExitCode::SUCCESS)
}

/// Tells when the directory has grown (inotify(7)).
struct Growth(rustix::fd::OwnedFd);

impl Growth {
    fn watch(folder: &Path) -> Result<Self> {
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC).context("inotify_init1(2)")?;
        let flags = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE;
        match inotify::add_watch(&inotify, folder, flags) {
            Ok(_) => Ok(Self(inotify)),
            // Recording::open says what is wrong with it.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => Ok(Self(inotify)),
            Err(error) => Err(error).with_context(|| format!("{}: cannot be watched", folder.display())),
        }
    }

    /// Waits until something has been written; what exactly does not matter.
    fn wait(&self) -> io::Result<()> {
        let mut events = [0; 4096];
        match rustix::io::read(&self.0, &mut events) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
