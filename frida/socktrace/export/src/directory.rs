//! Reads a recorded directory and hands its events on in the order of time.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use socktrace_server::recording::Location;
use socktrace_server::{Event, EventType, Recording};

use crate::decode::{Decode, SNIFFED_LEN};
use crate::survey::Survey;
use crate::{Captured, Exporter, time_of};

/// Events that are held back so that one that was written down late is handed on in time: threads and processes race to
/// the server, which writes in the order of arrival. Each takes some 600 bytes meanwhile.
const WINDOW: usize = 16 << 10;
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
/// [`Exporter`] keeps of those that go on.
///
/// # Errors
///
/// One line: no recording, not readable, the output cannot be written.
pub fn export(folder: &Path, exporter: &mut dyn Exporter, options: &mut Options<'_>) -> Result<Report> {
    let shown = || format!("{}: cannot be read", folder.display());
    let (mut survey, end) = make_survey(folder, options)?;
    let mut recording = Recording::open(folder)?;
    let mut filter = (options.filter)()?;
    let mut report = Report::default();
    let mut waiting = Waiting::default();
    let mut at = 0;
    while at < end {
        let Some(line) = recording.next_line().with_context(shown)? else { break };
        at += line.len() as u64 + 1;
        let Some(event) = recording.event(&line) else { continue };
        report.events += 1;
        report.has_ended = event.kind == EventType::HostShutdown;
        (options.note)(&event);
        let location = recording.locate(&event);
        if !filter(&event) {
            continue;
        }
        let ns = time_of(&event);
        waiting.push(ns, line, location);
        if waiting.lines.len() > WINDOW {
            waiting.hand_on(&mut recording, exporter, &mut survey)?;
        }
        tell(options, report.events, end + at - waiting.bytes, end);
    }
    let mut lines = 0;
    while waiting.hand_on(&mut recording, exporter, &mut survey)? {
        lines += 1;
        tell(options, lines, 2 * end - waiting.bytes.min(end), end);
    }
    (options.progress)(Progress { done: 2 * end, total: 2 * end });
    if recording.next_line().with_context(shown)?.is_none() {
        report.torn = recording.torn_len();
    } else {
        // It has grown since.
        report.has_ended = false;
    }
    report.unreadable = recording.unreadable;
    exporter.finish().context("the output cannot be written")?;
    Ok(report)
}

/// Reads a directory once and returns what it has, up to which byte of events.jsonl.
fn make_survey(folder: &Path, options: &mut Options<'_>) -> Result<(Survey, u64)> {
    let mut recording = Recording::open(folder)?;
    let mut filter = (options.filter)()?;
    let (mut survey, mut at, mut lines) = (Survey::default(), 0, 0);
    let end = recording.events_len().unwrap_or(0);
    while let Some(line) = recording.next_line().with_context(|| format!("{}: cannot be read", folder.display()))? {
        at += line.len() as u64 + 1;
        lines += 1;
        tell(options, lines, at, end.max(at));
        let Some(event) = recording.event(&line) else { continue };
        if filter(&event) {
            survey.note(&event, &options.decode, || recording.beginning(&event, SNIFFED_LEN));
        }
        // What grows while it is read has no end.
        if at >= end {
            break;
        }
    }
    Ok((survey, at))
}

fn tell(options: &mut Options<'_>, lines: u64, done: u64, end: u64) {
    if lines.is_multiple_of(PROGRESS_LINES) {
        (options.progress)(Progress { done, total: 2 * end });
    }
}

/// Events on their way, the earliest first.
#[derive(Debug, Default)]
struct Waiting {
    /// By time, and by order of arrival where that is the same.
    lines: BTreeMap<(u64, u64), (Vec<u8>, Location)>,
    arrived: u64,
    /// Of the lines, in events.jsonl.
    bytes: u64,
}

impl Waiting {
    fn push(&mut self, ns: u64, line: Vec<u8>, location: Location) {
        self.bytes += line.len() as u64 + 1;
        self.lines.insert((ns, self.arrived), (line, location));
        self.arrived += 1;
    }

    /// Hands the earliest on; false: there is none.
    fn hand_on(&mut self, recording: &mut Recording, exporter: &mut dyn Exporter, survey: &mut Survey) -> Result<bool> {
        let Some((_, (line, location))) = self.lines.pop_first() else { return Ok(false) };
        self.bytes -= line.len() as u64 + 1;
        let payload = recording.read(&location, exporter.needed_bytes());
        // It was one when it was read.
        let Some(event) = recording.event(&line) else { return Ok(true) };
        let captured = Captured { bytes: &payload.bytes, missing: payload.missing };
        exporter.event(&event, captured, survey).context("the output cannot be written")?;
        if let Some(conn_id) = event.conn_id.as_deref() {
            let key = survey.key(conn_id);
            if survey.handed_on(key) {
                exporter.forget(&event, survey).context("the output cannot be written")?;
                recording.forget(&event);
            }
        }
        Ok(true)
    }
}
