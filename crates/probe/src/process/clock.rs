//! The clocks, read without a system call where the kernel allows for that (vdso(7)).
//!
//! Not rustix's way: it asks the kernel by prctl(2) where the vDSO is, which under valgrind is not where it is, nor
//! anywhere. libc has been told the truth. Nor libc's clock_gettime(3), which others stand in for (libfaketime).

use core::ffi::{CStr, c_int, c_ulong, c_void};
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use rustix::time::Timespec;

use crate::arch::call::VDSO_CLOCK_GETTIME;
use crate::sys;
use crate::sys::confined::is_strict;

const PAGE_LEN: usize = 4096;
const REALTIME: c_int = 0;
const MONOTONIC: c_int = 1;

/// The vDSO's clock_gettime; null without one.
static GETTIME: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());

type Gettime = unsafe extern "C" fn(c_int, *mut Timespec) -> c_int;

/// What CLOCK_REALTIME is ahead of CLOCK_MONOTONIC.
///
/// Calls are timed by the latter, which nobody sets, and told in the former. The two run alike (adjtimex(2) slows and speeds up
/// both), so that what lies between them changes only when somebody sets the time, or the machine was asleep.
struct Wall {
    ahead_ns: AtomicU64,
    /// When to look again (CLOCK_MONOTONIC, nanoseconds).
    look_ns: AtomicU64,
}

/// How long it may take until a time that was set is told, in nanoseconds.
const LOOK_NS: u64 = 10_000_000;
/// How often the two clocks are read to find them at one moment, of which the closest counts.
const READINGS: u32 = 6;
/// Nobody sets the clock by less, in nanoseconds, and readings may be that much apart. What was once found is kept
/// otherwise, so that what a process tells is evenly spaced.
const LEAST_STEP_NS: u64 = 2_000;

static WALL: Wall = Wall { ahead_ns: AtomicU64::new(0), look_ns: AtomicU64::new(0) };

impl Wall {
    /// What is to be added to a time of CLOCK_MONOTONIC, near `now_ns`.
    #[inline]
    fn ahead_ns(&self, now_ns: u64) -> u64 {
        if now_ns >= self.look_ns.load(Ordering::Relaxed) {
            self.look(now_ns, read);
        }
        self.ahead_ns.load(Ordering::Relaxed)
    }

    /// Both times as this has them now.
    #[inline]
    fn since(&self, entered_ns: u64, now_ns: u64) -> (u64, u64) {
        let ahead_ns = self.ahead_ns(now_ns);
        let entered_ns = if entered_ns == 0 { now_ns } else { entered_ns };
        (entered_ns.wrapping_add(ahead_ns), now_ns.wrapping_add(ahead_ns))
    }

    #[cold]
    #[inline(never)]
    fn look(&self, now_ns: u64, read: impl Fn(c_int) -> u64) {
        self.look_ns.store(now_ns + LOOK_NS, Ordering::Relaxed);
        let reading = |_| {
            let (before, real, after) = (read(MONOTONIC), read(REALTIME), read(MONOTONIC));
            let apart_ns = after.saturating_sub(before);
            (apart_ns, real.wrapping_sub(before + apart_ns / 2))
        };
        let Some((apart_ns, found)) = (0..READINGS).map(reading).min() else { return };
        let known = self.ahead_ns.load(Ordering::Relaxed);
        if found.abs_diff(known) > apart_ns.max(LEAST_STEP_NS) {
            self.ahead_ns.store(found, Ordering::Relaxed);
        }
    }
}

/// What is to be added to a time of [`monotonic_ns`], which is about `now_ns`, to have it since the Unix epoch.
#[inline]
pub(crate) fn ahead_ns(now_ns: u64) -> u64 {
    WALL.ahead_ns(now_ns)
}

/// Nanoseconds since the Unix epoch.
#[inline]
pub(crate) fn now_ns() -> u64 {
    let now_ns = monotonic_ns();
    now_ns.wrapping_add(WALL.ahead_ns(now_ns))
}

