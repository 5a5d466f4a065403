//! Ancillary data (cmsg(3), unix(7)): descriptors, credentials and security contexts that go with a message.

use core::ffi::c_void;

use gttr::{Credentials, Ext, ExtWriter, PassedFd};
use rustix::fd::BorrowedFd;
use rustix::fs::{CWD, FileType, fstat, readlinkat_raw};
use rustix::net::AddressFamily;
use rustix::net::sockopt::socket_domain;

use crate::observe::{calls, scan};
use crate::process::stack;
use crate::sys::confined::is_confined;
use crate::sys::text::Text;
use crate::table::descriptors::{self, Slot};
use crate::table::name::SocketPath;

const SOL_SOCKET: i32 = 1;
const SCM_RIGHTS: i32 = 1;
const SCM_CREDENTIALS: i32 = 2;
const SCM_SECURITY: i32 = 3;
const SCM_PIDFD: i32 = 4;
/// `struct cmsghdr`: length, level, type.
const HEADER_LEN: usize = size_of::<usize>() + 8;
/// Bytes of what is said of one passed descriptor.
const MAX_WHAT_LEN: usize = 512;

/// A message's ancillary data where the program has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ancillary {
    pub(crate) control: *const c_void,
    pub(crate) len: usize,
}

impl Ancillary {
    pub(crate) const NONE: Self = Self { control: core::ptr::null(), len: 0 };

    pub(crate) fn is_empty(&self) -> bool {
        self.control.is_null() || self.len < HEADER_LEN
    }

    /// Calls a function with the type and the data of each part.
    ///
    /// # Safety
    ///
    /// The kernel has just read or written it for the program.
    unsafe fn for_each(&self, mut each: impl FnMut(i32, &[u8])) {
        if self.is_empty() {
            return;
        }
        // SAFETY: the caller's promise.
        let mut rest = unsafe { core::slice::from_raw_parts(self.control.cast::<u8>(), self.len) };
        while let Some((size, header)) = rest.split_first_chunk::<{ size_of::<usize>() }>() {
            let size = usize::from_ne_bytes(*size);
            let (Some(kind), Some(data)) = (header.get(..8), rest.get(HEADER_LEN..size)) else { return };
            if number(&kind[..4]) == SOL_SOCKET {
                each(number(&kind[4..]), data);
            }
            rest = rest.get(size.next_multiple_of(size_of::<usize>())..).unwrap_or_default();
        }
    }

    /// Takes note of the descriptors that came with a message over `over`.
    ///
    /// # Safety
    ///
    /// The kernel has just written it for the program.
    pub(crate) unsafe fn arrive(&self, over: i32) {
        if self.is_empty() || !descriptors::owns_descriptors() {
            return;
        }
        // SAFETY: the caller's promise.
        stack::on_own(|| unsafe { self.take_note(over) });
    }

    unsafe fn take_note(&self, over: i32) {
        let slot = if descriptors::get(over) == Slot::Foreign { Slot::Foreign } else { Slot::Arrived };
        // SAFETY: the caller's promise.
        unsafe {
            self.for_each(|kind, data| {
                if matches!(kind, SCM_RIGHTS | SCM_PIDFD) {
                    data.chunks_exact(size_of::<i32>()).for_each(|fd| calls::arrived(number(fd), slot));
                }
            });
        }
    }

