//! The file that is executed: whether the dynamic linker will load the probe into it, and if not, why not.

use core::ffi::CStr;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    Access, AtFlags, CWD, FileType, Mode, OFlags, RawMode, Stat, StatVfsMountFlags, accessat, fgetxattr, fstat,
    fstatvfs, openat, statat,
};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid, getgid, getuid};
use rustix::thread::no_new_privs;

/// Bytes of a file's front that are looked at: an ELF header and what there is of program headers, or a script's first line.
pub(super) const FRONT_LEN: usize = 4096;
/// Of a script's first line (BINPRM_BUF_SIZE).
const MAX_LINE: usize = 256;
/// Scripts may be the interpreters of scripts; the kernel follows as many (fs/exec.c).
const MAX_INTERPRETERS: usize = 5;

/// What a call executes, as execveat(2) names it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) directory: i32,
    pub(crate) path: &'a CStr,
    pub(crate) flags: i32,
}

impl<'a> Target<'a> {
    /// A path as execve(2) takes it.
    pub(crate) fn at(path: &'a CStr) -> Self {
        /// What stands for the working directory.
        const AT_FDCWD: i32 = -100;
        Self { directory: AT_FDCWD, path, flags: 0 }
    }

    /// An open file as fexecve(3) takes it.
    pub(crate) fn open(fd: i32) -> Self {
        Self { directory: fd, path: c"", flags: AtFlags::EMPTY_PATH.bits().cast_signed() }
    }

    fn directory(&self) -> BorrowedFd<'_> {
        // SAFETY: the program's own descriptor or AT_FDCWD; should it not be open, the calls say so.
        if self.directory == -1 { CWD } else { unsafe { BorrowedFd::borrow_raw(self.directory) } }
    }

    fn flags(&self) -> AtFlags {
        AtFlags::from_bits_truncate(self.flags.cast_unsigned()) & (AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)
    }
}

/// What there is to say of a file before it is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// It cannot be executed.
    Nothing,
    /// A program, and what keeps the probe out of it.
    Program(Option<Hindrance>),
}

/// Why the probe does not get into a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hindrance {
    Static,
    Bits32,
    Foreign,
    Setuid,
    Setgid,
    Capabilities,
    /// The process has put another effective user in place of its own, and the program gets both.
    OtherUser,
}

impl Hindrance {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Static => "statically linked: its system calls do not go through libc",
            Self::Bits32 => "a 32-bit program: the probe is 64-bit",
            Self::Foreign => "built for another machine: the probe is x86_64",
            Self::Setuid => "setuid: the dynamic linker ignores LD_PRELOAD",
            Self::Setgid => "setgid: the dynamic linker ignores LD_PRELOAD",
            Self::Capabilities => "has file capabilities: the dynamic linker ignores LD_PRELOAD",
            Self::OtherUser => "its effective user or group is not its real one: the dynamic linker ignores LD_PRELOAD",
        }
    }

    /// Whether a dynamic linker would complain of the probe: that of another kind of program.
    pub(crate) fn is_another_kind(self) -> bool {
        matches!(self, Self::Bits32 | Self::Foreign)
    }
}

/// Looks at a file, with system calls only; `buffer` has `FRONT_LEN` bytes.
///
/// The descriptor that this takes is closed again before the file is executed.
pub(crate) fn look(target: &Target<'_>, buffer: &mut [u8]) -> Found {
    let is_program = |stat: Stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    let stat = statat(target.directory(), target.path, target.flags());
    if !stat.is_ok_and(is_program) {
        return Found::Nothing;
    }
    let opened = if target.path.is_empty() {
        // The descriptor may be of the kind that cannot be read (O_PATH).
        None
    } else {
        if accessat(target.directory(), target.path, Access::EXEC_OK, AtFlags::EACCESS).is_err_and(is_refusal) {
            return Found::Nothing;
        }
        open(target.directory(), target.path)
    };
    let Some(mut file) = opened else {
        return Found::Program(match stat {
            Ok(stat) => of_unread(target, &stat, buffer),
            Err(_) => None,
        });
    };
    for _ in 0..MAX_INTERPRETERS {
        let len = rustix::io::pread(&file, &mut *buffer, 0).unwrap_or(0);
        let Some(interpreter) = interpreter(&buffer[..len]) else {
            return Found::Program(image(&buffer[..len], target.path).or_else(|| privilege(file.as_fd())));
        };
        buffer[interpreter.end] = 0;
        let Ok(path) = CStr::from_bytes_with_nul(&buffer[interpreter.start..=interpreter.end]) else { break };
        match open(CWD, path) {
            Some(next) => file = next,
            None => break,
        }
    }
    Found::Program(None)
}

