//! How the probe is started, and what it says of itself and of its process.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::fmt::Write as _;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use gttr::{Ext, FrameType};
use rustix::fs::{CWD, Mode, OFlags, openat, readlinkat_raw};
use rustix::io::read;
use rustix::process::getpid;
use rustix::thread::gettid;

use crate::emit::{Event, emit, emit_sized};
use crate::hooks::Hook;
use crate::life::exec;
use crate::observe::peer::MAX_EXE_LEN;
use crate::observe::scan;
use crate::process::clock::{self, now_ns};
use crate::process::{self, stack};
use crate::start::install::{self, Musl, Outcome};
use crate::sys::params::{self, Complaint};
use crate::sys::{COMM_LEN, thread_name};
use crate::table::name::Text;
use crate::table::{connection, descriptors};
use crate::{patch, transport};

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
    COMPLAINT.set(&[complaint.as_bytes()])
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
        exec::stop();
        descriptors::stop();
        transport::stop();
        STATE.store(IDLE, Ordering::Release);
    }
}

/// Puts the hooks in place of the functions of a libc, in its memory. `dlsym` is dlsym(3), and `libc` what dlopen(3) gave
/// for it. Nothing happens if they are in place.
///
/// Returns null if all are, and otherwise a text, for people and NUL-terminated, that says which are not.
///
/// # Safety
///
/// The arguments are what they should be.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub unsafe extern "C" fn socktrace_hook(dlsym: Dlsym, libc: *mut c_void) -> *const c_char {
    let find = |name: &CStr| {
        // SAFETY: the caller's promise.
        unsafe { dlsym(libc, name.as_ptr()) }
    };
    clock::init(find);
    let mut missed = Text::<MAX_COMPLAINT_LEN>::new();
    let note = |hook: &Hook| {
        // These go on to functions that are hooked.
        if !hook.name.to_bytes().ends_with(b"_chk") {
            missed.push(b" ");
            missed.push(hook.name.to_bytes());
        }
    };
    if let Outcome::Refused = install::install(Musl::Patch, note) {
        return COMPLAINT.set(&[b"libc's memory cannot be changed, so nothing is hooked"]);
    }
    match missed.as_bytes() {
        b"" => core::ptr::null(),
        names => COMPLAINT.set(&[b"not hooked, their calls are not recorded:", names]),
    }
}

/// dlsym(3).
pub type Dlsym = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;

/// Whether libc's own calls of its functions come to the hooks, too.
pub(crate) fn is_libc_patched() -> bool {
    patch::is_any()
}

/// Takes the hooks away that [`socktrace_hook`] has put in place; what they lead to stays, for calls that are in it.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub extern "C" fn socktrace_unhook() {
    patch::remove();
}

/// Makes a descriptor one that is not traced, as an `ignore_fd` parameter would have.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub extern "C" fn socktrace_ignore(fd: c_int) {
    descriptors::replace(fd, descriptors::Slot::Foreign);
}

/// Says that libc's own calls of its functions are not seen in this process.
#[cfg(feature = "standalone")]
pub(crate) fn report_unpatched() {
    let text = "libc's memory cannot be changed here: what libc sends and closes by itself (stdio, fclose, syslog) is not recorded";
    say(FrameType::Error, text.as_bytes());
}

