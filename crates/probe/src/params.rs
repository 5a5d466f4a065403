//! What the probe is told when it is loaded.
//!
//! The loader has checked the types; lengths and ranges are checked here, so that every way in has the same limits.

use core::ffi::CStr;
use core::sync::atomic::{AtomicPtr, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Bytes of `sun_path` less its NUL (unix(7)).
const MAX_SOCKET_PATH: usize = 107;
/// Above this the table of descriptors would be larger than what it is for.
const MAX_MAX_FDS: u32 = 1 << 20;

/// How frames reach the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// SOCK_DGRAM, a frame a datagram.
    Dgram,
    /// SOCK_STREAM, frames one behind the other.
    Stream,
    /// A ring in shared memory.
    Shm,
}

/// What happens when the ring is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnFull {
    /// The program waits for room, so long.
    Block { max_wait_ms: u64 },
    /// The event is dropped and counted.
    Drop,
}

/// The longest that a program may be made to wait: whoever asks for more has the wrong unit in mind.
const MAX_MAX_WAIT_MS: u64 = 60_000;
/// Room for some tens of thousands of small messages, or for what a program says in the time that a busy machine
/// leaves the server without a processor.
const RING_BYTES: u64 = 8 << 20;

/// The parameters, as docs/frida.md documents them.
#[derive(Debug)]
pub(crate) struct Params {
    /// The server's socket, NUL-free.
    pub(crate) out_socket_path: &'static [u8],
    pub(crate) transport: Transport,
    /// Descriptors below this are looked at when the probe is loaded, whether they are sockets that exist already.
    pub(crate) max_fds: u32,
    /// Bytes captured of a call's payload.
    pub(crate) max_bytes: u64,
    /// What happens when the ring is full.
    pub(crate) on_full: OnFull,
    /// Bytes of the ring.
    pub(crate) ring_bytes: u64,
    /// Whether programs that this one executes are traced too (a preloaded probe).
    pub(crate) follow_children: bool,
    /// Whether Frida put the probe here, and so may be here itself.
    pub(crate) by_frida: bool,
    /// Where the probe lies as a file, for programs that this one executes to load it from; empty: nowhere.
    preload: &'static [u8],
    /// `socket_path` values.
    socket_paths: SocketPaths,
    /// Descriptors that are not the program's: `ignore_fd` values.
    ignored: SocketPaths,
}

/// The values of a parameter that may be given more than once, kept as they came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SocketPaths {
    text: &'static [u8],
    key: &'static [u8],
}

impl SocketPaths {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &'static [u8]> + use<> {
        let key = self.key;
        entries(self.text).filter(move |entry| entry.0 == key).map(|entry| entry.1)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }
}

impl Params {
    pub(crate) fn socket_paths(&self) -> SocketPaths {
        self.socket_paths
    }

    /// The path for LD_PRELOAD of executed programs, if they are to be followed.
    pub(crate) fn preload(&self) -> Option<&'static CStr> {
        if self.preload.is_empty() || !self.follow_children {
            return None;
        }
        // SAFETY: `keep` put a NUL behind every value, and keeps them for good.
        Some(unsafe { CStr::from_ptr(self.preload.as_ptr().cast()) })
    }

    pub(crate) fn ignored(&self) -> impl Iterator<Item = i32> {
        self.ignored.iter().filter_map(number).filter_map(|fd| fd.try_into().ok())
    }
}

/// What is wrong with the parameters: which, and what it takes.
pub(crate) type Complaint = &'static str;

fn entries(text: &'static [u8]) -> impl Iterator<Item = (&'static [u8], &'static [u8])> {
    text.split(|&b| b == 0).filter(|entry| !entry.is_empty()).map(|entry| {
        let equals = entry.iter().position(|&b| b == b'=').unwrap_or(entry.len());
        (&entry[..equals], entry.get(equals + 1..).unwrap_or_default())
    })
}

fn number(text: &[u8]) -> Option<u64> {
    core::str::from_utf8(text).ok()?.parse().ok()
}

