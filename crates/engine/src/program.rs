//! The program that is to be run: where it is, and whether a probe can get into it.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use object::elf::{EM_X86_64, FileHeader64, PT_DYNAMIC, PT_INTERP};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, ReadCache};
use rustix::fs::{Access, access, getxattr};
use rustix::io::Errno;
use rustix::process::{geteuid, getuid};
use socktrace_event::errno;

/// Scripts may be the interpreters of scripts; the kernel follows as many (fs/exec.c).
const MAX_INTERPRETERS: usize = 5;
/// Of a script's first line (BINPRM_BUF_SIZE).
const MAX_LINE: usize = 256;
/// Where execvp(3) looks without a PATH.
const DEFAULT_PATH: &str = "/bin:/usr/bin";
const MODE_SETUID: u32 = 0o4000;
const MODE_SETGID: u32 = 0o2000;
const MODE_GROUP_EXEC: u32 = 0o010;

/// Why a program cannot be started.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is not there, in one line.
    NotFound(String),
    /// It is there and may not, or cannot, be executed, in one line.
    NotExecutable(String),
}

/// Finds a program as execvp(3) does.
pub fn find(name: &OsStr) -> Result<PathBuf, Refusal> {
    let shown = name.display();
    if name.is_empty() {
        return Err(Refusal::NotFound("the program's name is empty".into()));
    }
    if name.as_bytes().contains(&b'/') {
        let path = PathBuf::from(name);
        return match is_executable(&path) {
            Ok(()) => Ok(path),
            Err(Errno::NOENT | Errno::NOTDIR) => Err(Refusal::NotFound(format!("{shown}: no such file"))),
            Err(Errno::ISDIR) => Err(Refusal::NotExecutable(format!("{shown}: is a directory"))),
            Err(Errno::ACCESS) => Err(Refusal::NotExecutable(format!("{shown}: not executable: permission denied"))),
            Err(error) => {
                Err(Refusal::NotExecutable(format!("{shown}: cannot be executed: {}", errno::explain(&error))))
            }
        };
    }
    let path = env::var_os("PATH").unwrap_or_else(|| OsString::from(DEFAULT_PATH));
    let mut refused = None;
    for folder in env::split_paths(&path) {
        // An empty entry is the working directory.
        let file = if folder.as_os_str().is_empty() { Path::new(".").join(name) } else { folder.join(name) };
        match is_executable(&file) {
            Ok(()) => return Ok(file),
            // In a folder that may not be searched nobody knows what there is: as shells do, it is passed over.
            Err(Errno::ACCESS) if fs::metadata(&file).is_ok() => refused = Some(file),
            Err(_) => {}
        }
    }
    match refused {
        Some(file) => Err(Refusal::NotExecutable(format!("{}: not executable: permission denied", file.display()))),
        None => Err(Refusal::NotFound(format!("{shown}: not found in PATH"))),
    }
}

fn is_executable(path: &Path) -> Result<(), Errno> {
    let metadata = fs::metadata(path).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::NOENT))?;
    if metadata.is_dir() {
        return Err(Errno::ISDIR);
    }
    access(path, Access::EXEC_OK)
}

/// What keeps a probe out of a program, in words that say what would work; None if nothing is known to. `arguments` are
/// those that it is given, without its name.
pub fn hindrance(path: &Path, arguments: &[OsString]) -> Option<String> {
    let mut path = path.to_owned();
    // It loads the program itself, and what LD_PRELOAD names before.
    if is_dynamic_linker(&path) {
        path = program_of_linker(arguments)?;
    }
    for _ in 0..MAX_INTERPRETERS {
        match interpreter(&path) {
            Some(next) => path = next,
            None => break,
        }
    }
    let shown = path.display();
    if let Some(image) = image(&path).and_then(Image::complaint) {
        return Some(format!("{shown}: {image}"));
    }
    privilege(&path).map(|privilege| {
        format!(
            "{shown}: {privilege}, so the dynamic loader ignores LD_PRELOAD and nothing can be recorded: run \
             socktrace as root, or start it and let root attach to it (socktrace attach)"
        )
    })
}

