//! The clocks, read without a system call where the kernel allows for that (vdso(7)).
//!
//! Not rustix's way: it asks the kernel by prctl(2) where the vDSO is, which under valgrind is not where it is, nor
//! anywhere. libc has been told the truth. Nor libc's clock_gettime(3), which others stand in for (libfaketime).

use core::ffi::{CStr, c_int, c_ulong, c_void};
use core::sync::atomic::{AtomicPtr, Ordering};

use rustix::time::Timespec;

use crate::sys;

const PAGE_LEN: usize = 4096;
const REALTIME: c_int = 0;
const MONOTONIC: c_int = 1;

/// The vDSO's clock_gettime; null without one.
static GETTIME: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());

type Gettime = unsafe extern "C" fn(c_int, *mut Timespec) -> c_int;

/// Nanoseconds since the Unix epoch.
#[inline]
pub(crate) fn now_ns() -> u64 {
    read(REALTIME)
}

/// Nanoseconds of CLOCK_MONOTONIC (clock_gettime(2)).
pub(crate) fn monotonic_ns() -> u64 {
    read(MONOTONIC)
}

#[inline]
fn read(clock: c_int) -> u64 {
    let mut now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let gettime = GETTIME.load(Ordering::Relaxed);
    // SAFETY: the function of this name, by `init`; room for what it gives.
    let failed =
        gettime.is_null() || unsafe { core::mem::transmute::<*mut c_void, Gettime>(gettime)(clock, &raw mut now) } != 0;
    if failed {
        now = sys::clock_gettime(clock);
    }
    // Negative only before 1970.
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Looks for the vDSO, by the getauxval(3) that `find` finds.
pub(crate) fn init(find: impl FnOnce(&CStr) -> *mut c_void) {
    const AT_SYSINFO_EHDR: c_ulong = 33;
    if !GETTIME.load(Ordering::Relaxed).is_null() {
        return;
    }
    let getauxval = find(c"getauxval");
    if getauxval.is_null() {
        return;
    }
    // SAFETY: libc's function of this name; what it gives is 0 or where the kernel has mapped the vDSO.
    let gettime = unsafe {
        let getauxval: unsafe extern "C" fn(c_ulong) -> c_ulong = core::mem::transmute(getauxval);
        match getauxval(AT_SYSINFO_EHDR) {
            0 => return,
            vdso => Elf::of(vdso as *const u8).and_then(|vdso| vdso.function(b"__vdso_clock_gettime")),
        }
    };
    GETTIME.store(gettime.unwrap_or(core::ptr::null()).cast_mut(), Ordering::Relaxed);
}

/// A shared object that is mapped as it is in its file, as the vDSO is (elf(5)).
struct Elf {
    base: *const u8,
    symbols: *const Symbol,
    strings: *const u8,
    count: usize,
}

#[repr(C)]
struct Symbol {
    name: u32,
    info: u8,
    other: u8,
    section: u16,
    value: u64,
    size: u64,
}

#[repr(C)]
struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    _physical: u64,
    file_len: u64,
    memory_len: u64,
    align: u64,
}

impl Elf {
    /// # Safety
    ///
    /// There is one at `base`, and it is sound.
    unsafe fn of(base: *const u8) -> Option<Self> {
        const LOAD: u32 = 1;
        const DYNAMIC: u32 = 2;
        const SEGMENTS_AT: usize = 32;
        const SEGMENT_COUNT_AT: usize = 56;
        const SECTIONS_AT: usize = 40;
        const SECTION_COUNT_AT: usize = 60;
        // SAFETY: offsets of `Elf64_Ehdr`, and what these lead to.
        unsafe {
            let segments = base.add(base.add(SEGMENTS_AT).cast::<u64>().read() as usize).cast::<Segment>();
            let count = usize::from(base.add(SEGMENT_COUNT_AT).cast::<u16>().read());
            let segments = core::slice::from_raw_parts(segments, count);
            let load = segments.iter().find(|segment| segment.kind == LOAD)?;
            let dynamic = segments.iter().find(|segment| segment.kind == DYNAMIC)?;
            let bias = base.wrapping_add(load.offset as usize).wrapping_sub(load.address as usize);
            let entries = base.add(dynamic.offset as usize).cast::<[u64; 2]>();
            let find = |tag| (0..).map(|at| entries.add(at).read()).take_while(|it| it[0] != 0).find(|it| it[0] == tag);
            const STRINGS: u64 = 5;
            const SYMBOLS: u64 = 6;
            let at = |[_, address]: [u64; 2]| bias.wrapping_add(address as usize);
            let (strings, symbols) = (at(find(STRINGS)?), at(find(SYMBOLS)?).cast());
            // Neither hash table tells how many there are in every kernel; the table of sections does.
            let sections_at = base.add(SECTIONS_AT).cast::<u64>().read() as usize;
            let count = usize::from(base.add(SECTION_COUNT_AT).cast::<u16>().read());
            let end = sections_at.checked_add(count * size_of::<[u64; 8]>())?;
            if end > (load.memory_len as usize).next_multiple_of(PAGE_LEN) {
                return None;
            }
            let sections = base.add(sections_at).cast::<[u64; 8]>();
            let sections = core::slice::from_raw_parts(sections, count);
            const DYNSYM: u64 = 11;
            let dynsym = sections.iter().find(|[name_and_kind, ..]| name_and_kind >> 32 == DYNSYM)?;
            let count = dynsym[4] as usize / size_of::<Symbol>();
            Some(Self { base: bias, symbols, strings, count })
        }
    }

    /// # Safety
    ///
    /// As for [`Elf::of`].
    unsafe fn function(&self, name: &[u8]) -> Option<*const c_void> {
        // SAFETY: as many as the object says.
        let symbols = unsafe { core::slice::from_raw_parts(self.symbols, self.count) };
        let is_it = |symbol: &&Symbol| {
            // SAFETY: names end with a NUL, before which all is compared.
            symbol.section != 0
                && name
                    .iter()
                    .chain(b"\0")
                    .enumerate()
                    .all(|(at, byte)| unsafe { self.strings.add(symbol.name as usize + at).read() == *byte })
        };
        let symbol = symbols.iter().find(is_it)?;
        Some(self.base.wrapping_add(symbol.value as usize).cast())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vdso_has_the_time() {
        unsafe extern "C" {
            fn getauxval(kind: c_ulong) -> c_ulong;
        }
        init(|_| getauxval as *mut c_void);
        assert!(!GETTIME.load(Ordering::Relaxed).is_null(), "this kernel has a vDSO");
        let std = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
        let (before, now, after) = (std(), now_ns(), std());
        assert!((before..=after).contains(&now), "{before} {now} {after}");
        let (vdso, kernel) = (monotonic_ns(), sys::clock_gettime(MONOTONIC));
        assert!(vdso <= kernel.tv_sec as u64 * 1_000_000_000 + kernel.tv_nsec as u64);
    }
}
