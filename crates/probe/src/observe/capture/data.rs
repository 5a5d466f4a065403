//! The frames of one call's bytes.

use gttr::{Direction, Ext, ExtWriter, FrameType};

use super::buffers::Buffers;
use super::call::Call;
use super::file::Source;
use super::message::{Details, Moved, Truncated};
use crate::emit::{Event, MAX_PARTS, emit};
use crate::observe::ancillary::Ancillary;
use crate::sys::params;
use crate::sys::scratch::Scratch;
use crate::table::connection::{Connection, SOCK_STREAM};
use crate::transport;

/// Bytes of a message's ancillary data as extension values: 253 descriptors (SCM_MAX_FD), and what they lead to.
const MAX_ANCILLARY_LEN: usize = 16 << 10;
/// The same where there is no memory to be had for them.
const SMALL_ANCILLARY_LEN: usize = 256;
/// Bytes of a file that are read at once.
const FILE_CHUNK: usize = 64 << 10;

/// One call's bytes.
pub(super) struct Data<'a> {
    pub(super) call: &'a Call,
    pub(super) connection: &'a Connection,
    pub(super) moved: &'a Moved,
    /// Bytes moved before.
    pub(super) offset: u64,
    pub(super) ts_ns: u64,
    pub(super) entered_ns: u64,
    pub(super) duration_ns: u64,
    /// The message's own.
    pub(super) path: Option<&'a [u8]>,
}

/// One frame of a call's bytes.
#[derive(Clone, Copy)]
struct Part {
    number: u32,
    of: u32,
    /// Bytes that the call moved and that are in none of its frames, for another reason than `max_bytes`.
    uncaptured: u64,
}

impl Part {
    const ONLY: Self = Self { number: 0, of: 1, uncaptured: 0 };
}

impl Data<'_> {
    fn captured(&self) -> u64 {
        self.moved.total.min(params::get().max_bytes)
    }

    pub(super) fn emit(&self, buffers: &Buffers) {
        let chunk = transport::chunk();
        let mut iov = [&[][..]; MAX_PARTS];
        let start = buffers.front(self.captured());
        let mut cursor = start;
        let mut of = 0;
        while {
            cursor.next(chunk, &mut iov);
            of += 1;
            !cursor.is_at_end()
        } {}
        let truncated = self.truncated(buffers);
        let mut cursor = start;
        for number in 0..of {
            let len = cursor.next(chunk, &mut iov);
            self.emit_part(&iov[..len], Part { number, of, ..Part::ONLY }, truncated);
        }
    }

    fn truncated(&self, buffers: &Buffers) -> Truncated {
        let Moved { direction, total, details, .. } = self.moved;
        let keeps_messages_apart = self.connection.description().socket_type != SOCK_STREAM;
        match details.truncated {
            _ if !keeps_messages_apart || *direction == Direction::Out => Truncated::No,
            Truncated::Maybe if *total < buffers.room() => Truncated::No,
            said => said,
        }
    }

    pub(super) fn emit_count(&self) {
        self.emit_part(&[], Part { uncaptured: self.moved.total, ..Part::ONLY }, Truncated::No);
    }

    pub(super) fn emit_file(&self, source: &Source) {
        let Some((from, mut scratch)) = source.sent_from(self.moved.total).zip(Scratch::map(FILE_CHUNK)) else {
            return self.emit_count();
        };
        let chunk = transport::chunk().min(FILE_CHUNK as u64);
        let captured = self.captured();
        let of = captured.div_ceil(chunk).max(1);
        let mut at = 0;
        for number in 0..of {
            // At most FILE_CHUNK.
            let want = (captured - at).min(chunk) as usize;
            let buffer = &mut scratch.bytes()[..want];
            let got = source.read_at(buffer, from + at);
            let uncaptured = (want - got) as u64;
            // A call's parts are fewer than 2^32: it moves less than 2 GiB.
            self.emit_part(&[&buffer[..got]], Part { number: number as u32, of: of as u32, uncaptured }, Truncated::No);
            at += want as u64;
        }
    }

    fn emit_part(&self, payload: &[&[u8]], part: Part, truncated: Truncated) {
        let Details { flags, ancillary, .. } = self.moved.details;
        /// Call, total, offset and duration; part and parts; uncaptured, flags, truncated.
        const MAX_VALUES: usize = 9;
        let mut values = [Ext::Call(self.call.name.as_bytes()); MAX_VALUES];
        let mut count = 1;
        let mut put = |value, if_it: bool| {
            if if_it {
                values[count] = value;
                count += 1;
            }
        };
        put(Ext::Total(self.moved.total), true);
        put(Ext::Offset(self.offset), true);
        put(Ext::DurationNs(self.duration_ns), true);
        put(Ext::Part(part.number), part.of > 1);
        put(Ext::Parts(part.of), part.of > 1);
        put(Ext::Uncaptured(part.uncaptured), part.uncaptured != 0);
        put(Ext::MsgFlags(flags.cast_unsigned()), flags != 0);
        match truncated {
            Truncated::No => {}
            Truncated::Yes => put(Ext::Truncated(1), true),
            Truncated::Maybe => put(Ext::Truncated(2), true),
        }
        let values = &values[..count];
        if part.number == 0 && !ancillary.is_empty() {
            self.emit_with(&ancillary, payload, values);
        } else {
            self.emit_frame(payload, values, b"");
        }
    }

    /// Apart, for its room on the stack, which may be a signal handler's small one.
    #[cold]
    #[inline(never)]
    fn emit_with(&self, ancillary: &Ancillary, payload: &[&[u8]], values: &[Ext<'_>]) {
        let mut scratch = Scratch::map(MAX_ANCILLARY_LEN);
        let mut small = [0; SMALL_ANCILLARY_LEN];
        let mut writer = ExtWriter::new(scratch.as_mut().map_or(&mut small, Scratch::bytes));
        // SAFETY: the kernel has just read or written it for the program.
        unsafe { ancillary.describe(&mut writer) };
        self.emit_frame(payload, values, writer.bytes());
    }

    fn emit_frame(&self, payload: &[&[u8]], values: &[Ext<'_>], more: &[u8]) {
        let description = self.connection.description();
        let event = Event {
            direction: self.moved.direction,
            fd: self.call.fd,
            entered_ns: self.entered_ns,
            path: self.path.unwrap_or(description.path.as_bytes()),
            conn: [description.id.as_bytes(), b"", b""],
            values,
            more,
            call: self.call.on_stack(),
            ..Event::new(FrameType::Data, self.ts_ns)
        };
        emit(&event, payload);
    }
}
