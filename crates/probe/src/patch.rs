//! Puts hooks in place of functions in the functions' own memory, where libc's calls of its own functions are seen too:
//! what stdio writes, syslog(3) sends, and fclose(3) closes.
//!
//! An instruction at a function's front becomes a jump to an *island* near the library. The island undoes what comes
//! before that instruction, if anything does, and jumps to the hook; and it has the instructions up to there, with a jump
//! to those behind them: the hook's way to the function itself. `front.rs` says which instruction, and why no
//! thread that is in the function is harmed. None of them is a system call, where a thread may be waiting that will go on
//! behind it.

pub(crate) mod hook;
mod memory;

use core::ffi::{c_long, c_void};
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

use crate::arch::front::{self, JUMP_LEN, MAX_FRONT, MAX_UNDO, SHORT_JUMP_LEN};
use crate::arch::jump::{self, FAR_JUMP_LEN};
use crate::arch::wrapper;
use crate::patch::hook::Hook;
use crate::sys::library::Range;
use memory::{Access, code};

const PAGE_LEN: usize = 4096;
/// How far an island may be from the library, in bytes: a 32-bit displacement, less what the library's own reach takes.
const MAX_DISTANCE: usize = 0x7000_0000;
/// Islands of one library that there is room for, more than there are hooks.
const MAX_ISLANDS: usize = 128;

/// One function that is hooked.
#[repr(C)]
struct Island {
    to_hook: [u8; MAX_UNDO + FAR_JUMP_LEN],
    /// What comes before the jump and what it was put over, and a jump to the rest.
    original: [u8; MAX_FRONT + FAR_JUMP_LEN],
    /// Which hook, and which of the functions that it stands in for.
    hook: &'static Hook,
    index: usize,
    /// The function.
    target: usize,
    jump: Jump,
}

/// A jump to an island.
#[derive(Clone, Copy)]
struct Jump {
    /// The instruction that it is put over, and how much of it.
    at: usize,
    len: usize,
    before: [u8; JUMP_LEN],
    after: [u8; JUMP_LEN],
    /// Padding that has the way to the island, if the jump is a short one; 0: it is not.
    padding: usize,
}

/// A library that is patched: the front of its islands' mapping, which stays for good.
#[repr(C)]
struct Block {
    text: Range,
    count: usize,
}

/// Where the islands begin.
const ISLANDS_AT: usize = size_of::<Block>().next_multiple_of(align_of::<Island>());
const BLOCK_LEN: usize = (ISLANDS_AT + MAX_ISLANDS * size_of::<Island>()).next_multiple_of(PAGE_LEN);

/// Libraries that are patched at one time: libc, the dynamic linker, and others.
const MAX_BLOCKS: usize = 12;

static BLOCKS: [AtomicPtr<Block>; MAX_BLOCKS] = [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_BLOCKS];
/// Somebody is changing code.
static IS_BUSY: AtomicBool = AtomicBool::new(false);

impl Block {
    fn islands(&self) -> &[Island] {
        // SAFETY: `count` of them lie there.
        unsafe { core::slice::from_raw_parts((&raw const *self).byte_add(ISLANDS_AT).cast(), self.count) }
    }
}

fn blocks() -> impl Iterator<Item = (&'static AtomicPtr<Block>, &'static Block)> {
    // SAFETY: null or stored by `Patch::publish`, in memory that stays.
    BLOCKS.iter().filter_map(|slot| Some((slot, unsafe { slot.load(Ordering::Acquire).as_ref() }?)))
}

/// Whether there is any code that was patched.
pub(crate) fn is_any() -> bool {
    blocks().next().is_some()
}

/// Whether a library is patched.
pub(crate) fn has(text: Range) -> bool {
    blocks().any(|(_, block)| block.text == text)
}

/// Whether an address is in the code of a library that is patched.
pub(crate) fn has_code(address: usize) -> bool {
    blocks().any(|(_, block)| block.text.contains(address))
}

