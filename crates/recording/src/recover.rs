//! Puts a recording right that a server left when it was killed, so that payload files hold what the events say.
//!
//! Payload is written before the events that speak of it, and the [journal](crate::journal) says what was about to be
//! written. What a payload file has beyond its events is taken off; what it lacks is reported. While the machine ran on,
//! only the last batch can be concerned. After a crash of the machine any part of any file may be missing, and all of
//! `events.jsonl` is read.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufRead, BufReader, Read};

use gttr::{Ext, Frame};
use rustix::fd::BorrowedFd;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ftruncate, openat, statat};
use rustix::io::{Errno, pread, retry_on_intr};
use socktrace_event::{Direction, Event, Lost, Text, What};

use crate::folder::check_file;
use crate::journal::State;

/// How much is read at a time, in bytes.
const READ_LEN: usize = 256 << 10;
/// Files that are kept account of in one go, so that memory does not grow with the recording.
const MAX_FILES: usize = 64 << 10;
/// A longer line is none that a server wrote: texts of an event, 64 KiB each, take some MiB when all is escaped.
const MAX_LINE_LEN: u64 = 8 << 20;
/// More events than are written between two acknowledgements, some 100 ms apart.
const MAX_RECOVERED: usize = 1 << 20;

/// Events that a server which was killed had recorded and may not have acknowledged.
///
/// Whoever holds on to frames until [`Recorder::flush`](crate::Recorder) has returned true, a ring say, hands those to
/// the next server again. This tells which of them are in `events.jsonl` already.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// Process id, number and time of each event.
    events: HashSet<(u32, u64, u64)>,
}

impl Recovered {
    /// Whether the frame's event was recorded. One without pid, seq or ts_ns cannot be told from others: false.
    pub fn contains(&self, frame: &Frame<'_>) -> bool {
        if self.events.is_empty() {
            return false;
        }
        let (mut pid, mut seq, mut ts_ns) = (None, None, None);
        for value in frame.ext.iter() {
            match value {
                Ext::Pid(v) => pid = Some(v),
                Ext::Seq(v) => seq = Some(v),
                Ext::TsNs(v) => ts_ns = Some(v),
                _ => {}
            }
        }
        let (Some(pid), Some(seq), Some(ts_ns)) = (pid, seq, ts_ns) else { return false };
        self.events.contains(&(pid, seq, ts_ns))
    }

