//! Puts hooks in place of libc's functions in libc's own memory, where libc's calls of its own functions are seen too:
//! what stdio writes, syslog(3) sends, and fclose(3) closes.
//!
//! A function's first five bytes become a jump to an island near libc. The island has a jump to the hook, and the
//! instructions that were moved, with a jump to those behind them: the hook's way to the function itself. Five bytes
//! are enough and never reach a system call, where a thread may be waiting that will go on behind it.

mod instruction;

use core::ffi::c_void;
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

use crate::hooks::Hook;

const PAGE_LEN: usize = 4096;
/// `jmp rel32`.
const JUMP_LEN: usize = 5;
/// `jmp *0(%rip)` and the address behind it.
const FAR_JUMP_LEN: usize = 14;
/// Bytes of a function's front that are moved: the longest instruction that begins within the jump ends before this.
const MAX_MOVED: usize = JUMP_LEN - 1 + 15;
/// How far an island may be from libc, in bytes: a 32-bit displacement, less what libc's own reach takes.
const MAX_DISTANCE: usize = 0x7000_0000;
/// Islands that there is room for, more than there are hooks.
const MAX_ISLANDS: usize = 128;

/// One function that is hooked.
#[repr(C)]
struct Island {
    to_hook: [u8; FAR_JUMP_LEN],
    /// What was moved, and a jump to the rest.
    original: [u8; MAX_MOVED + FAR_JUMP_LEN],
    /// The function.
    target: usize,
    /// The eight bytes at its front, as they were.
    before: u64,
}