/// Forgets the patched libraries that are not there any more.
pub(crate) fn forget(is_there: impl Fn(Range) -> bool) {
    for (slot, block) in blocks().filter(|(_, block)| !is_there(block.text)) {
        slot.store(core::ptr::null_mut(), Ordering::Release);
        for island in block.islands() {
            island.hook.functions.at[island.index].store(0, Ordering::Relaxed);
        }
    }
}

/// Whether a function makes a system call with this number itself; `len` is how long it is, 0 if that is not known.
pub(crate) fn makes_system_call(text: Range, at: usize, len: usize, number: c_long) -> bool {
    // SAFETY: a library's code, mapped as long as it is.
    let code = |at, len| if text.contains(at) { unsafe { code(text, at, len) } } else { &[] };
    u32::try_from(number).is_ok_and(|number| wrapper::makes_call(code, at, len, number))
}

/// A library that is being patched.
pub(crate) struct Patch<H> {
    text: Range,
    /// Every hook.
    hooks: H,
    /// Where the islands are put together, and where they will be: the same, unless memory cannot be made executable.
    block: *mut Block,
    place: usize,
    count: usize,
    access: Access,
    steps: [Steps; MAX_STEPS],
}

/// A page of jumps to islands, in reach of jumps of which only a part can be chosen.
#[derive(Clone, Copy)]
struct Steps {
    /// 0: there is none.
    page: usize,
    count: usize,
}

/// Such pages of one library: those whose last byte of the distance is the same share one.
const MAX_STEPS: usize = 4;

