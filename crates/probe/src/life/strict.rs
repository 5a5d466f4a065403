//! A thread that puts itself into seccomp(2)'s strict mode.

use crate::observe::notices;
use crate::process::clock;
use crate::sys::confined::{note_strict, set_confined};
use crate::sys::params::Transport;
use crate::transport;

/// This thread is about to make a call that puts it into strict mode. What `call` gives is the call's result, negative
/// where it failed.
pub(crate) fn around<T: PartialOrd + From<i8> + Copy>(call: impl FnOnce() -> T) -> T {
    clock::forget_counter();
    if transport::in_use() != Transport::Shm {
        notices::say_strict();
    }
    let take_back = note_strict();
    let result = call();
    if result < T::from(0) {
        take_back();
    } else {
        // Nor do other threads help it out with what it may not do itself.
        set_confined();
    }
    result
}
