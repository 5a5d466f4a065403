//! The table of hooks: one entry a call.
//!
//! An entry is the call's signature, its number for syscall(2) if it has one, and what happens around it; `libc` in an
//! entry is the function that the hook stands in for. `|libc, fd|`: nothing happens around it where `fd` is known to be
//! something else than a socket of ours, which is found out first. To add a call, add its entry to the module of its subject: the
//! engines and the dynamic linker find it by its name.
//!
//! Hooks are `extern "C-unwind"`: pthread_cancel(3) ends a thread that is blocked in a call by unwinding through the
//! hook's frame, so nothing that needs to be undone may be held across `libc(…)`.

mod bytes;
mod descriptors;
mod entry;
mod export;
mod messages;
mod programs;
mod sockets;
mod syscall;
#[cfg(feature = "standalone")]
mod vfork;

use crate::patch::hook::Hook;

#[cfg(feature = "standalone")]
const VFORK: [&[Hook]; 1] = [vfork::TABLE];
#[cfg(not(feature = "standalone"))]
const VFORK: [&[Hook]; 0] = [];

/// Every hook.
pub(crate) fn all() -> impl Iterator<Item = &'static Hook> + Clone {
    let tables = [sockets::TABLE, messages::TABLE, bytes::TABLE, descriptors::TABLE, programs::TABLE, syscall::TABLE];
    tables.into_iter().chain(VFORK).flatten()
}

/// Looks every function up, for hooks that run where dlsym(3) must not: in signal handlers, between vfork and exec.
#[cfg(feature = "standalone")]
pub(crate) fn find_all_libc_functions() {
    for hook in all() {
        entry::libc_function(&hook.functions.call[0], hook.name);
        export::settle(hook);
    }
}
