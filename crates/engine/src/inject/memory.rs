//! The memory of another process (proc_pid_mem(5)), and what is mapped there (proc_pid_maps(5)).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of a page, of every x86_64.
pub(super) const PAGE_LEN: u64 = 4096;

/// The memory of a process that may be traced (ptrace(2)).
#[derive(Debug)]
pub(super) struct Memory(File);

impl Memory {
    /// By one of its threads: the first may have ended.
    pub fn of(pid: u32, tid: u32) -> io::Result<Self> {
        File::options().read(true).write(true).open(format!("/proc/{pid}/task/{tid}/mem")).map(Self)
    }

    pub fn read(&self, at: u64, to: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(to, at)
    }

    /// Writes, to what the process itself may only read or execute, too.
    pub fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, at)
    }

    pub fn word(&self, at: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.read(at, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// As much as is there of so many bytes.
    pub fn some(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let read = self.0.read_at(&mut bytes, at).unwrap_or(0);
        bytes.truncate(read);
        bytes
    }

    /// A text that ends with a NUL, as far as so many bytes.
    pub fn text(&self, at: u64, max: usize) -> Vec<u8> {
        let mut bytes = self.some(at, max);
        bytes.truncate(bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len()));
        bytes
    }
}

/// A part of a process's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub start: u64,
    pub end: u64,
    pub is_executable: bool,
    /// Where it begins in its file.
    pub offset: u64,
    /// The file's path, or what the kernel calls it; empty: it is anonymous.
    pub name: String,
}

/// What is mapped, by address.
pub(super) fn mappings(pid: u32, tid: u32) -> io::Result<Vec<Mapping>> {
    // A path is bytes; here it is only compared.
    let text = std::fs::read(format!("/proc/{pid}/task/{tid}/maps"))?;
    Ok(String::from_utf8_lossy(&text).lines().filter_map(mapping).collect())
}

/// `start-end rwxp offset major:minor inode name`.
fn mapping(line: &str) -> Option<Mapping> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?;
    let offset = fields.next()?;
    let name = fields.nth(2).unwrap_or_default().trim_start();
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some(Mapping {
        start: number(start)?,
        end: number(end)?,
        is_executable: permissions.as_bytes().get(2) == Some(&b'x'),
        offset: number(offset)?,
        name: name.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps() {
        let read = mapping("7f00-7f10 r-xp 00001000 08:01 42                 /usr/lib/a b.so (deleted)").unwrap();
        assert_eq!((read.start, read.end, read.offset, read.is_executable), (0x7f00, 0x7f10, 0x1000, true));
        assert_eq!(read.name, "/usr/lib/a b.so (deleted)");
        let anonymous = mapping("7ffd0000-7ffd1000 rw-p 00000000 00:00 0 ").unwrap();
        assert_eq!((&*anonymous.name, anonymous.is_executable), ("", false));
        assert_eq!(mapping("nothing"), None);
    }

    #[test]
    fn our_own_memory() {
        let own = std::process::id();
        let memory = Memory::of(own, own).unwrap();
        let text = c"what is there";
        assert_eq!(memory.text(text.as_ptr() as u64, 64), text.to_bytes());
        let here = mappings(own, own).unwrap();
        let code = our_own_memory as *const () as u64;
        assert!(here.iter().any(|mapping| mapping.is_executable && (mapping.start..mapping.end).contains(&code)));
    }
}
