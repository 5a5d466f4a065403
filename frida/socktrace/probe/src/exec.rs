//! Into the programs that this one executes: the dynamic linker loads a preloaded probe into them if their
//! environment says so (LD_PRELOAD, ld.so(8)).
//!
//! These functions run between vfork and exec, where memory is the parent's: they use the stack and nothing else.

use core::ffi::{CStr, c_char, c_int};
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicPtr, Ordering};

/// The variable, with its equals sign.
pub(crate) const LD_PRELOAD: &[u8] = b"LD_PRELOAD=";
/// Entries of an environment that the probe can add itself to. A larger one is passed on as it is.
const MAX_ENTRIES: usize = 2048;
/// Bytes of LD_PRELOAD with the probe's path in it.
const MAX_VALUE_LEN: usize = 4096;

/// The probe's own path in LD_PRELOAD; null where it was not preloaded or is not to follow.
static PROBE_PATH: AtomicPtr<c_char> = AtomicPtr::new(core::ptr::null_mut());

/// Makes executed programs load the probe from this path, which stays in memory for good.
pub(crate) fn follow(path: &'static CStr) {
    PROBE_PATH.store(path.as_ptr().cast_mut(), Ordering::Release);
}

fn probe_path() -> Option<&'static CStr> {
    let path = PROBE_PATH.load(Ordering::Acquire);
    // SAFETY: null, or set by `follow`.
    (!path.is_null()).then(|| unsafe { CStr::from_ptr(path) })
}

/// What an environment says of the probe.
enum Preloads {
    /// It is in LD_PRELOAD.
    Probe,
    /// LD_PRELOAD is at this index, without it.
    Others(usize),
    /// There is no LD_PRELOAD.
    Nothing,
}

unsafe fn entries<'a>(envp: *const *const c_char) -> impl Iterator<Item = &'a CStr> {
    // SAFETY: the caller's promise: an array of strings with a null behind it.
    let entry = move |index| unsafe { *envp.add(index) };
    let strings = (0..).map(entry).take_while(|entry| !entry.is_null());
    // SAFETY: not null, and so a string.
    strings.map(|entry| unsafe { CStr::from_ptr(entry) })
}

unsafe fn preloads(envp: *const *const c_char, probe: &CStr) -> (Preloads, usize) {
    let (mut found, mut count) = (Preloads::Nothing, 0);
    // SAFETY: the caller's promise.
    for (index, entry) in unsafe { entries(envp) }.enumerate() {
        count = index + 1;
        if let Some(value) = entry.to_bytes().strip_prefix(LD_PRELOAD) {
            let mut libraries = value.split(|&b| b == b':' || b == b' ');
            let is_probe = libraries.any(|library| library == probe.to_bytes());
            found = if is_probe { Preloads::Probe } else { Preloads::Others(index) };
        }
    }
    (found, count)
}

/// Calls `exec` with an environment that is `envp` with the probe in LD_PRELOAD.
///
/// # Safety
///
/// `envp` is null or an environment as execve(2) takes it.
pub(crate) unsafe fn with_probe(envp: *const *const c_char, exec: impl FnOnce(*const *const c_char) -> c_int) -> c_int {
    let Some(probe) = probe_path().filter(|_| !envp.is_null()) else { return exec(envp) };
    // SAFETY: the caller's promise.
    let (found, count) = unsafe { preloads(envp, probe) };
    let (at, before) = match found {
        Preloads::Probe => return exec(envp),
        // SAFETY: the caller's promise; the index is within.
        Preloads::Others(at) => (at, unsafe { CStr::from_ptr(*envp.add(at)) }.to_bytes()),
        Preloads::Nothing => (count, LD_PRELOAD),
    };
    let mut value = [MaybeUninit::<u8>::uninit(); MAX_VALUE_LEN];
    let separator: &[u8] = if before.len() > LD_PRELOAD.len() { b":" } else { b"" };
    let len = before.len() + separator.len() + probe.count_bytes() + 1;
    if count + 2 > MAX_ENTRIES || len > MAX_VALUE_LEN {
        return exec(envp);
    }
    let bytes = before.iter().chain(separator).chain(probe.to_bytes_with_nul());
    for (to, &byte) in value.iter_mut().zip(bytes) {
        to.write(byte);
    }
    let mut changed = [MaybeUninit::<*const c_char>::uninit(); MAX_ENTRIES];
    for (index, to) in changed.iter_mut().enumerate().take(count) {
        // SAFETY: within the array.
        to.write(unsafe { *envp.add(index) });
    }
    if at == count {
        changed[count + 1].write(core::ptr::null());
    } else {
        changed[count].write(core::ptr::null());
    }
    changed[at].write(value.as_ptr().cast());
    exec(changed.as_ptr().cast())
}

/// The program's own environment, if the probe is not in it (any more).
pub(crate) fn own_environment_without_probe() -> Option<*const *const c_char> {
    let probe = probe_path()?;
    let envp = own_environment()?;
    // SAFETY: libc's `environ`, which the program may execute others with.
    match unsafe { preloads(envp, probe) }.0 {
        Preloads::Probe => None,
        _ => Some(envp),
    }
}

#[cfg(feature = "standalone")]
use crate::standalone::own_environment;

#[cfg(not(feature = "standalone"))]
fn own_environment() -> Option<*const *const c_char> {
    None
}
