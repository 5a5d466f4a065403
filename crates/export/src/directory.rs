//! Reads a recorded directory and hands its events on in the order of time.

use std::path::Path;

use anyhow::{Context, Result};
use socktrace_collect::recording::Held;
use socktrace_collect::{Event, Ordered, Recording};

use crate::decode::{Decode, SNIFFED_LEN};
use crate::survey::Survey;
use crate::{Captured, Exporter};

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
    /// Whether the recording's last event says that it has ended.
    pub has_ended: bool,
    /// Bytes of a last line that is not whole.
    pub torn: usize,
    /// Lines that are no events.
    pub unreadable: u64,
    /// Events that could not be handed on in time.
    pub late: u64,
    /// Events of connections that there was no room for.
    pub left_out: u64,
}

/// What is exported, and who wants to know.
pub struct Options<'o> {
    /// Ports for paths.
    pub decode: Decode,
    /// Makes a filter, which is asked of each event in order whether it is let through; one for each reading.
    pub filter: &'o mut dyn FnMut() -> Result<Filter>,
    /// Told of each event, also of those that are not let through.
    pub note: &'o mut dyn FnMut(&Event<'_>),
    /// Told now and then.
    pub progress: &'o mut dyn FnMut(Progress),
}

/// Says whether an event is let through.
pub type Filter = Box<dyn FnMut(&Event<'_>) -> bool>;

impl std::fmt::Debug for Options<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("decode", &self.decode).finish_non_exhaustive()
    }
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
pub fn export(folder: &Path, exporter: &mut dyn Exporter, options: &mut Options<'_>) -> Result<Report> {
    let shown = || format!("{}: cannot be read", folder.display());
    let (mut survey, end, torn) = make_survey(folder, options)?;
    let mut ordered = Ordered::open(folder)?;
    let mut filter = (options.filter)()?;
    let mut report = Report::default();
    // Both readings have the same end, unless it grows meanwhile.
    while let Some(held) = ordered.next_event().with_context(shown)? {
        report.events += 1;
        tell(options, report.events, end + ordered.at().min(end), end);
        hand_on(held, &mut ordered, exporter, (&mut survey, &mut *filter), options)?;
    }
    (options.progress)(Progress { done: 2 * end, total: 2 * end });
    report.has_ended = ordered.has_ended;
    report.late = ordered.late;
    report.left_out = survey.left_out();
    let recording = ordered.recording();
    report.torn = torn;
    if recording.events_len().is_ok_and(|len| len > recording.at() + report.torn as u64) {
        // It has grown since.
        report.has_ended = false;
    }
    report.unreadable = recording.unreadable;
    exporter.finish().context("the output cannot be written")?;
    Ok(report)
}

fn hand_on(
    held: Held,
    ordered: &mut Ordered,
    exporter: &mut dyn Exporter,
    (survey, filter): (&mut Survey, &mut dyn FnMut(&Event<'_>) -> bool),
    options: &mut Options<'_>,
) -> Result<()> {
    let recording = ordered.recording();
    // It was one when it was read.
    let Some(event) = recording.event(&held.line) else { return Ok(()) };
    (options.note)(&event);
    if !filter(&event) {
        return Ok(());
    }
    let payload = recording.read(&held.location, exporter.needed_bytes());
    let captured = Captured { bytes: &payload.bytes, missing: payload.missing };
    let key = event.conn_id.as_deref().map(|conn_id| survey.key(conn_id));
    if key.is_some_and(|key| !survey.knows(key)) {
        return Ok(());
    }
    exporter.event(&event, captured, survey).context("the output cannot be written")?;
    if let Some(key) = key
        && survey.handed_on(key)
    {
        exporter.forget(&event, survey).context("the output cannot be written")?;
    }
    Ok(())
}

/// Reads a directory once and returns what it has, up to which byte of events.jsonl, and how many bytes of a line that has
/// no end are behind that.
fn make_survey(folder: &Path, options: &mut Options<'_>) -> Result<(Survey, u64, usize)> {
    let mut recording = Recording::open(folder)?;
    let mut filter = (options.filter)()?;
    let (mut survey, mut at, mut lines) = (Survey::default(), 0, 0);
    let end = recording.events_len().unwrap_or(0);
    while let Some(line) = recording.next_line().with_context(|| format!("{}: cannot be read", folder.display()))? {
        at += line.len() as u64 + 1;
        lines += 1;
        tell(options, lines, at, end.max(at));
        let Some(event) = recording.event(&line) else {
            recording.check_readable().with_context(|| format!("{}: cannot be read", folder.display()))?;
            continue;
        };
        if filter(&event) {
            survey.note(&event, &options.decode, || recording.beginning(&event, SNIFFED_LEN));
        }
        // What grows while it is read has no end.
        if at >= end {
            break;
        }
    }
    Ok((survey, at, recording.torn_len()))
}

fn tell(options: &mut Options<'_>, lines: u64, done: u64, end: u64) {
    if lines.is_multiple_of(PROGRESS_LINES) {
        (options.progress)(Progress { done, total: 2 * end });
    }
}
