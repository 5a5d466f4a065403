//! socktrace under socktrace, as in a test suite that uses it and is traced itself.
//!
//! A process has room for one probe: two would each take the other's descriptors for the program's. So the programs of the
//! inner one have its probe alone, and it hands every frame on to the outer one's collector. Each records all of it, once.

use std::env;
use std::ffi::{CStr, OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use gttr::{Ext, ExtWriter, Extensions, Frame, FrameType};
use socktrace_event::{End, Event, PathError, Sink, Taken, errno, notice};
use socktrace_params::OUT_SOCKET_PATH;

use crate::place::SOCKET;
use crate::{agent, gadget, preload};

/// So many bytes are handed on at once.
const HAND_ON_LEN: usize = 64 << 10;
/// How long a collector that does not read is waited for, as a probe waits for it (`--max-wait`).
const MAX_WAIT: Duration = Duration::from_secs(1);

/// Has the probe of an outer socktrace in this process be quiet, and takes it out of the environment of the programs that are
/// executed from here on: they are this one's to trace, and what it does for that is nobody else's traffic. Returns the outer
/// one's collector. Nothing happens where there is none, or where it traces this process alone.
///
/// To be called while there is no other thread.
pub fn leave_outer() -> Option<Outer> {
    let list = env::var_os("LD_PRELOAD").unwrap_or_default();
    let (ours, others): (Vec<_>, Vec<_>) = entries(&list).into_iter().partition(|entry| is_of_socktrace(entry));
    // Frida has put it into us, and it puts itself into what we execute.
    let followed_by = quieten_probe();
    let library = ours.first().map(|entry| PathBuf::from(OsStr::from_bytes(entry))).or(followed_by)?;
    if !ours.is_empty() {
        let rest = others.join(&b':');
        // SAFETY: no other thread reads the environment.
        unsafe {
            match rest.is_empty() {
                true => env::remove_var("LD_PRELOAD"),
                false => env::set_var("LD_PRELOAD", OsString::from_vec(rest)),
            }
        }
    }
    Some(Outer { socket: socket_of(&library)? })
}

/// Items of LD_PRELOAD (ld.so(8)).
fn entries(list: &OsStr) -> Vec<&[u8]> {
    list.as_bytes().split(|&byte| byte == b':' || byte == b' ').filter(|entry| !entry.is_empty()).collect()
}

fn is_of_socktrace(entry: &[u8]) -> bool {
    let path = Path::new(OsStr::from_bytes(entry));
    let is_gadget = path.ends_with(gadget::GADGET) && path.with_file_name(agent::AGENT).exists();
    path.ends_with(preload::PROBE) || is_gadget
}

/// Where the collector listens whose library this is; None if it has ended.
fn socket_of(library: &Path) -> Option<PathBuf> {
    if library.ends_with(gadget::GADGET) {
        return Some(library.with_file_name(SOCKET));
    }
    let parameters = fs::read(library.with_file_name(preload::PARAMETERS)).ok()?;
    let (_, path) = socktrace_params::entries(&parameters).find(|(name, _)| *name == OUT_SOCKET_PATH.as_bytes())?;
    Some(PathBuf::from(OsStr::from_bytes(path)))
}

/// Makes the hooks of the probe in this process quiet, if there is one that traces the programs that are executed, too;
/// returns the library that it has them load.
fn quieten_probe() -> Option<PathBuf> {
    // SAFETY: finds a library that is loaded, by the name that it gives itself; its functions take nothing.
    unsafe {
        let probe = libc::dlopen(c"socktrace-probe.so".as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD);
        if probe.is_null() {
            return None;
        }
        let [followed_by, stop] =
            [c"socktrace_followed_by", c"socktrace_stop"].map(|name| libc::dlsym(probe, name.as_ptr()));
        if followed_by.is_null() || stop.is_null() {
            return None;
        }
        let path = std::mem::transmute::<*mut libc::c_void, extern "C" fn() -> *const libc::c_char>(followed_by)();
        if path.is_null() {
            return None;
        }
        let path = PathBuf::from(OsStr::from_bytes(CStr::from_ptr(path).to_bytes()));
        std::mem::transmute::<*mut libc::c_void, extern "C" fn()>(stop)();
        Some(path)
    }
}

/// The collector of a socktrace that this one runs under.
#[derive(Debug)]
pub struct Outer {
    socket: PathBuf,
}

impl Outer {
    /// Connects to it; None if it has ended.
    pub fn connect(&self) -> Option<Relay> {
        let bytes = self.socket.as_os_str().as_bytes();
        let address = match bytes.strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(&self.socket),
        };
        let socket = UnixStream::connect_addr(&address.ok()?).ok()?;
        socket.set_write_timeout(Some(MAX_WAIT)).ok()?;
        Some(Relay { socket, waiting: Vec::new(), has_failed: false })
    }
}