/// The program that a script names in its first line (execve(2), "Interpreter scripts").
fn interpreter(path: &Path) -> Option<PathBuf> {
    let mut line = Vec::new();
    File::open(path).ok()?.take(MAX_LINE as u64).read_to_end(&mut line).ok()?;
    let line = line.strip_prefix(b"#!")?.split(|&b| b == b'\n').next()?;
    let name = line.trim_ascii().split(|&b| matches!(b, b' ' | b'\t')).next().filter(|name| !name.is_empty())?;
    Some(PathBuf::from(OsStr::from_bytes(name)))
}

/// Whether a file is a dynamic linker, which is a library without an interpreter (ld.so(8)).
fn is_dynamic_linker(path: &Path) -> bool {
    let Ok(path) = fs::canonicalize(path) else { return false };
    let name = path.file_name().unwrap_or_default().as_bytes();
    let is_named_so = [&b"ld-"[..], b"ld.so", b"libc.so", b"libc.musl-"].iter().any(|start| name.starts_with(start));
    is_named_so && image(&path) == Some(Image::Static)
}

/// The program that a dynamic linker is told to load: what is behind its options, some of which take a value.
fn program_of_linker(arguments: &[OsString]) -> Option<PathBuf> {
    const TAKE_A_VALUE: [&str; 7] = [
        "--library-path",
        "--inhibit-rpath",
        "--audit",
        "--preload",
        "--argv0",
        "--glibc-hwcaps-prepend",
        "--glibc-hwcaps-mask",
    ];
    let mut arguments = arguments.iter();
    loop {
        let argument = arguments.next()?;
        if !argument.as_bytes().starts_with(b"--") {
            // The linker does not look into PATH.
            return Some(PathBuf::from(argument));
        }
        if TAKE_A_VALUE.iter().any(|option| argument == option) {
            arguments.next();
        }
    }
}

/// What kind of executable a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Image {
    Dynamic,
    Static,
    Bits32,
    /// Another machine's.
    Foreign,
}

impl Image {
    fn complaint(self) -> Option<&'static str> {
        match self {
            Self::Dynamic => None,
            Self::Static => Some(
                "statically linked: it makes its system calls without libc, so nothing of it can be recorded, \
                 through Frida neither; a dynamically linked build can, and so can programs that it starts",
            ),
            Self::Bits32 => {
                Some("a 32-bit program: the probe is 64-bit, so nothing of it can be recorded; a 64-bit build can")
            }
            Self::Foreign => Some("built for another machine: the probe is x86_64, so nothing of it can be recorded"),
        }
    }
}

/// None for what is no ELF file, or cannot be read.
fn image(path: &Path) -> Option<Image> {
    let cache = ReadCache::new(File::open(path).ok()?);
    let mut ident = [0; 5];
    File::open(path).ok()?.read_exact(&mut ident).ok()?;
    const CLASS_32: u8 = 1;
    if !ident.starts_with(b"\x7fELF") {
        return None;
    }
    if ident[4] == CLASS_32 {
        return Some(Image::Bits32);
    }
    let header = FileHeader64::<Endianness>::parse(&cache).ok()?;
    let endian = header.endian().ok()?;
    if header.e_machine(endian) != EM_X86_64 {
        return Some(Image::Foreign);
    }
    let segments = header.program_headers(endian, &cache).ok()?;
    let has = |kind| segments.iter().any(|segment| segment.p_type(endian) == kind);
    // A static PIE has a dynamic segment, to relocate itself by, and nobody to interpret it.
    let dynamic = has(PT_INTERP) && has(PT_DYNAMIC);
    Some(if dynamic { Image::Dynamic } else { Image::Static })
}

/// What makes the kernel ask for secure execution (AT_SECURE, ld.so(8)) when we execute it.
fn privilege(path: &Path) -> Option<&'static str> {
    let metadata = fs::metadata(path).ok()?;
    if metadata.mode() & MODE_SETUID != 0 && metadata.uid() != geteuid().as_raw() {
        return Some("setuid");
    }
    let is_setgid = metadata.mode() & (MODE_SETGID | MODE_GROUP_EXEC) == MODE_SETGID | MODE_GROUP_EXEC;
    if is_setgid && metadata.gid() != rustix::process::getegid().as_raw() {
        return Some("setgid");
    }
    if getuid().is_root() {
        return None;
    }
    let mut value = [0; 64];
    getxattr(path, "security.capability", &mut value[..]).is_ok_and(|len| len > 0).then_some("has file capabilities")
}

