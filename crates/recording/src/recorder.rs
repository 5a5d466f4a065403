//! The output directory: `events.jsonl`, and per connection and direction a payload file.
//!
//! A disk that is full or fails does not end the recording. What is pending is kept while it fits in memory; what does
//! not is counted, and the counts are written as `lost` events where the lost would have stood, once there is room.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use gttr::{Frame, FrameType};
use rustix::fd::AsFd;
use rustix::io::Errno;
use socktrace_event::util::names_its_files;
use socktrace_event::{
    End, Event, EventType, HostInit, HostShutdown, Lost, Origin, PathError, Sink, Taken, Text, What, errno, notice,
};

use crate::events_file::{EventsFile, NAME};
use crate::folder;
use crate::journal::{self, Journal};
use crate::outage::{Failure, Outage};
use crate::payload::Payloads;
use crate::recover::{self, Recovered};

/// What of a recording is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Contents {
    /// Events and payload files.
    #[default]
    All,
    /// Events only.
    NoPayloadFiles,
    /// Payload files, and of events those that say who recorded, and what is missing or went wrong.
    NoEvents,
}

impl Contents {
    /// As two options of a command line say it, which exclude each other.
    pub const fn without(payload_files: bool, events: bool) -> Self {
        match (payload_files, events) {
            (true, _) => Self::NoPayloadFiles,
            (_, true) => Self::NoEvents,
            _ => Self::All,
        }
    }

    const fn omitted(self) -> Option<&'static str> {
        match self {
            Self::All => None,
            Self::NoPayloadFiles => Some("payload files"),
            Self::NoEvents => Some("events"),
        }
    }

    fn has(self, kind: EventType) -> bool {
        use EventType as It;
        self != Self::NoEvents || matches!(kind, It::HostInit | It::HostShutdown | It::Lost | It::BadFrame | It::Error)
    }
}

/// Records events and payloads in an output directory.
#[derive(Debug)]
pub struct Recorder {
    folder: PathBuf,
    contents: Contents,
    events: EventsFile,
    payloads: Payloads,
    /// None where there are no events that payload files could be put right by.
    journal: Option<Journal>,
    /// What the server before left, if it was killed.
    recovered: Option<Recovered>,
    outage: Option<Outage>,
    /// Events taken that came from agents.
    taken: u64,
    /// Events lost.
    lost: u64,
    /// What this outage has cost so far and is already reported in `events.jsonl`.
    reported_events: u64,
    reported_bytes: u64,
}

impl Recorder {
    /// Opens an output directory; makes it, with mode 0700 and its parents, if there is none.
    ///
    /// An existing recording is added to. If the server before was killed, it is put right first: a torn last line of
    /// `events.jsonl` is taken off, payload files are cut to what their events speak of, and one that is shorter is
    /// reported as `lost`.
    ///
    /// # Errors
    ///
    /// One line that names the path and what to do: not a directory, not permitted, another user's or one that others may
    /// write to, another server records there.
    pub fn open(folder: &Path, contents: Contents) -> Result<Self, PathError> {
        let shown = folder.display();
        let handle = folder::open_folder(folder)?;
        let (mut events, torn) = EventsFile::open(handle.as_fd(), folder)?;
        let mut acknowledged = events.len();
        let mut recovered = None;
        if let Some(state) = journal::read(handle.as_fd()) {
            let repair = recover::repair(handle.as_fd(), events.file(), events.len(), &state)
                .map_err(PathError::io(folder, "a recording that was cut off cannot be put right"))?;
            let (cut, short) = (repair.cut, repair.short.len());
            if cut + short > 0 {
                notice(&format!(
                    "{shown}: the server before was cut off: {cut} payload files were too long and are cut, {short} too short"
                ));
            }
            acknowledged = acknowledged.min(state.acknowledged);
            repair.short.into_iter().for_each(|lost| events.push(&Event::now(What::Lost(lost))));
            recovered = Some(repair.recovered);
        } else if torn {
            notice(&format!("{}: the last line was torn and is taken off", folder.join(NAME).display()));
            let reason = Some("the last line of events.jsonl was torn".into());
            events.push(&Event::now(What::Lost(Lost { events: Some(1), reason, ..Lost::default() })));
        }
        // Before the journal that the repair went by is written over.
        events.write().map_err(|failure| failure.of(folder))?;
        let mut journal = Some(Journal::create(handle.as_fd(), folder, acknowledged, events.len())?);
        if contents == Contents::NoEvents
            && let Some(journal) = journal.take()
        {
            journal.remove(handle.as_fd());
        }
        Ok(Self {
            folder: folder.to_owned(),
            contents,
            events,
            payloads: Payloads::new(handle),
            journal,
            recovered,
            outage: None,
            taken: 0,
            lost: 0,
            reported_events: 0,
            reported_bytes: 0,
        })
    }