/// Reads parameters: `key=value` texts, a NUL behind each.
pub(crate) fn parse(text: &'static [u8]) -> Result<Params, Complaint> {
    let mut params = Params {
        out_socket_path: b"",
        transport: Transport::Dgram,
        max_fds: 4096,
        max_bytes: 4096,
        on_full: OnFull::Drop,
        ring_bytes: RING_BYTES,
        follow_children: true,
        by_frida: false,
        preload: b"",
        socket_paths: SocketPaths { text, key: b"socket_path" },
        ignored: SocketPaths { text, key: b"ignore_fd" },
    };
    let (mut blocks, mut max_wait_ms) = (false, 1000);
    for (key, value) in entries(text) {
        match key {
            b"out_socket_path" => params.out_socket_path = value,
            b"out_sock_type" => {
                params.transport = match value {
                    b"dgram" => Transport::Dgram,
                    b"stream" => Transport::Stream,
                    b"shm" => Transport::Shm,
                    _ => return Err("out_sock_type: takes \"dgram\", \"stream\" or \"shm\""),
                }
            }
            b"max_fds" => {
                let in_range = number(value).filter(|n| (1..=u64::from(MAX_MAX_FDS)).contains(n));
                params.max_fds = in_range.ok_or("max_fds: takes a whole number from 1 to 1048576")? as u32;
            }
            b"max_bytes" => {
                params.max_bytes = number(value).ok_or("max_bytes: takes a whole number from 0 up")?;
            }
            b"follow_children" => {
                params.follow_children = match value {
                    b"0" => false,
                    b"1" => true,
                    _ => return Err("follow_children: takes 0 or 1"),
                }
            }
            b"on_full" => {
                blocks = match value {
                    b"block" => true,
                    b"drop" => false,
                    _ => return Err("on_full: takes \"block\" or \"drop\""),
                }
            }
            b"max_wait_ms" => {
                let in_range = number(value).filter(|&n| n <= MAX_MAX_WAIT_MS);
                max_wait_ms = in_range.ok_or("max_wait_ms: takes a whole number of milliseconds from 0 to 60000")?;
            }
            b"ring_bytes" => {
                let takes = "ring_bytes: takes a power of two from 65536 to 1073741824";
                let in_range = number(value).filter(|&n| usize::try_from(n).is_ok_and(socktrace_ring::is_ring_len));
                params.ring_bytes = in_range.ok_or(takes)?;
            }
            b"engine" => params.by_frida = value == b"frida",
            b"preload" => params.preload = value,
            b"socket_path" | b"ignore_fd" => {}
            _ => return Err("unknown parameter: the agent and its probe do not belong together"),
        }
    }
    if blocks {
        params.on_full = OnFull::Block { max_wait_ms };
    }
    match params.out_socket_path.len() {
        0 => Err("out_socket_path: required, the path of the server's socket"),
        1..=MAX_SOCKET_PATH => Ok(params),
        _ => Err("out_socket_path: longer than the 107 bytes that a UNIX socket's path may have"),
    }
}

static PARAMS: AtomicPtr<Params> = AtomicPtr::new(core::ptr::null_mut());

/// What the probe goes by before it is told anything: nothing is traced then.
static NOTHING: Params = Params {
    out_socket_path: b"",
    transport: Transport::Dgram,
    max_fds: 0,
    max_bytes: 0,
    on_full: OnFull::Drop,
    ring_bytes: 0,
    follow_children: false,
    by_frida: false,
    preload: b"",
    socket_paths: SocketPaths { text: b"", key: b"" },
    ignored: SocketPaths { text: b"", key: b"" },
};

/// The parameters in force.
pub(crate) fn get() -> &'static Params {
    // SAFETY: null, or set once by `set` to memory that is never unmapped.
    unsafe { PARAMS.load(Ordering::Acquire).as_ref() }.unwrap_or(&NOTHING)
}

/// Checks the parameters and puts them in force, for good.
pub(crate) fn set(text: &[u8]) -> Result<(), Complaint> {
    let text: &'static [u8] = keep(text)?;
    let params = parse(text)?;
    let at = map(size_of::<Params>())?.cast::<Params>();
    // SAFETY: mapped for this, large enough, page-aligned and ours alone.
    unsafe { at.write(params) };
    PARAMS.store(at, Ordering::Release);
    Ok(())
}

fn keep(text: &[u8]) -> Result<&'static [u8], Complaint> {
    let at = map(text.len() + 1)?;
    // SAFETY: mapped with this length and zeroed, so that a NUL follows; ours alone, never unmapped.
    unsafe {
        at.copy_from_nonoverlapping(text.as_ptr(), text.len());
        Ok(core::slice::from_raw_parts(at, text.len()))
    }
}

/// Zeroed memory for the rest of the process's life.
pub(crate) fn map(len: usize) -> Result<*mut u8, Complaint> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice touches nobody's memory.
    let at = unsafe { mmap_anonymous(core::ptr::null_mut(), len, protection, flags) };
    at.map(|at| at.cast()).map_err(|_| "no memory for the probe in this process")
}

/// Gives back what [`map`] gave.
///
/// # Safety
///
/// It was mapped with this length, and nobody uses it.
pub(crate) unsafe fn unmap(at: *mut u8, len: usize) {
    // SAFETY: the caller's promise.
    let _ = unsafe { munmap(at.cast(), len) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_parameter() {
        let text = b"out_socket_path=/s\0max_fds=9\0max_bytes=0\0out_sock_type=stream\0socket_path=/a=b\0socket_path=@c\0ignore_fd=3\0";
        let params = parse(text).unwrap();
        assert_eq!(params.out_socket_path, b"/s");
        assert_eq!((params.max_fds, params.max_bytes, params.transport), (9, 0, Transport::Stream));
        assert_eq!(params.socket_paths().iter().collect::<Vec<_>>(), [&b"/a=b"[..], b"@c"]);
        assert!(params.ignored().eq([3]));
    }

    #[test]
    fn a_complaint_names_the_parameter() {
        let complaint = |text: &'static [u8]| parse(text).unwrap_err();
        assert!(complaint(b"max_fds=1\0").starts_with("out_socket_path: required"));
        assert!(complaint(b"out_socket_path=/s\0max_fds=0\0").starts_with("max_fds:"));
        assert!(complaint(b"out_socket_path=/s\0max_bytes=-1\0").starts_with("max_bytes:"));
        assert!(complaint(b"out_socket_path=/s\0out_sock_type=tcp\0").starts_with("out_sock_type:"));
        assert!(parse(&[&b"out_socket_path=/"[..], &[b'x'; 107]].concat().leak()[..]).is_err());
    }
}
