//! Into the programs that this one executes: the dynamic linker loads a preloaded probe into them if their
//! environment says so (LD_PRELOAD, ld.so(8)).
//!
//! These functions run between vfork and exec, where memory is the parent's: they use the stack and nothing else.

use core::ffi::{CStr, c_char, c_int};
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use rustix::fs::stat;

use crate::{params, process};

/// The variable, with its equals sign.
pub(crate) const LD_PRELOAD: &[u8] = b"LD_PRELOAD=";
/// The name of the file with the parameters, beside the probe.
pub(crate) const PARAMS_NAME: &[u8] = b"/params";
/// Entries of an environment that the probe can add itself to. A larger one is passed on as it is.
const MAX_ENTRIES: usize = 2048;
/// Bytes of LD_PRELOAD with the probe's path in it.
const MAX_VALUE_LEN: usize = 4096;

/// The probe's own path in LD_PRELOAD; null where it was not preloaded or is not to follow.
static PROBE_PATH: AtomicPtr<c_char> = AtomicPtr::new(core::ptr::null_mut());

/// The file beside it with its parameters.
static PARAMS_PATH: AtomicPtr<c_char> = AtomicPtr::new(core::ptr::null_mut());

/// Which file that is: device, inode number, and when it was last changed. Another one by its name is not ours.
static PARAMS_FILE: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// Makes executed programs load the probe from this path, which stays in memory for good.
pub(crate) fn follow(path: &'static CStr) {
    let bytes = path.to_bytes();
    let folder = &bytes[..bytes.iter().rposition(|&b| b == b'/').unwrap_or(0)];
    let Ok(params) = params::map(folder.len() + PARAMS_NAME.len() + 1) else { return };
    // SAFETY: mapped with this length and zeroed, so that a NUL follows; ours alone.
    unsafe {
        params.copy_from_nonoverlapping(folder.as_ptr(), folder.len());
        params.add(folder.len()).copy_from_nonoverlapping(PARAMS_NAME.as_ptr(), PARAMS_NAME.len());
    }
    // SAFETY: NUL-terminated, as above, and in memory for good.
    if let Some(file) = identity(unsafe { CStr::from_ptr(params.cast()) }) {
        PARAMS_FILE.iter().zip(file).for_each(|(to, value)| to.store(value, Ordering::Relaxed));
    }
    PARAMS_PATH.store(params.cast(), Ordering::Relaxed);
    PROBE_PATH.store(path.as_ptr().cast_mut(), Ordering::Release);
}

fn probe_path() -> Option<&'static CStr> {
    let path = PROBE_PATH.load(Ordering::Acquire);
    // SAFETY: null, or set by `follow`.
    (!path.is_null()).then(|| unsafe { CStr::from_ptr(path) })
}

/// What an environment says of the probe.
#[derive(Clone, Copy)]
enum Preloads {
    /// It is in LD_PRELOAD, at this index.
    Probe(usize),
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
            found = if is_probe { Preloads::Probe(index) } else { Preloads::Others(index) };
        }
    }
    (found, count)
}

/// Whether programs are still to load the probe. Whoever put it there ends and takes it away: first its parameters, which
/// is what is looked for here, and a moment later the library itself. The dynamic linker complains, on the program's
/// standard error, of one that it does not find.
fn is_there() -> bool {
    let params = PARAMS_PATH.load(Ordering::Relaxed);
    // SAFETY: set by `follow` before the path of the probe, without which nobody asks.
    process::is_confined() || identity(unsafe { CStr::from_ptr(params) }).is_some_and(is_ours)
}

fn is_ours(file: [u64; 4]) -> bool {
    PARAMS_FILE.iter().zip(file).all(|(ours, value)| ours.load(Ordering::Relaxed) == value)
}

fn identity(path: &CStr) -> Option<[u64; 4]> {
    let stat = stat(path).ok()?;
    Some([stat.st_dev, stat.st_ino, stat.st_ctime.cast_unsigned(), stat.st_ctime_nsec])
}

