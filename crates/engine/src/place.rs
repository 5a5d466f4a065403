//! A folder for what programs load, and for the collector's socket, by a name that nobody else can ever have.
//!
//! LD_PRELOAD outlives us, in processes that are left behind and in whatever they pass it on to. Whoever could make our
//! folder anew, once it is removed, would have their code loaded there as the user who was traced. So it lies in a parent
//! folder that only we can write to, which in turn nobody else can remove, rename or make first, and which is never removed.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{
    AtFlags, FlockOperation, Mode, OFlags, Stat, StatVfsMountFlags, chmodat, fchmod, flock, fstat, fstatvfs, mkdirat,
    openat, statat,
};
use rustix::io::Errno;
use rustix::process::geteuid;
use socktrace_collect::{Bound, SockType, listen};
use socktrace_event::{PathError, errno};

use crate::{Error, preload};

/// A program that changes its user still has to load the probe: all may read and search, we alone write.
const FOLDER_MODE: Mode = Mode::from_raw_mode(0o755);
/// While it is made, whatever the umask.
const NEW_FOLDER_MODE: Mode = Mode::from_raw_mode(0o700);
const NEW_FILE_MODE: Mode = Mode::from_raw_mode(0o600);
/// Only our user may send to it.
const SOCKET_MODE: u32 = 0o600;
/// Name of the collector's socket.
pub const SOCKET: &str = "sock";
/// Writable by group or others.
const OTHERS_WRITE: u32 = 0o022;
/// In such a folder an entry is removed and renamed by its owner only (inode(7)).
const STICKY: u32 = 0o1000;
/// From a program's look for the parameters to the dynamic linker's for the library: an execve(2), on a busy machine.
const GRACE: Duration = Duration::from_millis(100);
/// Bytes of `sun_path` less its NUL, and less the folder's name and the socket's (unix(7)).
const MAX_PARENT_LEN: usize = 107 - "/4194304-123456/sock".len();
/// How many names of a parent folder are tried where others may have made it first.
const MAX_CLAIMED: usize = 16;
/// Names tried for a folder, of which another process of ours may have the one or other.
const MAX_NAMES: u32 = 64;

/// The folder, removed at the end. While it is in use we hold a lock on it (flock(2)).
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    folder: OwnedFd,
    /// Takes away what others of our user have left behind.
    cleaning: Option<thread::JoinHandle<()>>,
}

/// The removal of what was prepared, under way; by default there is nothing to be removed.
#[derive(Debug, Default)]
pub struct Removal(Option<(mpsc::Sender<()>, thread::JoinHandle<()>)>);

impl Removal {
    /// Waits for its end, which is at once if no process is left that could execute a program.
    pub fn finish(self, processes_go_on: bool) {
        let Some((nobody_left, thread)) = self.0 else { return };
        if !processes_go_on {
            drop(nobody_left);
        }
        // A folder that is not removed is all that can come of it.
        let _ = thread.join();
    }
}

/// A folder will not do, and why.
fn unfit<T>(why: impl Into<String>) -> io::Result<T> {
    Err(io::Error::other(why.into()))
}

fn cannot_make(error: Errno) -> io::Error {
    io::Error::other(format!("cannot make a folder there: {}", errno::explain(&error)))
}

impl Place {
    pub fn new() -> Result<Self, Error> {
        let mut why = Vec::new();
        for base in bases() {
            match parent_in(&base).and_then(|parent| Self::in_parent(&parent)) {
                Ok(place) => return Ok(place),
                Err(error) => why.push(format!("{}: {}", base.path.display(), errno::explain(&error))),
            }
        }
        Err(Error::NoPlace(why.join("; ")))
    }

    fn in_parent(parent: &Path) -> io::Result<Self> {
        let parent_fd = File::open(parent)?;
        let (folder, name) = make_folder(&parent_fd)?;
        let path = parent.join(name);
        let cleaning = clean(parent);
        Ok(Self { path, folder, cleaning })
    }

