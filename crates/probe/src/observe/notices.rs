//! What the probe says of itself and of its process.

use core::ffi::c_int;
use core::fmt::Write as _;
use core::sync::atomic::{AtomicBool, Ordering};

use gttr::{Ext, FrameType};
use rustix::fs::{CWD, Mode, OFlags, openat, readlinkat_raw};
use rustix::io::read;
use rustix::process::getpid;
use rustix::thread::gettid;

use crate::emit::{Event, emit, emit_sized};
use crate::observe::peer::{EXE_EXT_LEN, MAX_EXE_LEN};
use crate::process::clock::now_ns;
use crate::process::{self, stack};
use crate::sys::text::Text;
use crate::sys::{COMM_LEN, thread_name};
use crate::table::descriptors;
use crate::transport;

/// Says a text.
pub(crate) fn say(kind: FrameType, text: &[u8]) {
    emit(&Event { conn: [text, b"", b""], ..Event::new(kind, now_ns()) }, &[]);
}

/// Introduces this process: its parent, its executable and its name, and the number under which it has announced itself
/// before, if it has.
pub(crate) fn introduce(kind: FrameType, announcement: Option<u64>) {
    let mut exe = [0; MAX_EXE_LEN];
    let exe_len = readlinkat_raw(CWD, c"/proc/thread-self/exe", &mut exe[..]).unwrap_or(0);
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