/// Whether execve(2) would say so, too; a kernel that does not know the question is none.
fn is_refusal(error: Errno) -> bool {
    matches!(error, Errno::ACCESS | Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG)
}

fn open(directory: BorrowedFd<'_>, path: &CStr) -> Option<OwnedFd> {
    openat(directory, path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty()).ok()
}

/// Of a file that this user may execute but not read, or that is open already.
fn of_unread(target: &Target<'_>, stat: &Stat, buffer: &mut [u8]) -> Option<Hindrance> {
    if !target.path.is_empty() {
        return by_mode(stat.st_mode, stat.st_uid, stat.st_gid);
    }
    let file = target.directory();
    let len = rustix::io::pread(file, &mut *buffer, 0).unwrap_or(0);
    image(&buffer[..len], c"").or_else(|| privilege(file))
}

/// Where a script's first line names the program that it is for (execve(2), "Interpreter scripts").
fn interpreter(front: &[u8]) -> Option<core::ops::Range<usize>> {
    let line = front.get(..MAX_LINE.min(front.len()))?;
    line.strip_prefix(b"#!")?;
    let is_blank = |b: u8| matches!(b, b' ' | b'\t');
    let start = 2 + line[2..].iter().position(|&b| !is_blank(b))?;
    let len = line[start..].iter().position(|&b| is_blank(b) || matches!(b, b'\n' | 0))?;
    (len > 0).then_some(start..start + len)
}

/// What the front of an ELF file (elf(5)) says; `None` of a program like this one, and of what is none.
fn image(front: &[u8], path: &CStr) -> Option<Hindrance> {
    const HEADER_LEN: usize = 64;
    const CLASS_64: u8 = 2;
    const MACHINE_X86_64: u16 = 62;
    const PT_INTERP: u32 = 3;
    let header = front.get(..HEADER_LEN).filter(|header| header.starts_with(b"\x7fELF"))?;
    let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    if u16_at(18) != MACHINE_X86_64 {
        /// i386, whose programs run here.
        const MACHINE_386: u16 = 3;
        return Some(if u16_at(18) == MACHINE_386 { Hindrance::Bits32 } else { Hindrance::Foreign });
    }
    if header[4] != CLASS_64 {
        // x32: the machine's registers, and pointers of 32 bits.
        return Some(Hindrance::Bits32);
    }
    let mut offset = [0; 8];
    offset.copy_from_slice(&header[32..40]);
    let start = usize::try_from(u64::from_le_bytes(offset)).ok()?;
    let (len, count) = (usize::from(u16_at(54)), usize::from(u16_at(56)));
    // Headers somewhere else than at the front: nothing is known then.
    let headers = front.get(start..start.checked_add(len.checked_mul(count)?)?)?;
    let kind = |header: &[u8]| header.first_chunk().map_or(0, |kind| u32::from_le_bytes(*kind));
    let has_interpreter = len >= 4 && headers.chunks_exact(len).any(|header| kind(header) == PT_INTERP);
    (!has_interpreter && !is_dynamic_linker(path)).then_some(Hindrance::Static)
}

/// Whether this is the dynamic linker, executed by its name (ld.so(8)), which loads what LD_PRELOAD says as ever.
fn is_dynamic_linker(path: &CStr) -> bool {
    let path = path.to_bytes();
    let name = path.rsplit(|&b| b == b'/').next().unwrap_or(path);
    name.starts_with(b"ld-") || name.starts_with(b"ld.so")
}

