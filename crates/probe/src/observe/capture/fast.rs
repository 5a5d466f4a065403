//! The way of most calls: bytes on a stream that the server knows, whole in one frame, into the ring.
//!
//! It does what `Call::report` does for them, and leaves out what that does for others: no system call, no array that
//! has to be filled with zeroes, no value that is put together in pieces.

use gttr::{DATA_VALUES_LEN, DataValues, Direction, FLAG_EXTENDED, FLAG_PAYLOAD, FrameType, HEADER_LEN, Header};

use super::buffers::IoVec;
use super::call::Call;
use crate::emit::{count_loss, has_losses};
use crate::process::losses::Cause;
use crate::process::{self, clock};
use crate::sys::confined::is_confined;
use crate::sys::params;
use crate::table::connection::{Kind, SOCK_STREAM};
use crate::table::descriptors::{self, Slot};
use crate::transport::{self, Writing};

/// Bytes of a value's tag and length on the wire.
const VALUE_HEAD_LEN: usize = 4;
/// The tags of the call's name and of the time of entry.
const CALL_TAG: u8 = 5;
const ENTERED_TAG: u8 = 27;

/// Reports bytes that were moved by `now` (CLOCK_MONOTONIC), if this is such a call; whether it was.
#[inline(never)]
pub(super) fn report(call: &Call, direction: Direction, total: u64, buffer: IoVec, now: u64) -> bool {
    let Slot::Traced(handle) = call.slot() else { return false };
    let (Some(ring), Some(connection)) = (transport::ring(), handle.get()) else { return false };
    let description = connection.description();
    let is_plain = description.kind == Kind::Open && description.wanted && description.socket_type == SOCK_STREAM;
    // What was sent may be unmapped by now, if it is large.
    let most = if direction == Direction::Out { transport::MAPPED_LEN - 1 } else { transport::MAX_CHUNK };
    let is_whole = total != 0 && total <= params::get().max_bytes.min(most as u64);
    if !is_plain
        || !is_whole
        || !connection.is_announced_in(transport::session())
        || has_losses()
        || process::apart() != 0
    {
        return false;
    }
    let who = process::who();
    let ahead_ns = clock::ahead_ns(now);
    let now_ns = now.wrapping_add(ahead_ns);
    let is_overdue = || descriptors::is_check_due(call.fd, now_ns, transport::check_interval_ns());
    if who.is_guest || !is_confined() && is_overdue() {
        return false;
    }
    let is_sent = direction == Direction::Out;
    let happened_ns = if is_sent { call.entered_ns.wrapping_add(ahead_ns) } else { now_ns };
    let (seq, ts_ns) = process::number(&who, happened_ns);
    let is_late = ts_ns != happened_ns;
    let entered_len = if is_late { VALUE_HEAD_LEN + size_of::<u64>() } else { 0 };
    let offset = connection.add_moved(direction, total);
    // At most MAX_CHUNK.
    let payload_len = (total as usize).min(buffer.len());
    let ext_len = DATA_VALUES_LEN + VALUE_HEAD_LEN + call.name.len() + entered_len;
    let names_len = description.path.as_bytes().len() + description.id.as_bytes().len();
    let len = HEADER_LEN + names_len + payload_len + ext_len;
    match ring.begin(len, Writing { tid: who.tid, call: call.on_stack(), may_be_gone: false }, now_ns) {
        Ok(mut record) => {
            // What the frame is made of is looked up from here on, rather than kept on the stack meanwhile.
            let (call, description, ts_ns) = (afresh(call), afresh(connection).description(), afresh_number(ts_ns));
            let (path, id, name) = (description.path.as_bytes(), description.id.as_bytes(), call.name.as_bytes());
            let entered_len = if is_late { VALUE_HEAD_LEN + size_of::<u64>() } else { 0 };
            let header = Header {
                kind: FrameType::Data,
                flags: FLAG_EXTENDED | FLAG_PAYLOAD,
                ts_ms: ts_ns / 1_000_000,
                fd: call.fd,
                direction,
                // All bounded: by what there is of names, MAX_PATH_LEN, MAX_CONN_ID_LEN and MAX_CHUNK.
                ext_len: (DATA_VALUES_LEN + VALUE_HEAD_LEN + name.len() + entered_len) as u16,
                path_len: path.len() as u16,
                conn_len: id.len() as u16,
                payload_len: payload_len as u32,
            };
            record.push_with(|to| header.write_to(to));
            record.push(path);
            record.push(id);
            // SAFETY: the kernel has just read or written these bytes for the program.
            record.push(unsafe { buffer.front(payload_len) });
            let duration_ns = now.saturating_sub(call.entered_ns);
            let values = DataValues { seq, pid: who.pid, tid: who.tid, ts_ns, total, offset, duration_ns };
            record.push_with(|to| values.write_to(to));
            let name = afresh(call).name.as_bytes();
            record.push_array([CALL_TAG, 0, name.len() as u8, 0]);
            record.push(name);
            if is_late {
                record.push_array([ENTERED_TAG, 0, 8, 0]);
                let entered_ns = call.entered_ns.wrapping_add(clock::ahead_ns(now));
                record.push_array(entered_ns.to_le_bytes());
            }
            record.commit();
        }
        Err(_) => count_loss(total, ts_ns, Cause::Full),
    }
    true
}
/// The same reference, of which the compiler does not know that it is: what is behind it is read from here on, and not earlier
/// to be kept on the stack, which may be small.
#[inline(always)]
fn afresh<T>(value: &T) -> &T {
    let mut at = core::ptr::from_ref(value).expose_provenance();
    // SAFETY: no instruction at all.
    unsafe { core::arch::asm!("/* {0} */", inout(reg) at, options(nomem, nostack, preserves_flags)) };
    // SAFETY: what it was.
    unsafe { &*core::ptr::with_exposed_provenance(at) }
}

/// The same of a number.
#[inline(always)]
fn afresh_number(value: u64) -> u64 {
    let mut value = value;
    // SAFETY: no instruction at all.
    unsafe { core::arch::asm!("/* {0} */", inout(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}