    /// Takes the probe away from programs that are executed from here on, and removes the folder a moment later:
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
        Removal(Some((nobody_left, thread)))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Binds the collector's socket.
    pub fn bind(&self) -> Result<Bound, PathError> {
        let bound = listen::bind(&self.path(SOCKET), SockType::Stream)?;
        // The umask may have left out what we need ourselves.
        let mode = Permissions::from_mode(SOCKET_MODE);
        fs::set_permissions(bound.path(), mode).map_err(PathError::io(bound.path(), "chmod(2)"))?;
        Ok(bound)
    }

    /// The same by an address that has no path, for processes that cannot reach the folder.
    pub fn bind_abstract(&self) -> Result<Bound, PathError> {
        let random = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
        listen::bind_abstract(&format!("socktrace-{}-{}", std::process::id(), random.trim()))
    }

    /// Makes a file, which nobody else can write to at any moment.
    pub fn write(&self, name: &str, bytes: &[u8], mode: u32) -> Result<PathBuf, Error> {
        let path = self.path(name);
        let write = || {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = File::from(openat(&self.folder, name, flags, NEW_FILE_MODE)?);
            file.write_all(bytes)?;
            file.set_permissions(Permissions::from_mode(mode))
        };
        write().map_err(PathError::io(&path, "cannot be written"))?;
        Ok(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(cleaning) = self.cleaning.take() {
            let _ = cleaning.join();
        }
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Where a parent folder may lie.
#[derive(Debug)]
struct Base {
    path: PathBuf,
    /// Whether it will do if everybody can make folders there.
    may_be_shared: bool,
    /// Whether the path is the system's, and not a user's choice.
    is_system: bool,
}

/// In the order of preference: first where nobody else can make anything, so that also what has been removed, by whomever,
/// cannot be made again.
fn bases() -> Vec<Base> {
    let variable = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let is_root = geteuid().is_root();
    let ours = |path: PathBuf| Base { path, may_be_shared: false, is_system: false };
    let system = |path: &str, may_be_shared| Base { path: path.into(), may_be_shared, is_system: true };
    let shared = |path: PathBuf| Base { path, may_be_shared: true, is_system: false };
    let mut bases: Vec<_> = variable("TMPDIR").map(ours).into_iter().collect();
    if is_root {
        // Debian mounts /run noexec.
        bases.extend([system("/run", false), system("/var/cache", false)]);
    } else {
        bases.extend(variable("XDG_RUNTIME_DIR").map(ours));
        bases.extend(variable("HOME").map(|home| ours(home.join(".cache"))));
    }
    bases.extend(variable("TMPDIR").map(shared));
    bases.extend(["/tmp", "/var/tmp", "/dev/shm"].map(|path| system(path, true)));
    bases.push(ours(".".into()));
    bases
}

/// Makes or finds the parent folder there, from whose folders programs can load libraries that LD_PRELOAD names.
fn parent_in(base: &Base) -> io::Result<PathBuf> {
    let path = fs::canonicalize(&base.path)?;
    let (fd, is_shared) = open_trusted(&path, base)?;
    if fstatvfs(&fd)?.f_flag.contains(StatVfsMountFlags::NOEXEC) {
        return unfit("mounted noexec");
    }
    let names: Vec<String> = match is_shared {
        false => vec!["socktrace".into()],
        true => {
            let own = format!("socktrace-{}", geteuid().as_raw());
            (0..MAX_CLAIMED).map(|n| if n == 0 { own.clone() } else { format!("{own}.{n}") }).collect()
        }
    };
    let mut claimed = None;
    for name in names {
        let parent = path.join(&name);
        suits(&parent)?;
        match own_folder(&fd, &name) {
            Ok(()) => return Ok(parent),
            Err(error) => claimed = Some(error),
        }
    }
    Err(claimed.unwrap_or_else(|| io::Error::other("no name left")))
}

/// Whether LD_PRELOAD and a socket's address can have it.
fn suits(parent: &Path) -> io::Result<()> {
    let bytes = parent.as_os_str().as_bytes();
    if bytes.len() > MAX_PARENT_LEN {
        return unfit("its path is too long for a socket's");
    }
    // ld.so(8): the list's items are separated by spaces or colons, and there is no way to escape them.
    if bytes.iter().any(|&b| b == b':' || b.is_ascii_whitespace()) || parent.to_str().is_none() {
        return unfit("a path with spaces, colons or bytes that are no UTF-8 does not do for LD_PRELOAD");
    }
    Ok(())
}

/// Opens a folder that nobody but us and root can put another in the place of, and says whether all can make entries in it.
fn open_trusted(path: &Path, base: &Base) -> io::Result<(OwnedFd, bool)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut fd = openat(rustix::fs::CWD, "/", flags, Mode::empty())?;
    let mut at = PathBuf::from("/");
    let strangers = base.is_system && is_root_unknown();
    let mut components = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name),
        _ => None,
    });
    loop {
        let stat = fstat(&fd)?;
        let next = components.next();
        let is_owner_trusted = stat.st_uid == 0 || stat.st_uid == geteuid().as_raw() || strangers;
        if !is_owner_trusted {
            return unfit(format!("{} belongs to another user (uid {})", at.display(), stat.st_uid));
        }
        let is_shared = stat.st_mode & OTHERS_WRITE != 0;
        match next {
            None if is_shared && !(base.may_be_shared && stat.st_mode & STICKY != 0) => {
                return unfit("others can write to it");
            }
            None => return Ok((fd, is_shared)),
            // What is removed from there, everybody can make anew.
            Some(_) if is_shared => return unfit(format!("others can write to {}", at.display())),
            Some(name) => {
                fd = openat(&fd, name, flags, Mode::empty())?;
                at.push(name);
            }
        }
    }
}

