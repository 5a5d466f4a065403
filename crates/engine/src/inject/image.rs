//! The probe as it lies in a process's memory: its segments, and behind them what it takes to call it.
//!
//! ```text
//! base │ segments of the shared object │ door │ notes │ guard │ stack
//! ```
//!
//! It is relocated here, outside, with the addresses that the process's own libc has (elf(5)). A later visitor finds it
//! again by its first page.

use std::ops::Range;

use object::elf::{
    PF_W, PF_X, PT_GNU_RELRO, PT_LOAD, R_X86_64_64, R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT, R_X86_64_RELATIVE,
};
use object::read::elf::{ElfFile64, ProgramHeader as _};
use object::{LittleEndian, Object as _, ObjectSymbol as _, ObjectSymbolTable as _, RelocationFlags, RelocationTarget};

use super::memory::{Mapping, Memory, PAGE_LEN};
use crate::preload::PROBE as NAME;

/// Bytes of the stack on which the probe's functions are called from outside. They need some KiB.
const STACK_LEN: u64 = 64 << 10;
/// Below it: memory that nobody can touch.
const GUARD_LEN: u64 = PAGE_LEN;
/// Room for what is handed over with a call: parameters, a time.
pub(super) const NOTES_LEN: u64 = 64 << 10;

/// What a call returns to: it keeps the result, and stops itself by a signal that nobody can block, which its tracer takes away.
///
/// ```text
/// mov rbx, rax
/// mov eax, SYS_getpid; syscall; mov edi, eax
/// mov eax, SYS_gettid; syscall; mov esi, eax
/// mov edx, SIGSTOP; mov eax, SYS_tgkill; syscall
/// hlt
/// ```
///
/// A breakpoint would reset the handler of a SIGTRAP that is blocked.
const DOOR: [u8; 34] = [
    0x48,
    0x89,
    0xc3,
    0xb8,
    libc::SYS_getpid as u8,
    0,
    0,
    0,
    0x0f,
    0x05,
    0x89,
    0xc7,
    0xb8,
    libc::SYS_gettid as u8,
    0,
    0,
    0,
    0x0f,
    0x05,
    0x89,
    0xc6,
    0xba,
    libc::SIGSTOP as u8,
    0,
    0,
    0,
    0xb8,
    libc::SYS_tgkill as u8,
    0,
    0,
    0,
    0x0f,
    0x05,
    0xf4,
];
/// Where in it the last system call's successor is, which is what the thread's instruction pointer shows then.
const BEHIND_CALL: u64 = DOOR.len() as u64 - 1;

/// The shared object, taken apart.
#[derive(Debug)]
pub(super) struct Image<'d> {
    data: &'d [u8],
    file: ElfFile64<'d, LittleEndian>,
    /// Bytes of memory that its segments take, in whole pages.
    span: u64,
}

/// A part of it with one protection (mprotect(2)).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub addresses: Range<u64>,
    pub protection: libc::c_int,
}

/// Where everything is once it is in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub base: u64,
    span: u64,
}

impl Place {
    /// The code that calls return to.
    pub fn door(self) -> u64 {
        self.base + self.span
    }

    /// Where a thread is that has come back.
    pub fn is_back(self, instruction: u64) -> bool {
        instruction == self.door() + BEHIND_CALL
    }

    pub fn notes(self) -> u64 {
        self.door() + PAGE_LEN
    }

    fn guard(self) -> u64 {
        self.notes() + NOTES_LEN
    }

    /// The end of the stack, which grows downwards.
    pub fn stack_end(self) -> u64 {
        self.guard() + GUARD_LEN + STACK_LEN
    }
}

/// The image does not go into this process.
#[derive(Debug, thiserror::Error)]
#[error("the probe's shared object is not one that can be put into memory: {0}")]
pub(super) struct Unfit(String);

fn unfit(why: impl ToString) -> Unfit {
    Unfit(why.to_string())
}

