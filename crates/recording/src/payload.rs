//! Payload files: the captured bytes, and nothing else, in the order they arrived.

use std::num::NonZero;

use gttr::Frame;
use lru::LruCache;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, OFlags, openat, statat};
use rustix::io::{Errno, retry_on_intr, writev};
use rustix::process::{Resource, getrlimit};
use socktrace_event::{Data, Direction, Event, Limited, Lost};

use crate::connections::{Connections, FileNumber};
use crate::folder::{FILE_MODE, check_file};
use crate::journal::Journal;
use crate::outage::Failure;
use crate::segments::Segments;

/// How much payload is held back before it is written, in bytes, if it is not flushed before.
const WRITE_LEN: usize = 1 << 20;
/// How much is kept while it cannot be written, in bytes.
const MAX_PENDING: usize = 8 << 20;
/// Connections that are remembered when nothing is pending take so much, in bytes, some 40,000 of them: what is forgotten
/// is looked up in the directory again.
const MAX_IDLE: usize = 16 << 20;
/// And so much while nothing can be written; losses of others are counted in one sum.
const MAX_CONNECTIONS: usize = 32 << 20;
/// After so many failed writes the rest waits for the next try: on a full disk all of them would fail.
const MAX_FAILURES: usize = 16;

/// The most payload files kept open: writing to an open one costs a fifth of opening it again. The kernel takes about a
/// KiB for each.
const MAX_OPEN: u64 = 32 << 10;
/// The fewest, however low the limit is: below that every event would open a file.
const MIN_OPEN: u64 = 16;

/// How many payload files may be open at once: at most half of the soft limit, the rest is for whoever sends.
fn open_share() -> usize {
    let soft = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from((soft / 2).clamp(MIN_OPEN, MAX_OPEN)).expect("at most 32768")
}

/// All payload files of an output directory.
#[derive(Debug)]
pub(crate) struct Payloads {
    folder: OwnedFd,
    connections: Connections,
    segments: Segments,
    /// Descriptors of those that were used last.
    open: LruCache<FileNumber, OwnedFd>,
    /// Files with something to write or to report.
    queue: Vec<FileNumber>,
    /// Lost bytes of connections beyond MAX_CONNECTIONS.
    lost_elsewhere: u64,
    written: u64,
    /// Why not all could be written the last time, and why not the last time that it was so.
    failure: Option<Failure>,
    last_failure: Option<Failure>,
    told: Limited,
}

/// Where the payload of a frame goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known(usize);

impl Payloads {
    pub(crate) fn new(folder: OwnedFd) -> Self {
        let open = NonZero::new(open_share()).expect("at least 16");
        Self {
            folder,
            connections: Connections::default(),
            segments: Segments::default(),
            open: LruCache::new(open),
            queue: Vec::new(),
            lost_elsewhere: 0,
            written: 0,
            failure: None,
            last_failure: None,
            told: Limited::default(),
        }
    }

    /// The directory.
    pub(crate) fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// The connection of a data frame, if it has been heard of and its `conn_id` names its files itself.
    #[inline]
    pub(crate) fn known(&mut self, frame: &Frame<'_>) -> Option<Known> {
        self.connections.of_conn_id(frame.conn).map(Known)
    }

    /// Adds the payload of a frame of a known connection; what [`Payloads::push`] does for its event.
    #[inline]
    pub(crate) fn push_frame(&mut self, known: Known, frame: &Frame<'_>) {
        if frame.direction != Direction::None && !frame.payload.is_empty() {
            self.push_to(Connections::number(known.0, frame.direction), frame.payload);
        }
    }

    /// Adds a data event's payload to its file; while it cannot be written and too much is pending, counts it as lost.
    pub(crate) fn push(&mut self, event: &Event<'_>, data: &Data<'_>, payload: &[u8]) {
        let Some(base_name) = event.payload_file() else { return };
        if payload.is_empty() || data.direction == Direction::None {
            return;
        }
        let connection = match self.connections.of_name(base_name) {
            Some(connection) => connection,
            None if self.failure.is_some() && self.connections.bytes() >= MAX_CONNECTIONS => {
                self.lost_elsewhere += payload.len() as u64;
                return;
            }
            None => self.connections.add(base_name, data),
        };
        self.push_to(Connections::number(connection, data.direction), payload);
    }

