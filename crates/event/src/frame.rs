//! Frames to events.

use std::borrow::Cow;

use gttr::{Ext, Frame, FrameType};

use crate::errno;
use crate::event::Event;
use crate::line::{Fd, Line, Value};
use crate::text::Text;
use crate::util::safe_filename;
use crate::what::{BadFrame, EventType, What};

impl<'a> Event<'a> {
    /// What a frame reports (docs/gttr.md, "The frame"). A frame of a type without a name becomes a `bad_frame` event.
    pub fn from_frame(frame: &Frame<'a>) -> Self {
        let kind = match frame.kind {
            FrameType::Open => EventType::Open,
            FrameType::Close => EventType::Close,
            FrameType::Listen => EventType::Listen,
            FrameType::Data => EventType::Data,
            FrameType::Init => EventType::Init,
            FrameType::Ready => EventType::Ready,
            FrameType::Error => EventType::Error,
            FrameType::Lost => EventType::Lost,
            FrameType::Start => EventType::Start,
            FrameType::Fork => EventType::Fork,
            FrameType::Exec => EventType::Exec,
            FrameType::Exit => EventType::Exit,
            FrameType::Fail => EventType::Fail,
            FrameType::Eof => EventType::Eof,
            FrameType::Ring => return Self::bad_frame("a frame about a ring", frame.encoded_len()),
            FrameType::Other(n) => {
                let error = Text(format!("unknown frame type {n}").into());
                return Self::now(What::BadFrame(BadFrame { error, size: frame.encoded_len() as u64, events: None }));
            }
        };
        line_of(kind, frame).into()
    }
}

fn line_of<'a>(kind: EventType, frame: &Frame<'a>) -> Line<'a> {
    let direction = Value::in_line(&frame.direction);
    let (ts_ms, fd, host_pid) = (frame.ts_ms, Some(frame.fd), frame.host_pid);
    let mut line = Line { kind, ts_ms, fd, host_pid, direction, ..Line::default() };
    let speaks_of_a_path = matches!(kind, EventType::Open | EventType::Listen | EventType::Data | EventType::Eof);
    if speaks_of_a_path || !frame.path.is_empty() {
        line.path = Some(Text::escaped(frame.path));
    }
    line.how = frame.how().map(shortened);
    if let Some(conn_id) = frame.conn_id() {
        let shown = shortened(conn_id);
        if kind == EventType::Data {
            let is_long = conn_id.len() > gttr::MAX_CONN_ID_LEN;
            let name = if is_long { shown.0.clone() } else { safe_filename(conn_id) };
            line.file = (name.as_bytes() != conn_id).then_some(Text(name));
        }
        line.conn_id = Some(shown);
    }
    match kind {
        EventType::Data => line.size = Some(frame.payload.len() as u64),
        EventType::Lost => line.reason = Some(Text::escaped(frame.conn)),
        EventType::Init | EventType::Ready | EventType::Error => line.raw = Some(Text::escaped(frame.conn)),
        EventType::Start | EventType::Fork | EventType::Exec | EventType::Exit if !frame.conn.is_empty() => {
            line.raw = Some(Text::escaped(frame.conn));
        }
        _ => {}
    }
    for value in frame.ext.iter() {
        set_extension(&mut line, value);
    }
    line
}

fn set_extension<'a>(line: &mut Line<'a>, value: Ext<'a>) {
    match value {
        value if line.set(value) => {}
        Ext::SocketType(v) => line.socket_type = Some(socket_type_name(v)),
        Ext::MsgFlags(v) => line.flags = Some(message_flags(v)),
        Ext::Truncated(v) => line.truncated = Some(if v == 1 { "yes" } else { "maybe" }.into()),
        Ext::PassedFd(v) => {
            line.fds.get_or_insert_default().push(Fd { fd: v.fd, what: Text::escaped(v.what) });
        }
        Ext::Credentials(v) => line.credentials = Some(v.into()),
        Ext::Errno(v) => {
            let number = v.cast_signed();
            (line.errno, line.error) = (Some(number), Some(Text(errno::name(number))));
        }
        // A newer agent's value: the rest of the frame is understood all the same.
        _ => {}
    }
}

/// A name from the conn field. One that is longer than any that agents make is shortened by its hash: it is kept for as
/// long as its connection is known, and 64 KiB of each of many connections would be all the memory there is.
fn shortened(name: &[u8]) -> Text<'_> {
    if name.len() > gttr::MAX_CONN_ID_LEN { Text(safe_filename(name)) } else { Text::escaped(name) }
}

