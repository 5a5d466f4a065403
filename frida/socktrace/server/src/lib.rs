//! The whole of `socktrace-server`, for the two commands that are it.

#![forbid(unsafe_code)]

use std::path::Path;

use anyhow::Result;
use socktrace_collect::{SockType, listen, raise_descriptor_limit, stop_on_signals};
use socktrace_event::{End, Sink, Source, notice};
use socktrace_recording::{Contents, Recorder};

/// Binds the socket at `sock_path` and records into `out_dir` what agents send, until SIGINT or SIGTERM.
///
/// # Errors
///
/// One line that names the path and says what to do, or a failure of the socket.
pub fn serve(sock_path: &Path, out_dir: &Path, sock_type: SockType, contents: Contents) -> Result<()> {
    raise_descriptor_limit();
    let stop = stop_on_signals()?;
    let bound = listen::bind(sock_path, sock_type)?;
    let mut recorder = Recorder::open(out_dir, contents)?;
    if let Err(End::Failed(error)) = recorder.begin(&bound.origin()) {
        return Err(error.into());
    }
    let (sock, out_dir) = (sock_path.display(), out_dir.display());
    notice(&format!("listening on {sock} ({sock_type}), recording into {out_dir}"));
    let reason = bound.run(&stop, &mut recorder)?;
    Ok(recorder.finish(reason)?)
}
