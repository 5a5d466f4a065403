//! What the program's limits (getrlimit(2)) leave for a ring.

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};
use socktrace_ring::{MIN_RING_LEN, PAGE_LEN};

use crate::process::aside::aside;

/// The share of the address space that the program has not used when the probe comes which may become a ring, mapped
/// twice: one part in so many.
const SPACE_SHARE: u64 = 16;
/// The same of memory that it may lock. mlockall(2) counts all that is mapped.
const LOCKED_SHARE: u64 = 4;

/// The limits that matter; `None`: there is none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    file_size: Option<u64>,
    address_space: Option<u64>,
    locked: Option<u64>,
    /// What is mapped, in bytes.
    used: u64,
}

/// The limits of the program. `has` bytes are mapped for a ring that would be given back.
pub(super) fn now(has: usize) -> Limits {
    let limit = |resource| getrlimit(resource).current;
    let mut limits =
        Limits { file_size: limit(Resource::Fsize), address_space: limit(Resource::As), ..Limits::default() };
    let may_lock = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    if !may_lock {
        limits.locked = limit(Resource::Memlock);
    }
    if limits.address_space.is_some() || limits.locked.is_some() {
        limits.used = aside(used).flatten().unwrap_or(0).saturating_sub(has as u64);
    }
    limits
}

impl Limits {
    /// Whether the program has more memory than it may have, with a ring or without.
    pub(super) fn are_exceeded(&self) -> bool {
        self.address_space.is_some_and(|limit| self.used > limit)
    }

    /// The length of a ring that is to have `wanted` bytes, and what it has to be shortened to; `None`: even the shortest is
    /// too long.
    pub(super) fn ring_len(&self, wanted: usize) -> Option<usize> {
        let fits = |len: usize| {
            let (file, mapped) = ((PAGE_LEN + len) as u64, (PAGE_LEN + 2 * len) as u64);
            // A program that has more than it may lock cannot lock it all, with a ring or without.
            let locked = self.locked.filter(|&limit| limit >= self.used);
            let leaves =
                |limit: Option<u64>, share| limit.is_none_or(|limit| mapped <= limit.saturating_sub(self.used) / share);
            self.file_size.is_none_or(|limit| file <= limit)
                && leaves(self.address_space, SPACE_SHARE)
                && leaves(locked, LOCKED_SHARE)
        };
        core::iter::successors(Some(wanted), |len| Some(len / 2))
            .take_while(|&len| len >= MIN_RING_LEN)
            .find(|&len| fits(len))
    }
}

/// Bytes that the process has mapped (proc(5), statm). To be asked aside.
fn used() -> Option<u64> {
    let file = openat(CWD, c"/proc/thread-self/statm", OFlags::RDONLY, Mode::empty()).ok()?;
    let mut text = [0; 64];
    let len = rustix::io::read(&file, &mut text[..]).ok()?;
    let digits = text[..len].iter().take_while(|byte| byte.is_ascii_digit());
    let pages = digits.fold(0_u64, |pages, digit| pages.saturating_mul(10).saturating_add(u64::from(digit - b'0')));
    Some(pages.saturating_mul(rustix::param::page_size() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_ring_is_as_long_as_the_limits_let_it_be() {
        let wanted = 8 << 20;
        let none = Limits { used: 5 * MIB, ..Limits::default() };
        assert_eq!(none.ring_len(wanted), Some(wanted));
        // Its file may not be longer, page and all.
        assert_eq!(Limits { file_size: Some(MIB), ..none }.ring_len(wanted), Some(512 << 10));
        assert_eq!(Limits { file_size: Some(MIB + 4096), ..none }.ring_len(wanted), Some(1 << 20));
        assert_eq!(Limits { file_size: Some(8192), ..none }.ring_len(wanted), None);
        // Of the 16 MiB that are left one, for both mappings.
        assert_eq!(Limits { address_space: Some(21 * MIB), ..none }.ring_len(wanted), Some(256 << 10));
        assert_eq!(Limits { address_space: Some(6 * MIB), ..none }.ring_len(wanted), None);
        assert_eq!(Limits { locked: Some(13 * MIB), ..none }.ring_len(wanted), Some(512 << 10));
        assert_eq!(Limits { locked: Some(MIB), ..none }.ring_len(wanted), Some(wanted));
    }
}
