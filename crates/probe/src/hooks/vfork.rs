//! vfork(2), which returns twice on one stack: the child's calls overwrite what a hook would have to return by.
//!
//! So this is no hook around libc's function, but takes its place, and does as it does.

use core::ffi::{c_int, c_void};

use super::export::{export, slot};
use crate::life::exec;
use crate::patch::hook::{DEFINITIONS, Functions, Hook};
use crate::process::{self, guest, stack};
use crate::sys::libc::set_errno;
use crate::sys::raw_pid;
use crate::transport;

/// Not called.
static FUNCTIONS: Functions = Functions::new();

export! { vfork }

pub(super) static TABLE: &[Hook] = &[Hook {
    name: c"vfork",
    number: None,
    replacements: [vfork as *const c_void; DEFINITIONS],
    functions: &FUNCTIONS,
    slot: slot!(vfork),
}];

#[unsafe(naked)]
unsafe extern "C" fn vfork() -> c_int {
    crate::arch::entry::vfork!(returned)
}

/// Either process comes here first; gives what vfork(2) gives.
extern "C" fn returned(result: c_int) -> c_int {
    match result {
        0 if process::is_started() => begin(raw_pid()),
        1.. if process::is_started() => {
            guest::end(process::own_pid());
            exec::give_back();
        }
        error @ ..0 => {
            set_errno(-error);
            return -1;
        }
        _ => {}
    }
    result
}

/// The child goes on. It may close all descriptors before it does anything that is reported, so it announces itself now, if
/// it has to.
fn begin(pid: u32) {
    guest::begin(pid);
    if transport::guests_announce_themselves() {
        stack::on_own(|| transport::announce_guest(pid).map(guest::has_announced));
    }
}