/// Whether a program is one of Go's, which makes its system calls itself also where it is linked to libc: that of a process,
/// or, where that has ended, the one at a path.
pub fn is_go(pid: Option<u32>, path: &Path) -> bool {
    /// Sections that Go's linker makes in every program.
    const SECTIONS: [&[u8]; 2] = [b".go.buildinfo", b".gopclntab"];
    let of_process = || File::open(format!("/proc/{}/exe", pid?)).ok();
    let open = || of_process().or_else(|| File::open(path).ok());
    let has_section = || {
        let cache = ReadCache::new(open()?);
        let header = FileHeader64::<Endianness>::parse(&cache).ok()?;
        let endian = header.endian().ok()?;
        let sections = header.sections(endian, &cache).ok()?;
        Some(
            sections
                .iter()
                .any(|section| sections.section_name(endian, section).is_ok_and(|name| SECTIONS.contains(&name))),
        )
    };
    has_section().unwrap_or(false)
}

/// What keeps a probe out of a running process's program.
pub(crate) fn hindrance_of_process(pid: u32) -> Option<&'static str> {
    let exe = PathBuf::from(format!("/proc/{pid}/exe"));
    if is_dynamic_linker(&exe) {
        return None;
    }
    image(&exe).and_then(Image::complaint)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_found() {
        assert!(find(OsStr::new("sh")).is_ok() && find(OsStr::new("/bin/sh")).is_ok());
        assert!(matches!(find(OsStr::new("no-such-program")), Err(Refusal::NotFound(_))));
        assert!(matches!(find(OsStr::new("/no/such/program")), Err(Refusal::NotFound(_))));
        assert!(matches!(find(OsStr::new("")), Err(Refusal::NotFound(_))));
        assert!(matches!(find(OsStr::new("/etc/passwd")), Err(Refusal::NotExecutable(_))));
        assert!(matches!(find(OsStr::new("/etc/")), Err(Refusal::NotExecutable(_))));
    }

    #[test]
    fn scripts_are_their_interpreters() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("script");
        fs::write(&script, "#! /bin/sh -e\necho\n").unwrap();
        assert_eq!(interpreter(&script), Some("/bin/sh".into()));
        assert_eq!(hindrance(&script, &[]), None);
        fs::write(&script, "no script").unwrap();
        assert_eq!(interpreter(&script), None);
        fs::write(&script, "#!").unwrap();
        assert_eq!((interpreter(&script), hindrance(&script, &[])), (None, None));
    }

    #[test]
    fn the_dynamic_linker_loads_a_program() {
        let linker = Path::new("/lib64/ld-linux-x86-64.so.2");
        if !linker.exists() {
            return;
        }
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert!(is_dynamic_linker(linker) && !is_dynamic_linker(Path::new("/bin/sh")));
        assert_eq!(hindrance(linker, &words("/bin/sh -c true")), None);
        assert_eq!(hindrance(linker, &words("--argv0 x --library-path /lib /bin/sh")), None);
        assert_eq!(program_of_linker(&words("--argv0 x --list /bin/sh -c")), Some("/bin/sh".into()));
        assert_eq!(program_of_linker(&words("--version")), None);
    }

    #[test]
    fn images() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("program");
        let mut shell = fs::read("/bin/sh").unwrap();
        fs::write(&file, &shell).unwrap();
        assert_eq!(image(&file), Some(Image::Dynamic));
        // e_machine, then EI_CLASS
        shell[18] = 183;
        fs::write(&file, &shell).unwrap();
        assert_eq!(image(&file), Some(Image::Foreign));
        shell[4] = 1;
        fs::write(&file, &shell).unwrap();
        assert_eq!(image(&file), Some(Image::Bits32));
        fs::write(&file, b"\x7fELF\x02").unwrap();
        assert_eq!(image(&file), None);
    }

    #[test]
    fn privileged_programs() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("program");
        fs::copy("/bin/sh", &file).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o4755)).unwrap();
        // Ours: nothing is gained by executing it.
        assert_eq!(privilege(&file), None);
        if getuid().is_root() {
            rustix::fs::chown(&file, Some(rustix::fs::Uid::from_raw(65534)), None).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o4755)).unwrap();
            assert_eq!(privilege(&file), Some("setuid"));
        }
    }
}
