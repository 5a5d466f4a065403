//! The whole of `socktrace-server`, for the two commands that are it.

use std::path::Path;

use anyhow::Result;

use crate::{Contents, Recorder, SockType, Stop, listen, notice, raise_descriptor_limit, receive};

/// Binds the socket at `sock_path` and records into `out_dir` what agents send, until SIGINT or SIGTERM.
///
/// # Errors
///
/// One line that names the path and says what to do, or a failure of the socket.
pub fn serve(sock_path: &Path, out_dir: &Path, sock_type: SockType, contents: Contents) -> Result<()> {
    raise_descriptor_limit();
    let stop = Stop::on_signals()?;
    let bound = listen::bind(sock_path, sock_type)?;
    let mut recorder = Recorder::open(out_dir, contents)?;
    recorder.begin(&bound)?;
    let (sock, out_dir) = (sock_path.display(), out_dir.display());
    notice(&format!("listening on {sock} ({sock_type}), recording into {out_dir}"));
    let reason = receive::run(&bound, &stop, &mut recorder)?;
    recorder.finish(reason);
    Ok(())
}