impl<H: Iterator<Item = &'static Hook> + Clone> Patch<H> {
    /// `None`: it cannot be done. `hooks`: every hook there is.
    pub(crate) fn begin(text: Range, hooks: H) -> Option<Self> {
        if IS_BUSY.swap(true, Ordering::Acquire) {
            return None;
        }
        let begun = Self::prepare(text, hooks);
        if begun.is_none() {
            IS_BUSY.store(false, Ordering::Release);
        }
        begun
    }

    fn prepare(text: Range, hooks: H) -> Option<Self> {
        let access = Access::open(text)?;
        let places = Self::places(text, &access);
        if places.is_none() {
            access.close(text);
        }
        let (block, place) = places?;
        Some(Self { text, hooks, block, place, count: 0, access, steps: [Steps { page: 0, count: 0 }; MAX_STEPS] })
    }

    /// Memory for the islands: where they are put together, and where they go.
    fn places(text: Range, access: &Access) -> Option<(*mut Block, usize)> {
        let writable = ProtFlags::READ | ProtFlags::WRITE;
        match access {
            Access::Pages => map_near(text, writable).map(|block| (block, block as usize)),
            Access::File(_) => {
                let place = map_near(text, ProtFlags::READ | ProtFlags::EXEC)?;
                // SAFETY: a new mapping.
                let block = unsafe { mmap_anonymous(core::ptr::null_mut(), BLOCK_LEN, writable, MapFlags::PRIVATE) };
                Some((block.ok()?.cast(), place as usize))
            }
        }
    }

    fn islands(&self) -> &[Island] {
        // SAFETY: written by `add`, as many.
        unsafe { core::slice::from_raw_parts(self.block.byte_add(ISLANDS_AT).cast(), self.count) }
    }

    /// A function that is to be hooked, the `index`th that the hook stands in for; whether it will be.
    pub(crate) fn add(&mut self, hook: &'static Hook, index: usize, target: usize) -> bool {
        if !self.text.contains(target) {
            return false;
        }
        if let Some(at) = self.islands().iter().position(|island| island.target == target) {
            // One function by several names.
            hook.functions.call[index].store(self.original(at) as *mut c_void, Ordering::Release);
            return true;
        }
        if self.count == MAX_ISLANDS {
            return false;
        }
        let Some(island) = self.island(hook, index, target) else { return false };
        // SAFETY: within the mapping, behind those that were written.
        unsafe { self.block.byte_add(ISLANDS_AT).cast::<Island>().add(self.count).write(island) };
        self.count += 1;
        true
    }

    /// Where an island's way to the function will be.
    fn original(&self, at: usize) -> usize {
        self.address(at) + core::mem::offset_of!(Island, original)
    }

    fn address(&self, at: usize) -> usize {
        self.place + ISLANDS_AT + at * size_of::<Island>()
    }

    /// `None`: the function's front has no place for a jump.
    fn island(&mut self, hook: &'static Hook, index: usize, target: usize) -> Option<Island> {
        // SAFETY: a library's code.
        let code = unsafe { code(self.text, target, MAX_FRONT) };
        let to = self.address(self.count);
        let mut jump = None;
        let site = front::find(code, |site| {
            jump = self.jump(target + site.at, site.len, to);
            jump.is_some()
        });
        let (site, jump) = (site?, jump?);
        let mut to_hook = [0; MAX_UNDO + FAR_JUMP_LEN];
        let undo = site.undo.code();
        to_hook[..undo.len()].copy_from_slice(undo);
        to_hook[undo.len()..][..FAR_JUMP_LEN].copy_from_slice(&jump::far(hook.replacements[index] as usize));
        let mut original = [0; MAX_FRONT + FAR_JUMP_LEN];
        let moved = site.at + site.len;
        jump::relocate(code, moved, target, self.original(self.count), &mut original)?;
        original[moved..][..FAR_JUMP_LEN].copy_from_slice(&jump::far(target + moved));
        Some(Island { to_hook, original, hook, index, target, jump })
    }

    /// The jump that can be put over an instruction.
    fn jump(&mut self, at: usize, len: usize, to: usize) -> Option<Jump> {
        // SAFETY: a library's code.
        let before: [u8; JUMP_LEN] = *unsafe { code(self.text, at, JUMP_LEN) }.first_chunk()?;
        if len >= JUMP_LEN && self.access.can_write(at, JUMP_LEN) {
            return Some(Jump { at, len: JUMP_LEN, before, after: jump::near(at, to)?, padding: 0 });
        }
        if !self.access.can_write(at, SHORT_JUMP_LEN) {
            return None;
        }
        let mut after = before;
        let Some(padding) = self.padding_near(at) else {
            if len + 1 < JUMP_LEN || !self.access.can_write(at, JUMP_LEN - 1) {
                return None;
            }
            after[..JUMP_LEN - 1].copy_from_slice(self.step(at, before[JUMP_LEN - 1], to)?.first_chunk::<4>()?);
            return Some(Jump { at, len: JUMP_LEN - 1, before, after, padding: 0 });
        };
        let distance = i8::try_from(padding.wrapping_sub(at + SHORT_JUMP_LEN).cast_signed()).ok()?;
        after[..SHORT_JUMP_LEN].copy_from_slice(&jump::short(distance));
        Some(Jump { at, len: SHORT_JUMP_LEN, before, after, padding })
    }

    /// A jump over four bytes: the fifth, which is the next instruction's, stays as it is and is the highest of the
    /// distance. It leads to a jump to the island, within the 16 MiB that the other three can choose.
    fn step(&mut self, at: usize, fifth: u8, to: usize) -> Option<[u8; JUMP_LEN]> {
        const WINDOW: usize = 1 << 24;
        if !matches!(self.access, Access::Pages) {
            return None;
        }
        let window = (at + JUMP_LEN).checked_add_signed(isize::from(fifth.cast_signed()) * WINDOW.cast_signed())?;
        let is_reached = |page: usize| page >= window && page + PAGE_LEN <= window + WINDOW;
        let fits = |steps: &&mut Steps| {
            steps.page == 0 || is_reached(steps.page) && (steps.count + 1) * FAR_JUMP_LEN <= PAGE_LEN
        };
        let steps = self.steps.iter_mut().find(fits)?;
        if steps.page == 0 {
            // In its middle, so that others' windows begin or end before it.
            let wish = (window + WINDOW / 2).next_multiple_of(PAGE_LEN);
            let (protection, flags) =
                (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE);
            // SAFETY: a new mapping, where there is none.
            let page = unsafe { mmap_anonymous(wish as *mut c_void, PAGE_LEN, protection, flags) }.ok()? as usize;
            if !is_reached(page) {
                // SAFETY: mapped a moment ago, and nobody's.
                let _ = unsafe { munmap(page as *mut c_void, PAGE_LEN) };
                return None;
            }
            steps.page = page;
        }
        let step = steps.page + steps.count * FAR_JUMP_LEN;
        steps.count += 1;
        // SAFETY: within the page, which is ours.
        unsafe { (step as *mut [u8; FAR_JUMP_LEN]).write(jump::far(to)) };
        jump::near(at, step)
    }

    /// Room for a jump that a short one reaches, in padding between functions.
    fn padding_near(&self, at: usize) -> Option<usize> {
        /// Code that is looked through on the way to it, in bytes.
        const MAX_CODE: usize = 1024;
        let from = at + SHORT_JUMP_LEN;
        let is_free = |place: &usize| {
            let is_reached = i8::try_from(place.wrapping_sub(from).cast_signed()).is_ok();
            let islands = self.islands().iter();
            is_reached && islands.map(|island| island.jump.padding).all(|other| other.abs_diff(*place) >= JUMP_LEN)
        };
        let room =
            |start: usize, len: usize| (1..=len / JUMP_LEN).map(|nth| start + len - nth * JUMP_LEN).find(&is_free);
        let near = |target: &usize| {
            self.text.contains(*target) && target.abs_diff(from) < MAX_CODE && *target > self.text.start + MAX_FRONT
        };
        let targets = || {
            self.hooks
                .clone()
                .flat_map(|hook| &hook.functions.at)
                .map(|found| found.load(Ordering::Relaxed))
                .filter(near)
        };
        let before = |target: usize| {
            // SAFETY: within the library's code, by `near`.
            let len = front::padding_before(unsafe { code(self.text, target - MAX_FRONT, MAX_FRONT) });
            room(target - len, len)
        };
        let behind = |target: usize| {
            let mut found = None;
            // SAFETY: as above.
            front::unreached(unsafe { code(self.text, target, MAX_CODE) }, |at, len| {
                found = room(target + at, len);
                found.is_some()
            });
            found
        };
        targets().find_map(before).or_else(|| targets().find_map(behind))
    }

    /// Puts the jumps in place; whether it could be done.
    pub(crate) fn finish(self) -> bool {
        let is_done = self.count != 0 && self.publish();
        self.access.close(self.text);
        if !is_done {
            // SAFETY: ours, and nothing leads there.
            let _ = unsafe { munmap(self.place as *mut c_void, BLOCK_LEN) };
        }
        if matches!(self.access, Access::File(_)) {
            // SAFETY: ours, and what was in it is copied.
            let _ = unsafe { munmap(self.block.cast(), BLOCK_LEN) };
        }
        IS_BUSY.store(false, Ordering::Release);
        is_done
    }

    fn publish(&self) -> bool {
        let Some(slot) = BLOCKS.iter().find(|slot| slot.load(Ordering::Relaxed).is_null()) else { return false };
        let header = Block { text: self.text, count: self.count };
        // SAFETY: the front of the mapping.
        unsafe { self.block.write(header) };
        let is_ready = match &self.access {
            Access::Pages => {
                // SAFETY: our own mapping.
                unsafe { mprotect(self.block.cast(), BLOCK_LEN, MprotectFlags::READ | MprotectFlags::EXEC) }.is_ok()
            }
            // SAFETY: our own mapping.
            Access::File(_) => self.access.write(self.place, unsafe {
                core::slice::from_raw_parts(self.block.cast(), ISLANDS_AT + self.count * size_of::<Island>())
            }),
        };
        let are_steps_ready = self.steps.iter().filter(|steps| steps.page != 0).all(|steps| {
            let executable = MprotectFlags::READ | MprotectFlags::EXEC;
            // SAFETY: our own mapping.
            unsafe { mprotect(steps.page as *mut c_void, PAGE_LEN, executable) }.is_ok()
        });
        if !is_ready || !are_steps_ready {
            return false;
        }
        for (at, island) in self.islands().iter().enumerate() {
            // Before the jump: a call may come as soon as that is there.
            island.hook.functions.call[island.index].store(self.original(at) as *mut c_void, Ordering::Release);
            let padding = island.jump.padding;
            if let Some(way) = (padding != 0).then(|| jump::near(padding, self.address(at))).flatten() {
                self.access.write(padding, &way);
            }
        }
        for island in self.islands() {
            self.access.write(island.jump.at, &island.jump.after[..island.jump.len]);
        }
        slot.store(self.place as *mut Block, Ordering::Release);
        true
    }
}

