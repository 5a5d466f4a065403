//! Reads a recorded directory and hands its events on in the order of time.

use std::io;
use std::path::Path;

use socktrace_event::Event;
use socktrace_recording::{Condition, Ordered, Recorded};
use socktrace_view::Scope;
use socktrace_view::losses::Losses;

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
#[derive(Debug, Default)]
pub struct Report {
    /// Events read.
    pub events: u64,
    /// What the recording is like.
    pub condition: Condition,
    /// Events of connections that there was no room for.
    pub left_out: u64,
    /// What was lost, also of what was not asked for.
    pub losses: Losses,
}

impl Report {
    /// What there is to say of the recording in this folder and of what is not exported, a sentence each.
    pub fn sentences(&self, folder: &Path) -> Vec<String> {
        let mut all = self.condition.sentences(folder);
        if self.left_out > 0 {
            let (folder, events) = (folder.display(), self.left_out);
            all.push(format!(
                "{folder}: {events} events are left out: they are of more connections than there is room for"
            ));
        }
        all.extend(self.losses.sentences());
        all
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

/// Exports what a scope lets through of a recorded directory, as far as it goes when this begins. `ports` says which ports
/// paths have, and `progress` is told now and then.
///
/// Memory does not depend on how much was recorded, but on how many connections: some 100 bytes for each, and what
/// [`Exporter`] keeps of those that go on. Of more connections than the survey has room for nothing is exported, and the
/// report says so.
///
/// # Errors
///
/// One line: no recording, not readable, the output cannot be written.
pub fn export(
    folder: &Path,
    exporter: &mut dyn Exporter,
    ports: &Ports,
    mut scope: Scope,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, Error> {
    // Each reading begins with no connection.
    let mut first = scope.clone();
    let (mut survey, mut lines) = (Survey::default(), 0_u64);
    let mut tell = |done, end: u64| {
        lines += 1;
        if lines.is_multiple_of(PROGRESS_LINES) {
            progress(Progress { done, total: 2 * end });
        }
    };
    let mut ordered = Ordered::open_noting(folder, &mut |recording, event| {
        tell(recording.at(), recording.end());
        if first.lets_through(event) {
            survey.note(event, ports, || recording.beginning(event, SNIFFED_LEN));
        }
    })?;
    let (mut report, end) = (Report::default(), ordered.recording().end());
    while let Some(recorded) = ordered.next_event()? {
        report.events += 1;
        tell(end + ordered.recording().at().min(end), end);
        let event = recorded.event();
        report.losses.note(&event);
        if scope.lets_through(&event) {
            hand_on(&recorded, &event, exporter, &mut survey)?;
        }
    }
    progress(Progress { done: 2 * end, total: 2 * end });
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
