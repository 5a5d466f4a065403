//! The output directory, and whose it and the files in it are.
//!
//! Payloads hold secrets. Whoever owns the directory or a file in it, or may write there, could read or change what is
//! recorded, so both are looked at through their descriptors before anything is written, and everything after that goes
//! by the directory's descriptor: what its path leads to later does not matter.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fchmod, fstat, open, openat};
use rustix::io::Errno;
use rustix::process::geteuid;
use socktrace_event::{PathError, errno};

/// The output directory is its owner's only.
const FOLDER_MODE: u32 = 0o700;
/// And so are the files in it.
pub(crate) const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// Permission of others to write, of which sharing the group is one.
const OTHERS_WRITE: Mode = Mode::WGRP.union(Mode::WOTH);
/// Any permission of others.
const OTHERS: Mode = Mode::RWXG.union(Mode::RWXO);

/// Opens an output directory; makes it, with mode 0700 and its parents, if there is none.
///
/// # Errors
///
/// One line that names the path and what to do: not a directory, not permitted, another user's, or one that others may
/// write to.
pub(crate) fn open_folder(folder: &Path) -> Result<OwnedFd, PathError> {
    if let Some((link, owner)) = link_of_another(folder) {
        let why =
            format!("a symbolic link that belongs to user {owner}, who may lead it elsewhere: choose another path");
        return Err(PathError::refused(&link, why));
    }
    make(folder)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let handle = openat(CWD, folder, flags, Mode::empty()).map_err(PathError::output(folder, "cannot be opened"))?;
    let stat = fstat(&handle).map_err(PathError::io(folder, "fstat(2)"))?;
    if !is_owner_trusted(stat.st_uid) {
        let why = format!(
            "belongs to user {}, who could read and change what is recorded: choose a directory of your own, or one that \
             does not exist yet",
            stat.st_uid
        );
        return Err(PathError::refused(folder, why));
    }
    let mode = Mode::from_raw_mode(stat.st_mode);
    if mode.intersects(OTHERS_WRITE) {
        let why = format!(
            "other users may write to it (mode {:04o}): chmod go-w it, or choose a directory that does not exist yet",
            mode.bits()
        );
        return Err(PathError::refused(folder, why));
    }
    Ok(handle)
}

/// Makes the directory and its parents, whatever the umask.
fn make(folder: &Path) -> Result<(), PathError> {
    // Each by itself: a umask that takes the owner's permissions away would end the way below the first.
    let missing: Vec<_> =
        folder.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists()).collect();
    let result =
        missing.into_iter().rev().try_for_each(|path| match DirBuilder::new().mode(FOLDER_MODE).create(path) {
            Ok(()) => keep_owners_permissions(path),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            Err(e) => Err(e),
        });
    match result {
        Ok(()) if folder.is_dir() => Ok(()),
        Err(e) if !matches!(e.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory) => {
            Err(PathError::output(folder, "cannot make the output directory")(e))
        }
        _ => Err(PathError::refused(folder, "not a directory: choose another path for the output")),
    }
}

/// A umask may have taken from a directory that was just made what its owner needs.
fn keep_owners_permissions(path: &Path) -> io::Result<()> {
    let handle = open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let stat = fstat(&handle)?;
    if stat.st_uid == geteuid().as_raw() && stat.st_mode & FOLDER_MODE != FOLDER_MODE {
        // What a descriptor that was opened by O_PATH leads to; fchmod(2) takes none.
        let itself = format!("/proc/self/fd/{}", handle.as_raw_fd());
        fs::set_permissions(itself, fs::Permissions::from_mode(FOLDER_MODE))?;
    }
    Ok(())
}

/// The first symbolic link on the way that somebody else can change, and its owner.
fn link_of_another(folder: &Path) -> Option<(PathBuf, u32)> {
    let mut ways: Vec<_> = folder.ancestors().filter(|path| !path.as_os_str().is_empty()).collect();
    ways.reverse();
    ways.into_iter().find_map(|path| {
        let metadata = fs::symlink_metadata(path).ok()?;
        let is_others = metadata.is_symlink() && !is_owner_trusted(metadata.uid());
        is_others.then(|| (path.to_owned(), metadata.uid()))
    })
}

/// Ours, or root's, who may read and change everything anyway.
fn is_owner_trusted(uid: u32) -> bool {
    uid == geteuid().as_raw() || uid == 0
}

/// Looks at a file of the directory before it is written to, and returns what it is.
///
/// # Errors
///
/// `ENODEV`: no regular file. `EPERM`: another user's, or others may write to it. What others may only read, if it was
/// made by something else than us, is closed to them.
pub(crate) fn check_file(file: impl AsFd) -> Result<Stat, Errno> {
    let stat = fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::NODEV);
    }
    let mode = Mode::from_raw_mode(stat.st_mode);
    if !is_owner_trusted(stat.st_uid) || mode.intersects(OTHERS_WRITE) {
        return Err(Errno::PERM);
    }
    // One that was just made lacks what the umask took, but is to be opened again.
    if mode.intersects(OTHERS) || !mode.contains(FILE_MODE) {
        fchmod(&file, FILE_MODE)?;
    }
    Ok(stat)
}

/// Why a file is refused, and what to do.
pub(crate) fn explain_refusal(error: Errno) -> String {
    match error {
        Errno::LOOP => "a symbolic link, which is not followed: remove it".into(),
        Errno::NODEV => "not a regular file: remove it or choose another output directory".into(),
        Errno::PERM | Errno::ACCESS => {
            "belongs to another user, or others may write to it: remove it or choose another output directory".into()
        }
        error => format!("cannot be opened: {}: choose another output directory", errno::explain(&error)),
    }
}