/// Hands frames on.
#[derive(Debug)]
pub struct Relay {
    socket: UnixStream,
    waiting: Vec<u8>,
    has_failed: bool,
}

impl Sink for Relay {
    type Error = PathError;

    /// What is no frame is not handed on.
    fn event(&mut self, _: &Event<'_>, _: &[u8]) -> Taken<PathError> {
        Ok(())
    }

    /// Takes a frame as it came.
    fn frame(&mut self, frame: &Frame<'_>, _: Option<&Event<'_>>) -> Taken<PathError> {
        // A ring came with a descriptor, which is not handed on, but what is in it.
        if self.has_failed || frame.kind == FrameType::Ring {
            return Ok(());
        }
        let mut values = Vec::new();
        let frame = match frame.host_pid.filter(|&pid| pid != 0) {
            // Whoever receives it is told by the kernel that it is from us, and takes its number for one of here.
            Some(pid) => {
                // A number takes as much room as another.
                values.resize(frame.ext.bytes().len(), 0);
                Frame { ext: with_pid(frame.ext, pid, &mut values), ..*frame }
            }
            None => *frame,
        };
        let at = self.waiting.len();
        self.waiting.resize(at + frame.encoded_len(), 0);
        if frame.encode(&mut self.waiting[at..]).is_err() {
            // It came as a frame, so that it fits one.
            self.waiting.truncate(at);
        }
        if self.waiting.len() >= HAND_ON_LEN {
            self.hand_on();
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<bool, End<PathError>> {
        self.hand_on();
        Ok(true)
    }
}

impl Relay {
    /// Hands on what there is.
    fn hand_on(&mut self) {
        if self.has_failed || self.waiting.is_empty() {
            return;
        }
        if let Err(error) = self.socket.write_all(&self.waiting) {
            // Part of a frame may have gone out: nothing that follows would be understood.
            self.has_failed = true;
            notice(&format!(
                "LOST: the socktrace that this one runs under gets no more of what is recorded here: {}",
                errno::explain(&error)
            ));
        }
        self.waiting.clear();
    }
}

fn with_pid<'v>(ext: Extensions<'_>, pid: u32, room: &'v mut [u8]) -> Extensions<'v> {
    let mut writer = ExtWriter::new(&mut *room);
    for value in ext.iter() {
        writer.put(if let Ext::Pid(_) = value { Ext::Pid(pid) } else { value });
    }
    let len = writer.bytes().len();
    // What a writer has made is well-formed.
    Extensions::parse(&room[..len]).unwrap_or(Extensions::EMPTY)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn whose_libraries_are_preloaded() {
        let list = OsStr::new("libfaketime.so:/run/socktrace/1-a/socktrace-probe.so /x/frida-gadget.so");
        let of_socktrace: Vec<_> = entries(list).into_iter().map(is_of_socktrace).collect();
        // A Gadget that socktrace has not put there is the user's own.
        assert_eq!(of_socktrace, [false, true, false]);
    }

    #[test]
    fn where_the_outer_one_listens() {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join(preload::PROBE);
        assert_eq!(socket_of(&library), None);
        fs::write(folder.path().join(preload::PARAMETERS), b"max_fds=1\0out_socket_path=@x\0").unwrap();
        assert_eq!(socket_of(&library), Some("@x".into()));
        assert_eq!(socket_of(&folder.path().join(gadget::GADGET)), Some(folder.path().join("sock")));
    }

    #[test]
    fn frames_are_handed_on_with_the_number_of_here() {
        let (socket, mut other) = UnixStream::pair().unwrap();
        let mut relay = Relay { socket, waiting: Vec::new(), has_failed: false };
        let mut room = [0; 64];
        let mut writer = ExtWriter::new(&mut room);
        writer.put(Ext::Seq(9));
        writer.put(Ext::Pid(1));
        let frame = Frame { payload: b"text", ext: writer.finish(), ..Frame::new(FrameType::Data, 5) };
        relay.frame(&frame, None).unwrap();
        relay.frame(&Frame { host_pid: Some(70), ..frame }, None).unwrap();
        relay.flush().unwrap();
        drop(relay);
        let mut bytes = Vec::new();
        other.read_to_end(&mut bytes).unwrap();
        let (first, second) = bytes.split_at(frame.encoded_len());
        let [first, second] = [first, second].map(|bytes| gttr::decode_datagram(bytes).unwrap());
        assert_eq!((first.pid(), second.pid(), second.payload), (Some(1), Some(70), &b"text"[..]));
        assert!(second.ext.iter().any(|value| value == Ext::Seq(9)));
    }
}