fn socket_type_name(number: u8) -> Text<'static> {
    // The numbers of socket(2), which are the same on every architecture but MIPS.
    Text(match number {
        1 => Cow::Borrowed("stream"),
        2 => Cow::Borrowed("dgram"),
        5 => Cow::Borrowed("seqpacket"),
        n => Cow::Owned(n.to_string()),
    })
}

/// Flags of recv(2) that say something of a message, which are the same on every architecture.
const MESSAGE_FLAGS: [(u32, &str); 4] = [(0x1, "MSG_OOB"), (0x8, "MSG_CTRUNC"), (0x20, "MSG_TRUNC"), (0x80, "MSG_EOR")];

fn message_flags(flags: u32) -> Text<'static> {
    let mut names: Vec<Cow<'static, str>> =
        MESSAGE_FLAGS.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| Cow::Borrowed(*name)).collect();
    let unnamed = MESSAGE_FLAGS.iter().fold(flags, |flags, (bit, _)| flags & !bit);
    if unnamed != 0 {
        names.push(Cow::Owned(format!("{unnamed:#x}")));
    }
    Text(names.join("|").into())
}

#[cfg(test)]
mod tests {
    use gttr::{Credentials, Direction, ExtWriter, PassedFd};
    use proptest::prelude::*;

    use super::*;

    /// One of each value, whatever it means for the frame's type.
    fn value() -> impl Strategy<Value = Ext<'static>> {
        let number = || prop_oneof![any::<u32>(), 0..3_u32];
        let text = || prop::sample::select(vec![&b"send"[..], b"", b"a\"b\\c\xff"]);
        let numbers = number().prop_flat_map(|n| {
            let (id, long) = (n, u64::from(n) << 7);
            prop::sample::select(vec![
                Ext::Seq(long),
                Ext::Pid(id),
                Ext::Tid(id),
                Ext::TsNs(long),
                Ext::Total(long),
                Ext::Offset(long),
                Ext::Part(id),
                Ext::Parts(id),
                Ext::Ppid(id),
                Ext::LostEvents(long),
                Ext::LostBytes(long),
                Ext::LostSince(long),
                Ext::LostUntil(long),
                Ext::Inode(long),
                Ext::SocketType(n as u8),
                Ext::PeerPid(id),
                Ext::PeerUid(id),
                Ext::PeerGid(id),
                Ext::PeerInode(long),
                Ext::MsgFlags(id),
                Ext::Truncated(n as u8),
                Ext::DurationNs(long),
                Ext::EnteredNs(long),
                Ext::Uncaptured(long),
                Ext::Credentials(Credentials { pid: id, uid: 0, gid: id }),
                Ext::PidFd(id),
                Ext::Errno(id),
                Ext::Times(id),
                Ext::Status(id),
                Ext::SocketsMade(id),
            ])
        });
        let texts = text().prop_flat_map(|text| {
            prop::sample::select(vec![
                Ext::Call(text),
                Ext::Exe(text),
                Ext::PeerExe(text),
                Ext::PassedFd(PassedFd { fd: -1, what: text }),
                Ext::Security(text),
                Ext::Program(text),
                Ext::Untraced(text),
                Ext::Comm(text),
                Ext::Unknown(60_000, text),
            ])
        });
        prop_oneof![2 => numbers, 1 => texts]
    }

    proptest! {
        /// Whatever is said in a frame of whatever type stands in the line, in its place, and is read back.
        #[test]
        fn nothing_is_left_out(
            number in (1..=15_u8).prop_filter("it makes no event", |&number| number != FrameType::Ring.to_wire()),
            direction in prop_oneof![Just(Direction::None), Just(Direction::In), Just(Direction::Out)],
            path in prop::collection::vec(any::<u8>(), 0..9),
            conn in "[a-c|]{0,9}",
            host_pid in prop::option::of(any::<u32>()),
            values in prop::collection::vec(value(), 0..12),
        ) {
            let mut buffer = [0; 1024];
            let mut ext = ExtWriter::new(&mut buffer);
            values.iter().for_each(|&value| ext.put(value));
            let (conn, payload, ext) = (conn.as_bytes(), &b"xyz"[..], ext.finish());
            let kind = FrameType::from_wire(number);
            let frame = Frame { direction, path: &path, conn, payload, ext, host_pid, ..Frame::new(kind, 7) };
            let event = Event::from_frame(&frame);
            let line = serde_json::to_string(&event).unwrap();
            let all = serde_json::to_string(&line_of(event.kind(), &frame)).unwrap();
            prop_assert_eq!(&line, &all);
            prop_assert_eq!(serde_json::from_str::<Event<'_>>(&line).unwrap(), event);
        }
    }
}