/// Says that there are calls of this process that are not seen.
pub(crate) fn report_unhooked_copy() {
    let text = "a further libc, in a namespace of its own (dlmopen), is not hooked, or not all of it: its calls are not recorded";
    say(FrameType::Error, text.as_bytes());
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
    process::init()?;
    transport::init()?;
    connection::init()?;
    descriptors::init()?;
    say(FrameType::Init, describe(params).as_bytes());
    announce(FrameType::Start, None);
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

fn say(kind: FrameType, text: &[u8]) {
    emit(&Event { conn: [text, b"", b""], ..Event::new(kind, now_ns()) }, &[]);
}

/// Introduces this process: its parent, its executable and its name, and the number under which it has announced itself
/// before, if it has.
pub(crate) fn announce(kind: FrameType, announcement: Option<u64>) {
    let mut exe = [0; MAX_EXE_LEN];
    let exe_len = readlinkat_raw(CWD, c"/proc/self/exe", &mut exe[..]).unwrap_or(0);
    let comm = name_of_process();
    let comm_len = comm.iter().position(|&byte| matches!(byte, 0 | b'\n')).unwrap_or(comm.len());
    let (ppid, exe, comm) = (Ext::Ppid(process::parent()), Ext::Exe(&exe[..exe_len]), Ext::Comm(&comm[..comm_len]));
    let values = [ppid, exe, comm, Ext::Announcement(announcement.unwrap_or(0))];
    let values = if announcement.is_some() { &values[..] } else { &values[..3] };
    let event = Event { values, ..Event::new(kind, now_ns()) };
    emit_sized::<EXE_EXT_LEN>(&event, &[]);
}

/// The process's name, which is its first thread's; with something behind its end.
fn name_of_process() -> [u8; COMM_LEN] {
    if gettid() == getpid() {
        return thread_name();
    }
    // Frida loads the probe by a thread of its own.
    let mut name = [0; COMM_LEN];
    if let Ok(file) = openat(CWD, c"/proc/self/comm", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        let _ = read(&file, &mut name);
    }
    name
}

/// Says that this process ends, and how many UNIX sockets it has made, used or not.
pub(crate) fn say_exit(status: c_int) {
    // A vforked child that ends has executed nothing; whoever made it goes on, and knows.
    if !process::is_started() || !descriptors::is_tracing() || process::who().is_guest {
        return;
    }
    if process::own().has_left.swap(true, Ordering::Relaxed) {
        return;
    }
    // As the parent gets it (_exit(2)).
    let status = Ext::Status(status.cast_unsigned() & 0xff);
    let values = [status, Ext::SocketsMade(process::sockets_made())];
    let values = if values[1] == Ext::SocketsMade(0) { &values[..1] } else { &values };
    transport::before_last();
    stack::on_own(|| emit(&Event { values, ..Event::new(FrameType::Exit, now_ns()) }, &[]));
}

/// Says that a descriptor has a number that the table has no room for.
pub(crate) fn report_beyond_table(fd: i32) {
    stack::on_own(|| tell_of_beyond_table(fd));
}

fn tell_of_beyond_table(fd: i32) {
    let mut text = Text::<128>::new();
    let _ = write!(text, "descriptor {fd} is not traced: the highest that can be is {}", descriptors::LAST);
    say(FrameType::Error, text.as_bytes());
}

/// Says that a thread is about to be unable to send anything.
pub(crate) fn say_strict() {
    let text =
        b"a thread asks for seccomp(2)'s strict mode, in which nothing can be sent: what it says from then on is not \
                 recorded, but with the transport shm";
    stack::on_own(|| say(FrameType::Error, text));
}

/// Says that nothing may come any more of this process, or of a child of its, and why.
pub(crate) fn say_mute(why: &str) {
    if IS_MUTE_SAID.swap(true, Ordering::Relaxed) {
        return;
    }
    let mut text = Text::<192>::new();
    let _ = write!(text, "{why}: what is said from then on is not recorded, but with the transport shm");
    say(FrameType::Error, text.as_bytes());
}

/// Once a process is enough.
static IS_MUTE_SAID: AtomicBool = AtomicBool::new(false);

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

#[cfg(feature = "standalone")]
pub(crate) use crate::sys::libc::{errno, next_symbol, set_errno};

#[cfg(not(feature = "standalone"))]
pub(crate) fn errno() -> c_int {
    0
}

#[cfg(not(feature = "standalone"))]
pub(crate) fn set_errno(_: c_int) {}

#[cfg(not(feature = "standalone"))]
pub(crate) fn next_symbol(_: &CStr) -> *mut c_void {
    core::ptr::null_mut()
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
