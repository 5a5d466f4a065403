//! The way of most calls: bytes on a stream that the server knows, whole in one frame, into the ring.
//!
//! It does what [`Call::report`] does for them, and leaves out what that does for others: no system call, no array that
//! has to be filled with zeroes, no value that is put together in pieces.

use gttr::{DATA_VALUES_LEN, DataValues, Direction, FLAG_EXTENDED, FLAG_PAYLOAD, FrameType, HEADER_LEN, Header};

use super::{Buffers, Call};
use crate::clock::now_ns;
use crate::connection::{Kind, SOCK_STREAM};
use crate::descriptors::{self, Slot};
use crate::emit::{Cause, count_loss, has_losses};
use crate::transport::Writing;
use crate::{params, process, transport};

/// Bytes of a value's tag and length on the wire.
const VALUE_HEAD_LEN: usize = 4;
/// The tags of the call's name and of the time of entry.
const CALL_TAG: u8 = 5;
const ENTERED_TAG: u8 = 27;

impl Call {
    /// Reports bytes, if this is such a call; whether it was.
    #[inline]
    pub(super) fn report_fast(&self, direction: Direction, total: u64, buffers: &Buffers) -> bool {
        let (Slot::Traced(handle), Buffers::One(buffer)) = (self.slot, buffers) else { return false };
        let (Some(ring), Some(connection)) = (transport::ring(), handle.get()) else { return false };
        let description = connection.description();
        let is_plain = description.kind == Kind::Open && description.wanted && description.socket_type == SOCK_STREAM;
        // What was sent may be unmapped by now, if it is large.
        let most = if direction == Direction::Out { transport::MAPPED_LEN - 1 } else { transport::MAX_CHUNK };
        let is_whole = total != 0 && total <= params::get().max_bytes.min(most as u64);
        if !is_plain || !is_whole || !connection.is_announced_in(transport::session()) || has_losses() {
            return false;
        }
        let who = process::who();
        let now = now_ns();
        let is_overdue = || descriptors::is_check_due(self.fd, now, transport::check_interval_ns());
        if who.is_guest || !process::is_confined() && is_overdue() {
            return false;
        }
        let is_sent = direction == Direction::Out;
        let (seq, ts_ns) = process::number(&who, if is_sent { self.entered_ns } else { now });
        let is_late = ts_ns != if is_sent { self.entered_ns } else { now };
        let entered_len = if is_late { VALUE_HEAD_LEN + size_of::<u64>() } else { 0 };
        let values = DataValues {
            seq,
            pid: who.pid,
            tid: who.tid,
            ts_ns,
            total,
            offset: connection.add_moved(direction, total),
            duration_ns: now.saturating_sub(self.entered_ns),
        };
        let (path, id, name) = (description.path.as_bytes(), description.id.as_bytes(), self.name.as_bytes());
        // SAFETY: the kernel has just read or written these bytes for the program.
        let payload = unsafe { buffer.front(total as usize) };
        let header = Header {
            kind: FrameType::Data,
            flags: FLAG_EXTENDED | FLAG_PAYLOAD,
            ts_ms: ts_ns / 1_000_000,
            fd: self.fd,
            direction,
            // All bounded: by what there is of names, MAX_PATH_LEN, MAX_CONN_ID_LEN and MAX_CHUNK.
            ext_len: (DATA_VALUES_LEN + VALUE_HEAD_LEN + name.len() + entered_len) as u16,
            path_len: path.len() as u16,
            conn_len: id.len() as u16,
            payload_len: payload.len() as u32,
        };
        let len = HEADER_LEN + path.len() + id.len() + payload.len() + usize::from(header.ext_len);
        match ring.begin(len, Writing { tid: who.tid, call: self.on_stack(), may_be_gone: false }, now) {
            Ok(mut record) => {
                record.push_array(header.to_bytes());
                record.push(path);
                record.push(id);
                record.push(payload);
                record.push_array(values.to_bytes());
                record.push_array([CALL_TAG, 0, name.len() as u8, 0]);
                record.push(name);
                if is_late {
                    record.push_array([ENTERED_TAG, 0, 8, 0]);
                    record.push_array(self.entered_ns.to_le_bytes());
                }
                record.commit();
            }
            Err(_) => count_loss(total, ts_ns, Cause::Full),
        }
        true
    }
}
