//! A small disk, which may be full or read-only.

use std::ffi::CStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

/// Whose files are not the test's: `nobody`.
pub const OTHER_USER: u32 = 65534;

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A file system in memory. It goes away with the value.
pub struct Disk(PathBuf);

impl Disk {
    /// Needs root.
    pub fn mount_in(dir: &Path, name: &str, size: &CStr) -> Self {
        let at = dir.join(name);
        fs::create_dir(&at).unwrap();
        mount("tmpfs", &at, "tmpfs", MountFlags::empty(), size).unwrap();
        Self(at)
    }

    pub fn fill(&self) {
        let mut filler = fs::File::create(self.0.join("filler")).unwrap();
        while filler.write_all(&[0; 4096]).is_ok() {}
    }

    pub fn make_read_only(&self) {
        mount_remount(&self.0, MountFlags::RDONLY, c"").unwrap();
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}