impl<'d> Image<'d> {
    pub fn of(data: &'d [u8]) -> Result<Self, Unfit> {
        let file = ElfFile64::<LittleEndian>::parse(data).map_err(unfit)?;
        let end = loads(&file).map(|segment| segment.end).max().ok_or_else(|| unfit("no segments"))?;
        Ok(Self { data, file, span: end.next_multiple_of(PAGE_LEN) })
    }

    /// Bytes of memory for all of it.
    pub fn len(&self) -> u64 {
        Place { base: 0, span: self.span }.stack_end()
    }

    pub fn placed_at(&self, base: u64) -> Place {
        Place { base, span: self.span }
    }

    /// The parts that are not to be both read and written, in the order in which they have to be protected.
    pub fn parts(&self, place: Place) -> Vec<Part> {
        let pages = |range: Range<u64>| {
            (place.base + range.start / PAGE_LEN * PAGE_LEN)..(place.base + range.end).next_multiple_of(PAGE_LEN)
        };
        let mut parts: Vec<_> = loads(&self.file)
            .filter(|segment| !segment.is_writable)
            .map(|segment| Part {
                addresses: pages(segment.start..segment.end),
                protection: libc::PROT_READ | if segment.is_executable { libc::PROT_EXEC } else { 0 },
            })
            .collect();
        // Read-only once it is relocated; its last page may have what comes next.
        parts.extend(headers(&self.file).filter(|header| header.0 == PT_GNU_RELRO).map(|(_, start, end)| Part {
            addresses: place.base + start / PAGE_LEN * PAGE_LEN..place.base + end / PAGE_LEN * PAGE_LEN,
            protection: libc::PROT_READ,
        }));
        parts.push(Part { addresses: place.door()..place.notes(), protection: libc::PROT_READ | libc::PROT_EXEC });
        parts.push(Part { addresses: place.guard()..place.guard() + GUARD_LEN, protection: libc::PROT_NONE });
        parts.retain(|part| !part.addresses.is_empty());
        parts
    }

    /// Its segments and the door, relocated to where they will lie. `find` has the addresses of libc's symbols; those that
    /// it does not know stay null, as weak symbols do.
    pub fn relocated(&self, place: Place, find: impl Fn(&str) -> Option<u64>) -> Result<Vec<u8>, Unfit> {
        let mut bytes = vec![0; (self.span + DOOR.len() as u64) as usize];
        for segment in loads(&self.file) {
            let file = self.data.get(segment.in_file.clone()).ok_or_else(|| unfit("a segment beyond its end"))?;
            let at = segment.start as usize;
            bytes[at..at + file.len()].copy_from_slice(file);
        }
        for (at, relocation) in self.file.dynamic_relocations().into_iter().flatten() {
            let RelocationFlags::Elf { r_type } = relocation.flags() else { return Err(unfit("a relocation")) };
            let addend = relocation.addend();
            let value = match (r_type, relocation.target()) {
                (R_X86_64_RELATIVE, _) => place.base.wrapping_add_signed(addend),
                (R_X86_64_GLOB_DAT | R_X86_64_JUMP_SLOT | R_X86_64_64, RelocationTarget::Symbol(index)) => {
                    let table = self.file.dynamic_symbol_table().ok_or_else(|| unfit("no symbols"))?;
                    let symbol = table.symbol_by_index(index).map_err(unfit)?;
                    let addend = if r_type == R_X86_64_64 { addend } else { 0 };
                    let address = match symbol.is_undefined() {
                        true => find(symbol.name().map_err(unfit)?),
                        false => Some(place.base + symbol.address()),
                    };
                    address.map_or(0, |address| address.wrapping_add_signed(addend))
                }
                (other, _) => return Err(unfit(format!("a relocation of type {other}"))),
            };
            let slot =
                bytes.get_mut(at as usize..at as usize + 8).ok_or_else(|| unfit("a relocation beyond its end"))?;
            slot.copy_from_slice(&value.to_le_bytes());
        }
        bytes[self.span as usize..].copy_from_slice(&DOOR);
        Ok(bytes)
    }