static ISLANDS: AtomicPtr<Island> = AtomicPtr::new(core::ptr::null_mut());
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// A range of addresses.
#[derive(Clone, Copy)]
pub(crate) struct Range {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Range {
    fn contains(self, address: usize) -> bool {
        (self.start..self.end).contains(&address)
    }
}

/// The executable memory that an address is in, as /proc/self/maps has it. Mappings that lie against each other are one:
/// whoever changes the access to a page, as Frida does, splits them.
pub(crate) fn text_around(address: usize) -> Option<Range> {
    let maps = openat(CWD, c"/proc/self/maps", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut buffer = [0_u8; 1024];
    let mut line = Line::default();
    let mut text = Range { start: 0, end: 0 };
    loop {
        let len = rustix::io::read(&maps, &mut buffer).ok()?;
        if len == 0 {
            return text.contains(address).then_some(text);
        }
        for &byte in &buffer[..len] {
            if !line.feed(byte) {
                continue;
            }
            let Range { start, end } = line.range();
            if line.is_executable && start == text.end {
                text.end = end;
            } else if text.contains(address) {
                return Some(text);
            } else if line.is_executable {
                text = Range { start, end };
            }
        }
    }
}

/// A line of /proc/self/maps, read a byte at a time: `start-end rwxp …`.
#[derive(Default)]
struct Line {
    numbers: [usize; 2],
    field: usize,
    is_executable: bool,
}

impl Line {
    fn range(&self) -> Range {
        Range { start: self.numbers[0], end: self.numbers[1] }
    }

    /// Whether the byte ends the part of the line that is looked at.
    fn feed(&mut self, byte: u8) -> bool {
        match (byte, self.field) {
            (b'\n', _) => *self = Self::default(),
            (b'-', 0) | (b' ', 1) => self.field += 1,
            (b' ', 2) => {
                self.field += 1;
                return true;
            }
            (b'x', 2) => self.is_executable = true,
            (digit, 0 | 1) => {
                let digit = char::from(digit).to_digit(16).unwrap_or(0) as usize;
                self.numbers[self.field] = self.numbers[self.field] << 4 | digit;
            }
            _ => {}
        }
        false
    }
}

/// Patches libc: every hook whose function lies in its text. `missed` hears of those whose front cannot be moved;
/// whether it could be done at all.
pub(crate) fn install(
    text: Range,
    hooks: impl Iterator<Item = &'static Hook> + Clone,
    mut missed: impl FnMut(&Hook),
) -> bool {
    let len = MAX_ISLANDS * size_of::<Island>();
    let Some(islands) = map_near(text, len) else { return false };
    ISLANDS.store(islands, Ordering::Relaxed);
    COUNT.store(0, Ordering::Relaxed);
    let mut count = 0;
    for hook in hooks.clone() {
        let target = hook.libc.load(Ordering::Relaxed) as usize;
        if !text.contains(target) || count == MAX_ISLANDS {
            continue;
        }
        // SAFETY: within the mapping, which is ours and writable.
        let (made, island) = unsafe { (core::slice::from_raw_parts(islands, count), &mut *islands.add(count)) };
        // One function may go by several names.
        let same = made.iter().find(|island| island.target == target);
        if let Some(same) = same {
            hook.libc.store(same.original.as_ptr().cast_mut().cast(), Ordering::Release);
        // SAFETY: `text` is libc's mapped code.
        } else if unsafe { write_island(island, text, hook) }.is_some() {
            count += 1;
        } else {
            missed(hook);
        }
    }
    let executable = MprotectFlags::READ | MprotectFlags::EXEC;
    // SAFETY: our own mapping.
    if unsafe { mprotect(islands.cast(), len.next_multiple_of(PAGE_LEN), executable) }.is_err() {
        return false;
    }
    if !set_writable(text, true) {
        return false;
    }
    // SAFETY: `count` of them were written.
    let made = unsafe { core::slice::from_raw_parts(islands, count) };
    for hook in hooks {
        // Only now: a call may come as soon as its function is patched.
        let target = hook.libc.load(Ordering::Relaxed) as usize;
        if let Some(island) = made.iter().find(|island| island.target == target) {
            hook.libc.store(island.original.as_ptr().cast_mut().cast(), Ordering::Release);
        }
    }
    for island in made {
        let front = with_jump(island.before, island as *const Island as usize, island.target);
        // SAFETY: libc's text, made writable; the function is at least as long as what was moved of it.
        unsafe { overwrite(island.target, front) };
    }
    set_writable(text, false);
    COUNT.store(count, Ordering::Release);
    true
}

/// Takes the patches away. The islands stay: a thread may be on its way through one.
pub(crate) fn remove(text: Range) {
    let count = COUNT.swap(0, Ordering::AcqRel);
    let islands = ISLANDS.load(Ordering::Relaxed);
    if count == 0 || !set_writable(text, true) {
        return;
    }
    // SAFETY: written by `install`, as many.
    for island in unsafe { core::slice::from_raw_parts(islands, count) } {
        // SAFETY: as it was before.
        unsafe { overwrite(island.target, island.before) };
    }
    set_writable(text, false);
}

/// The eight bytes with a jump in the first five.
fn with_jump(before: u64, to: usize, from: usize) -> u64 {
    let mut bytes = before.to_le_bytes();
    let distance = to.wrapping_sub(from + JUMP_LEN) as u32;
    bytes[0] = 0xe9;
    bytes[1..JUMP_LEN].copy_from_slice(&distance.to_le_bytes());
    u64::from_le_bytes(bytes)
}

/// In one store, which other threads see whole, where the function is aligned, as they are.
unsafe fn overwrite(target: usize, bytes: u64) {
    if target.is_multiple_of(align_of::<AtomicU64>()) {
        // SAFETY: the caller's promise, and aligned.
        unsafe { AtomicU64::from_ptr(target as *mut u64) }.store(bytes, Ordering::SeqCst);
    } else {
        // SAFETY: the caller's promise.
        unsafe {
            (target as *mut [u8; JUMP_LEN]).write_volatile(*bytes.to_le_bytes().first_chunk().unwrap_or(&[0; JUMP_LEN]))
        };
    }
}

fn set_writable(text: Range, writable: bool) -> bool {
    let mut flags = MprotectFlags::READ | MprotectFlags::EXEC;
    if writable {
        flags |= MprotectFlags::WRITE;
    }
    // SAFETY: libc's text; still executable while it is written to, for other threads run in it.
    unsafe { mprotect(text.start as *mut c_void, text.end - text.start, flags) }.is_ok()
}

/// Memory within a jump's reach of libc, for good.
fn map_near(text: Range, len: usize) -> Option<*mut Island> {
    /// Where to look, below libc, in steps of 16 MiB: programs have their libraries close together.
    const STEP: usize = 16 << 20;
    let len = len.next_multiple_of(PAGE_LEN);
    for below in 1..=64 {
        let hint = text.start.checked_sub(below * STEP)? as *mut c_void;
        // SAFETY: a new mapping; the address is a wish.
        let at = unsafe { mmap_anonymous(hint, len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) }.ok()?;
        let (low, high) = (text.start.min(at as usize), text.end.max(at as usize + len));
        if high - low < MAX_DISTANCE {
            return Some(at.cast());
        }
        // SAFETY: mapped a moment ago, and nobody's.
        let _ = unsafe { munmap(at, len) };
    }
    None
}

/// Fills an island; `None` if the function's front cannot be moved.
unsafe fn write_island(island: &mut Island, text: Range, hook: &Hook) -> Option<()> {
    let target = hook.libc.load(Ordering::Relaxed) as usize;
    let available = (text.end - target).min(MAX_MOVED);
    // SAFETY: within the text.
    let code = unsafe { core::slice::from_raw_parts(target as *const u8, available) };
    let mut moved = 0;
    let original = island.original.as_ptr() as usize;
    while moved < JUMP_LEN {
        let instruction = instruction::decode(&code[moved..])?;
        let end = moved + instruction.len;
        island.original[moved..end].copy_from_slice(&code[moved..end]);
        if let Some(at) = instruction.displacement {
            let at = moved + at;
            let mut displacement = [0; 4];
            displacement.copy_from_slice(&code[at..at + 4]);
            let leads_to = (target + end).wrapping_add_signed(i32::from_le_bytes(displacement) as isize);
            let from_here = leads_to.wrapping_sub(original + end).cast_signed();
            island.original[at..at + 4].copy_from_slice(&i32::try_from(from_here).ok()?.to_le_bytes());
        }
        moved = end;
    }
    island.original[moved..moved + FAR_JUMP_LEN].copy_from_slice(&far_jump(target + moved));
    island.to_hook = far_jump(hook.replacement as usize);
    island.target = target;
    island.before = u64::from_le_bytes(*code.first_chunk()?);
    Some(())
}

fn far_jump(to: usize) -> [u8; FAR_JUMP_LEN] {
    let mut bytes = [0; FAR_JUMP_LEN];
    bytes[..2].copy_from_slice(&[0xff, 0x25]);
    bytes[6..].copy_from_slice(&(to as u64).to_le_bytes());
    bytes
}