    /// The events that a server which was killed had recorded here and may not have acknowledged.
    pub fn take_recovered(&mut self) -> Recovered {
        self.recovered.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Writes the first event, which says who records from where to where.
    fn write_begin(&mut self, origin: &Origin<'_>) -> Result<(), PathError> {
        let begun = HostInit {
            sock: Text::escaped(origin.path.as_os_str().as_bytes()),
            out_dir: Text::escaped(self.folder.as_os_str().as_bytes()),
            sock_type: origin.kind.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            omits: self.contents.omitted().map(Text::from),
            reason: self
                .recovered
                .is_some()
                .then(|| "the server before was cut off: what it had not written shows as gaps in seq".into()),
        };
        self.events.push(&Event { pid: Some(std::process::id()), ..Event::now(What::HostInit(begun)) });
        self.events.write().map_err(|failure| failure.of(&self.folder))
    }

    /// Writes everything, and the last event, which says why the recording ends.
    fn write_end(&mut self, reason: &str) {
        self.write();
        let outage = self.outage.is_some();
        self.payloads.give_up();
        // What fits of the events, although payload that they speak of did not.
        let _ = self.events.write();
        let mut lost_bytes = self.payloads.lost();
        if self.events.failure().is_none() {
            self.report_losses();
            lost_bytes = 0;
        }
        let events = self.taken.saturating_sub(self.lost);
        let ended = HostShutdown { reason: reason.into(), events, bytes: self.payloads.written() };
        self.events.push(&Event::now(What::HostShutdown(ended)));
        let mut lost_events = 0;
        if self.events.write().is_err() {
            // The last event itself is nobody's loss.
            lost_events = self.events.unwritten().saturating_sub(1);
        }
        if outage || lost_events > 0 {
            notice(&format!(
                "{} events and {} payload bytes could not be written to {} and are lost",
                self.reported_events + lost_events,
                self.reported_bytes + lost_bytes,
                self.folder.display()
            ));
        } else if let Some(journal) = self.journal.take() {
            journal.remove(self.payloads.folder());
        }
    }

    /// Takes a data frame without making an [`Event`] of it; returns false and does nothing where that takes one.
    #[inline]
    fn take_data(&mut self, frame: &Frame<'_>) -> bool {
        if self.contents == Contents::NoPayloadFiles {
            return names_its_files(frame.conn) && self.events.push_data(frame);
        }
        let Some(known) = self.payloads.known(frame) else { return false };
        let taken = self.contents == Contents::NoEvents || self.events.push_data(frame);
        if taken {
            self.payloads.push_frame(known, frame);
        }
        taken
    }

    /// Counts an event that was taken, and writes when there is enough for that.
    #[inline]
    fn count(&mut self) {
        self.taken += 1;
        if self.events.is_full() || self.payloads.is_full() {
            self.write_if_due();
        }
    }

    /// Writes what is pending, unless that failed a moment ago; returns whether all is written.
    fn write_if_due(&mut self) -> bool {
        if self.outage.as_mut().is_some_and(|outage| !outage.is_retry_due()) {
            return false;
        }
        self.write();
        self.outage.is_none()
    }

    fn write(&mut self) {
        let result = self.write_batch();
        if result.is_ok()
            && let Some(journal) = &mut self.journal
        {
            journal.done();
        }
        let failure = result.err();
        match (failure, self.outage.is_some()) {
            (Some(failure), false) => {
                self.outage = Some(Outage::begin());
                (self.reported_events, self.reported_bytes) = (0, 0);
                self.tell_begin(failure);
            }
            (None, true) => {
                self.outage = None;
                self.tell_end();
            }
            _ => {}
        }
    }

    /// The journal first, then payloads, then events: whoever follows the events finds the bytes that they speak of, and
    /// if this is cut short, the journal tells which bytes no event speaks of.
    fn write_batch(&mut self) -> Result<(), Failure> {
        if self.payloads.is_empty() && self.events.is_empty() {
            return Ok(());
        }
        let announced = match &mut self.journal {
            Some(journal) => {
                journal.begin(self.events.len());
                self.payloads.announce(journal)
            }
            None => Ok(()),
        };
        if let Err(failure) = announced.and_then(|()| self.payloads.write()) {
            self.events.hold(failure);
            return Err(failure);
        }
        self.events.write()?;
        self.report_losses();
        self.events.write()
    }

    /// Adds `lost` events for what could not be written.
    fn report_losses(&mut self) {
        if let Some((lost, failure)) = self.events.take_lost() {
            self.lost += lost;
            self.reported_events += lost;
            let reason = Some(failure.reason());
            self.events.push(&Event::now(What::Lost(Lost { events: Some(lost), reason, ..Lost::default() })));
        }
        let (events, reported) = (&mut self.events, &mut self.reported_bytes);
        self.payloads.take_losses(&mut |lost| {
            *reported += lost.bytes.unwrap_or(0);
            events.push(&Event::now(What::Lost(lost)));
        });
    }

    fn tell_begin(&self, failure: Failure) {
        let folder = self.folder.display();
        match failure.0 {
            Errno::NOSPC | Errno::DQUOT => notice(&format!(
                "no space left for {folder}: events and payloads are dropped and counted until there is room"
            )),
            error => notice(&format!(
                "{folder} cannot be written to: {}: events and payloads are dropped and counted until it can",
                errno::explain(&error)
            )),
        }
    }

    fn tell_end(&self) {
        let (events, bytes) = (self.reported_events, self.reported_bytes);
        let folder = self.folder.display();
        notice(&format!("{folder} can be written to again: {events} events and {bytes} payload bytes were lost"));
    }
}

impl Sink for Recorder {
    type Error = PathError;