/// Whether we are in a user namespace in which root has no name, so that what is the system's seems to be nobody's
/// (user_namespaces(7)).
fn is_root_unknown() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let numbers: Vec<_> = map.split_whitespace().collect();
    !numbers.is_empty() && numbers != ["0", "0", "4294967295"]
}

/// Makes a folder, or takes the one that is there, if it is ours. Only we can write to it from here on.
fn own_folder(base: &OwnedFd, name: &str) -> io::Result<()> {
    match mkdirat(base, name, NEW_FOLDER_MODE) {
        // Ours, and nobody else can have put something in its place. The umask may have taken our own rights, too.
        Ok(()) => chmodat(base, name, FOLDER_MODE, AtFlags::empty())?,
        Err(Errno::EXIST) => {}
        Err(error) => return Err(cannot_make(error)),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = match openat(base, name, flags, Mode::empty()) {
        Err(Errno::NOTDIR | Errno::LOOP) => return unfit(format!("{name} there is no folder")),
        opened => opened
            .map_err(|error| io::Error::other(format!("{name} there cannot be opened: {}", errno::explain(&error))))?,
    };
    let stat = fstat(&folder)?;
    if stat.st_uid != geteuid().as_raw() {
        return unfit(format!("{name} there belongs to another user (uid {})", stat.st_uid));
    }
    if Mode::from_raw_mode(stat.st_mode) != FOLDER_MODE {
        fchmod(&folder, FOLDER_MODE)?;
    }
    Ok(())
}

/// Makes a folder for us alone and locks it.
fn make_folder(parent: &File) -> io::Result<(OwnedFd, OsString)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.subsec_nanos());
    for n in 0..MAX_NAMES {
        // Whose it is can be seen; nobody else can make any, so it need not be guessed with difficulty.
        let name = format!("{}-{:06x}", std::process::id(), seed.wrapping_add(n) & 0x00ff_ffff);
        match mkdirat(parent, &*name, NEW_FOLDER_MODE) {
            Ok(()) => {}
            Err(Errno::EXIST) => continue,
            Err(error) => return Err(cannot_make(error)),
        }
        // Until it is locked, another process of ours may take it for one that was left behind.
        if chmodat(parent, &*name, FOLDER_MODE, AtFlags::empty()).is_err() {
            continue;
        }
        let Ok(folder) = openat(parent, &*name, flags, Mode::empty()) else { continue };
        if is_locked_elsewhere(&folder) || !leads_to(parent, &name, &fstat(&folder)?) {
            continue;
        }
        return Ok((folder, name.into()));
    }
    unfit("cannot make a folder there: others are being made and removed all the time")
}