/// Calls `exec` with an environment that is `envp` with the probe in LD_PRELOAD, or without it if it is gone.
///
/// # Safety
///
/// `envp` is null or an environment as execve(2) takes it.
pub(crate) unsafe fn with_probe(envp: *const *const c_char, exec: impl FnOnce(*const *const c_char) -> c_int) -> c_int {
    let Some(probe) = probe_path().filter(|_| !envp.is_null()) else { return exec(envp) };
    // SAFETY: the caller's promise.
    let (found, count) = unsafe { preloads(envp, probe) };
    // SAFETY: the caller's promise; the indices that `preloads` gives are within.
    let value_at = |at: usize| unsafe { CStr::from_ptr(*envp.add(at)) }.to_bytes();
    let mut value = Value::new();
    let at = match (found, is_there()) {
        (Preloads::Probe(_), true) | (Preloads::Others(_) | Preloads::Nothing, false) => return exec(envp),
        (Preloads::Others(at), true) => {
            value.push(value_at(at));
            value.push(b":");
            value.push(probe.to_bytes());
            at
        }
        (Preloads::Nothing, true) => {
            value.push(LD_PRELOAD);
            value.push(probe.to_bytes());
            count
        }
        (Preloads::Probe(at), false) => {
            let others = |library: &&[u8]| !library.is_empty() && *library != probe.to_bytes();
            let libraries = value_at(at)[LD_PRELOAD.len()..].split(|&b| b == b':' || b == b' ').filter(others);
            for (index, library) in libraries.enumerate() {
                value.push(if index == 0 { LD_PRELOAD } else { b":" });
                value.push(library);
            }
            at
        }
    };
    let mut changed = [MaybeUninit::<*const c_char>::uninit(); MAX_ENTRIES];
    let Some(text) = value.finish().filter(|_| count + 2 <= MAX_ENTRIES) else { return exec(envp) };
    let mut len = 0;
    for index in 0..count.max(at + 1) {
        let entry = match index == at {
            // A variable that nothing is left of.
            true if text.is_empty() => continue,
            true => text.as_ptr().cast(),
            // SAFETY: within the array.
            false => unsafe { *envp.add(index) },
        };
        changed[len].write(entry);
        len += 1;
    }
    changed[len].write(core::ptr::null());
    exec(changed.as_ptr().cast())
}

/// A variable being put together.
struct Value {
    bytes: [MaybeUninit<u8>; MAX_VALUE_LEN],
    len: usize,
    fits: bool,
}

impl Value {
    fn new() -> Self {
        Self { bytes: [MaybeUninit::uninit(); MAX_VALUE_LEN], len: 0, fits: true }
    }

    fn push(&mut self, text: &[u8]) {
        match self.bytes.get_mut(self.len..self.len + text.len()) {
            Some(to) => {
                for (to, &byte) in to.iter_mut().zip(text) {
                    to.write(byte);
                }
                self.len += text.len();
            }
            None => self.fits = false,
        }
    }

    /// With a NUL behind it, not counted; `None` if it did not fit.
    fn finish(&mut self) -> Option<&[u8]> {
        self.bytes.get_mut(self.len)?.write(0);
        // SAFETY: written by `push` as far as this.
        self.fits.then(|| unsafe { core::slice::from_raw_parts(self.bytes.as_ptr().cast(), self.len) })
    }
}

/// The program's own environment, if what it says of the probe has to be changed.
pub(crate) fn own_environment_to_change() -> Option<*const *const c_char> {
    let probe = probe_path()?;
    let envp = own_environment()?;
    // SAFETY: libc's `environ`, which the program may execute others with.
    let has_probe = matches!(unsafe { preloads(envp, probe) }.0, Preloads::Probe(_));
    (has_probe != is_there()).then_some(envp)
}

#[cfg(feature = "standalone")]
use crate::standalone::own_environment;

#[cfg(not(feature = "standalone"))]
fn own_environment() -> Option<*const *const c_char> {
    None
}
