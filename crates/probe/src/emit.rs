//! From an event to a frame on its way, or to the count of what was lost.

use gttr::{Direction, Ext, ExtWriter, FLAG_EXTENDED, FLAG_PAYLOAD, FrameType, Header};

use crate::process::losses::{Cause, Losses};
use crate::process::{self, Who, guest, stack};
use crate::transport::{self, Link, MAX_FRAME_PARTS, Writing};

/// A header, a path, three parts of conn, and two of extensions.
const OTHER_PARTS: usize = 7;
/// Parts of a payload that one frame takes; a call with more scattered ones makes more frames.
pub(crate) const MAX_PARTS: usize = MAX_FRAME_PARTS - OTHER_PARTS;
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
    sent.map_err(|why| count_loss(bytes, event.ts_ns, why)).is_ok()
}

fn send<const N: usize>(
    link: &Link,
    event: &Event<'_>,
    payload: &[&[u8]],
    who: &Who,
    (seq, ts_ns): (u64, u64),
) -> Result<(), Cause> {
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
    process::own().lost.is_any()
}

/// Counts an event that was not recorded, and the payload bytes that it would have had.
#[cold]
pub(crate) fn count_loss(bytes: u64, ts_ns: u64, cause: Cause) {
    process::own().lost.count(bytes, ts_ns, cause);
    transport::note_loss(bytes, ts_ns);
}

/// Tells the server what it missed, if anything; an error if it cannot be told now.
fn report_losses(link: &Link, who: &Who, before: &Event<'_>) -> Result<(), Cause> {
    let lost = &process::own().lost;
    if !lost.is_any() || !lost.claim_report(who.tid) {
        return Ok(());
    }
    let reported = report(link, who, before);
    lost.give_up_report();
    reported
}

#[cold]
fn report(link: &Link, who: &Who, before: &Event<'_>) -> Result<(), Cause> {
    let now_ns = before.ts_ns;
    let lost = &process::own().lost;
    let Some(Losses { events, bytes, since_ns, until_ns, cause }) = lost.take() else { return Ok(()) };
    let values = [Ext::LostEvents(events), Ext::LostBytes(bytes), Ext::LostSince(since_ns), Ext::LostUntil(until_ns)];
    let event =
        Event { conn: [cause, b"", b""], values: &values, call: before.call, ..Event::new(FrameType::Lost, now_ns) };
    // A report that fails is tried again under the number it has, or that number would look like one more loss.
    let number = lost.drawn_number().unwrap_or_else(|| process::number(who, now_ns));
    let sent = send::<EXT_LEN>(link, &event, &[], who, number);
    lost.keep_number(sent.is_err().then_some(number));
    match sent {
        Ok(()) => transport::told_losses(events, bytes),
        Err(_) => lost.put_back(events, bytes, since_ns),
    }
    sent
}