/// What makes the kernel ask for secure execution (AT_SECURE, ld.so(8)).
fn privilege(file: BorrowedFd<'_>) -> Option<Hindrance> {
    let stat = fstat(file).ok()?;
    let is_special = stat.st_mode & (MODE_SETUID | MODE_SETGID) != 0;
    if is_special && fstatvfs(file).is_ok_and(|mount| mount.f_flag.contains(StatVfsMountFlags::NOSUID)) {
        return by_mode(0, 0, 0);
    }
    by_mode(stat.st_mode, stat.st_uid, stat.st_gid).or_else(|| {
        let mut value = [0; 32];
        let has_any =
            !getuid().is_root() && fgetxattr(file, c"security.capability", &mut value[..]).is_ok_and(|n| n > 0);
        (has_any && !no_new_privs().unwrap_or(false)).then_some(Hindrance::Capabilities)
    })
}

const MODE_SETUID: RawMode = 0o4000;
const MODE_SETGID: RawMode = 0o2000;
const MODE_GROUP_EXEC: RawMode = 0o010;

fn by_mode(mode: RawMode, uid: u32, gid: u32) -> Option<Hindrance> {
    let is_setuid = mode & MODE_SETUID != 0;
    let is_setgid = mode & (MODE_SETGID | MODE_GROUP_EXEC) == MODE_SETGID | MODE_GROUP_EXEC;
    if (is_setuid || is_setgid) && !no_new_privs().unwrap_or(false) {
        if is_setuid && uid != getuid().as_raw() {
            return Some(Hindrance::Setuid);
        }
        if is_setgid && gid != getgid().as_raw() {
            return Some(Hindrance::Setgid);
        }
        return None;
    }
    (geteuid() != getuid() || getegid() != getgid()).then_some(Hindrance::OtherUser)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look_at(path: &str) -> Found {
        let path = std::ffi::CString::new(path).unwrap();
        look(&Target::at(&path), &mut [0; FRONT_LEN])
    }

    #[test]
    fn programs_and_what_is_none() {
        assert_eq!(look_at("/bin/sh"), Found::Program(None));
        assert_eq!(look_at("/no/such/program"), Found::Nothing);
        assert_eq!(look_at("/etc/passwd"), Found::Nothing);
        assert_eq!(look_at("/etc"), Found::Nothing);
        assert_eq!(look_at("/dev/null"), Found::Nothing);
    }

    #[test]
    fn scripts_are_their_interpreters() {
        assert_eq!(interpreter(b"#!/bin/sh -e\necho\n"), Some(2..9));
        assert_eq!(interpreter(b"#! \t/bin/sh\n"), Some(4..11));
        assert_eq!(interpreter(b"#!\n"), None);
        assert_eq!(interpreter(b"#!"), None);
        assert_eq!(interpreter(b"#!/no/end/of/a/line"), None);
        assert_eq!(interpreter(b"\x7fELF"), None);
    }

    #[test]
    fn images() {
        let mut shell = std::fs::read("/bin/sh").unwrap();
        shell.truncate(FRONT_LEN);
        assert_eq!(image(&shell, c"sh"), None);
        assert_eq!(image(&shell[..70], c"sh"), None);
        let mut other = shell.clone();
        // e_machine: AArch64, i386; then the class of x32; then no program headers.
        other[18] = 183;
        assert_eq!(image(&other, c"sh"), Some(Hindrance::Foreign));
        other[18] = 3;
        assert_eq!(image(&other, c"sh"), Some(Hindrance::Bits32));
        let mut other = shell.clone();
        other[4] = 1;
        assert_eq!(image(&other, c"sh"), Some(Hindrance::Bits32));
        shell[56] = 0;
        assert_eq!(image(&shell, c"sh"), Some(Hindrance::Static));
        assert_eq!(image(&shell, c"/lib64/ld-linux-x86-64.so.2"), None);
        // Whatever numbers are in it.
        for at in 0..64 {
            let mut other = shell.clone();
            other[at] = 0xff;
            image(&other, c"sh");
            other[32..40].fill(0xff);
            image(&other, c"sh");
        }
    }
}
