//! The transport that is used, which need not be the one that is asked for: the limits of the program may leave no room
//! for a ring.

use core::sync::atomic::{AtomicU8, Ordering};

use crate::sys::params::Transport;

static IN_USE: AtomicU8 = AtomicU8::new(Transport::Dgram as u8);

#[inline]
pub(crate) fn get() -> Transport {
    match IN_USE.load(Ordering::Relaxed) {
        kind if kind == Transport::Shm as u8 => Transport::Shm,
        kind if kind == Transport::Stream as u8 => Transport::Stream,
        _ => Transport::Dgram,
    }
}

pub(super) fn set(transport: Transport) {
    IN_USE.store(transport as u8, Ordering::Relaxed);
}
