//! Payload files: the captured bytes, and nothing else, in the order they arrived.

use std::collections::HashMap;
use std::num::NonZero;

use lru::LruCache;
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
use rustix::io::{Errno, retry_on_intr};

use crate::descriptors::payload_share;
use crate::event::{Direction, Event, EventType, Text};
use crate::notice::notice;
use crate::outage::Failure;

/// How much payload is held back before it is written, and how much is kept while it cannot be, in bytes.
const MAX_PENDING: usize = 8 << 20;
/// What a file costs beside its pending bytes, in bytes, so that many small payloads are bounded, too.
const FILE_COST: usize = 512;
/// So many files are remembered when nothing is pending for them: their buffers are reused.
const MAX_IDLE_FILES: usize = 4096;
/// Room that a file's buffer keeps, in bytes.
const KEPT_CAPACITY: usize = 4 << 10;
/// So many files are remembered while nothing can be written; losses of others are counted in one sum.
const MAX_FILES: usize = 64 << 10;
/// After so many failed writes the rest waits for the next try: on a full disk all of them would fail.
const MAX_FAILURES: usize = 16;

/// One payload file, open or not.
#[derive(Debug)]
struct PayloadFile {
    name: Box<str>,
    /// The connection as its events name it.
    conn_id: Box<str>,
    base_name: Option<Box<str>>,
    direction: Direction,
    pending: Vec<u8>,
    /// Length of the file, once it has been open.
    len: Option<u64>,
    /// Bytes lost since the last `lost` event; while there are any, later ones are lost, too, so that the gap is one.
    lost: u64,
    failure: Option<Failure>,
    /// Whether it is in `queue`.
    queued: bool,
    /// Whether the user has been told what is wrong with it.
    told: bool,
}

/// All payload files of an output directory.
#[derive(Debug)]
pub(crate) struct Payloads {
    folder: OwnedFd,
    files: Vec<PayloadFile>,
    by_name: HashMap<Box<str>, usize>,
    /// Descriptors of those that were used last.
    open: LruCache<usize, OwnedFd>,
    /// Files with something to write or to report.
    queue: Vec<usize>,
    /// A name under construction.
    name: String,
    /// Memory that pending payload takes, about, in bytes.
    held: usize,
    /// Lost bytes of connections beyond MAX_FILES.
    lost_elsewhere: u64,
    written: u64,
    /// Why not all could be written the last time, and why not the last time that it was so.
    failure: Option<Failure>,
    last_failure: Option<Failure>,
}

impl Payloads {
    pub(crate) fn new(folder: OwnedFd) -> Self {
        let open = NonZero::new(payload_share()).expect("at least 16");
        Self {
            folder,
            files: Vec::new(),
            by_name: HashMap::new(),
            open: LruCache::new(open),
            queue: Vec::new(),
            name: String::new(),
            held: 0,
            lost_elsewhere: 0,
            written: 0,
            failure: None,
            last_failure: None,
        }
    }

    /// Adds a data event's payload to its file; while it cannot be written and too much is pending, counts it as lost.
    pub(crate) fn push(&mut self, event: &Event<'_>, payload: &[u8]) {
        let (Some(direction), Some(base_name)) = (event.direction, event.payload_file()) else { return };
        if payload.is_empty() {
            return;
        }
        self.name.clear();
        self.name.push_str(base_name);
        self.name.push_str(direction.file_suffix());
        let index = match self.by_name.get(self.name.as_str()) {
            Some(&index) => index,
            None if self.failure.is_some() && self.files.len() >= MAX_FILES => {
                self.lost_elsewhere += payload.len() as u64;
                return;
            }
            None => self.add_file(event, direction),
        };
        let file = &mut self.files[index];
        if !file.queued {
            file.queued = true;
            self.queue.push(index);
            self.held += FILE_COST;
        }
        if file.lost > 0 || (self.failure.is_some() && self.held + payload.len() > MAX_PENDING) {
            file.lost += payload.len() as u64;
            return;
        }
        file.pending.extend_from_slice(payload);
        self.held += payload.len();
    }

    fn add_file(&mut self, event: &Event<'_>, direction: Direction) -> usize {
        let index = self.files.len();
        self.by_name.insert(self.name.as_str().into(), index);
        self.files.push(PayloadFile {
            name: self.name.as_str().into(),
            conn_id: event.conn_id.as_deref().unwrap_or_default().into(),
            base_name: event.file.as_deref().map(Into::into),
            direction,
            pending: Vec::new(),
            len: None,
            lost: 0,
            failure: None,
            queued: false,
            told: false,
        });
        index
    }

    /// Whether so much is pending that it should be written.
    pub(crate) fn is_full(&self) -> bool {
        self.held >= MAX_PENDING
    }

