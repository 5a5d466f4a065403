//! Ways for the probe to get into a program, and what they share: a private directory with the collector's socket and
//! whatever the program has to load.

pub mod child;
pub mod frida;
pub mod gadget;
pub mod gate;
pub mod place;
pub mod preload;
mod seccomp;
pub mod target;

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use socktrace_collect::Bound;
use socktrace_params::{OnFull, Params, Transport};

use crate::args::CaptureArgs;
pub use place::{Place, SOCKET};

/// What a probe is told, whichever way it gets in.
#[derive(Debug)]
pub struct Parameters {
    pub socket: PathBuf,
    pub max_bytes: u64,
    pub max_fds: u32,
    pub follow_children: bool,
    pub transport: Transport,
    pub on_full: OnFull,
    /// In milliseconds.
    pub max_wait: u32,
    /// In bytes.
    pub ring_size: u32,
    /// Where [`preload::prepare`] puts the probe, for programs that are executed.
    pub probe: PathBuf,
}

impl Parameters {
    /// `on_full` is what is done unless the command line says otherwise.
    pub fn new(place: &Place, bound: &Bound, capture: &CaptureArgs, on_full: OnFull, follow_children: bool) -> Self {
        let CaptureArgs { max_bytes, max_fds, transport, max_wait, ring_size, .. } = *capture;
        let on_full = capture.on_full.unwrap_or(on_full);
        let (socket, probe) = (bound.path().to_owned(), preload::library(place));
        Self { socket, max_bytes, max_fds, follow_children, transport, on_full, max_wait, ring_size, probe }
    }

    /// As the preloaded probe reads them.
    fn to_text(&self) -> Vec<u8> {
        let params = Params {
            out_socket_path: self.socket.as_os_str().as_bytes(),
            transport: self.transport,
            max_fds: self.max_fds,
            max_bytes: self.max_bytes,
            on_full: self.on_full,
            max_wait_ms: self.max_wait.into(),
            ring_bytes: self.ring_size.into(),
            follow_children: self.follow_children,
            ..Params::DEFAULT
        };
        let mut text = Vec::new();
        params.write_to(&mut text);
        text
    }

    /// As agent.js takes them.
    fn to_json(&self) -> serde_json::Value {
        // `place::suits` sees to it that paths are UTF-8.
        let text = |path: &Path| path.to_str().unwrap_or_default().to_owned();
        serde_json::json!({
            "out_socket_path": text(&self.socket),
            "out_sock_type": self.transport.name(),
            "max_fds": self.max_fds,
            "max_bytes": self.max_bytes,
            "on_full": self.on_full.name(),
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
            transport: Transport::Shm,
            on_full: OnFull::Drop,
            max_wait: 8,
            ring_size: 65536,
            probe,
        };
        let expected = "out_socket_path=/tmp/d/sock\0out_sock_type=shm\0max_fds=9\0max_bytes=7\0on_full=drop\0\
                        max_wait_ms=8\0ring_bytes=65536\0follow_children=1\0";
        assert_eq!(String::from_utf8(parameters.to_text()).unwrap(), expected);
        assert_eq!(parameters.to_json()["preload"], "/tmp/d/p.so");
    }
}