    /// How many events there are.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether there are none, as when the server before ended in order.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}

/// The payload file that an event speaks of, and by how much it makes it longer than those before.
fn growth(event: &Event<'_>) -> Option<(String, i128)> {
    let growth = match &event.what {
        What::Data(data) => i128::from(data.size),
        What::Lost(lost) if event.pid.is_none() => -i128::from(lost.bytes?),
        _ => return None,
    };
    Some((event.payload_name()?, growth))
}

/// Whether payload files and events do not go together from here on, and are not meant to.
fn sets_adrift(event: &Event<'_>) -> bool {
    match &event.what {
        // The recorder's own, about lines of events.jsonl; a process counts what never got there.
        What::Lost(lost) => event.pid.is_none() && lost.conn_id.is_none() && lost.events.is_some(),
        What::HostInit(begun) => begun.omits.is_some(),
        _ => false,
    }
}

/// What is known of a payload file.
#[derive(Debug, Default)]
struct Account {
    /// Bytes that the events speak of.
    len: i128,
    /// The connection as events name it, where that is not the base name.
    conn_id: Option<Box<str>>,
}

/// What was found and done.
#[derive(Debug, Default)]
pub(crate) struct Repair {
    /// Payload files that were longer than their events say, and are no more.
    pub(crate) cut: usize,
    /// A `lost` event for each payload file that is shorter.
    pub(crate) short: Vec<Lost<'static>>,
    pub(crate) recovered: Recovered,
}

type Accounts = HashMap<String, Account>;

/// Puts payload files right by the whole lines of `events`, which are `events_len` bytes.
pub(crate) fn repair(
    folder: BorrowedFd<'_>,
    events: BorrowedFd<'_>,
    events_len: u64,
    state: &State,
) -> io::Result<Repair> {
    if state.is_of_this_boot {
        repair_last_batch(folder, events, events_len, state)
    } else {
        repair_all(folder, events, events_len, state)
    }
}

fn repair_last_batch(
    folder: BorrowedFd<'_>,
    events: BorrowedFd<'_>,
    events_len: u64,
    state: &State,
) -> io::Result<Repair> {
    let mut accounts = Accounts::new();
    for entry in &state.entries {
        // The first has the length before the batch.
        accounts.entry(entry.name.to_string()).or_insert(Account { len: entry.len.into(), conn_id: None });
    }
    let from = state.acknowledged.min(state.events_len).min(events_len);
    let mut repair = Repair::default();
    let mut is_adrift = false;
    each_line(events, from, events_len, |at, event| {
        if let (Some(pid), Some(seq), Some(ts_ns)) = (event.pid, event.seq, event.ts_ns)
            && repair.recovered.events.len() < MAX_RECOVERED
        {
            repair.recovered.events.insert((pid, seq, ts_ns));
        }
        if at >= state.events_len {
            is_adrift |= sets_adrift(&event);
            if let Some((name, growth)) = growth(&event)
                && let Some(account) = accounts.get_mut(&name)
            {
                account.add(&event, growth);
            }
        }
    })?;
    if !is_adrift {
        settle(folder, accounts, &mut repair)?;
    }
    Ok(repair)
}

fn repair_all(folder: BorrowedFd<'_>, events: BorrowedFd<'_>, events_len: u64, state: &State) -> io::Result<Repair> {
    let mut repair = Repair::default();
    let passes = payload_files(folder)?.div_ceil(MAX_FILES).max(1);
    for pass in 0..passes {
        let is_of_pass = |name: &str| {
            let mut hasher = DefaultHasher::new();
            name.hash(&mut hasher);
            hasher.finish() % passes as u64 == pass as u64
        };
        // What only the journal names has no event.
        let named = state.entries.iter().filter(|entry| is_of_pass(&entry.name));
        let mut accounts: Accounts = named.map(|entry| (entry.name.to_string(), Account::default())).collect();
        let mut is_adrift = false;
        each_line(events, 0, events_len, |_, event| {
            is_adrift |= sets_adrift(&event);
            if let Some((name, growth)) = growth(&event)
                && is_of_pass(&name)
            {
                accounts.entry(name).or_default().add(&event, growth);
            }
        })?;
        if is_adrift {
            return Ok(Repair::default());
        }
        settle(folder, accounts, &mut repair)?;
    }
    Ok(repair)
}

impl Account {
    fn add(&mut self, event: &Event<'_>, growth: i128) {
        self.len += growth;
        // The name of its files is another.
        if self.conn_id.is_none() && event.payload_file() != event.conn_id() {
            self.conn_id = event.conn_id().map(Into::into);
        }
    }
}

/// Hands on each whole line with its offset; what is no event is passed over.
fn each_line(events: BorrowedFd<'_>, from: u64, to: u64, mut each: impl FnMut(u64, Event<'_>)) -> io::Result<()> {
    let mut lines = BufReader::with_capacity(READ_LEN, At { file: events, at: from, to });
    let (mut at, mut line) = (from, Vec::new());
    // A piece of a line that is too long is taken for a line.
    while (&mut lines).take(MAX_LINE_LEN).read_until(b'\n', &mut line)? > 0 {
        if let Ok(event) = serde_json::from_slice(&line) {
            each(at, event);
        }
        at += line.len() as u64;
        line.clear();
    }
    Ok(())
}

/// A part of a file, read without moving its offset.
struct At<'a> {
    file: BorrowedFd<'a>,
    at: u64,
    to: u64,
}

impl Read for At<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.to - self.at).unwrap_or(usize::MAX);
        let len = bytes.len().min(left);
        let read = retry_on_intr(|| pread(self.file, &mut bytes[..len], self.at))?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Makes files as long as their accounts say, or says what they lack.
fn settle(folder: BorrowedFd<'_>, accounts: Accounts, repair: &mut Repair) -> io::Result<()> {
    for (name, account) in accounts {
        let (base_name, direction) = match (name.strip_suffix(".in.bin"), name.strip_suffix(".out.bin")) {
            (Some(base_name), _) => (base_name, Direction::In),
            (_, Some(base_name)) => (base_name, Direction::Out),
            _ => continue,
        };
        if base_name.starts_with('.') || base_name.contains(['/', '\0']) {
            continue;
        }
        let expected = u64::try_from(account.len).unwrap_or(0);
        let len = length(folder, &name)?;
        if len > expected {
            let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
            let file = openat(folder, &*name, flags, Mode::empty())?;
            check_file(&file)?;
            ftruncate(file, expected)?;
            repair.cut += 1;
        } else if len < expected {
            let text = |text: &str| Some(Text(text.to_owned().into()));
            repair.short.push(Lost {
                direction,
                conn_id: text(account.conn_id.as_deref().unwrap_or(base_name)),
                file: account.conn_id.is_some().then(|| text(base_name)).flatten(),
                offset: Some(len),
                bytes: Some(expected - len),
                reason: Some("the payload file was cut short by a crash".into()),
                ..Lost::default()
            });
        }
    }
    Ok(())
}

/// Length of a payload file; of what is none, 0.
fn length(folder: BorrowedFd<'_>, name: &str) -> Result<u64, Errno> {
    match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
            Ok(u64::try_from(stat.st_size).unwrap_or(0))
        }
        Ok(_) | Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(0),
        Err(e) => Err(e),
    }
}

/// How many payload files there are.
fn payload_files(folder: BorrowedFd<'_>) -> Result<usize, Errno> {
    let mut count = 0;
    for entry in Dir::read_from(folder)? {
        count += usize::from(entry?.file_name().to_bytes().ends_with(b".bin"));
    }
    Ok(count)
}