/// When a call was entered and when it has ended, which is now: nanoseconds since the Unix epoch, between which there is
/// the time that it took even if the clock was set meanwhile. `entered_ns` is of [`monotonic_ns`]; 0 for one that takes no time.
#[inline]
pub(crate) fn since(entered_ns: u64) -> (u64, u64) {
    WALL.since(entered_ns, monotonic_ns())
}

/// Nanoseconds of CLOCK_MONOTONIC (clock_gettime(2)).
#[inline]
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
        now = ask_kernel(clock);
    }
    // Negative only before 1970.
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The time by a system call; 0 in a thread that may make none.
#[cold]
fn ask_kernel(clock: c_int) -> Timespec {
    if is_strict() { Timespec { tv_sec: 0, tv_nsec: 0 } } else { sys::clock_gettime(clock) }
}

/// The program is about to forbid itself RDTSC (PR_SET_TSC, prctl(2); seccomp(2)'s strict mode), which is what the vDSO
/// reads the time by. For good, and for all threads: which of them it concerns is not worth knowing.
pub(crate) fn forget_counter() {
    GETTIME.store(core::ptr::null_mut(), Ordering::Relaxed);
}

/// Looks for the vDSO, by the getauxval(3) that `find` finds.
pub(crate) fn init(find: impl FnOnce(&CStr) -> *mut c_void) {
    const AT_SYSINFO_EHDR: c_ulong = 33;
    if !GETTIME.load(Ordering::Relaxed).is_null() || !sys::may_read_counter() {
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
            vdso => Elf::of(vdso as *const u8).and_then(|vdso| vdso.function(VDSO_CLOCK_GETTIME)),
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
    fn a_clock_that_is_set_is_told_and_an_unsteady_reading_is_not() {
        let wall = Wall { ahead_ns: AtomicU64::new(0), look_ns: AtomicU64::new(0) };
        let look = |monotonic: u64, real: u64| {
            wall.look(monotonic, |clock| if clock == MONOTONIC { monotonic } else { real });
            wall.ahead_ns.load(Ordering::Relaxed)
        };
        assert_eq!(look(1000, 5_000_000), 4_999_000);
        assert_eq!(look(2000, 5_002_000), 4_999_000, "a thousand nanoseconds are an interruption");
        // Set forward, and back to before.
        assert_eq!(look(3000, 9_000_000), 8_997_000);
        assert_eq!(look(8_000_000, 1_000_000), 1_000_000_u64.wrapping_sub(8_000_000));
        assert!(wall.ahead_ns(8_000_001).wrapping_add(8_000_001) == 1_000_001, "it need not look for a while");
    }

    #[test]
    fn a_call_takes_as_long_as_it_takes() {
        let wall = Wall { ahead_ns: AtomicU64::new(1_000_000), look_ns: AtomicU64::new(u64::MAX) };
        assert_eq!(wall.since(10, 30), (1_000_010, 1_000_030));
        // It was set by an hour between a call's beginning and its end.
        wall.ahead_ns.fetch_add(3_600_000_000_000, Ordering::Relaxed);
        let (entered_ns, now_ns) = wall.since(10, 30);
        assert_eq!(now_ns - entered_ns, 20);
        let (entered_ns, now_ns) = wall.since(0, 30);
        assert_eq!(now_ns, entered_ns);
    }

    #[test]
    fn the_vdso_has_the_time() {
        unsafe extern "C" {
            fn getauxval(kind: c_ulong) -> c_ulong;
        }
        init(|_| getauxval as *mut c_void);
        assert!(!GETTIME.load(Ordering::Relaxed).is_null(), "this kernel has a vDSO");
        let std = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
        let (before, now, after) = (std(), now_ns(), std());
        assert!((before - LEAST_STEP_NS..=after + LEAST_STEP_NS).contains(&now), "{before} {now} {after}");
        let (vdso, kernel) = (monotonic_ns(), sys::clock_gettime(MONOTONIC));
        assert!(vdso <= kernel.tv_sec as u64 * 1_000_000_000 + kernel.tv_nsec as u64);
    }
}
