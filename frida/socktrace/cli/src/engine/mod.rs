//! Ways for the probe to get into a program, and what they share: a private directory with the collector's socket and
//! whatever the program has to load.

pub mod child;
pub mod frida;
pub mod gadget;
pub mod gate;
pub mod preload;

use std::env;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{StatVfsMountFlags, statvfs};
use socktrace_server::{Bound, SockType, listen};
use tempfile::TempDir;

use crate::args::{CaptureArgs, OnFullArg, TransportArg};

/// A program that changes its user still has to load the probe.
const FOLDER_MODE: u32 = 0o755;
/// From a program's look for the parameters to the dynamic linker's for the library: an execve(2), on a busy machine.
const GRACE: Duration = Duration::from_millis(100);
/// What is taken when TMPDIR cannot be.
const CANDIDATES: [&str; 4] = ["/tmp", "/var/tmp", "/dev/shm", "."];
/// Bytes of `sun_path` less its NUL, and less the random folder's name and the socket's (unix(7)).
const MAX_PARENT_LEN: usize = 107 - "/socktrace-123456/sock".len();

/// The directory, removed at the end.
#[derive(Debug)]
pub struct Place {
    folder: TempDir,
}

/// The directory's removal, under way.
#[derive(Debug)]
pub struct Removal {
    nobody_left: mpsc::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl Removal {
    /// Waits for its end, which is at once if no process is left that could execute a program.
    pub fn finish(self, processes_go_on: bool) {
        if !processes_go_on {
            drop(self.nobody_left);
        }
        // A directory that is not removed is all that can come of it.
        let _ = self.thread.join();
    }
}

impl Place {
    /// # Errors
    ///
    /// No directory will do.
    pub fn new() -> Result<Self> {
        let wished = env::var_os("TMPDIR").map(PathBuf::from).filter(|path| path.is_absolute());
        let candidates = wished.into_iter().chain(CANDIDATES.iter().map(PathBuf::from));
        let mut why = Vec::new();
        for parent in candidates {
            let made = suits(&parent).and_then(|parent| {
                let folder = tempfile::Builder::new().prefix("socktrace-").tempdir_in(parent);
                folder.context("cannot make a folder there")
            });
            match made {
                Ok(folder) => {
                    fs::set_permissions(folder.path(), Permissions::from_mode(FOLDER_MODE))?;
                    return Ok(Self { folder });
                }
                Err(error) => why.push(format!("{}: {error:#}", parent.display())),
            }
        }
        bail!("no place for the probe, set TMPDIR to one: {}", why.join("; "))
    }

    /// Takes the probe away from programs that are executed from here on, and removes the directory a moment later:
    /// they look for the parameters (probe/src/exec.rs) before the dynamic linker looks for the library.
    pub fn remove(self) -> Removal {
        // There may be none: without --children nothing is loaded from here.
        let _ = fs::remove_file(self.path(preload::PARAMETERS));
        let (nobody_left, told) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            // Ended by time, or by `nobody_left` being dropped.
            let _ = told.recv_timeout(GRACE);
            drop(self);
        });
        Removal { nobody_left, thread }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Binds the collector's socket.
    ///
    /// # Errors
    ///
    /// One line that names the path.
    pub fn bind(&self) -> Result<Bound> {
        listen::bind(&self.path("sock"), SockType::Stream)
    }

    fn write(&self, name: &str, bytes: &[u8], mode: u32) -> Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, bytes).with_context(|| format!("{}: cannot be written", path.display()))?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
        Ok(path)
    }
}

/// A folder, by its absolute path, from which programs can load libraries that LD_PRELOAD names.
fn suits(parent: &Path) -> Result<PathBuf> {
    let parent = fs::canonicalize(parent)?;
    let bytes = parent.as_os_str().as_bytes();
    if bytes.len() > MAX_PARENT_LEN {
        bail!("its path is too long for a socket's");
    }
    // ld.so(8): the list's items are separated by spaces or colons, and there is no way to escape them.
    if bytes.iter().any(|&b| b == b':' || b.is_ascii_whitespace()) || parent.to_str().is_none() {
        bail!("a path with spaces, colons or bytes that are no UTF-8 does not do for LD_PRELOAD");
    }
    if statvfs(&parent)?.f_flag.contains(StatVfsMountFlags::NOEXEC) {
        bail!("mounted noexec");
    }
    Ok(parent)
}

