//! What is about to be written, so that a server that is killed in the middle leaves a recording that can be put right.
//!
//! Payload is written before the events that speak of it, so after a crash a payload file may hold bytes of no event.
//! Before a batch is written the journal says how long `events.jsonl` and each payload file concerned are;
//! [`recover`](crate::recover) goes by that. It is written to the kernel, not to the disk: it survives the server, and
//! names the boot it is of.

use std::path::Path;

use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, OFlags, openat, unlinkat};
use rustix::io::{Errno, pread, pwrite, retry_on_intr};
use sha2::{Digest, Sha256};
use socktrace_event::{Direction, PathError, file_suffix};

use crate::folder::{FILE_MODE, check_file, explain_refusal};

/// Name of the file in the output directory. It is there while a server records, and after one was killed.
pub(crate) const NAME: &str = "events.journal";
/// First bytes of a record; the last two are the version.
const MAGIC: [u8; 8] = *b"STJRNL01";
/// Bytes of a sum. It guards against records written in part, not against anybody.
const SUM_LEN: usize = 8;
/// Bytes of a boot id's text.
const BOOT_LEN: usize = 36;
/// Bytes of a record before its entries: magic, boot id, batch, acknowledged, events_len, length and sum of the
/// entries, sum of all this.
const HEAD_LEN: usize = 8 + BOOT_LEN + 4 * 8 + 2 * SUM_LEN;
/// A write within one page is not cut in two by a signal.
const PAGE_LEN: usize = 4096;
/// More than any honest record takes: [`read`] does not take more memory.
const MAX_ENTRIES_LEN: u64 = 64 << 20;

/// A payload file that a batch writes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its name.
    pub(crate) name: Box<str>,
    /// How many of its bytes the events before the batch speak of.
    pub(crate) len: u64,
}

/// What a journal says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// The machine runs since the journal was written: what was written to the kernel is there.
    pub(crate) is_of_this_boot: bool,
    /// Length of `events.jsonl` when all before was last acknowledged ([`Recorder::flush`](crate::Recorder)).
    pub(crate) acknowledged: u64,
    /// Length of `events.jsonl` when the last batch began.
    pub(crate) events_len: u64,
    /// The payload files that it wrote to.
    pub(crate) entries: Vec<Entry>,
}

/// The open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    file: OwnedFd,
    boot: [u8; BOOT_LEN],
    batch: u64,
    /// Whether all of the batch is written, so that the next record begins another.
    is_done: bool,
    acknowledged: u64,
    events_len: u64,
    /// Where the next record of this batch goes.
    end: u64,
    /// A record under construction.
    record: Vec<u8>,
}

impl Journal {
    /// Opens or makes the journal, and says that nothing is being written.
    pub(crate) fn create(
        folder: BorrowedFd<'_>,
        shown: &Path,
        acknowledged: u64,
        events_len: u64,
    ) -> Result<Self, PathError> {
        let path = &*shown.join(NAME);
        let opened = open(folder, OFlags::RDWR | OFlags::CREATE);
        let file = opened.map_err(|e| PathError::refused(path, explain_refusal(e)))?;
        // Above the number of any record that is left in the file.
        let batch = head_of(&file).map_or(1, |head| head.batch.wrapping_add(1));
        let record = Vec::with_capacity(PAGE_LEN);
        let is_done = true;
        let mut journal = Self { file, boot: boot_id(), batch, is_done, acknowledged, events_len, end: 0, record };
        journal.begin(events_len);
        journal.write().map_err(PathError::output(path, "cannot be written to"))?;
        journal.done();
        Ok(journal)
    }

    /// Begins a record of the batch that is about to be written; of another attempt at the last one, if that failed.
    pub(crate) fn begin(&mut self, events_len: u64) {
        if self.is_done {
            self.batch = self.batch.wrapping_add(1);
            self.events_len = events_len;
            (self.end, self.is_done) = (0, false);
        }
        self.record.clear();
        self.record.resize(HEAD_LEN, 0);
    }

    /// Number of the batch.
    pub(crate) fn batch(&self) -> u64 {
        self.batch
    }

    /// Adds a payload file to the record: one that no earlier record of the batch has.
    pub(crate) fn add(&mut self, base_name: &[u8], direction: Direction, len: u64) {
        let suffix = file_suffix(direction).unwrap_or_default().as_bytes();
        // At most 200 bytes and the suffix.
        self.record.extend_from_slice(&((base_name.len() + suffix.len()) as u16).to_le_bytes());
        self.record.extend_from_slice(&len.to_le_bytes());
        self.record.extend_from_slice(base_name);
        self.record.extend_from_slice(suffix);
    }

