//! From an event to a frame on its way, or to the count of what was lost.

use core::sync::atomic::Ordering;

use gttr::{Direction, Ext, ExtWriter, FLAG_EXTENDED, FLAG_PAYLOAD, FrameType, Header};

use crate::process::{self, Who, guest, stack};
use crate::transport::{self, Link, Undelivered, Writing};

/// Parts of a payload that one frame takes; a call with more scattered ones makes more frames.
pub(crate) const MAX_PARTS: usize = 16;
/// A header, a path, three parts of conn, and two of extensions.
const OTHER_PARTS: usize = 7;
/// Parts of a frame.
pub(crate) const MAX_FRAME_PARTS: usize = MAX_PARTS + OTHER_PARTS;
/// Bytes of the extension values that any event may have.
const EXT_LEN: usize = 192;

/// What happened, but for its payload.
#[derive(Clone, Copy)]
pub(crate) struct Event<'a> {
    pub(crate) kind: FrameType,
    pub(crate) direction: Direction,
    pub(crate) fd: i32,
    /// Nanoseconds since the Unix epoch.
    pub(crate) ts_ns: u64,
    /// When the call was entered, likewise; 0: it is not a call that takes time.
    pub(crate) entered_ns: u64,
    pub(crate) path: &'a [u8],
    /// The conn field, in parts.
    pub(crate) conn: [&'a [u8]; 3],
    /// Extension values beside those that every event has.
    pub(crate) values: &'a [Ext<'a>],
    /// More of them, as on the wire.
    pub(crate) more: &'a [u8],
    /// Where the call that it tells of is on the stack.
    pub(crate) call: usize,
}

impl Event<'_> {
    #[inline(always)]
    pub(crate) fn new(kind: FrameType, ts_ns: u64) -> Self {
        Event {
            kind,
            direction: Direction::None,
            fd: -1,
            ts_ns,
            entered_ns: 0,
            path: b"",
            conn: [b""; 3],
            values: &[],
            more: b"",
            call: stack::program_pointer(),
        }
    }
}

/// Why something was not recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Cause {
    Absent = 0,
    Stalled = 1,
    Unattributed = 2,
    Full = 3,
    Left = 4,
    Unmapped = 5,
    Stranger = 6,
}

impl Cause {
    fn text(number: u32) -> &'static [u8] {
        match number {
            0 => b"the server was not there",
            1 => b"the server did not read",
            3 => b"the ring was full",
            6 => b"another user, who is not root, listens at the server's path, and is told nothing",
            5 => b"the program unmapped the bytes when the call had just returned",
            4 => b"a signal handler jumped out of a call while the event was written",
            _ => b"the descriptor was closed and reused during the call",
        }
    }
}

impl From<Undelivered> for Cause {
    fn from(why: Undelivered) -> Self {
        match why {
            Undelivered::Absent => Self::Absent,
            Undelivered::Stalled => Self::Stalled,
            Undelivered::Full => Self::Full,
            Undelivered::Unmapped => Self::Unmapped,
            Undelivered::Stranger => Self::Stranger,
        }
    }
}

/// Sends an event, after the report of what was lost before it; whether it was delivered. One that was not is counted.
pub(crate) fn emit(event: &Event<'_>, payload: &[&[u8]]) -> bool {
    emit_sized::<EXT_LEN>(event, payload)
}

/// [`emit`] for events with values of up to `N` bytes.
pub(crate) fn emit_sized<const N: usize>(event: &Event<'_>, payload: &[&[u8]]) -> bool {
    let who = process::who();
    let bytes = payload.iter().map(|part| part.len() as u64).sum();
    let link = transport::reach(event.ts_ns);
    let told = link.and_then(|link| report_losses(&link, &who, event).map(|()| link));
    let number = process::number(&who, event.ts_ns);
    let sent = told.and_then(|link| send::<N>(&link, event, payload, &who, number));
    sent.map_err(|why| count_loss(bytes, event.ts_ns, why.into())).is_ok()
}