/// What a probe is told, whichever way it gets in.
#[derive(Debug)]
pub struct Parameters {
    pub socket: PathBuf,
    pub max_bytes: u64,
    pub max_fds: u32,
    pub follow_children: bool,
    pub transport: TransportArg,
    pub on_full: OnFullArg,
    /// In milliseconds.
    pub max_wait: u32,
    /// In bytes.
    pub ring_size: u32,
    /// Where [`preload::prepare`] puts the probe, for programs that are executed.
    pub probe: PathBuf,
}

impl Parameters {
    /// `on_full` is what is done unless the command line says otherwise.
    pub fn new(place: &Place, capture: &CaptureArgs, on_full: OnFullArg, follow_children: bool) -> Self {
        let CaptureArgs { max_bytes, max_fds, transport, max_wait, ring_size, .. } = *capture;
        let on_full = capture.on_full.unwrap_or(on_full);
        let (socket, probe) = (place.path("sock"), place.path(preload::PROBE));
        Self { socket, max_bytes, max_fds, follow_children, transport, on_full, max_wait, ring_size, probe }
    }

    fn transport(&self) -> &'static str {
        match self.transport {
            TransportArg::Shm => "shm",
            TransportArg::Stream => SockType::Stream.name(),
        }
    }

    fn on_full(&self) -> &'static str {
        match self.on_full {
            OnFullArg::Block => "block",
            OnFullArg::Drop => "drop",
        }
    }

    /// As the preloaded probe reads them: `key=value` texts, a NUL behind each.
    fn to_text(&self) -> Vec<u8> {
        let mut text = b"out_socket_path=".to_vec();
        text.extend_from_slice(self.socket.as_os_str().as_bytes());
        let values = [
            ("out_sock_type", self.transport().to_owned()),
            ("max_fds", self.max_fds.to_string()),
            ("max_bytes", self.max_bytes.to_string()),
            ("on_full", self.on_full().to_owned()),
            ("max_wait_ms", self.max_wait.to_string()),
            ("ring_bytes", self.ring_size.to_string()),
            ("follow_children", u8::from(self.follow_children).to_string()),
        ];
        text.push(0);
        for (key, value) in values {
            text.extend_from_slice(format!("{key}={value}\0").as_bytes());
        }
        text
    }

    /// As agent.js takes them.
    fn to_json(&self) -> serde_json::Value {
        // `suits` sees to it that paths are UTF-8.
        let text = |path: &Path| path.to_str().unwrap_or_default().to_owned();
        serde_json::json!({
            "out_socket_path": text(&self.socket),
            "out_sock_type": self.transport(),
            "max_fds": self.max_fds,
            "max_bytes": self.max_bytes,
            "on_full": self.on_full(),
            "max_wait_ms": self.max_wait,
            "ring_bytes": self.ring_size,
            "preload": if self.follow_children { text(&self.probe) } else { String::new() },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_as_the_probe_reads_them() {
        let (socket, probe) = ("/tmp/d/sock".into(), "/tmp/d/p.so".into());
        let parameters = Parameters {
            socket,
            max_bytes: 7,
            max_fds: 9,
            follow_children: true,
            transport: TransportArg::Shm,
            on_full: OnFullArg::Drop,
            max_wait: 8,
            ring_size: 65536,
            probe,
        };
        let expected = "out_socket_path=/tmp/d/sock\0out_sock_type=shm\0max_fds=9\0max_bytes=7\0on_full=drop\0\
                        max_wait_ms=8\0ring_bytes=65536\0follow_children=1\0";
        assert_eq!(String::from_utf8(parameters.to_text()).unwrap(), expected);
        assert_eq!(parameters.to_json()["preload"], "/tmp/d/p.so");
    }

    #[test]
    fn places() {
        let folder = tempfile::tempdir().unwrap();
        let with = |name: &str| {
            let path = folder.path().join(name);
            fs::create_dir(&path).unwrap();
            suits(&path)
        };
        assert!(with("plain").is_ok());
        assert!(with("with space").is_err() && with("with:colon").is_err() && with(&"long".repeat(30)).is_err());
    }
}