    /// Writes the record. Unless that succeeds, none of the files added since [`Journal::begin`] may be written to.
    pub(crate) fn write(&mut self) -> Result<(), Errno> {
        if self.end > 0 && self.record.len() == HEAD_LEN {
            // Another attempt at the same files.
            return Ok(());
        }
        let (head, entries) = self.record.split_at_mut(HEAD_LEN);
        let mut to = head.iter_mut();
        let mut put = |bytes: &[u8]| bytes.iter().zip(to.by_ref()).for_each(|(from, to)| *to = *from);
        put(&MAGIC);
        put(&self.boot);
        for number in [self.batch, self.acknowledged, self.events_len, entries.len() as u64] {
            put(&number.to_le_bytes());
        }
        put(&sum(entries));
        let head_sum = sum(&head[..HEAD_LEN - SUM_LEN]);
        head[HEAD_LEN - SUM_LEN..].copy_from_slice(&head_sum);
        let len = self.record.len() as u64;
        if len <= PAGE_LEN as u64 && self.end == 0 {
            write_at(&self.file, &self.record, 0)?;
        } else {
            // The entries first: until the head is there, the last one stands, whose batch is done.
            write_at(&self.file, &self.record[HEAD_LEN..], self.end + HEAD_LEN as u64)?;
            write_at(&self.file, &self.record[..HEAD_LEN], self.end)?;
        }
        self.end += len;
        Ok(())
    }

    /// All of the batch is written.
    pub(crate) fn done(&mut self) {
        self.is_done = true;
    }

    /// The producer has been told that all up to this length of `events.jsonl` is written.
    pub(crate) fn acknowledge(&mut self, events_len: u64) {
        self.acknowledged = events_len;
    }

    /// The recording ends, and nothing is left to be put right.
    pub(crate) fn remove(self, folder: BorrowedFd<'_>) {
        if self.is_done {
            // If that fails, the next server looks for damage and finds none.
            let _ = unlinkat(folder, NAME, AtFlags::empty());
        }
    }
}

/// What the journal in a directory says; None if there is none, or none that says anything.
pub(crate) fn read(folder: BorrowedFd<'_>) -> Option<State> {
    let file = open(folder, OFlags::RDONLY).ok()?;
    let first = head_of(&file)?;
    let mut state = State {
        is_of_this_boot: first.boot == boot_id(),
        acknowledged: first.acknowledged,
        events_len: first.events_len,
        entries: Vec::new(),
    };
    let (mut at, mut head) = (0, first.clone());
    while head.batch == first.batch && head.entries_len <= MAX_ENTRIES_LEN {
        let mut entries = vec![0; usize::try_from(head.entries_len).unwrap_or(usize::MAX)];
        if !read_at(&file, &mut entries, at + HEAD_LEN as u64) || sum(&entries) != head.entries_sum {
            // Not written in full, so that the files that it would name were not touched.
            break;
        }
        state.entries.extend(parse(&entries));
        at += HEAD_LEN as u64 + head.entries_len;
        match head_at(&file, at) {
            Some(next) => head = next,
            None => break,
        }
    }
    Some(state)
}

#[derive(Clone)]
struct Head {
    boot: [u8; BOOT_LEN],
    batch: u64,
    acknowledged: u64,
    events_len: u64,
    entries_len: u64,
    entries_sum: [u8; SUM_LEN],
}

fn head_of(file: &OwnedFd) -> Option<Head> {
    head_at(file, 0)
}

fn head_at(file: &OwnedFd, at: u64) -> Option<Head> {
    let mut bytes = [0; HEAD_LEN];
    if !read_at(file, &mut bytes, at) {
        return None;
    }
    let (content, head_sum) = bytes.split_at(HEAD_LEN - SUM_LEN);
    let (magic, rest) = content.split_first_chunk()?;
    let (boot, rest) = rest.split_first_chunk()?;
    let (numbers, entries_sum) = rest.as_chunks::<8>().0.split_at(4);
    let number = |n: usize| u64::from_le_bytes(numbers[n]);
    (*magic == MAGIC && head_sum == sum(content)).then(|| Head {
        boot: *boot,
        batch: number(0),
        acknowledged: number(1),
        events_len: number(2),
        entries_len: number(3),
        entries_sum: entries_sum[0],
    })
}

fn parse(mut rest: &[u8]) -> impl Iterator<Item = Entry> {
    std::iter::from_fn(move || {
        let (name_len, behind) = rest.split_first_chunk::<2>()?;
        let (len, behind) = behind.split_first_chunk::<8>()?;
        let (name, behind) = behind.split_at_checked(usize::from(u16::from_le_bytes(*name_len)))?;
        rest = behind;
        Some(Entry { name: String::from_utf8_lossy(name).into(), len: u64::from_le_bytes(*len) })
    })
}

fn sum(bytes: &[u8]) -> [u8; SUM_LEN] {
    *Sha256::digest(bytes).first_chunk().expect("32 bytes")
}

/// Which boot of the machine this is; blanks where nobody tells.
fn boot_id() -> [u8; BOOT_LEN] {
    let text = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.first_chunk().copied().unwrap_or([b' '; BOOT_LEN])
}

