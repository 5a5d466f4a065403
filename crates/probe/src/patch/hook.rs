//! What stands in for a function, and where that is.

use core::ffi::{CStr, c_long, c_void};
use core::sync::atomic::{AtomicPtr, AtomicUsize};

/// Functions of one name that a process may have and that are hooked: libc's, the one that programs get that were built
/// long ago, another library's (libpthread before glibc 2.34), those of a libc in a namespace of its own (dlmopen(3)).
/// Each has a hook of its own, which goes on to it.
pub(crate) const DEFINITIONS: usize = 4;

/// The functions of one name.
#[derive(Debug)]
pub(crate) struct Functions {
    /// How each is called: the function, or what does the same where it was patched; null until it is looked for.
    pub(crate) call: [AtomicPtr<c_void>; DEFINITIONS],
    /// Where it is; 0: there is none.
    pub(crate) at: [AtomicUsize; DEFINITIONS],
}

impl Functions {
    /// None is known yet.
    pub(crate) const fn new() -> Self {
        Self {
            call: [const { AtomicPtr::new(core::ptr::null_mut()) }; DEFINITIONS],
            at: [const { AtomicUsize::new(0) }; DEFINITIONS],
        }
    }
}

/// One hook.
#[derive(Debug)]
pub(crate) struct Hook {
    /// The function's name in libc.
    pub(crate) name: &'static CStr,
    /// The number of the system call that it makes, if it is one that is hooked.
    pub(crate) number: Option<c_long>,
    /// What stands in for each of the functions of this name.
    pub(crate) replacements: [*const c_void; DEFINITIONS],
    /// The functions.
    pub(crate) functions: &'static Functions,
    /// Where the exported function of this name leads (hooks/export.rs); none in tests.
    #[cfg_attr(not(feature = "standalone"), expect(dead_code, reason = "tests have libc's own functions"))]
    pub(crate) slot: Option<&'static Slot>,
}

// SAFETY: its pointers lead to statics and functions.
unsafe impl Sync for Hook {}

/// Where an exported function leads.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Slot {
    /// First, because the function jumps to what lies here.
    pub(crate) to: AtomicPtr<c_void>,
    /// The table that its hook is in.
    pub(crate) table: &'static &'static [Hook],
}

// SAFETY: as of `Hook`.
unsafe impl Sync for Slot {}
