//! The libraries that are loaded, and the functions they have (elf(5), dl_iterate_phdr(3)), read where they lie in
//! memory: dlsym(3) gives whatever comes first, and only of the namespace of its caller.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::libc;

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Range {
    pub(crate) fn contains(self, address: usize) -> bool {
        (self.start..self.end).contains(&address)
    }
}

/// `Elf64_Phdr`.
#[repr(C)]
pub(crate) struct Segment {
    kind: u32,
    flags: u32,
    _offset: u64,
    address: u64,
    _physical: u64,
    _file_len: u64,
    memory_len: u64,
    _align: u64,
}

/// `Elf64_Sym`.
#[repr(C)]
struct Symbol {
    name: u32,
    info: u8,
    _other: u8,
    section: u16,
    value: u64,
    size: u64,
}

/// The front of `struct dl_phdr_info`.
#[repr(C)]
struct Info {
    base: usize,
    name: *const c_char,
    segments: *const Segment,
    segment_count: u16,
    /// How many libraries have been loaded and unloaded, in all namespaces.
    loaded: u64,
    unloaded: u64,
}

/// How many libraries there are and were.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// In our namespace, now.
    pub(crate) here: usize,
    /// In all of them, ever.
    pub(crate) loaded: usize,
    pub(crate) unloaded: usize,
}

pub(crate) fn counts() -> Counts {
    unsafe extern "C" fn count(info: *const Info, _: usize, counts: *mut c_void) -> c_int {
        // SAFETY: what dl_iterate_phdr(3) gives, and what it was given.
        unsafe {
            let counts = &mut *counts.cast::<Counts>();
            *counts =
                Counts { here: counts.here + 1, loaded: (*info).loaded as usize, unloaded: (*info).unloaded as usize };
        }
        0
    }
    let mut counts = Counts::default();
    if let Some(iterate) = iterate_phdr() {
        // SAFETY: dl_iterate_phdr(3) itself.
        unsafe { iterate(count, (&raw mut counts).cast()) };
    }
    counts
}

/// A loaded library, or the program itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Library {
    /// What is added to the addresses in it.
    base: usize,
    /// Its code.
    pub(crate) text: Range,
    dynamic: usize,
}

/// A function that a library has for others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function {
    pub(crate) address: usize,
    /// Bytes; 0 if the library does not say.
    pub(crate) len: usize,
}

type IteratePhdr =
    unsafe extern "C" fn(unsafe extern "C" fn(*const Info, usize, *mut c_void) -> c_int, *mut c_void) -> c_int;

/// Shows each library of our namespace to `visit`, until that has seen enough. Whether there was any.
pub(crate) fn each(mut visit: impl FnMut(&Library) -> bool) -> bool {
    unsafe extern "C" fn show<F: FnMut(&Library) -> bool>(info: *const Info, _: usize, visit: *mut c_void) -> c_int {
        // SAFETY: what dl_iterate_phdr(3) gives, and the function that `each` was given.
        unsafe {
            let segments = core::slice::from_raw_parts((*info).segments, usize::from((*info).segment_count));
            let library = Library::of((*info).base, segments);
            c_int::from(library.is_some_and(|library| (*visit.cast::<F>())(&library)))
        }
    }
    fn shower<F: FnMut(&Library) -> bool>(_: &F) -> unsafe extern "C" fn(*const Info, usize, *mut c_void) -> c_int {
        show::<F>
    }
    let Some(iterate) = iterate_phdr() else { return false };
    let show = shower(&visit);
    // SAFETY: dl_iterate_phdr(3) itself.
    unsafe { iterate(show, (&raw mut visit).cast()) };
    true
}

/// The library whose code has this address.
pub(crate) fn with_code_at(address: usize) -> Option<Library> {
    let mut found = None;
    each(|library| {
        if library.text.contains(address) {
            found = Some(*library);
        }
        found.is_some()
    });
    found
}