    /// Writes the first event, which says who records from where to where.
    fn begin(&mut self, origin: &Origin<'_>) -> Taken<PathError> {
        self.write_begin(origin).map_err(End::Failed)
    }

    fn event(&mut self, event: &Event<'_>, payload: &[u8]) -> Taken<PathError> {
        if let What::Data(data) = &event.what
            && self.contents != Contents::NoPayloadFiles
        {
            self.payloads.push(event, data, payload);
        }
        if self.contents.has(event.kind()) {
            self.events.push(event);
        }
        self.count();
        Ok(())
    }

    #[inline]
    fn frame(&mut self, frame: &Frame<'_>, event: Option<&Event<'_>>) -> Taken<PathError> {
        match event {
            _ if frame.kind == FrameType::Data && self.take_data(frame) => {
                self.count();
                Ok(())
            }
            Some(event) => self.event(event, frame.payload),
            None => self.event(&Event::from_frame(frame), frame.payload),
        }
    }

    fn is_recorded(&self, frame: &Frame<'_>) -> bool {
        self.recovered.as_ref().is_some_and(|recovered| recovered.contains(frame))
    }

    /// Once this has returned true, all that was taken is written to the files, or counted as lost in them: it survives
    /// the server's being killed, and whoever holds on to frames until then may let go of them.
    fn flush(&mut self) -> Result<bool, End<PathError>> {
        let all_written = self.write_if_due();
        if all_written && let Some(journal) = &mut self.journal {
            journal.acknowledge(self.events.len());
        }
        Ok(all_written)
    }

    /// Writes everything, and the last event, which says why the recording ends. What cannot be written now is lost,
    /// which is said on standard error.
    fn finish(&mut self, reason: &str) -> Result<(), PathError> {
        self.write_end(reason);
        Ok(())
    }
}