    #[inline]
    fn push_to(&mut self, number: FileNumber, payload: &[u8]) {
        let file = self.connections.file(number);
        if !file.queued {
            file.queued = true;
            self.queue.push(number);
        }
        let is_too_much = || self.failure.is_some() && self.segments.cost() + payload.len() > MAX_PENDING;
        if file.lost > 0 || is_too_much() {
            file.lost += payload.len() as u64;
            return;
        }
        self.segments.push(&mut file.pending, payload);
    }

    /// Whether so much is pending that it should be written.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.segments.cost() >= WRITE_LEN || self.connections.bytes() > MAX_IDLE
    }

    /// Whether there is nothing to write or to report.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.lost_elsewhere == 0
    }

    /// Adds to the journal what is about to be written, as far as its batch does not have it yet.
    pub(crate) fn announce(&mut self, journal: &mut Journal) -> Result<(), Failure> {
        for &number in &self.queue {
            let file = self.connections.file(number);
            if file.batch == journal.batch() || file.pending.is_empty() {
                continue;
            }
            let len = match file.len {
                Some(len) => len,
                None => self.look_at(number),
            };
            self.connections.file(number).len = Some(len);
            journal.add(self.connections.base_name(number), Connections::direction(number), len);
        }
        journal.write().map_err(|e| self.fail(Failure(e)))?;
        for &number in &self.queue {
            let file = self.connections.file(number);
            if !file.pending.is_empty() {
                file.batch = journal.batch();
            }
        }
        Ok(())
    }

    /// Length of a file that has not been opened yet; what is no file will not be written to.
    fn look_at(&self, number: FileNumber) -> u64 {
        let stat = statat(&self.folder, self.connections.name(number), AtFlags::SYMLINK_NOFOLLOW);
        let file = stat.ok().filter(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
        file.map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0))
    }

    /// Nothing can be written now.
    fn fail(&mut self, failure: Failure) -> Failure {
        (self.failure, self.last_failure) = (Some(failure), Some(failure));
        failure
    }

    /// Writes what is pending. What cannot be written stays pending, but for files that waiting would not help: their
    /// bytes are lost.
    pub(crate) fn write(&mut self) -> Result<(), Failure> {
        self.failure = None;
        let mut failures = 0;
        let (mut untried, mut failed) = (Vec::new(), Vec::new());
        let mut queue = std::mem::take(&mut self.queue);
        for &number in &queue {
            if failures >= MAX_FAILURES {
                untried.push(number);
                continue;
            }
            let result = self.write_file(number);
            let file = self.connections.file(number);
            let Err(failure) = result.map_err(Failure) else {
                if file.lost > 0 {
                    failed.push(number);
                } else {
                    file.queued = false;
                }
                continue;
            };
            file.failure = Some(failure);
            failed.push(number);
            if failure.is_of_one_file() {
                file.lost += self.segments.discard(&mut file.pending) as u64;
                if !std::mem::replace(&mut file.told, true) {
                    let name = self.connections.name(number);
                    self.told.notice(|| format!("{name}: {}: its payload is dropped and counted", failure.reason()));
                }
            } else {
                failures += 1;
                self.fail(failure);
            }
        }
        // Those that were not tried go first the next time, so that none is starved by others that always fail.
        untried.append(&mut failed);
        queue.clear();
        queue.append(&mut untried);
        self.queue = queue;
        self.give_memory_back();
        self.failure.map_or(Ok(()), Err)
    }

    fn write_file(&mut self, number: FileNumber) -> Result<(), Errno> {
        if self.connections.file(number).pending.is_empty() {
            return Ok(());
        }
        if !self.open.contains(&number) {
            let (opened, len) = self.open_file(number)?;
            self.connections.file(number).len = Some(len);
            self.open.put(number, opened);
        }
        let descriptor = self.open.get(&number).expect("was just opened");
        let file = self.connections.file(number);
        let mut written = 0;
        let result =
            self.segments.drain(&mut file.pending, |slices| match retry_on_intr(|| writev(descriptor, slices))? {
                0 => Err(Errno::IO),
                len => {
                    written += len as u64;
                    Ok(len)
                }
            });
        file.len = file.len.map(|len| len + written);
        self.written += written;
        result
    }

    /// Opens a file for appending, and returns its length, too.
    fn open_file(&mut self, number: FileNumber) -> Result<(OwnedFd, u64), Errno> {
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Not to wait for the other end of a FIFO that somebody put there, nor to get a terminal.
        let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
        let name = self.connections.name(number);
        let file = loop {
            match retry_on_intr(|| openat(&self.folder, &*name, flags, FILE_MODE)) {
                // Agents have taken the descriptors: make do with fewer of our own.
                Err(Errno::MFILE | Errno::NFILE) if self.open.pop_lru().is_some() => {}
                result => break result?,
            }
        };
        let stat = check_file(&file)?;
        Ok((file, u64::try_from(stat.st_size).unwrap_or(0)))
    }

    /// Forgets all connections when there are many and none is waiting for anything.
    fn give_memory_back(&mut self) {
        self.segments.clear_if_empty();
        if self.failure.is_some() {
            let connections = &mut self.connections;
            let mut chains: Vec<_> = self.queue.iter().map(|&n| (n, connections.file(n).pending)).collect();
            self.segments.compact(chains.iter_mut().map(|(_, chain)| chain));
            chains.into_iter().for_each(|(number, chain)| connections.file(number).pending = chain);
        }
        if self.queue.is_empty() && self.connections.bytes() > MAX_IDLE {
            self.connections.clear();
            self.open.clear();
        }
    }

    /// Hands on a `lost` event for each file whose losses are known: nothing is pending before them.
    ///
    /// Not during an outage, but for files that are themselves the reason: as long as it lasts the losses grow.
    pub(crate) fn take_losses(&mut self, report: &mut dyn FnMut(Lost<'_>)) {
        let outage = self.failure.is_some();
        let mut waiting = Vec::new();
        for number in std::mem::take(&mut self.queue) {
            let file = self.connections.file(number);
            let own_fault = file.failure.is_some_and(Failure::is_of_one_file);
            if file.lost == 0 || !file.pending.is_empty() || (outage && !own_fault) {
                waiting.push(number);
                continue;
            }
            let reason = file.failure.or(self.last_failure).unwrap_or(Failure(Errno::IO)).reason();
            let (offset, lost) = (file.len, file.lost);
            (file.lost, file.failure, file.queued) = (0, None, false);
            let (conn_id, file) = self.connections.ids(number);
            let (direction, conn_id) = (Connections::direction(number), Some(conn_id));
            let (bytes, reason) = (Some(lost), Some(reason));
            report(Lost { direction, conn_id, file, offset, bytes, reason, ..Lost::default() });
        }
        self.queue = waiting;
        if self.lost_elsewhere > 0 && !outage {
            let bytes = Some(std::mem::take(&mut self.lost_elsewhere));
            let reason = self.last_failure.map(Failure::reason);
            report(Lost { bytes, reason, ..Lost::default() });
        }
    }

    /// Nothing will be written any more: counts what is pending as lost.
    pub(crate) fn give_up(&mut self) {
        for &number in &self.queue {
            let file = self.connections.file(number);
            if !file.pending.is_empty() {
                file.lost += self.segments.discard(&mut file.pending) as u64;
                file.failure = file.failure.or(self.failure);
            }
        }
        self.failure = None;
    }

    /// Bytes that are lost and not reported.
    pub(crate) fn lost(&mut self) -> u64 {
        let connections = &mut self.connections;
        self.lost_elsewhere + self.queue.iter().map(|&number| connections.file(number).lost).sum::<u64>()
    }

    /// Bytes written.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }
}