    /// The address of one of its functions.
    pub fn function(&self, place: Place, name: &str) -> Result<u64, Unfit> {
        let mut symbols = self.file.dynamic_symbols().filter(|symbol| symbol.is_definition());
        let symbol = symbols.find(|symbol| symbol.name() == Ok(name));
        symbol.map(|symbol| place.base + symbol.address()).ok_or_else(|| unfit(format!("no {name}")))
    }

    /// Where this very one lies in a process already, put there by somebody before.
    pub fn find(&self, memory: &Memory, mappings: &[Mapping]) -> Option<Place> {
        let first = self.data.get(..PAGE_LEN as usize)?;
        let starts = anonymous(mappings).map(|mapping| mapping.start);
        let mut found = starts.filter(|&start| memory.some(start, first.len()) == first);
        found.next().map(|base| self.placed_at(base))
    }
}

/// Whether a probe lies in a process's anonymous memory, of whichever version.
pub(super) fn is_in(memory: &Memory, mappings: &[Mapping]) -> bool {
    anonymous(mappings).any(|mapping| {
        // Its name is among its first symbols' names.
        const LOOKED_AT: usize = 16 << 10;
        let front = memory.some(mapping.start, 4);
        front == b"\x7fELF" && {
            let bytes = memory.some(mapping.start, LOOKED_AT);
            bytes.windows(NAME.len()).any(|window| window == NAME.as_bytes())
        }
    })
}

/// Memory that has no file; where the kernel has names for such, whatever that is.
fn anonymous(mappings: &[Mapping]) -> impl Iterator<Item = &Mapping> {
    mappings.iter().filter(|mapping| mapping.name.is_empty() || mapping.name.starts_with("[anon:"))
}

struct Load {
    start: u64,
    end: u64,
    in_file: Range<usize>,
    is_writable: bool,
    is_executable: bool,
}

fn loads<'f>(file: &'f ElfFile64<'_, LittleEndian>) -> impl Iterator<Item = Load> + 'f {
    let segments = file.elf_program_headers().iter().filter(|header| header.p_type(LittleEndian) == PT_LOAD);
    segments.map(|header| {
        let (start, offset) = (header.p_vaddr(LittleEndian), header.p_offset(LittleEndian) as usize);
        Load {
            start,
            end: start + header.p_memsz(LittleEndian),
            in_file: offset..offset + header.p_filesz(LittleEndian) as usize,
            is_writable: header.p_flags(LittleEndian) & PF_W != 0,
            is_executable: header.p_flags(LittleEndian) & PF_X != 0,
        }
    })
}

/// Kind, start and end.
fn headers<'f>(file: &'f ElfFile64<'_, LittleEndian>) -> impl Iterator<Item = (u32, u64, u64)> + 'f {
    file.elf_program_headers().iter().map(|header| {
        let start = header.p_vaddr(LittleEndian);
        (header.p_type(LittleEndian), start, start + header.p_memsz(LittleEndian))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_fits() {
        let image = Image::of(socktrace_agent::PROBE).unwrap();
        let place = image.placed_at(0x7000_0000_0000);
        let bytes = image.relocated(place, |name| (name == "__errno_location").then_some(0x1234_5678)).unwrap();
        assert!(bytes.windows(8).any(|word| word == 0x1234_5678_u64.to_le_bytes()));
        let start = image.function(place, "socktrace_start").unwrap();
        let parts = image.parts(place);
        let code = parts.iter().find(|part| part.addresses.contains(&start)).unwrap();
        assert_eq!(code.protection, libc::PROT_READ | libc::PROT_EXEC);
        assert!(parts.iter().all(|part| part.protection & libc::PROT_WRITE == 0));
        assert!(place.stack_end() - place.base == image.len() && place.stack_end().is_multiple_of(16));
        assert!(image.function(place, "no_such_function").is_err());
    }
}