    /// Writes what is pending. What cannot be written stays pending, but for files that waiting would not help: their
    /// bytes are lost.
    pub(crate) fn write(&mut self) -> Result<(), Failure> {
        self.failure = None;
        let mut failures = 0;
        let (mut untried, mut failed) = (Vec::new(), Vec::new());
        for index in std::mem::take(&mut self.queue) {
            if failures >= MAX_FAILURES {
                untried.push(index);
                continue;
            }
            let result = self.write_file(index);
            let file = &mut self.files[index];
            let Err(failure) = result.map_err(Failure) else {
                if file.lost > 0 {
                    failed.push(index);
                } else {
                    file.queued = false;
                    self.held -= FILE_COST;
                }
                continue;
            };
            file.failure = Some(failure);
            failed.push(index);
            if failure.is_of_one_file() {
                self.held -= file.pending.len();
                file.lost += file.pending.len() as u64;
                file.pending.clear();
                if !std::mem::replace(&mut file.told, true) {
                    notice(&format!("{}: {}: its payload is dropped and counted", file.name, failure.reason()));
                }
            } else {
                failures += 1;
                self.failure = Some(failure);
                self.last_failure = Some(failure);
            }
        }
        // Those that were not tried go first the next time, so that none is starved by others that always fail.
        untried.append(&mut failed);
        self.queue = untried;
        self.forget_idle();
        self.failure.map_or(Ok(()), Err)
    }

    fn write_file(&mut self, index: usize) -> Result<(), Errno> {
        if self.files[index].pending.is_empty() {
            return Ok(());
        }
        if !self.open.contains(&index) {
            let (opened, len) = self.open_file(index)?;
            self.files[index].len = Some(len);
            self.open.put(index, opened);
        }
        let descriptor = self.open.get(&index).expect("was just opened");
        let file = &mut self.files[index];
        let mut at = 0;
        let result = loop {
            if at == file.pending.len() {
                break Ok(());
            }
            match retry_on_intr(|| rustix::io::write(descriptor, &file.pending[at..])) {
                Ok(0) => break Err(Errno::IO),
                Ok(len) => at += len,
                Err(e) => break Err(e),
            }
        };
        file.pending.drain(..at);
        file.pending.shrink_to(KEPT_CAPACITY);
        file.len = file.len.map(|len| len + at as u64);
        self.held -= at;
        self.written += at as u64;
        result
    }

    /// Opens a file for appending, and returns its length, too.
    fn open_file(&mut self, index: usize) -> Result<(OwnedFd, u64), Errno> {
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Not to wait for the other end of a FIFO that somebody put there, nor to get a terminal.
        let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
        let name = &*self.files[index].name;
        let file = loop {
            match retry_on_intr(|| openat(&self.folder, name, flags, Mode::RUSR | Mode::WUSR)) {
                // Agents have taken the descriptors: make do with fewer of our own.
                Err(Errno::MFILE | Errno::NFILE) if self.open.pop_lru().is_some() => {}
                result => break result?,
            }
        };
        let stat = fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Errno::NODEV);
        }
        Ok((file, u64::try_from(stat.st_size).unwrap_or(0)))
    }

    /// Forgets all files when there are many and none is waiting for anything.
    fn forget_idle(&mut self) {
        if self.queue.is_empty() && self.files.len() > MAX_IDLE_FILES {
            self.by_name.clear();
            self.files.clear();
            self.open.clear();
        }
    }

    /// Hands on a `lost` event for each file whose losses are known: nothing is pending before them.
    ///
    /// Not during an outage, but for files that are themselves the reason: as long as it lasts the losses grow.
    pub(crate) fn take_losses(&mut self, report: &mut dyn FnMut(&Event<'_>)) {
        let outage = self.failure.is_some();
        let mut waiting = Vec::new();
        for index in std::mem::take(&mut self.queue) {
            let file = &mut self.files[index];
            let own_fault = file.failure.is_some_and(Failure::is_of_one_file);
            if file.lost == 0 || !file.pending.is_empty() || (outage && !own_fault) {
                waiting.push(index);
                continue;
            }
            let reason = file.failure.or(self.last_failure).unwrap_or(Failure(Errno::IO)).reason();
            report(&Event {
                direction: Some(file.direction),
                conn_id: Some((&*file.conn_id).into()),
                file: file.base_name.as_deref().map(Text::from),
                offset: file.len,
                bytes: Some(file.lost),
                reason: Some(reason),
                ..Event::now(EventType::Lost)
            });
            (file.lost, file.failure, file.queued) = (0, None, false);
            self.held -= FILE_COST;
        }
        self.queue = waiting;
        if self.lost_elsewhere > 0 && !outage {
            let bytes = Some(std::mem::take(&mut self.lost_elsewhere));
            let reason = self.last_failure.map(Failure::reason);
            report(&Event { bytes, reason, ..Event::now(EventType::Lost) });
        }
    }

    /// Nothing will be written any more: counts what is pending as lost.
    pub(crate) fn give_up(&mut self) {
        for &index in &self.queue {
            let file = &mut self.files[index];
            if !file.pending.is_empty() {
                file.lost += file.pending.len() as u64;
                file.failure = file.failure.or(self.failure);
                self.held -= file.pending.len();
                file.pending.clear();
            }
        }
        self.failure = None;
    }

    /// Bytes that are lost and not reported.
    pub(crate) fn lost(&self) -> u64 {
        self.lost_elsewhere + self.queue.iter().map(|&index| self.files[index].lost).sum::<u64>()
    }

    /// Bytes written.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }
}
