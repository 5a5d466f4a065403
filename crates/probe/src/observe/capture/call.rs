//! A call, and what its descriptor was when it was entered.

use crate::process::clock::monotonic_ns;
use crate::table::descriptors::{self, Slot};

/// A call that may move bytes, as known when it is entered.
pub(crate) struct Call {
    pub(super) name: &'static str,
    pub(super) fd: i32,
    /// A [`Slot`], packed: what the descriptor was when it was entered.
    pub(super) slot: u64,
    /// When it was entered, by CLOCK_MONOTONIC, in nanoseconds; 0: there was no reason to look.
    pub(super) entered_ns: u64,
}

impl Call {
    /// A call that any descriptor answers.
    ///
    /// Notes what the descriptor is before the call, while it cannot have been closed and reused in its course.
    #[inline]
    pub(crate) fn of_bytes(name: &'static str, fd: i32) -> Self {
        Self::enter(name, fd, false)
    }

    /// A call that only sockets answer.
    #[inline]
    pub(crate) fn of_message(name: &'static str, fd: i32) -> Self {
        Self::enter(name, fd, true)
    }

    #[inline]
    fn enter(name: &'static str, fd: i32, answered_by_sockets_only: bool) -> Self {
        let mut call = Self { name, fd, slot: descriptors::get_packed(fd), entered_ns: 0 };
        if !call.is_idle(answered_by_sockets_only) {
            call.entered_ns = monotonic_ns();
        }
        call
    }

    /// Where it is on the stack: in its hook's frame.
    #[inline]
    pub(super) fn on_stack(&self) -> usize {
        (&raw const *self).addr()
    }

    /// What the descriptor was when the call was entered.
    #[inline]
    pub(super) fn slot(&self) -> Slot {
        Slot::unpack(self.slot)
    }

    /// The descriptor.
    pub(crate) fn fd(&self) -> i32 {
        self.fd
    }

    /// Whether there is nothing to report, in as few instructions as can be.
    #[inline]
    pub(super) fn is_idle(&self, answered_by_sockets_only: bool) -> bool {
        match Slot::unpack(self.slot) {
            Slot::Other | Slot::Foreign => true,
            Slot::Unknown => !answered_by_sockets_only,
            Slot::Arrived | Slot::Traced(_) => false,
        }
    }
}