/// Takes the jumps away. The islands and the ways to them stay: a thread may be on its way through.
pub(crate) fn remove() {
    swap(|jump| (jump.after, jump.before));
}

/// Puts them back.
pub(crate) fn put_back() {
    swap(|jump| (jump.before, jump.after));
}

/// Where memory cannot be made writable the jumps stay as they are. So does one over which others have put theirs.
fn swap(change: impl Fn(&Jump) -> ([u8; JUMP_LEN], [u8; JUMP_LEN])) {
    if IS_BUSY.swap(true, Ordering::Acquire) {
        return;
    }
    for (_, block) in blocks() {
        let Some(access) = Access::open(block.text) else { continue };
        for jump in block.islands().iter().map(|island| &island.jump) {
            let (from, to) = change(jump);
            // SAFETY: the library's code.
            if unsafe { code(block.text, jump.at, jump.len) } == &from[..jump.len]
                && access.can_write(jump.at, jump.len)
            {
                access.write(jump.at, &to[..jump.len]);
            }
        }
        access.close(block.text);
    }
    IS_BUSY.store(false, Ordering::Release);
}

/// Memory within a jump's reach of a library, for good.
fn map_near(text: Range, protection: ProtFlags) -> Option<*mut Block> {
    /// Where to look, below the library, in steps of 16 MiB: programs have their libraries close together.
    const STEP: usize = 16 << 20;
    for below in 1..=64 {
        let hint = text.start.checked_sub(below * STEP)? as *mut c_void;
        // SAFETY: a new mapping; the address is a wish.
        let at = unsafe { mmap_anonymous(hint, BLOCK_LEN, protection, MapFlags::PRIVATE) }.ok()?;
        let (low, high) = (text.start.min(at as usize), text.end.max(at as usize + BLOCK_LEN));
        if high - low < MAX_DISTANCE {
            return Some(at.cast());
        }
        // SAFETY: mapped a moment ago, and nobody's.
        let _ = unsafe { munmap(at, BLOCK_LEN) };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooks;
    use crate::sys::library;

    /// Of the libc that the tests run with: each hooked function has a place for a jump, and jumps and what they lead
    /// to do not overlap.
    #[test]
    fn every_function_has_a_place() {
        unsafe extern "C" {
            fn gnu_get_libc_version() -> *const core::ffi::c_char;
        }
        let libc = library::with_code_at(gnu_get_libc_version as *const () as usize).expect("libc's code");
        let note = |hook: &'static Hook| Some((hook, libc.function(hook.name)?.address));
        let functions: Vec<_> = hooks::all().filter_map(note).collect();
        for (hook, address) in &functions {
            hook.functions.at[0].store(*address, Ordering::Relaxed);
        }
        let mut patch = Patch::begin(libc.text, hooks::all()).expect("libc's memory can be changed");
        for (hook, address) in functions {
            assert!(patch.add(hook, 0, address), "{:?} has no place for a jump", hook.name);
        }
        let jumps = || patch.islands().iter().map(|island| &island.jump);
        let mut taken: Vec<_> = jumps().map(|jump| (jump.at, jump.len)).collect();
        taken.extend(jumps().filter(|jump| jump.padding != 0).map(|jump| (jump.padding, JUMP_LEN)));
        taken.sort_unstable();
        assert!(taken.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{taken:x?}");
        assert!(taken.len() > 50);
        // Nothing was changed, and nothing is.
        patch.count = 0;
        assert!(!patch.finish());
    }
}