    /// Writes what the data says as extension values. What the descriptors lead to is left out where there is no room.
    ///
    /// # Safety
    ///
    /// The kernel has just read or written it for the program.
    #[inline(never)]
    pub(crate) unsafe fn describe(&self, writer: &mut ExtWriter<'_>) {
        let mut fds = 0;
        // SAFETY: the caller's promise.
        unsafe {
            self.for_each(|kind, data| fds += if kind == SCM_RIGHTS { data.len() / size_of::<i32>() } else { 0 })
        };
        let put = |kind: i32, data: &[u8]| match kind {
            SCM_RIGHTS => {
                for fd in data.chunks_exact(size_of::<i32>()) {
                    let fd = number(fd);
                    fds -= 1;
                    // Every number has to fit, so the last texts give way.
                    let room = writer.room().saturating_sub((fds + 1) * PASSED_FD_LEN);
                    let what = what(fd);
                    let what = what.as_bytes();
                    writer.put(Ext::PassedFd(PassedFd { fd, what: if what.len() <= room { what } else { b"" } }));
                }
            }
            SCM_CREDENTIALS if data.len() >= 12 => {
                let id = |at: usize| number(&data[at..]).cast_unsigned();
                writer.put(Ext::Credentials(Credentials { pid: id(0), uid: id(4), gid: id(8) }));
            }
            SCM_SECURITY => {
                let len = data.iter().position(|&byte| byte == 0).unwrap_or(data.len());
                writer.put(Ext::Security(&data[..len]));
            }
            SCM_PIDFD if data.len() >= size_of::<i32>() => writer.put(Ext::PidFd(number(data).cast_unsigned())),
            _ => {}
        };
        // SAFETY: the caller's promise.
        unsafe { self.for_each(put) };
    }
}

/// Bytes of a passed descriptor's value without its text.
const PASSED_FD_LEN: usize = 8;

/// The number at the front of at least four bytes.
fn number(bytes: &[u8]) -> i32 {
    bytes.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes))
}

/// What a descriptor leads to, in the words of docs/gttr.md, "Passed descriptors"; empty where it may not be asked.
#[inline(never)]
fn what(fd: i32) -> Text<MAX_WHAT_LEN> {
    let mut text = Text::new();
    if fd < 0 || is_confined() {
        return text;
    }
    // SAFETY: not -1; a closed one only makes the questions fail.
    let file = unsafe { BorrowedFd::borrow_raw(fd) };
    let Ok(stat) = fstat(file) else { return text };
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Socket => {
            text.push(b"socket:");
            push_socket(&mut text, fd, file);
            return text;
        }
        FileType::RegularFile => "file:",
        FileType::Directory => "directory:",
        FileType::CharacterDevice | FileType::BlockDevice => "device:",
        FileType::Fifo => "fifo:",
        _ => "",
    };
    let mut link = Text::<32>::new();
    let mut target = Text::<MAX_WHAT_LEN>::new();
    if core::fmt::write(&mut link, format_args!("/proc/thread-self/fd/{fd}")).is_ok()
        && let Some(link) = link.as_c_str()
    {
        target.fill(|buffer| readlinkat_raw(CWD, link, buffer).unwrap_or(0));
    }
    let target = target.as_bytes();
    let between = |front: &[u8], back: &[u8]| {
        target.strip_prefix(front).and_then(|rest| rest.strip_suffix(back)).map(<[u8]>::len)
    };
    if target.starts_with(b"pipe:") {
        text.push(b"pipe");
    } else if let Some(len) = between(b"/memfd:", b" (deleted)") {
        text.push(b"memfd:");
        text.push_escaped(&target[b"/memfd:".len()..][..len]);
    } else if let Some(len) = between(b"anon_inode:[", b"]") {
        text.push_escaped(&target[b"anon_inode:[".len()..][..len]);
    } else if let Some(name) = target.strip_prefix(b"anon_inode:") {
        text.push_escaped(name);
    } else {
        text.push(kind.as_bytes());
        text.push_escaped(target);
    }
    text
}

fn push_socket(text: &mut Text<MAX_WHAT_LEN>, fd: i32, socket: BorrowedFd<'_>) {
    match socket_domain(socket) {
        Ok(AddressFamily::UNIX) => {
            let address = scan::either_name(fd);
            match address.map(|address| SocketPath::of(&address, c"/proc/thread-self/cwd")) {
                Some(path) => text.push(path.shown.as_bytes()),
                None => text.push(b"unnamed"),
            };
        }
        Ok(AddressFamily::INET) => drop(text.push(b"AF_INET")),
        Ok(AddressFamily::INET6) => drop(text.push(b"AF_INET6")),
        Ok(AddressFamily::NETLINK) => drop(text.push(b"AF_NETLINK")),
        Ok(other) => drop(core::fmt::write(text, format_args!("family {}", other.as_raw()))),
        Err(_) => {}
    }
}
