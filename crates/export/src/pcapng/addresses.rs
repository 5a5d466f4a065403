//! Addresses for names.

use std::net::Ipv4Addr;
use std::num::NonZeroUsize;

use lru::LruCache;

/// 127.0.0.1 is left to those who look for what it usually means.
const FIRST: u32 = 0x7f00_0002;
const LAST: u32 = 0x7fff_fffe;
/// So many names are remembered with their address; one that comes back later gets another. Some 200 bytes each.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(64 << 10).expect("not 0");

/// Loopback addresses, one for each name, as they come.
#[derive(Debug)]
pub(super) struct Addresses {
    by_name: LruCache<Box<str>, Ipv4Addr>,
    next: u32,
}

impl Addresses {
    pub(super) fn new() -> Self {
        // Not all at once: most recordings have a few.
        let mut by_name = LruCache::unbounded();
        by_name.resize(REMEMBERED);
        Self { by_name, next: FIRST }
    }

    /// A name's address, and whether it is new.
    pub(super) fn of(&mut self, name: &str) -> (Ipv4Addr, bool) {
        if let Some(&address) = self.by_name.get(name) {
            return (address, false);
        }
        let address = Ipv4Addr::from(self.next);
        self.next = if self.next < LAST { self.next + 1 } else { FIRST };
        self.by_name.put(name.into(), address);
        (address, true)
    }
}
