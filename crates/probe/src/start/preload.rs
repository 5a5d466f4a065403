//! The probe as a preloaded library (LD_PRELOAD, ld.so(8)): it starts itself, by the parameters in the file beside it.
//!
//! The dynamic linker runs this before the program, and perhaps before libc is ready: it uses system calls only. What
//! it cannot do it leaves undone, silently: the program's output is the program's.

use core::ffi::{CStr, c_char, c_int};

use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::hooks;
use crate::life::exec::environment::{LD_PRELOAD, entries, libraries};
use crate::life::exec::{self, PARAMS_NAME};
use crate::observe::notices;
use crate::process::clock;
use crate::start::control;
use crate::start::install::{self, Musl, Outcome};
use crate::sys::libc::{next_symbol, own_environment};
use crate::sys::params;
use crate::sys::scratch::Scratch;
use crate::sys::text::Text;

/// The file's name in LD_PRELOAD.
const PROBE_NAME: &[u8] = b"/socktrace-probe.so";
/// PATH_MAX of limits.h.
const PATH_MAX: usize = 4096;
/// Bytes of the parameters.
const MAX_PARAMS_LEN: usize = 64 << 10;

#[used]
#[unsafe(link_section = ".init_array")]
static START: unsafe extern "C" fn(c_int, *const *const c_char, *const *const c_char) = start;

/// glibc calls constructors with what main(3) will get; musl with nothing, but has set `environ` by then.
unsafe extern "C" fn start(_: c_int, _: *const *const c_char, envp: *const *const c_char) {
    let envp = if is_glibc() { envp } else { own_environment() };
    // SAFETY: the environment that the program is started with: an array of strings with a null behind it.
    if let Some(path) = unsafe { own_path(envp) } {
        let _ = try_start(path);
    }
}

fn is_glibc() -> bool {
    !next_symbol(c"gnu_get_libc_version").is_null()
}

fn try_start(path: &'static CStr) -> Option<()> {
    let directory = path.to_bytes().strip_suffix(PROBE_NAME)?;
    let mut file = Text::<PATH_MAX>::new();
    if !file.push(directory) || !file.push(PARAMS_NAME) {
        return None;
    }
    let mut text = Scratch::map(MAX_PARAMS_LEN)?;
    let text = text.bytes();
    let file = openat(CWD, file.as_c_str()?, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let len = read_all(&file, text)?;
    drop(file);
    clock::init(next_symbol);
    hooks::find_all_libc_functions();
    control::start(&text[..len]).ok()?;
    hook_libc();
    control::ready(&Text::new());
    if params::get().follow_children {
        exec::follow(path);
    } else {
        forget(path);
    }
    Some(())
}

/// The hooks are in place already, for whatever calls the functions by their names. Where libc can be patched too, they
/// are for its own calls of them: in glibc. musl's own functions make system calls instead.
fn hook_libc() {
    if let Outcome::Refused = install::install(Musl::LeaveAlone, |_| {}) {
        notices::report_unpatched();
    }
}

fn read_all(file: &OwnedFd, buffer: &mut [u8]) -> Option<usize> {
    let mut len = 0;
    loop {
        match rustix::io::read(file, &mut buffer[len..]).ok()? {
            0 => return Some(len),
            n => len += n,
        }
    }
}

/// The probe's path, from LD_PRELOAD as the program was given it: not from /proc, which may not be there, and which a
/// program that its user may execute but not read cannot open.
///
/// # Safety
///
/// `envp` is null or an environment.
unsafe fn own_path(envp: *const *const c_char) -> Option<&'static CStr> {
    // SAFETY: the caller's promise.
    let variables = unsafe { entries(envp) };
    let mut values = variables.filter_map(|entry| entry.to_bytes().strip_prefix(LD_PRELOAD));
    let library = values.find_map(|value| libraries(value).find(|library| library.ends_with(PROBE_NAME)))?;
    let path = params::map(library.len() + 1).ok()?;
    // SAFETY: mapped with this length for good, ours alone, zeroed.
    unsafe {
        path.copy_from_nonoverlapping(library.as_ptr(), library.len());
        Some(CStr::from_ptr(path.cast()))
    }
}

/// Takes the probe out of LD_PRELOAD, in place, so that programs this one executes are not traced.
fn forget(path: &CStr) {
    let envp = own_environment();
    let path = path.to_bytes();
    // SAFETY: libc's `environ`: an array of strings with a null behind it. The probe is the only thing running.
    unsafe {
        for entry in entries(envp) {
            let text = core::slice::from_raw_parts_mut(entry.as_ptr().cast_mut().cast::<u8>(), entry.count_bytes());
            if !text.starts_with(LD_PRELOAD) {
                continue;
            }
            let Some(at) = text.windows(path.len()).position(|window| window == path) else { continue };
            // With its separator, before it or else behind it.
            let before = usize::from(at > LD_PRELOAD.len());
            let end = (at + path.len() + usize::from(before == 0)).min(text.len());
            let (at, len) = (at - before, text.len());
            text.copy_within(end.., at);
            text[len - (end - at)..].fill(0);
        }
    }
}
