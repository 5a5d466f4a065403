//! Output files that nobody but their owner can write to, whatever the umask; those that hold payload nobody else can read either.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::process::geteuid;
use socktrace_event::PathError;

/// Read and written by the owner: of a file that holds payload.
const PRIVATE: u32 = 0o600;
/// Made by mkdir(2) for what everybody may read.
const READABLE_FOLDER: u32 = 0o755;
/// Permission of the owner.
const OWNERS: u32 = 0o700;
/// Permission of others to write, of which sharing the group is one.
const OTHERS_WRITE: u32 = 0o022;
/// Any permission.
const PERMISSIONS: u32 = 0o7777;

const UNWRITABLE: &str = "cannot be written";

/// Opens a file to be written anew; made, if there is none, with mode 0600, whatever the umask.
///
/// A regular file that is there must be ours, and is closed to others; a device, a FIFO or a descriptor that somebody has
/// handed to us (`/dev/null`, `/dev/tty`, `/dev/stdout`, `/dev/fd/63`) is taken as it is.
///
/// # Errors
///
/// One line that names the file and says what to do.
pub fn create(path: &Path) -> Result<File, PathError> {
    create_with(path, PRIVATE)
}

/// Writes a file that holds no payload: it has these permissions at most, from its first moment, and no fewer of the
/// owner's.
///
/// # Errors
///
/// As [`create`].
pub fn write_readable(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PathError> {
    create_with(path, mode)?.write_all(bytes).map_err(PathError::output(path, UNWRITABLE))
}

/// Makes a folder that holds no payload, and its parents; others cannot write to what is made.
///
/// # Errors
///
/// One line that names the folder and says what to do.
pub fn make_readable_folder(path: &Path) -> Result<(), PathError> {
    let made = DirBuilder::new().recursive(true).mode(READABLE_FOLDER).create(path);
    made.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => PathError::unsuitable(path, "not a folder: choose another path"),
        _ => PathError::output(path, "cannot make the folder")(error),
    })
}

fn create_with(path: &Path, mode: u32) -> Result<File, PathError> {
    if let Some(file) = handed(path).map_err(PathError::output(path, UNWRITABLE))? {
        return Ok(file);
    }
    if let Ok(link) = fs::symlink_metadata(path)
        && link.is_symlink()
        && !is_trusted(link.uid())
    {
        let owner = link.uid();
        let why =
            format!("a symbolic link that belongs to user {owner}, who may lead it elsewhere: choose another file");
        return Err(PathError::refused(path, why));
    }
    // Not O_TRUNC: what is another's stays as it is.
    let open = || {
        File::options().write(true).create(true).mode(mode).custom_flags(OFlags::NOCTTY.bits().cast_signed()).open(path)
    };
    let file = open().map_err(PathError::output(path, UNWRITABLE))?;
    let stat = file.metadata().map_err(PathError::io(path, "fstat(2)"))?;
    if !stat.is_file() {
        return Ok(file);
    }
    if !is_trusted(stat.uid()) {
        let why = format!("belongs to user {}, who could read what is written: choose another file", stat.uid());
        return Err(PathError::refused(path, why));
    }
    if stat.mode() & OTHERS_WRITE != 0 {
        let open_mode = stat.mode() & PERMISSIONS;
        let why = format!("other users may write to it (mode {open_mode:04o}): chmod go-w it, or choose another file");
        return Err(PathError::refused(path, why));
    }
    let close_and_empty = || -> io::Result<()> {
        // Of one that was just made the umask may have taken what its owner needs.
        let wanted = (stat.mode() | OWNERS) & mode;
        if stat.mode() & PERMISSIONS != wanted {
            file.set_permissions(fs::Permissions::from_mode(wanted))?;
        }
        file.set_len(0)
    };
    close_and_empty().map_err(PathError::output(path, UNWRITABLE))?;
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
