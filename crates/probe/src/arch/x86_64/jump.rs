//! Jumps, and instructions that are moved to where one leads.

use super::front::{JUMP_LEN, RET, SHORT_JUMP_LEN};
use super::instruction;

/// `jmp *0(%rip)` and the address behind it.
pub(crate) const FAR_JUMP_LEN: usize = 14;

/// `jmp rel8`.
pub(crate) fn short(distance: i8) -> [u8; SHORT_JUMP_LEN] {
    [0xeb, distance.cast_unsigned()]
}

/// `jmp rel32`; `None` if that does not reach.
pub(crate) fn near(from: usize, to: usize) -> Option<[u8; JUMP_LEN]> {
    let distance = i32::try_from(to.wrapping_sub(from + JUMP_LEN).cast_signed()).ok()?;
    let [a, b, c, d] = distance.to_le_bytes();
    Some([0xe9, a, b, c, d])
}

/// A jump to anywhere.
pub(crate) fn far(to: usize) -> [u8; FAR_JUMP_LEN] {
    let mut bytes = [0; FAR_JUMP_LEN];
    bytes[..2].copy_from_slice(&[0xff, 0x25]);
    bytes[6..].copy_from_slice(&(to as u64).to_le_bytes());
    bytes
}

/// Copies the first `moved` bytes of a function, with displacements as they have to be at `to`.
pub(crate) fn relocate(code: &[u8], moved: usize, from: usize, to: usize, out: &mut [u8]) -> Option<()> {
    let mut at = 0;
    while at < moved {
        if code[at] == RET {
            // And padding behind it.
            out[at] = RET;
            break;
        }
        let instruction = instruction::decode(&code[at..])?;
        let end = at + instruction.len;
        out[at..end].copy_from_slice(&code[at..end]);
        if let Some(displacement_at) = instruction.displacement {
            let place = at + displacement_at..at + displacement_at + 4;
            let displacement = i32::from_le_bytes(*code[place.clone()].first_chunk()?);
            let leads_to = (from + end).wrapping_add_signed(displacement as isize);
            let from_there = leads_to.wrapping_sub(to + end).cast_signed();
            out[place].copy_from_slice(&i32::try_from(from_there).ok()?.to_le_bytes());
        }
        at = end;
    }
    Some(())
}
