//! What a call moved, as the call tells it.

use core::ffi::c_void;

use gttr::Direction;

use super::buffers::Buffers;
use crate::observe::ancillary::Ancillary;
use crate::sys::address::Address;

/// The other end's address, where a call names it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) address: *const c_void,
    pub(crate) len: usize,
}

impl Peer {
    pub(crate) const NONE: Self = Self { address: core::ptr::null(), len: 0 };

    pub(super) fn address(&self) -> Option<Address> {
        // SAFETY: null, or the kernel has just read or written it for the program at this length.
        unsafe { Address::read(self.address, self.len) }
    }
}

/// Whether a message was longer than what was received of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Truncated {
    No,
    /// The call does not say: perhaps, if it filled its buffers.
    Maybe,
    Yes,
}

/// What there is to a message beside its bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Details {
    /// Flags of recv(2) that say something of the message.
    pub(crate) flags: i32,
    pub(crate) truncated: Truncated,
    pub(crate) ancillary: Ancillary,
}

impl Details {
    pub(crate) const NONE: Self = Self { flags: 0, truncated: Truncated::Maybe, ancillary: Ancillary::NONE };
}

/// A message: its bytes, whom it was sent to or came from where the call names one, and what else there is to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message {
    pub(crate) buffers: Buffers,
    pub(crate) peer: Peer,
    pub(crate) details: Details,
}

/// What a call moved.
pub(super) struct Moved {
    pub(super) direction: Direction,
    pub(super) total: u64,
    /// The kernel moved them between two descriptors (splice(2)). One is mostly a pipe or a file, which a program may
    /// have got by a system call of its own, under a number that was a socket's: always looked at, as such calls are few
    /// and move much.
    pub(super) past_memory: bool,
    /// Whether bytes could have been received.
    pub(super) had_room: bool,
    pub(super) peer: Peer,
    pub(super) details: Details,
}

impl Moved {
    pub(super) fn bytes(direction: Direction, total: u64) -> Self {
        Self { direction, total, past_memory: false, had_room: false, peer: Peer::NONE, details: Details::NONE }
    }

    pub(super) fn past_memory(direction: Direction, total: u64) -> Self {
        Self { past_memory: true, ..Self::bytes(direction, total) }
    }
}
