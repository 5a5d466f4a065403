//! A ring's memory: a memfd that cannot become shorter (memfd_create(2), fcntl(2)).

use core::ptr::null_mut;

use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use rustix::io::{Errno, Result};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munlock, munmap};

use crate::{Memory, PAGE_LEN, is_ring_len};

const NAME: &core::ffi::CStr = c"socktrace-ring";
/// What keeps a writer from taking the memory away under a reader.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

/// Makes a ring.
///
/// # Errors
///
/// Those of memfd_create(2), ftruncate(2) and mmap(2); EINVAL if a ring cannot have this length.
pub fn create(ring_len: usize) -> Result<(OwnedFd, Memory)> {
    if !is_ring_len(ring_len) {
        return Err(Errno::INVAL);
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // What nobody may execute may be had everywhere (sysctl vm.memfd_noexec), from Linux 6.3 on.
    let fd = match memfd_create(NAME, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create(NAME, flags),
        made => made,
    }?;
    ftruncate(&fd, (PAGE_LEN + ring_len) as u64)?;
    fcntl_add_seals(&fd, SEALS | SealFlags::SEAL)?;
    // SAFETY: sealed.
    let memory = unsafe { map_at_length(rustix::fd::AsFd::as_fd(&fd), ring_len)? };
    memory.format();
    Ok((fd, memory))
}

/// Why a descriptor is not taken for a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untrusted {
    /// It may become shorter, under a reader that could not help being killed by SIGBUS.
    NotSealed,
    /// It does not have the length of a ring.
    Length,
    /// It is not laid out as one.
    Layout,
    /// It cannot be mapped.
    System(Errno),
}

impl core::fmt::Display for Untrusted {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NotSealed => f.write_str("a ring that is not sealed against becoming shorter"),
            Self::Length => f.write_str("a ring of a length that none has"),
            Self::Layout => f.write_str("a ring that is not laid out as one"),
            Self::System(errno) => write!(f, "a ring that cannot be mapped: {errno}"),
        }
    }
}

impl core::error::Error for Untrusted {}

/// Maps a ring that another process has made.
///
/// # Errors
///
/// [`Untrusted`], whatever the descriptor leads to.
pub fn map(fd: BorrowedFd<'_>) -> core::result::Result<Memory, Untrusted> {
    // Only a memfd has seals at all.
    let seals = fcntl_get_seals(fd).map_err(|_| Untrusted::NotSealed)?;
    if !seals.contains(SEALS) {
        return Err(Untrusted::NotSealed);
    }
    let len = fstat(fd).map_err(Untrusted::System)?.st_size;
    let ring_len = usize::try_from(len).ok().and_then(|len| len.checked_sub(PAGE_LEN));
    let ring_len = ring_len.filter(|&len| is_ring_len(len)).ok_or(Untrusted::Length)?;
    // SAFETY: sealed.
    let memory = unsafe { map_at_length(fd, ring_len) }.map_err(Untrusted::System)?;
    if memory.is_ring() {
        return Ok(memory);
    }
    // SAFETY: nobody has seen it.
    unsafe { unmap(memory) };
    Err(Untrusted::Layout)
}

/// # Safety
///
/// The file has the length, and cannot become shorter.
unsafe fn map_at_length(fd: BorrowedFd<'_>, ring_len: usize) -> Result<Memory> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let (once, twice) = (PAGE_LEN + ring_len, PAGE_LEN + 2 * ring_len);
    // SAFETY: new memory at an address of the kernel's choice; what is mapped over it is within.
    unsafe {
        let base = mmap_anonymous(null_mut(), twice, ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE)?;
        let again = base.cast::<u8>().add(once).cast();
        let fixed = MapFlags::SHARED | MapFlags::FIXED;
        let mapped = mmap(base, once, protection, fixed, fd, 0)
            .and_then(|_| mmap(again, ring_len, protection, fixed, fd, PAGE_LEN as u64))
            .and_then(|_| Memory::new(base.cast(), ring_len).ok_or(Errno::INVAL));
        match mapped {
            // Not to be locked with what the program locks (mlockall(2), MCL_FUTURE): it is not the program's.
            Ok(_) => {
                let _ = munlock(base, twice);
            }
            Err(_) => {
                let _ = munmap(base, twice);
            }
        }
        mapped
    }
}

/// Unmaps a ring.
///
/// # Safety
///
/// Nobody uses it any more.
pub unsafe fn unmap(memory: Memory) {
    // SAFETY: mapped by `map_at_length`; the caller's promise.
    let _ = unsafe { munmap(memory.base().cast(), PAGE_LEN + 2 * memory.ring_len()) };
}