/// Locks it, if nobody has. Where there are no locks (NFS, say) nobody has, and nothing is taken away.
fn is_locked_elsewhere(folder: &OwnedFd) -> bool {
    flock(folder, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK)
}

fn leads_to(parent: impl AsFd, name: &str, stat: &Stat) -> bool {
    let found = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
    found.is_ok_and(|found| (found.st_dev, found.st_ino) == (stat.st_dev, stat.st_ino))
}

/// Takes away the folders whose processes were killed: those of ours that nobody holds a lock on. As in [`Place::remove`],
/// what programs look for first goes first.
fn clean(parent: &Path) -> Option<thread::JoinHandle<()>> {
    let left: Vec<_> = fs::read_dir(parent).ok()?.flatten().filter_map(|entry| left_behind(&entry.path())).collect();
    if left.is_empty() {
        return None;
    }
    let remove = move || {
        left.iter().for_each(|(path, _)| {
            let _ = fs::remove_file(path.join(preload::PARAMETERS));
        });
        thread::sleep(GRACE);
        left.iter().for_each(|(path, _)| {
            let _ = fs::remove_dir_all(path);
        });
    };
    thread::Builder::new().name("clean".into()).spawn(remove).ok()
}

/// A folder that was left behind, and our lock on it.
fn left_behind(path: &Path) -> Option<(PathBuf, OwnedFd)> {
    let is_ours_by_name = |name: &OsStr| name.to_str().is_some_and(|name| name.contains('-'));
    if !path.file_name().is_some_and(is_ours_by_name) {
        return None;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = openat(rustix::fs::CWD, path, flags, Mode::empty()).ok()?;
    let is_ours = fstat(&folder).is_ok_and(|stat| stat.st_uid == geteuid().as_raw());
    let is_free = is_ours && flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok();
    is_free.then(|| (path.to_owned(), folder))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    /// A folder that others cannot reach into; those of tempfile lie in a shared one.
    fn base(path: PathBuf, may_be_shared: bool) -> Base {
        Base { path, may_be_shared, is_system: false }
    }

    /// A folder where nobody else can put anything in the way to it; none, if there is no place for one here.
    fn private() -> Option<tempfile::TempDir> {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
        let mut candidates = vec![target];
        candidates.extend(["HOME", "XDG_RUNTIME_DIR"].into_iter().filter_map(env::var_os).map(PathBuf::from));
        candidates.push("/run".into());
        let made = candidates.into_iter().filter_map(|path| fs::canonicalize(path).ok()).find_map(|path| {
            open_trusted(&path, &base(path.clone(), false)).ok()?;
            tempfile::tempdir_in(path).ok()
        });
        if made.is_none() {
            eprintln!("SKIPPED: there is no folder here that only its user can write to, with all that it lies in");
        }
        made
    }

    fn fd(path: &Path) -> OwnedFd {
        File::open(path).unwrap().into()
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn paths_that_ld_so_and_sockets_take() {
        assert!(suits(Path::new("/tmp/plain")).is_ok());
        for path in ["/tmp/with space", "/tmp/with:colon", &format!("/tmp/{}", "long".repeat(30))] {
            assert!(suits(Path::new(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn only_where_nobody_else_can_put_something_in_its_place() {
        let Some(folder) = private() else { return };
        let path = fs::canonicalize(folder.path()).unwrap();
        let opened = |path: &Path, may_be_shared| {
            let shared = open_trusted(path, &base(path.to_owned(), may_be_shared)).map(|(_, is_shared)| is_shared);
            shared.map_err(|error| error.to_string())
        };
        assert_eq!(opened(&path, false), Ok(false));
        assert_eq!(opened(Path::new("/tmp"), false), Err("others can write to it".into()));
        let below = path.join("below");
        fs::create_dir(&below).unwrap();
        // Whether the folder itself or one on the way to it.
        for (bits, itself, on_the_way) in
            [(0o777, false, false), (0o775, false, false), (0o1777, true, false), (0o755, true, true)]
        {
            fs::set_permissions(&path, Permissions::from_mode(bits)).unwrap();
            assert_eq!(opened(&path, true).is_ok(), itself, "{bits:o}");
            assert_eq!(opened(&below, true).is_ok(), on_the_way, "{bits:o}");
        }
    }

    #[test]
    fn a_parent_is_ours_or_another_one_is_taken() {
        let Some(folder) = private() else { return };
        let base = fd(folder.path());
        let made = folder.path().join("made");
        assert!(own_folder(&base, "made").is_ok());
        assert_eq!(mode(&made), 0o755);
        // Ours, but others could have written to it.
        fs::set_permissions(&made, Permissions::from_mode(0o777)).unwrap();
        assert!(own_folder(&base, "made").is_ok());
        assert_eq!(mode(&made), 0o755);
        symlink(&made, folder.path().join("link")).unwrap();
        assert!(own_folder(&base, "link").unwrap_err().to_string().contains("no folder"));
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(own_folder(&base, "file").is_err());
        if geteuid().is_root() {
            rustix::fs::chown(&made, Some(rustix::fs::Uid::from_raw(65534)), None).unwrap();
            assert!(own_folder(&base, "made").unwrap_err().to_string().contains("another user"));
        }
    }

    #[test]
    fn a_claimed_name_is_left_alone() {
        if !geteuid().is_root() {
            return;
        }
        let Some(folder) = private() else { return };
        let path = fs::canonicalize(folder.path()).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o1777)).unwrap();
        let claimed = path.join("socktrace-0");
        fs::create_dir(&claimed).unwrap();
        rustix::fs::chown(&claimed, Some(rustix::fs::Uid::from_raw(65534)), None).unwrap();
        assert_eq!(parent_in(&base(path.clone(), true)).unwrap(), path.join("socktrace-0.1"));
        assert_eq!(parent_in(&base(path.clone(), true)).unwrap(), path.join("socktrace-0.1"));
    }

    #[test]
    fn what_was_left_behind_is_taken_away_and_what_is_in_use_is_not() {
        let Some(folder) = private() else { return };
        let parent = fs::canonicalize(folder.path()).unwrap();
        let used = Place::in_parent(&parent).unwrap();
        used.write(preload::PARAMETERS, b"x", 0o644).unwrap();
        let left = parent.join("1-abcdef");
        fs::create_dir(&left).unwrap();
        fs::write(left.join(preload::PARAMETERS), "").unwrap();
        fs::write(left.join(preload::PROBE), "").unwrap();
        fs::create_dir(parent.join("other")).unwrap();
        drop(Place::in_parent(&parent).unwrap());
        assert!(!left.exists() && used.path(preload::PARAMETERS).exists() && parent.join("other").exists());
        let path = used.path.clone();
        drop(used);
        assert!(!path.exists() && parent.exists());
    }

    #[test]
    fn files_are_written_once() {
        let Some(folder) = private() else { return };
        let parent = fs::canonicalize(folder.path()).unwrap();
        let place = Place::in_parent(&parent).unwrap();
        let file = place.write("file", b"text", 0o644).unwrap();
        assert_eq!((fs::read(&file).unwrap(), mode(&file), mode(&place.path)), (b"text".to_vec(), 0o644, 0o755));
        assert!(place.write("file", b"other", 0o644).is_err());
    }
}