fn open(folder: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
    // Not to be led elsewhere, to wait for the other end of a FIFO, nor to get a terminal.
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = openat(folder, NAME, flags, FILE_MODE)?;
    check_file(&file)?;
    Ok(file)
}

fn write_at(file: &OwnedFd, mut bytes: &[u8], mut at: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match retry_on_intr(|| pwrite(file, bytes, at))? {
            0 => return Err(Errno::IO),
            len => (bytes, at) = (&bytes[len..], at + len as u64),
        }
    }
    Ok(())
}

/// Whether there are so many bytes.
fn read_at(file: &OwnedFd, bytes: &mut [u8], at: u64) -> bool {
    let mut filled = 0;
    while filled < bytes.len() {
        match retry_on_intr(|| pread(file, &mut bytes[filled..], at + filled as u64)) {
            Ok(len @ 1..) => filled += len,
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;

    use super::*;

    fn folder() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let handle = fs::File::open(dir.path()).unwrap().into();
        (dir, handle)
    }

    fn add(journal: &mut Journal, names: std::ops::Range<u64>) -> Vec<Entry> {
        let names = names.map(|n| (format!("{n:0>150}"), n));
        let entries = names.map(|(name, len)| {
            journal.add(name.as_bytes(), Direction::In, len);
            Entry { name: format!("{name}.in.bin").into(), len }
        });
        entries.collect()
    }

    #[test]
    fn says_what_the_last_batch_was_about_to_write() {
        let (dir, folder) = folder();
        assert_eq!(read(folder.as_fd()), None);
        let mut journal = Journal::create(folder.as_fd(), dir.path(), 5, 7).unwrap();
        let empty = State { is_of_this_boot: true, acknowledged: 5, events_len: 7, entries: vec![] };
        assert_eq!(read(folder.as_fd()), Some(empty));
        // Many entries, then few: what is left of the many behind them does not count.
        for count in [100, 2, 50, 0] {
            journal.acknowledge(10 + count);
            journal.begin(20 + count);
            let mut entries = add(&mut journal, 0..count);
            journal.write().unwrap();
            let expected = |entries: &[Entry]| {
                let entries = entries.to_vec();
                Some(State { is_of_this_boot: true, acknowledged: 10 + count, events_len: 20 + count, entries })
            };
            assert_eq!(read(folder.as_fd()), expected(&entries));
            // That failed, and in the meantime there is more to be written.
            journal.begin(99);
            entries.extend(add(&mut journal, count..count + 3));
            journal.write().unwrap();
            assert_eq!(read(folder.as_fd()), expected(&entries));
            journal.done();
        }
        journal.remove(folder.as_fd());
        assert_eq!(read(folder.as_fd()), None);
    }

    #[test]
    fn a_record_written_in_part_leaves_the_last_acknowledgement() {
        let (dir, folder) = folder();
        let mut journal = Journal::create(folder.as_fd(), dir.path(), 0, 0).unwrap();
        journal.acknowledge(1);
        journal.begin(2);
        add(&mut journal, 0..100);
        journal.write().unwrap();
        journal.done();
        let before = fs::read(dir.path().join(NAME)).unwrap();
        journal.acknowledge(3);
        journal.begin(4);
        let entries = add(&mut journal, 50..150);
        journal.write().unwrap();
        let after = fs::read(dir.path().join(NAME)).unwrap();
        assert_eq!(before.len(), after.len());
        // Its entries are written before its head.
        for cut in (HEAD_LEN..after.len()).step_by(97) {
            let torn = [&before[..HEAD_LEN], &after[HEAD_LEN..cut], &before[cut..]].concat();
            fs::write(dir.path().join(NAME), torn).unwrap();
            let state = read(folder.as_fd()).unwrap();
            assert_eq!((state.acknowledged, state.events_len), (1, 2));
            assert!(state.entries.is_empty() || cut < HEAD_LEN + 10, "cut at {cut}");
        }
        fs::write(dir.path().join(NAME), after).unwrap();
        assert_eq!(read(folder.as_fd()).unwrap().entries, entries);
    }

    #[test]
    fn anything_else_is_no_journal() {
        let (dir, folder) = folder();
        for content in [&b""[..], b"STJRNL01", &[0; 4096], &[0xff; 100_000]] {
            fs::write(dir.path().join(NAME), content).unwrap();
            assert_eq!(read(folder.as_fd()), None);
            Journal::create(folder.as_fd(), dir.path(), 1, 2).unwrap();
            assert_eq!(read(folder.as_fd()).unwrap().acknowledged, 1);
        }
        fs::remove_file(dir.path().join(NAME)).unwrap();
        std::os::unix::fs::symlink("elsewhere", dir.path().join(NAME)).unwrap();
        assert!(Journal::create(folder.as_fd(), dir.path(), 0, 0).is_err());
    }
}
