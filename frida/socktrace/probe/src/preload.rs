//! The probe as a preloaded library (LD_PRELOAD, ld.so(8)): it starts itself, by the parameters in the file beside it.
//!
//! The dynamic linker runs this before the program, and perhaps before libc is ready: it uses system calls only. What
//! it cannot do it leaves undone, silently: the program's output is the program's.

use core::ffi::CStr;
use core::mem::MaybeUninit;

use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::control::next_symbol;
use crate::exec::{self, LD_PRELOAD, PARAMS_NAME};
use crate::name::Text;
use crate::{clock, control, hooks, params};

/// The file's name in LD_PRELOAD.
const PROBE_NAME: &[u8] = b"/socktrace-probe.so";
/// PATH_MAX of limits.h.
const PATH_MAX: usize = 4096;
/// Bytes of the parameters.
const MAX_PARAMS_LEN: usize = 64 << 10;

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

extern "C" fn start() {
    let _ = try_start();
}

fn try_start() -> Option<()> {
    let path = own_path()?;
    let directory = path.to_bytes().strip_suffix(PROBE_NAME)?;
    let mut file = Text::<PATH_MAX>::new();
    if !file.push(directory) || !file.push(PARAMS_NAME) {
        return None;
    }
    let text = params::map(MAX_PARAMS_LEN).ok()?;
    // SAFETY: mapped with this length, ours alone.
    let text = unsafe { core::slice::from_raw_parts_mut(text, MAX_PARAMS_LEN) };
    let file = openat(CWD, file.as_c_str()?, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let len = read_all(&file, text)?;
    drop(file);
    clock::init(next_symbol);
    hooks::find_all_libc_functions();
    control::start(&text[..len]).ok()?;
    hook_libc();
    control::socktrace_ready();
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
    if !next_symbol(c"gnu_get_libc_version").is_null() {
        control::patch_libc(next_symbol(control::LANDMARK) as usize, |_| {});
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

/// The probe's path, from LD_PRELOAD as the program was given it. From /proc, because not every libc has set `environ`
/// by now.
fn own_path() -> Option<&'static CStr> {
    let file = openat(CWD, c"/proc/self/environ", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let path = params::map(PATH_MAX).ok()?;
    // SAFETY: mapped with this length for good, ours alone, zeroed.
    let path = unsafe { core::slice::from_raw_parts_mut(path, PATH_MAX) };
    let mut finder = Finder { matched: 0, is_line_start: true, len: 0 };
    let mut buffer = [MaybeUninit::<u8>::uninit(); 1024];
    loop {
        let (bytes, _) = rustix::io::read(&file, &mut buffer[..]).ok()?;
        if bytes.is_empty() {
            return None;
        }
        for &byte in &*bytes {
            if finder.feed(byte, path) {
                let len = finder.len;
                path[len] = 0;
                return CStr::from_bytes_with_nul(&path[..=len]).ok();
            }
        }
    }
}

/// Looks for a library named like the probe in the value of LD_PRELOAD, a byte at a time.
struct Finder {
    /// Bytes of `LD_PRELOAD=` matched.
    matched: usize,
    /// Whether a variable could begin here or has begun to match.
    is_line_start: bool,
    /// Bytes of the library's path so far.
    len: usize,
}

impl Finder {
    /// Whether the byte ends a library's path that is the probe's.
    fn feed(&mut self, byte: u8, path: &mut [u8]) -> bool {
        if self.matched < LD_PRELOAD.len() {
            if self.is_line_start && byte == LD_PRELOAD[self.matched] {
                self.matched += 1;
            } else {
                self.is_line_start = byte == 0;
                self.matched = 0;
            }
            return false;
        }
        if matches!(byte, b':' | b' ' | 0) {
            if path[..self.len].ends_with(PROBE_NAME) {
                return true;
            }
            self.len = 0;
            if byte == 0 {
                self.matched = 0;
                self.is_line_start = true;
            }
        } else if self.len + 1 < path.len() {
            path[self.len] = byte;
            self.len += 1;
        }
        false
    }
}

/// Takes the probe out of LD_PRELOAD, in place, so that programs this one executes are not traced.
fn forget(path: &CStr) {
    let Some(envp) = crate::standalone::own_environment() else { return };
    let path = path.to_bytes();
    // SAFETY: libc's `environ`: an array of strings with a null behind it. The probe is the only thing running.
    unsafe {
        for index in 0.. {
            let entry = (*envp.add(index)).cast_mut();
            if entry.is_null() {
                return;
            }
            let text = core::slice::from_raw_parts_mut(entry.cast::<u8>(), CStr::from_ptr(entry).count_bytes());
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