/// Shows a library's further copies to `visit`, which are in namespaces of their own (dlmopen(3)): whatever else is
/// executable memory of the same part of the same file.
pub(crate) fn each_copy(library: &Library, mut visit: impl FnMut(&Library)) {
    let maps = |found: &mut dyn FnMut(&Mapping)| -> Option<()> {
        let file = openat(CWD, c"/proc/thread-self/maps", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let (mut buffer, mut line) = ([0_u8; 512], Line::default());
        loop {
            let len = rustix::io::read(&file, &mut buffer).ok().filter(|&len| len > 0)?;
            for &byte in &buffer[..len] {
                if line.feed(byte) {
                    found(&line.mapping);
                }
            }
        }
    };
    let mut original = None;
    maps(&mut |mapping| {
        if mapping.range().contains(library.text.start) {
            original = Some(*mapping);
        }
    });
    let Some(original) = original.filter(|original| original.inode() != 0) else { return };
    maps(&mut |mapping| {
        if mapping.is_executable && mapping.file() == original.file() && mapping.range().start != original.range().start
        {
            visit(&library.moved_to(mapping.range().start + (library.text.start - original.range().start)));
        }
    });
}

/// A line of /proc/self/maps: `start-end rwxp offset major:minor inode …`.
#[derive(Clone, Copy, Default)]
struct Mapping {
    /// Start, end, offset, the device's two numbers, in hexadecimal; the inode number.
    numbers: [usize; 6],
    is_executable: bool,
}

impl Mapping {
    fn range(&self) -> Range {
        Range { start: self.numbers[0], end: self.numbers[1] }
    }

    fn inode(&self) -> usize {
        self.numbers[5]
    }

    /// What of which file.
    fn file(&self) -> [usize; 4] {
        [self.numbers[2], self.numbers[3], self.numbers[4], self.numbers[5]]
    }
}

/// One, read a byte at a time.
#[derive(Default)]
struct Line {
    mapping: Mapping,
    field: usize,
}

impl Line {
    /// Whether the byte ends what is looked at of a line.
    fn feed(&mut self, byte: u8) -> bool {
        /// Fields as they are separated, and which number each is; the access has none.
        const ACCESS: usize = 2;
        const INODE: usize = 6;
        match byte {
            b'\n' => *self = Self::default(),
            b'-' if self.field == 0 => self.field += 1,
            b':' if self.field == INODE - 2 => self.field += 1,
            b' ' if self.field <= INODE => {
                self.field += 1;
                return self.field > INODE;
            }
            b'x' if self.field == ACCESS => self.mapping.is_executable = true,
            digit if self.field != ACCESS && self.field <= INODE => {
                let radix = if self.field == INODE { 10 } else { 16 };
                let number = &mut self.mapping.numbers[self.field - usize::from(self.field > ACCESS)];
                let digit = char::from(digit).to_digit(radix).unwrap_or(0);
                *number = number.wrapping_mul(radix as usize).wrapping_add(digit as usize);
            }
            _ => {}
        }
        false
    }
}

impl Library {
    fn of(base: usize, segments: &[Segment]) -> Option<Self> {
        const LOAD: u32 = 1;
        const DYNAMIC: u32 = 2;
        const EXECUTABLE: u32 = 1;
        let code = segments.iter().find(|segment| segment.kind == LOAD && segment.flags & EXECUTABLE != 0)?;
        let dynamic = segments.iter().find(|segment| segment.kind == DYNAMIC)?;
        let start = base.wrapping_add(code.address as usize);
        let text = Range { start, end: start + code.memory_len as usize };
        Some(Self { base, text, dynamic: base.wrapping_add(dynamic.address as usize) })
    }

    /// The same library, loaded once more: its code is there.
    fn moved_to(self, text_start: usize) -> Self {
        let by = text_start.wrapping_sub(self.text.start);
        let text = Range { start: text_start, end: self.text.end.wrapping_add(by) };
        Self { base: self.base.wrapping_add(by), text, dynamic: self.dynamic.wrapping_add(by) }
    }

    fn entry(&self, tag: u64) -> Option<usize> {
        // SAFETY: the library's dynamic section, which ends with an entry of 0.
        let entries = (0..).map(|at| unsafe { (self.dynamic as *const [u64; 2]).add(at).read() });
        let [_, value] = entries.take_while(|entry| entry[0] != 0).find(|entry| entry[0] == tag)?;
        Some(value as usize)
    }

    /// An address of the dynamic section, which glibc's dynamic linker has adjusted and musl's has not.
    fn address(&self, tag: u64) -> Option<usize> {
        let value = self.entry(tag)?;
        Some(if value < self.base { self.base + value } else { value })
    }

    /// The function that a program gets by this name.
    pub(crate) fn function(&self, name: &CStr) -> Option<Function> {
        let mut found = None;
        self.each_function(name, |function, is_default| {
            if is_default && found.is_none() {
                found = Some(function);
            }
        });
        found
    }

    /// Every function of this name: versions that programs get which were built long ago are no defaults.
    pub(crate) fn each_function(&self, name: &CStr, mut visit: impl FnMut(Function, bool)) {
        const STRINGS: u64 = 5;
        const SYMBOLS: u64 = 6;
        const VERSIONS: u64 = 0x6fff_fff0;
        let (Some(strings), Some(symbols)) = (self.address(STRINGS), self.address(SYMBOLS)) else { return };
        let versions = self.address(VERSIONS);
        let mut look = |index: usize| {
            const FUNCTION: u8 = 2;
            const HIDDEN: u16 = 0x8000;
            // SAFETY: an index from the library's hash table.
            unsafe {
                let symbol = &*(symbols as *const Symbol).add(index);
                let is_it = symbol.section != 0
                    && symbol.info & 15 == FUNCTION
                    && CStr::from_ptr((strings as *const c_char).add(symbol.name as usize)) == name;
                if is_it {
                    let version = versions.map_or(0, |versions| (versions as *const u16).add(index).read());
                    let address = self.base.wrapping_add(symbol.value as usize);
                    visit(Function { address, len: symbol.size as usize }, version & HIDDEN == 0);
                }
            }
        };
        const GNU_HASH: u64 = 0x6fff_fef5;
        const HASH: u64 = 4;
        // SAFETY: the library's own hash table, which its dynamic linker goes by.
        unsafe {
            if let Some(table) = self.address(GNU_HASH) {
                each_by_gnu_hash(table as *const u32, name, &mut look);
            } else if let Some(table) = self.address(HASH) {
                each_by_hash(table as *const u32, name, &mut look);
            }
        }
    }
}

/// The table of DT_GNU_HASH: how many buckets, the first symbol, a Bloom filter's words and shift, the filter, the
/// buckets, and a chain with a bit for its end.
unsafe fn each_by_gnu_hash(table: *const u32, name: &CStr, look: &mut impl FnMut(usize)) {
    let hash = name.to_bytes().iter().fold(5381_u32, |hash, &byte| hash.wrapping_mul(33).wrapping_add(u32::from(byte)));
    // SAFETY: the caller's promise.
    unsafe {
        let [buckets, first, words, shift] = [0, 1, 2, 3].map(|at| table.add(at).read());
        let filter = table.add(4).cast::<u64>();
        let word = filter.add((hash / 64 % words) as usize).read_unaligned();
        if word & (1 << (hash % 64)) == 0 || word & (1 << ((hash >> shift) % 64)) == 0 {
            return;
        }
        let bucket = filter.add(words as usize).cast::<u32>();
        let chain = bucket.add(buckets as usize);
        let mut index = bucket.add((hash % buckets) as usize).read();
        if index < first {
            return;
        }
        loop {
            let found = chain.add((index - first) as usize).read();
            if found | 1 == hash | 1 {
                look(index as usize);
            }
            if found & 1 != 0 {
                return;
            }
            index += 1;
        }
    }
}

/// The table of DT_HASH: how many buckets and symbols, the buckets, and for each symbol the next one.
unsafe fn each_by_hash(table: *const u32, name: &CStr, look: &mut impl FnMut(usize)) {
    let hash = name.to_bytes().iter().fold(0_u32, |hash, &byte| {
        let hash = (hash << 4).wrapping_add(u32::from(byte));
        let high = hash & 0xf000_0000;
        (hash ^ high >> 24) & !high
    });
    // SAFETY: the caller's promise.
    unsafe {
        let [buckets, symbols] = [0, 1].map(|at| table.add(at).read());
        let chain = table.add(2 + buckets as usize);
        let mut index = table.add(2 + (hash % buckets) as usize).read();
        while index != 0 && index < symbols {
            look(index as usize);
            index = chain.add(index as usize).read();
        }
    }
}

fn iterate_phdr() -> Option<IteratePhdr> {
    // SAFETY: null, or the function of this name.
    unsafe { core::mem::transmute::<*const c_void, Option<IteratePhdr>>(libc::iterate_phdr()) }
}

/// libc's code, once it is known.
static LIBC_TEXT: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

/// The program's libc.
pub(crate) fn own_libc() -> Option<Library> {
    let libc = with_code_at(libc::landmark()?)?;
    LIBC_TEXT[0].store(libc.text.start, Ordering::Relaxed);
    LIBC_TEXT[1].store(libc.text.end, Ordering::Relaxed);
    Some(libc)
}

/// Whether an address is in its code.
#[cfg(feature = "standalone")]
pub(crate) fn is_libcs(address: usize) -> bool {
    let [start, end] = [&LIBC_TEXT[0], &LIBC_TEXT[1]].map(|word| word.load(Ordering::Relaxed));
    match end {
        0 => own_libc().is_some_and(|libc| libc.text.contains(address)),
        _ => Range { start, end }.contains(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" {
        fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    }

    #[test]
    fn lines_of_maps() {
        let text = b"7f00-7f10 r-xp 0002a000 fe:01 1234   /lib/x - y:z\n7f10-7f20 rw-p 00000000 00:00 0 \n";
        let (mut line, mut found) = (Line::default(), vec![]);
        for &byte in text {
            if line.feed(byte) {
                found.push((line.mapping.numbers, line.mapping.is_executable));
            }
        }
        assert_eq!(found, [([0x7f00, 0x7f10, 0x2a000, 0xfe, 1, 1234], true), ([0x7f10, 0x7f20, 0, 0, 0, 0], false)]);
    }

    #[test]
    fn functions_are_dlsyms() {
        let libc = with_code_at(dlsym as *const () as usize).expect("a library has dlsym(3)");
        for name in [c"read", c"fopen", c"posix_spawn", c"getaddrinfo", c"__read_nocancel"] {
            // SAFETY: RTLD_DEFAULT and a name.
            let expected = unsafe { dlsym(core::ptr::null_mut(), name.as_ptr()) } as usize;
            assert_eq!(libc.function(name).map_or(0, |function| function.address), expected, "{name:?}");
        }
        assert!(libc.function(c"no such function").is_none());
        let mut count = 0;
        libc.each_function(c"posix_spawn", |function, _| {
            assert!(libc.text.contains(function.address));
            count += 1;
        });
        assert!(count >= 1);
    }
}
