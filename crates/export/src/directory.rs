//! Reads a recorded directory and hands its events on in the order of time.

use std::io;
use std::path::Path;

use socktrace_event::Event;
use socktrace_recording::{Condition, Ordered, Recorded};

use crate::Exporter;
use crate::ports::{Ports, SNIFFED_LEN};
use crate::survey::Survey;

/// Progress is told after so many lines.
const PROGRESS_LINES: u64 = 1 << 10;

/// How far an export is, in bytes of events.jsonl, which is read twice.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Bytes read.
    pub done: u64,
    /// Bytes to be read.
    pub total: u64,
}

/// What was exported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Events read.
    pub events: u64,
    /// What the recording is like.
    pub condition: Condition,
    /// Events of connections that there was no room for.
    pub left_out: u64,
}

/// What is exported, and who wants to know.
pub struct Options<'o> {
    /// Ports for paths.
    pub ports: Ports,
    /// Two that are alike, one for each reading: asked of each event in order whether it is let through.
    pub filters: [Filter<'o>; 2],
    /// Told of each event, also of those that are not let through.
    pub note: &'o mut dyn FnMut(&Event<'_>),
    /// Told now and then.
    pub progress: &'o mut dyn FnMut(Progress),
}

/// Says whether an event is let through.
pub type Filter<'o> = Box<dyn FnMut(&Event<'_>) -> bool + 'o>;

impl std::fmt::Debug for Options<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("ports", &self.ports).finish_non_exhaustive()
    }
}

/// Why nothing, or not all, was exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The recording is none, or cannot be read.
    #[error(transparent)]
    Recording(#[from] socktrace_event::PathError),
    /// The output cannot be written.
    #[error("the output cannot be written")]
    Output(#[from] io::Error),
}

/// Exports a recorded directory, as far as it goes when this begins.
///
/// Memory does not depend on how much was recorded, but on how many connections: some 100 bytes for each, and what
/// [`Exporter`] keeps of those that go on. Of more connections than the survey has room for nothing is exported, and the
/// report says so.
///
/// # Errors
///
/// One line: no recording, not readable, the output cannot be written.
pub fn export(folder: &Path, exporter: &mut dyn Exporter, options: &mut Options<'_>) -> Result<Report, Error> {
    let Options { ports, filters: [first, second], note, progress } = options;
    let (mut survey, mut lines) = (Survey::default(), 0_u64);
    let mut tell = |done, end: u64| {
        lines += 1;
        if lines.is_multiple_of(PROGRESS_LINES) {
            progress(Progress { done, total: 2 * end });
        }
    };
    let mut ordered = Ordered::open_noting(folder, &mut |recording, event| {
        tell(recording.at(), recording.end());
        if first(event) {
            survey.note(event, ports, || recording.beginning(event, SNIFFED_LEN));
        }
    })?;
    let (mut report, end) = (Report::default(), ordered.recording().end());
    while let Some(recorded) = ordered.next_event()? {
        report.events += 1;
        tell(end + ordered.recording().at().min(end), end);
        let event = recorded.event();
        note(&event);
        if second(&event) {
            hand_on(&recorded, &event, exporter, &mut survey)?;
        }
    }
    (options.progress)(Progress { done: 2 * end, total: 2 * end });
    (report.condition, report.left_out) = (ordered.condition(), survey.left_out());
    exporter.finish()?;
    Ok(report)
}

fn hand_on(recorded: &Recorded, event: &Event<'_>, exporter: &mut dyn Exporter, survey: &mut Survey) -> io::Result<()> {
    let key = event.conn_id().map(|conn_id| survey.key(conn_id));
    if key.is_some_and(|key| !survey.knows(key)) {
        return Ok(());
    }
    let payload = recorded.payload(exporter.needed_bytes());
    exporter.event(event, payload.captured(), survey)?;
    match key {
        Some(key) if survey.handed_on(key) => exporter.forget(event, survey),
        _ => Ok(()),
    }
}