fn send<const N: usize>(
    link: &Link,
    event: &Event<'_>,
    payload: &[&[u8]],
    who: &Who,
    (seq, ts_ns): (u64, u64),
) -> Result<(), Undelivered> {
    let mut buffer = [0; N];
    let mut ext = ExtWriter::new(&mut buffer);
    ext.put(Ext::Seq(seq));
    ext.put(Ext::Pid(who.pid));
    if who.tid != 0 {
        ext.put(Ext::Tid(who.tid));
    }
    ext.put(Ext::TsNs(ts_ns));
    if event.entered_ns != 0 && ts_ns != event.ts_ns {
        ext.put(Ext::EnteredNs(event.entered_ns));
    }
    if process::apart() != 0 && !who.is_guest {
        ext.put(Ext::Apart(process::apart()));
    }
    for value in event.values {
        ext.put(*value);
    }
    if who.is_guest
        && seq == 1
        && let Some(number) = guest::take_announcement().or_else(|| transport::announce_guest(who.pid))
    {
        ext.put(Ext::Announcement(number));
    }
    let payload_len: usize = payload.iter().map(|part| part.len()).sum();
    let header = Header {
        kind: event.kind,
        flags: FLAG_EXTENDED | if event.kind == FrameType::Data { FLAG_PAYLOAD } else { 0 },
        ts_ms: ts_ns / 1_000_000,
        fd: event.fd,
        direction: event.direction,
        // All bounded: by N and MAX_ANCILLARY_LEN, MAX_PATH_LEN, MAX_CONN_ID_LEN and transport::chunk.
        ext_len: (ext.bytes().len() + event.more.len()) as u16,
        path_len: event.path.len() as u16,
        conn_len: event.conn.iter().map(|part| part.len()).sum::<usize>() as u16,
        payload_len: payload_len as u32,
    }
    .to_bytes();
    let mut parts = [&[][..]; MAX_FRAME_PARTS];
    let mut len = 0;
    let head = [&header[..], event.path, event.conn[0], event.conn[1], event.conn[2]];
    for part in head.iter().chain(payload).chain(&[ext.bytes(), event.more]) {
        parts[len] = *part;
        len += 1;
    }
    let from = Writing { tid: who.tid, call: event.call, may_be_gone: event.direction == Direction::Out };
    transport::send(link, &parts[..len], from, event.ts_ns)
}

/// Whether there is something to tell before the next event.
#[inline]
pub(crate) fn has_losses() -> bool {
    process::own().lost.events.load(Ordering::Relaxed) != 0
}

/// Counts an event that was not recorded, and the payload bytes that it would have had.
#[cold]
pub(crate) fn count_loss(bytes: u64, ts_ns: u64, cause: Cause) {
    let lost = &process::own().lost;
    lost.bytes.fetch_add(bytes, Ordering::Relaxed);
    let _ = lost.since_ns.compare_exchange(0, ts_ns, Ordering::Relaxed, Ordering::Relaxed);
    lost.until_ns.store(ts_ns, Ordering::Relaxed);
    lost.cause.store(cause as u32, Ordering::Relaxed);
    lost.events.fetch_add(1, Ordering::Release);
    transport::note_loss(bytes, ts_ns);
}

/// Tells the server what it missed, if anything; an error if it cannot be told now.
fn report_losses(link: &Link, who: &Who, before: &Event<'_>) -> Result<(), Undelivered> {
    let lost = &process::own().lost;
    if lost.events.load(Ordering::Relaxed) == 0 {
        return Ok(());
    }
    // Never 0. One's own: a signal handler jumped out of the report, or this is one in the middle of it.
    let own = who.tid.max(1);
    let reporting = lost.reporting.compare_exchange(0, own, Ordering::Acquire, Ordering::Relaxed);
    if reporting.is_err_and(|other| other != own) {
        // Another thread is at it; this one's event may go first.
        return Ok(());
    }
    let reported = report(link, who, before);
    lost.reporting.store(0, Ordering::Release);
    reported
}

#[cold]
fn report(link: &Link, who: &Who, before: &Event<'_>) -> Result<(), Undelivered> {
    let now_ns = before.ts_ns;
    let lost = &process::own().lost;
    let (events, bytes) = (lost.events.swap(0, Ordering::Acquire), lost.bytes.swap(0, Ordering::Relaxed));
    if events == 0 {
        return Ok(());
    }
    let (since_ns, until_ns) = (lost.since_ns.swap(0, Ordering::Relaxed), lost.until_ns.load(Ordering::Relaxed));
    let values = [Ext::LostEvents(events), Ext::LostBytes(bytes), Ext::LostSince(since_ns), Ext::LostUntil(until_ns)];
    let event = Event {
        conn: [Cause::text(lost.cause.load(Ordering::Relaxed)), b"", b""],
        values: &values,
        call: before.call,
        ..Event::new(FrameType::Lost, now_ns)
    };
    // A report that fails is tried again under the number it has, or that number would look like one more loss.
    let number = match (lost.report_seq.load(Ordering::Relaxed), lost.report_ns.load(Ordering::Relaxed)) {
        (0, _) => process::number(who, now_ns),
        drawn => drawn,
    };
    let sent = send::<EXT_LEN>(link, &event, &[], who, number);
    lost.report_ns.store(number.1, Ordering::Relaxed);
    lost.report_seq.store(if sent.is_ok() { 0 } else { number.0 }, Ordering::Relaxed);
    if sent.is_ok() {
        transport::told_losses(events, bytes);
    } else {
        lost.bytes.fetch_add(bytes, Ordering::Relaxed);
        let _ = lost.since_ns.compare_exchange(0, since_ns, Ordering::Relaxed, Ordering::Relaxed);
        lost.since_ns.fetch_min(since_ns, Ordering::Relaxed);
        lost.events.fetch_add(events, Ordering::Release);
    }
    sent
}
