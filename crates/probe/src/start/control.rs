//! How the probe is started, and what it says of itself and of its process.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::fmt::Write as _;
use core::sync::atomic::{AtomicU32, Ordering};

use gttr::FrameType;

use crate::life::{exec, fork};
use crate::observe::{notices, scan};
use crate::patch::hook::Hook;
use crate::process::{self, clock, stack};
use crate::start::install::{self, Musl, Outcome};
use crate::sys::library;
use crate::sys::params::{self, Complaint};
use crate::sys::text::Text;
use crate::table::{connection, descriptors};
use crate::{patch, transport};

const IDLE: u32 = 0;
const STARTING: u32 = 1;
const STARTED: u32 = 2;

static STATE: AtomicU32 = AtomicU32::new(IDLE);

/// Starts the probe: checks the parameters (`params_len` bytes of `key=value` texts, a NUL behind each), prepares its
/// memory, puts the hooks in place of libc's functions, in its memory, looks for the sockets that are there, and tells the
/// server.
///
/// Returns null on success, otherwise a text, for people and NUL-terminated, that says what is wrong; then nothing is
/// hooked. The second call in a process changes nothing and returns "already".
///
/// # Safety
///
/// `params` has `params_len` readable bytes.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub unsafe extern "C" fn socktrace_start(params: *const u8, params_len: usize) -> *const c_char {
    // SAFETY: the caller's promise.
    let text = unsafe { core::slice::from_raw_parts(params, params_len) };
    if let Some(libc) = library::own_libc() {
        clock::init(|name| {
            libc.function(name).map_or(core::ptr::null_mut(), |function| function.address as *mut c_void)
        });
    }
    if let Err(complaint) = start(text) {
        return COMPLAINT.set(&[complaint.as_bytes()]);
    }
    let mut unhooked = Text::new();
    let note = |hook: &Hook| {
        // These go on to functions that are hooked.
        if !hook.name.to_bytes().ends_with(b"_chk") {
            unhooked.push(if unhooked.as_bytes().is_empty() { b"" } else { b"," });
            unhooked.push(hook.name.to_bytes());
        }
    };
    if let Outcome::Refused = install::install(Musl::Patch, note) {
        socktrace_stop();
        return COMPLAINT.set(&[b"libc's memory cannot be changed, so nothing is hooked"]);
    }
    ready(&unhooked);
    core::ptr::null()
}

/// Looks for the sockets that were there before the hooks were, and says that the probe is ready, and which functions could
/// not be hooked.
pub(crate) fn ready(unhooked: &Text<MAX_UNHOOKED_LEN>) {
    let found = scan::all();
    let mut text = Text::<{ MAX_UNHOOKED_LEN + 64 }>::new();
    let _ = write!(text, "tracked={};listen={}", found.connections, found.listeners);
    if !unhooked.as_bytes().is_empty() {
        text.push(b";unhooked=");
        text.push(unhooked.as_bytes());
    }
    notices::say(FrameType::Ready, text.as_bytes());
}

/// Makes the hooks quiet: they call libc's functions and do nothing else. Connections to the server are closed;
/// [`socktrace_start`] starts anew, with other parameters.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub extern "C" fn socktrace_stop() {
    if STATE.compare_exchange(STARTED, STARTING, Ordering::AcqRel, Ordering::Acquire).is_ok() {
        exec::stop();
        descriptors::stop();
        transport::stop();
        STATE.store(IDLE, Ordering::Release);
    }
}

/// The same, and takes the hooks away. What they lead to stays, for calls that are in it.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub extern "C" fn socktrace_leave() {
    socktrace_stop();
    patch::remove();
}

/// Makes a descriptor one that is not traced, as an `ignore_fd` parameter would have.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub extern "C" fn socktrace_ignore(fd: c_int) {
    descriptors::replace(fd, descriptors::Slot::Foreign);
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
    stack::init();
    process::on_fork(fork::child);
    process::init()?;
    transport::init()?;
    connection::init()?;
    descriptors::init()?;
    notices::say(FrameType::Init, describe(params).as_bytes());
    notices::introduce(FrameType::Start, None);
    if let Some(path) = params::preload() {
        exec::follow(path);
    }
    // Last: from here on, hooks report.
    descriptors::begin();
    params.ignored().for_each(|fd| socktrace_ignore(fd));
    Ok(())
}

fn describe(params: &socktrace_params::Params<'_>) -> Text<256> {
    let mut text = Text::new();
    text.push(b"mode=probe;out=");
    text.push(params.out_socket_path);
    let paths = params.socket_paths().count();
    let _ = write!(
        text,
        ";socktype={};whitelist={paths};max_fds={};max_bytes={};version={}",
        params.transport.name(),
        params.max_fds,
        params.max_bytes,
        env!("CARGO_PKG_VERSION")
    );
    text
}

/// Bytes of the names of functions that are not hooked: some of them, should they be many.
pub(crate) const MAX_UNHOOKED_LEN: usize = 448;

/// Bytes of a complaint.
const MAX_COMPLAINT_LEN: usize = 1024;

/// Room for the text of a complaint with a NUL behind it.
struct ComplaintText(core::cell::UnsafeCell<Text<MAX_COMPLAINT_LEN>>);

// SAFETY: written by the one thread that is starting the probe, and read by its caller.
unsafe impl Sync for ComplaintText {}

static COMPLAINT: ComplaintText = ComplaintText(core::cell::UnsafeCell::new(Text::new()));

impl ComplaintText {
    fn set(&self, parts: &[&[u8]]) -> *const c_char {
        // SAFETY: see `Sync`.
        let text = unsafe { &mut *self.0.get() };
        text.clear();
        for part in parts {
            text.push(part);
        }
        text.as_c_str().map_or(c"something is wrong".as_ptr(), CStr::as_ptr)
    }
}
