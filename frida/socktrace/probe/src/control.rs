//! How the probe is started, and what it says of itself and of its process.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::fmt::Write as _;
use core::sync::atomic::{AtomicU32, Ordering};

use gttr::{Ext, FrameType};
use rustix::fs::{CWD, readlinkat_raw};

use crate::emit::{Event, emit, emit_sized, now_ns};
use crate::hooks::{Hook, TABLE};
use crate::name::Text;
use crate::params::{self, Complaint, Params, Transport};
use crate::peer::MAX_EXE_LEN;
use crate::{connection, descriptors, exec, process, scan, transport};

/// Bytes of the extension values of an event that shows the path of an executable.
pub(crate) const EXE_EXT_LEN: usize = MAX_EXE_LEN + 192;

const IDLE: u32 = 0;
const STARTING: u32 = 1;
const STARTED: u32 = 2;

static STATE: AtomicU32 = AtomicU32::new(IDLE);

/// Starts the probe: checks the parameters (`params_len` bytes of `key=value` texts, a NUL behind each), prepares its
/// memory, tells the server. The hooks may be put in place after this, and [`socktrace_ready`] called after that.
///
/// Returns null on success, otherwise a text, for people and NUL-terminated, that says what is wrong. The second call
/// in a process changes nothing and returns "already".
///
/// # Safety
///
/// `params` has `params_len` readable bytes.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub unsafe extern "C" fn socktrace_init(params: *const u8, params_len: usize) -> *const c_char {
    // SAFETY: the caller's promise.
    let text = unsafe { core::slice::from_raw_parts(params, params_len) };
    let complaint = match start(text) {
        Ok(()) => return core::ptr::null(),
        Err(complaint) => complaint,
    };
    COMPLAINT.set(complaint)
}

/// Looks for the sockets that were there before the hooks were, and says that the probe is ready.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub extern "C" fn socktrace_ready() {
    let found = scan::all();
    let mut text = Text::<64>::new();
    let _ = write!(text, "tracked={};listen={}", found.connections, found.listeners);
    say(FrameType::Ready, text.as_bytes());
}

/// Makes the hooks quiet: they call libc's functions and do nothing else. Connections to the server are closed;
/// [`socktrace_init`] starts anew, with other parameters.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub extern "C" fn socktrace_stop() {
    if STATE.compare_exchange(STARTED, STARTING, Ordering::AcqRel, Ordering::Acquire).is_ok() {
        descriptors::stop();
        transport::stop();
        STATE.store(IDLE, Ordering::Release);
    }
}

/// Whether the hooks are in place; for whoever puts them there.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
#[allow(non_upper_case_globals, reason = "a name of the probe's interface")]
pub static socktrace_hooked: AtomicU32 = AtomicU32::new(0);

/// Makes a descriptor one that is not traced, as an `ignore_fd` parameter would have.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub extern "C" fn socktrace_ignore(fd: c_int) {
    descriptors::replace(fd, descriptors::Slot::Foreign);
}

/// The table of hooks, and at `count` how many they are.
///
/// # Safety
///
/// `count` may be written to.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub unsafe extern "C" fn socktrace_hooks(count: *mut usize) -> *const Hook {
    // SAFETY: the caller's promise.
    unsafe { *count = TABLE.len() };
    TABLE.as_ptr()
}

pub(crate) fn start(text: &[u8]) -> Result<(), Complaint> {
    if STATE.compare_exchange(IDLE, STARTING, Ordering::AcqRel, Ordering::Acquire).is_err() {
        return Err("already");
    }
    let started = prepare(text);
    STATE.store(if started.is_ok() { STARTED } else { IDLE }, Ordering::Release);
    started
}

fn prepare(text: &[u8]) -> Result<(), Complaint> {
    params::set(text)?;
    scan::reset();
    let params = params::get();
    process::init()?;
    transport::init()?;
    connection::init(params.max_fds)?;
    say(FrameType::Init, describe(params).as_bytes());
    announce(FrameType::Start, "");
    if let Some(path) = params.preload() {
        exec::follow(path);
    }
    // Last: from here on, hooks report.
    descriptors::init(params.max_fds)
}

fn describe(params: &Params) -> Text<256> {
    let mut text = Text::new();
    let kind = match params.transport {
        Transport::Dgram => "dgram",
        Transport::Stream => "stream",
    };
    text.push(b"mode=probe;out=");
    text.push(params.out_socket_path);
    let paths = params.socket_paths().iter().count();
    let _ = write!(
        text,
        ";socktype={kind};whitelist={paths};max_fds={};max_bytes={};version={}",
        params.max_fds,
        params.max_bytes,
        env!("CARGO_PKG_VERSION")
    );
    text
}

fn say(kind: FrameType, text: &[u8]) {
    emit(&Event { conn: [text, b"", b""], ..Event::new(kind, now_ns()) }, &[]);
}

/// Introduces this process: its parent and its executable.
pub(crate) fn announce(kind: FrameType, text: &str) {
    let mut exe = [0; MAX_EXE_LEN];
    let exe_len = readlinkat_raw(CWD, c"/proc/self/exe", &mut exe[..]).unwrap_or(0);
    let event = Event {
        conn: [text.as_bytes(), b"", b""],
        values: &[Ext::Ppid(process::parent()), Ext::Exe(&exe[..exe_len])],
        ..Event::new(kind, now_ns())
    };
    emit_sized::<EXE_EXT_LEN>(&event, &[]);
}

/// Says that a descriptor has a number that the table has no room for.
pub(crate) fn report_beyond_table(fd: i32) {
    let mut text = Text::<128>::new();
    let max_fds = descriptors::len();
    let _ = write!(text, "descriptor {fd} is not traced, nor any from max_fds={max_fds} up: raise max_fds");
    say(FrameType::Error, text.as_bytes());
}

/// Room for the text of a complaint with a NUL behind it.
struct ComplaintText(core::cell::UnsafeCell<[u8; 128]>);

// SAFETY: written by the one thread that is starting the probe, and read by its caller.
unsafe impl Sync for ComplaintText {}

static COMPLAINT: ComplaintText = ComplaintText(core::cell::UnsafeCell::new([0; 128]));

impl ComplaintText {
    fn set(&self, complaint: Complaint) -> *const c_char {
        // SAFETY: see `Sync`.
        let buffer = unsafe { &mut *self.0.get() };
        let len = complaint.len().min(buffer.len() - 1);
        buffer[..len].copy_from_slice(&complaint.as_bytes()[..len]);
        buffer[len] = 0;
        self.0.get().cast()
    }
}

/// Fails as a call does that is given a number that is no descriptor: -1, with `errno` at EBADF.
pub(crate) fn fail_with_ebadf() -> c_int {
    const EBADF: c_int = 9;
    set_errno(EBADF);
    -1
}

#[cfg(feature = "standalone")]
use crate::standalone::{next_symbol, set_errno};

#[cfg(not(feature = "standalone"))]
fn set_errno(_: c_int) {}

#[cfg(not(feature = "standalone"))]
fn next_symbol(_: &CStr) -> *mut c_void {
    core::ptr::null_mut()
}

/// The function of this name that comes behind ours in the program's order of libraries.
pub(crate) fn next_function(name: &CStr) -> *mut c_void {
    let address = next_symbol(name);
    if address.is_null() { missing as *mut c_void } else { address }
}

/// Stands for a function that this libc does not have.
unsafe extern "C-unwind" fn missing() -> isize {
    const ENOSYS: c_int = 38;
    set_errno(ENOSYS);
    -1
}
