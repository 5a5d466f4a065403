//! Output files that hold payload: for their owner only, and nobody else's.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::process::geteuid;

/// Read and written by the owner.
const FILE_MODE: u32 = 0o600;
/// Permission of others to write, of which sharing the group is one.
const OTHERS_WRITE: u32 = 0o022;
/// Any permission.
const PERMISSIONS: u32 = 0o7777;

/// Opens a file to be written anew; made, if there is none, with mode 0600, whatever the umask.
///
/// A regular file that is there must be ours, and is closed to others; a device, a FIFO or a descriptor that somebody has
/// handed to us (`/dev/null`, `/dev/tty`, `/dev/stdout`, `/dev/fd/63`) is taken as it is.
///
/// # Errors
///
/// One line that names the file and says what to do.
pub fn create(path: &Path) -> Result<File> {
    let shown = path.display();
    if let Some(file) = handed(path).with_context(|| format!("{shown}: cannot be written"))? {
        return Ok(file);
    }
    if let Ok(link) = fs::symlink_metadata(path)
        && link.is_symlink()
        && !is_trusted(link.uid())
    {
        bail!(
            "{shown}: a symbolic link that belongs to user {}, who may lead it elsewhere: choose another file",
            link.uid()
        );
    }
    // Not O_TRUNC: what is another's stays as it is.
    let open = || File::options().write(true).create(true).mode(FILE_MODE).custom_flags(libc::O_NOCTTY).open(path);
    let file = open().with_context(|| format!("{shown}: cannot be written"))?;
    let stat = file.metadata().with_context(|| format!("{shown}: fstat(2)"))?;
    if !stat.is_file() {
        return Ok(file);
    }
    if !is_trusted(stat.uid()) {
        bail!("{shown}: belongs to user {}, who could read what is written: choose another file", stat.uid());
    }
    if stat.mode() & OTHERS_WRITE != 0 {
        let mode = stat.mode() & PERMISSIONS;
        bail!("{shown}: other users may write to it (mode {mode:04o}): chmod go-w it, or choose another file");
    }
    let close_and_empty = || -> io::Result<()> {
        // Of one that was just made the umask may have taken what its owner needs.
        if stat.mode() & PERMISSIONS != FILE_MODE {
            file.set_permissions(fs::Permissions::from_mode(FILE_MODE))?;
        }
        file.set_len(0)
    };
    close_and_empty().with_context(|| format!("{shown}: cannot be written"))?;
    Ok(file)
}

/// A path that stands for a descriptor of ours. That is used itself: opened anew, a file would be written from its
/// beginning.
fn handed(path: &Path) -> io::Result<Option<File>> {
    let duplicate = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().map(|fd| Some(File::from(fd)));
    match path.to_str() {
        Some("/dev/stdout" | "/dev/fd/1" | "/proc/self/fd/1") => duplicate(io::stdout().as_fd()),
        Some("/dev/stderr" | "/dev/fd/2" | "/proc/self/fd/2") => duplicate(io::stderr().as_fd()),
        Some(text) if text.starts_with("/dev/fd/") || text.starts_with("/proc/self/fd/") => {
            File::options().write(true).open(path).map(Some)
        }
        _ => Ok(None),
    }
}

/// Ours, or root's, who may read and change everything anyway.
fn is_trusted(uid: u32) -> bool {
    uid == geteuid().as_raw() || uid == 0
}
