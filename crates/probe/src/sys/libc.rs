//! The few functions of the program's libc that the probe calls, which it finds by their addresses.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::sync::atomic::{AtomicUsize, Ordering};

#[cfg(feature = "standalone")]
use crate::arch::linked::*;
#[cfg(not(feature = "standalone"))]
use in_tests::*;

/// dlsym(3)'s handle for "the next one behind the caller".
const RTLD_NEXT: *mut c_void = usize::MAX as *mut c_void;

#[cfg(feature = "standalone")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // A mistake of ours; going on with it could only do more harm.
    super::exit_group(127)
}

/// A function like __errno_location, which gives the calling thread's `errno`.
type ErrnoLocation = unsafe extern "C" fn() -> *mut c_int;

/// Tests are linked to libc.
#[cfg(not(feature = "standalone"))]
mod in_tests {
    use super::{ErrnoLocation, c_char, c_int, c_void};

    type Dlsym = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;

    unsafe extern "C" {
        static environ: *const *const c_char;
        fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
        fn dl_iterate_phdr();
        fn __errno_location() -> *mut c_int;
    }

    pub(super) fn socktrace_dlsym() -> Option<Dlsym> {
        Some(dlsym)
    }

    pub(super) fn socktrace_libc_dlopen() -> Option<unsafe extern "C" fn(*const c_char, c_int) -> *mut c_void> {
        None
    }

    pub(super) fn socktrace_libc_dlsym() -> Option<Dlsym> {
        None
    }

    pub(super) fn socktrace_dl_iterate_phdr() -> *const c_void {
        dl_iterate_phdr as *const c_void
    }

    pub(super) fn socktrace_environ() -> *const *const *const c_char {
        &raw const environ
    }

    pub(super) fn socktrace_errno_location() -> Option<ErrnoLocation> {
        Some(__errno_location)
    }
}

/// The function of this name behind ours, null if there is none.
pub(crate) fn next_symbol(name: &CStr) -> *mut c_void {
    // SAFETY: dlsym(3), if this program has it.
    socktrace_dlsym().map_or_else(|| libc_symbol(name), |dlsym| unsafe { dlsym(RTLD_NEXT, name.as_ptr()) })
}

/// The same where the program has no dlsym(3): before glibc 2.34 that was in libdl, and libc had it under other names.
#[cold]
fn libc_symbol(name: &CStr) -> *mut c_void {
    /// RTLD_NOW, and that the caller is dlopen(3) itself.
    const MODE: c_int = 2 | i32::MIN;
    let (Some(dlopen), Some(dlsym)) = (socktrace_libc_dlopen(), socktrace_libc_dlsym()) else {
        return core::ptr::null_mut();
    };
    // SAFETY: libc's own functions, if they are there, as its iconv and name service call them.
    unsafe {
        let libc = dlopen(c"libc.so.6".as_ptr(), MODE);
        if libc.is_null() { libc } else { dlsym(libc, name.as_ptr()) }
    }
}

/// The function of this name that comes behind ours in the program's order of libraries.
pub(crate) fn next_function(name: &CStr) -> *mut c_void {
    let address = next_symbol(name);
    if address.is_null() { missing().cast_mut() } else { address }
}

/// What stands for a function that this libc does not have.
pub(crate) fn missing() -> *const c_void {
    not_there as *const c_void
}

/// Fails as a system call that the kernel does not have.
unsafe extern "C-unwind" fn not_there() -> isize {
    const ENOSYS: c_int = 38;
    set_errno(ENOSYS);
    -1
}

/// dl_iterate_phdr(3); null if this program does not have it.
pub(super) fn iterate_phdr() -> *const c_void {
    socktrace_dl_iterate_phdr()
}

/// Where a function is that is libc's whatever else the program has loaded: __errno_location.
pub(super) fn landmark() -> Option<usize> {
    socktrace_errno_location().map(|function| function as usize)
}

/// The program's environment as it is now, `environ` of environ(7); null: it has none, as after clearenv(3).
pub(crate) fn own_environment() -> *const *const c_char {
    // SAFETY: the address of libc's variable, if this program has it.
    unsafe { socktrace_environ().as_ref().copied() }.unwrap_or(core::ptr::null())
}

/// The program's `errno`.
pub(crate) fn errno() -> c_int {
    // SAFETY: glibc and musl both have this function, which gives the calling thread's `errno`.
    socktrace_errno_location().map_or(0, |location| unsafe { *location() })
}

/// Libcs of other namespaces (dlmopen(3)) whose `errno` is set besides.
const MAX_OTHERS: usize = 3;

/// Where they have their [`ErrnoLocation`]; 0: none.
static OTHERS: [AtomicUsize; MAX_OTHERS] = [const { AtomicUsize::new(0) }; MAX_OTHERS];

/// Sets the program's `errno`, also in the libcs of other namespaces: which of them was called is not known where a call
/// fails in our hands.
pub(crate) fn set_errno(value: c_int) {
    let others = OTHERS.iter().map(|location| location.load(Ordering::Relaxed)).filter(|&at| at != 0);
    // SAFETY: noted by `note_errno_location` as a function of this kind.
    let others = others.map(|at| unsafe { core::mem::transmute::<usize, ErrnoLocation>(at) });
    for location in socktrace_errno_location().into_iter().chain(others) {
        // SAFETY: as in `errno`.
        unsafe { *location() = value };
    }
}

/// Takes note of another libc's function like __errno_location; whether there was room.
pub(crate) fn note_errno_location(function: usize) -> bool {
    let is_free = |at: &AtomicUsize| at.compare_exchange(0, function, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    OTHERS.iter().any(is_free)
}

/// Forgets those of libcs that were unloaded.
pub(crate) fn forget_errno_locations(is_there: impl Fn(usize) -> bool) {
    for location in &OTHERS {
        let at = location.load(Ordering::Relaxed);
        if at != 0 && !is_there(at) {
            location.store(0, Ordering::Relaxed);
        }
    }
}
