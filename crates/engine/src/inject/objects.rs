//! The programs and libraries in another process's memory, and what they have for others (elf(5)), read where it lies: their
//! files may have been replaced since, or be in another mount namespace, and the process's own dlsym(3) would take its lock.

use std::io;

use super::memory::{Mapping, Memory};

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const DT_NULL: u64 = 0;
const DT_HASH: u64 = 4;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_GNU_HASH: u64 = 0x6fff_fef5;
const HEADER_LEN: u64 = 64;
const PROGRAM_HEADER_LEN: usize = 56;
const SYMBOL_LEN: u64 = 24;
/// More than any has; what says so is broken.
const MAX_PROGRAM_HEADERS: usize = 64;
const MAX_DYNAMIC: u64 = 256;
const MAX_SYMBOLS: u32 = 1 << 20;
const MAX_NAME: usize = 256;

/// An object that is mapped, with its symbols.
#[derive(Debug)]
pub(super) struct Object<'m> {
    memory: &'m Memory,
    /// What is added to the addresses in it.
    bias: u64,
    symbols: u64,
    names: u64,
    hash: Option<Hash>,
}

#[derive(Clone, Copy, Debug)]
enum Hash {
    /// At this address, by the names' own hash.
    Gnu(u64),
    /// So many symbols.
    Count(u32),
}

impl<'m> Object<'m> {
    /// Every object of a process, by address.
    pub fn all(memory: &'m Memory, mappings: &[Mapping]) -> Vec<Self> {
        let starts = mappings.iter().filter(|mapping| mapping.offset == 0 && mapping.name.starts_with('/'));
        starts.filter_map(|mapping| Self::at(memory, mapping.start).ok().flatten()).collect()
    }

    fn at(memory: &'m Memory, start: u64) -> io::Result<Option<Self>> {
        let mut header = [0; HEADER_LEN as usize];
        memory.read(start, &mut header)?;
        // ELF, 64 bits.
        if !header.starts_with(b"\x7fELF\x02") {
            return Ok(None);
        }
        let (programs_at, count) = (u64_at(&header, 32), usize::from(u16_at(&header, 56)));
        if count > MAX_PROGRAM_HEADERS {
            return Ok(None);
        }
        let programs = memory.some(start.wrapping_add(programs_at), count * PROGRAM_HEADER_LEN);
        let programs = || programs.chunks_exact(PROGRAM_HEADER_LEN);
        let Some(first) = programs().find(|program| u32_at(program, 0) == PT_LOAD) else { return Ok(None) };
        let Some(dynamic) = programs().find(|program| u32_at(program, 0) == PT_DYNAMIC) else { return Ok(None) };
        let bias = start.wrapping_sub(u64_at(first, 16) - u64_at(first, 8));
        let mut object = Self { memory, bias, symbols: 0, names: 0, hash: None };
        let mut at = bias.wrapping_add(u64_at(dynamic, 16));
        for _ in 0..MAX_DYNAMIC {
            let (tag, value) = (memory.word(at)?, memory.word(at.wrapping_add(8))?);
            // glibc's dynamic loader puts addresses here, musl's leaves what was in the file.
            let address = if value < bias { bias.wrapping_add(value) } else { value };
            match tag {
                DT_NULL => break,
                DT_SYMTAB => object.symbols = address,
                DT_STRTAB => object.names = address,
                DT_GNU_HASH => object.hash = Some(Hash::Gnu(address)),
                DT_HASH if object.hash.is_none() => {
                    let count = (memory.word(address)? >> 32) as u32;
                    object.hash = Some(Hash::Count(count.min(MAX_SYMBOLS)));
                }
                _ => {}
            }
            at = at.wrapping_add(16);
        }
        Ok((object.symbols != 0 && object.names != 0).then_some(object))
    }

    /// The address of a function or a variable that it has for others.
    pub fn find(&self, name: &str) -> Option<u64> {
        match self.hash? {
            Hash::Gnu(table) => self.by_hash(table, name).ok().flatten(),
            Hash::Count(count) => (1..count).find_map(|index| self.symbol(index, name).ok().flatten()),
        }
    }

    fn by_hash(&self, table: u64, name: &str) -> io::Result<Option<u64>> {
        let mut header = [0; 16];
        self.memory.read(table, &mut header)?;
        let (buckets, first, words) = (u32_at(&header, 0), u32_at(&header, 4), u32_at(&header, 8));
        if buckets == 0 {
            return Ok(None);
        }
        let hash = name.bytes().fold(5381_u32, |hash, byte| hash.wrapping_mul(33).wrapping_add(byte.into()));
        let buckets_at = table.wrapping_add(16 + 8 * u64::from(words));
        let chain_at = buckets_at.wrapping_add(4 * u64::from(buckets));
        let mut index = self.half(buckets_at.wrapping_add(4 * u64::from(hash % buckets)))?;
        while (first..MAX_SYMBOLS).contains(&index) {
            let chained = self.half(chain_at.wrapping_add(4 * u64::from(index - first)))?;
            if (chained | 1) == (hash | 1)
                && let Some(address) = self.symbol(index, name)?
            {
                return Ok(Some(address));
            }
            if chained & 1 != 0 {
                break;
            }
            index += 1;
        }
        Ok(None)
    }

    fn half(&self, at: u64) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.memory.read(at, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// The address of a symbol, if it has this name and is defined.
    fn symbol(&self, index: u32, name: &str) -> io::Result<Option<u64>> {
        /// STT_NOTYPE, STT_OBJECT and STT_FUNC: what has an address that is what it says.
        const KINDS: std::ops::RangeInclusive<u8> = 0..=2;
        let mut symbol = [0; SYMBOL_LEN as usize];
        self.memory.read(self.symbols.wrapping_add(SYMBOL_LEN * u64::from(index)), &mut symbol)?;
        let (section, value) = (u16_at(&symbol, 6), u64_at(&symbol, 8));
        let at = self.names.wrapping_add(u32_at(&symbol, 0).into());
        let is_it = section != 0
            && value != 0
            && KINDS.contains(&(symbol[4] & 15))
            && self.memory.text(at, MAX_NAME) == name.as_bytes();
        Ok(is_it.then(|| self.bias.wrapping_add(value)))
    }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inject::memory::mappings;

    #[test]
    fn what_our_own_libc_has() {
        let own = std::process::id();
        let (memory, mappings) = (Memory::of(own, own).unwrap(), mappings(own, own).unwrap());
        let objects = Object::all(&memory, &mappings);
        let found = |name| objects.iter().find_map(|object| object.find(name));
        assert_eq!(found("__errno_location"), Some(libc::__errno_location as *const () as u64));
        assert_eq!(found("socketpair"), Some(libc::socketpair as *const () as u64));
        assert_eq!(found("no_such_function_anywhere"), None);
    }
}
