//! Where in a function's front a jump can be put so that no thread is harmed that is in it.
//!
//! A thread may be anywhere in a function while its code is changed: it runs there, or a signal handler interrupted it
//! there. Between two instructions that are written over it would go on in the middle of the jump. So a jump is
//! written over **one** instruction only. One of five bytes or more takes a `jmp rel32`, one of two or more a short jump
//! to a `jmp rel32` in padding nearby, and one of four a `jmp rel32` whose last byte is the next instruction's first. If the first instruction is too short for either, it is a later one: those before
//! it have been executed when the jump is reached, and are undone first, which is easy for what functions begin
//! with.

use super::instruction;

/// `jmp rel32`.
pub(crate) const JUMP_LEN: usize = 5;
/// `jmp rel8`.
pub(crate) const SHORT_JUMP_LEN: usize = 2;
/// `ret`.
pub(crate) const RET: u8 = 0xc3;
/// Bytes of code that undoes what a function has begun with.
pub(crate) const MAX_UNDO: usize = 48;
/// Bytes of a function that are looked at for a place for the jump.
pub(crate) const MAX_FRONT: usize = 64;

/// An instruction that a jump can be put over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site {
    /// Where it begins, in bytes from the function's start.
    pub(crate) at: usize,
    /// Its own length.
    pub(crate) len: usize,
    /// What takes back the instructions before it.
    pub(crate) undo: Undo,
}

/// Code that makes registers and stack what they were when the function was called; those that no function takes
/// anything in (rax, r10, r11 and the flags) may differ.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Undo {
    bytes: [u8; MAX_UNDO],
    /// It is put together from its end: what was done last is undone first.
    start: usize,
}

impl Undo {
    fn put_before(&mut self, code: &[u8]) -> Option<()> {
        self.start = self.start.checked_sub(code.len())?;
        self.bytes[self.start..][..code.len()].copy_from_slice(code);
        Some(())
    }

    pub(crate) fn code(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

/// The first instruction of a function that `suits`, of those that can be reached with all before them undone.
pub(crate) fn find(code: &[u8], mut suits: impl FnMut(&Site) -> bool) -> Option<Site> {
    let mut site = Site { at: 0, len: 0, undo: Undo { bytes: [0; MAX_UNDO], start: MAX_UNDO } };
    let mut saved = Registers(0);
    loop {
        let rest = code.get(site.at..)?;
        if rest.first() == Some(&RET) {
            // The end of a function that does nothing, with the padding behind it, where no thread can be.
            site.len = 1 + nops(&rest[1..]);
            return suits(&site).then_some(site);
        }
        site.len = instruction::decode(rest)?.len;
        if site.len >= SHORT_JUMP_LEN && suits(&site) {
            return Some(site);
        }
        match effect(&rest[..site.len], saved)? {
            Effect::Nothing => {}
            Effect::MakeFrame => saved = saved.with(FRAME),
            Effect::Push(register) => {
                saved = saved.with(register);
                let pop = [0x41, 0x58 | register & 7];
                site.undo.put_before(if register >= 8 { &pop } else { &pop[1..] })?;
            }
            // lea n(%rsp), %rsp
            Effect::Lower(by) => {
                let [a, b, c, d] = by.to_le_bytes();
                site.undo.put_before(&[0x48, 0x8d, 0xa4, 0x24, a, b, c, d])?;
            }
            Effect::PopReturn(register) => site.undo.put_before(&[0x50 | register])?,
        }
        site.at += site.len;
    }
}

/// The frame pointer's number.
const RBP: u8 = 5;

/// A set of registers, by their numbers.
#[derive(Clone, Copy)]
struct Registers(u32);

impl Registers {
    fn with(self, register: u8) -> Self {
        Self(self.0 | 1 << register)
    }

    fn contains(self, register: u8) -> bool {
        self.0 & 1 << register != 0
    }
}

/// rax, r10, r11: nothing is passed in them that a hook looks at, and a function may change them.
const SCRATCH: Registers = Registers(1 << 0 | 1 << 10 | 1 << 11);
/// Not a register's number: that rbp is the frame pointer.
const FRAME: u8 = 16;

/// What an instruction does that has to be undone.
enum Effect {
    Nothing,
    /// The frame pointer, which was pushed, is where the stack pointer is.
    MakeFrame,
    /// A register is pushed.
    Push(u8),
    /// The stack pointer is lowered by so much.
    Lower(u32),
    /// The return address is popped, by a function that takes nothing and keeps it in a register (vfork).
    PopReturn(u8),
}

/// `None`: more than can be undone. `saved` are registers that were pushed, and get their values back from there.
fn effect(code: &[u8], saved: Registers) -> Option<Effect> {
    // endbr64; nop, with and without an operand.
    if code == [0xf3, 0x0f, 0x1e, 0xfa] || instruction::is_nop(code) {
        return Some(Effect::Nothing);
    }
    let rex = code.first().copied().filter(|byte| byte & 0xf0 == 0x40);
    let code = &code[usize::from(rex.is_some())..];
    let rex = rex.unwrap_or(0);
    let (wide, reg_high, rm_high) = (rex & 8 != 0, (rex & 4) << 1, (rex & 1) << 3);
    let opcode = *code.first()?;
    let modrm = code.get(1).copied().unwrap_or(0);
    let (is_register, reg, rm) = (modrm >> 6 == 3, modrm >> 3 & 7, (modrm & 7) | rm_high);
    let immediate = || match *code.get(2..)? {
        [byte] => Some(u32::from(byte)).filter(|&byte| byte < 0x80),
        [a, b, c, d] => Some(u32::from_le_bytes([a, b, c, d])).filter(|&number| number < 1 << 31),
        _ => None,
    };
    let written = match opcode {
        0x50..=0x57 => return Some(Effect::Push(opcode & 7 | rm_high)),
        0x59 | 0x5a | 0x5e | 0x5f if rex == 0 => return Some(Effect::PopReturn(opcode & 7)),
        // push of a number.
        0x68 | 0x6a => return Some(Effect::Lower(8)),
        // sub $n, %rsp
        0x81 | 0x83 if wide && modrm == 0xec && rm_high == 0 => return immediate().map(Effect::Lower),
        // cmp and test.
        0x38..=0x3d | 0x84 | 0x85 | 0xa8 | 0xa9 => return Some(Effect::Nothing),
        0x80 | 0x81 | 0x83 if reg == 7 => return Some(Effect::Nothing),
        0xf6 | 0xf7 if reg == 0 => return Some(Effect::Nothing),
        // An int that is widened in its own register: its low half, which is all that is passed, stays.
        0x63 if is_register && wide && rm == reg | reg_high => return Some(Effect::Nothing),
        0x89 | 0x8b if is_register && !wide && rm == reg | reg_high => return Some(Effect::Nothing),
        // mov %rsp, %rbp
        0x89 if wide && modrm == 0xe5 && rm_high | reg_high == 0 && saved.contains(RBP) => {
            return Some(Effect::MakeFrame);
        }
        // A store to the function's own frame, which is gone when the stack pointer is back.
        0x89 if is_own_frame(modrm, code.get(2).copied(), saved) && rm_high == 0 => return Some(Effect::Nothing),
        // mov, xor and sub to a register.
        0x29 | 0x31 | 0x89 if is_register => rm,
        0x2b | 0x33 | 0x8b if is_register => reg | reg_high,
        0x63 if is_register && wide => reg | reg_high,
        0xb8..=0xbf => opcode & 7 | rm_high,
        _ => return None,
    };
    (SCRATCH.contains(written) || saved.contains(written)).then_some(Effect::Nothing)
}

/// Whether an operand is below the frame pointer: `-n(%rbp)`.
fn is_own_frame(modrm: u8, displacement: Option<u8>, saved: Registers) -> bool {
    modrm >> 6 == 1 && modrm & 7 == RBP && saved.contains(FRAME) && displacement.is_some_and(|byte| byte >= 0x80)
}

/// Bytes of padding before a function that begins at the end of `code`: instructions that do nothing and are not reached.
pub(crate) fn padding_before(code: &[u8]) -> usize {
    /// The longest that is taken for such: what aligns a function to 16 bytes.
    const MAX: usize = 15;
    let is_padding = |&len: &usize| code.len().checked_sub(len).is_some_and(|from| nops(&code[from..]) == len);
    (JUMP_LEN..=MAX).rev().find(is_padding).unwrap_or(0)
}

/// Bytes at the front of `code` that are instructions without effect.
fn nops(code: &[u8]) -> usize {
    let mut at = 0;
    while let Some(rest) = code.get(at..).filter(|rest| !rest.is_empty()) {
        let len = if rest[0] == 0xcc { Some(1) } else { instruction::decode(rest).map(|found| found.len) };
        match len {
            Some(len) if rest[0] == 0xcc || instruction::is_nop(&rest[..len]) => at += len,
            _ => break,
        }
    }
    at
}

/// Looks for padding that is never executed, in code that begins with an instruction: what does nothing and comes behind one
/// that does not go on to the next. Gives where it is and how long, until `take` wants no more.
pub(crate) fn unreached(code: &[u8], mut take: impl FnMut(usize, usize) -> bool) {
    let mut at = 0;
    while let Some(rest) = code.get(at..).filter(|rest| !rest.is_empty()) {
        let (len, goes_on) = match (instruction::decode(rest), instruction::control(rest)) {
            (Some(found), _) => (found.len, true),
            (None, Some((len, goes_on))) => (len, goes_on),
            (None, None) => return,
        };
        at += len;
        if !goes_on && at < code.len() {
            let len = nops(&code[at..]);
            if len >= JUMP_LEN && take(at, len) {
                return;
            }
            at += len;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(code: &[u8], min: usize) -> Option<(usize, Vec<u8>)> {
        let mut padded = code.to_vec();
        padded.extend([0x90; 16]);
        find(&padded, |site| site.len >= min).map(|site| (site.at, site.undo.code().to_vec()))
    }

    #[test]
    fn what_comes_before_the_jump_is_undone() {
        // recvmsg: push %rbx; sub $0x10, %rsp; cmpb $0, d(%rip)
        let code = [0x53, 0x48, 0x83, 0xec, 0x10, 0x80, 0x3d, 1, 2, 3, 4, 0];
        assert_eq!(found(&code, 5), Some((5, vec![0x48, 0x8d, 0xa4, 0x24, 0x10, 0, 0, 0, 0x5b])));
        // push %r15; mov %edx, %r15d; push %r14; movq d(%rip), %rax
        let code = [0x41, 0x57, 0x41, 0x89, 0xd7, 0x41, 0x56, 0x48, 0x8b, 0x05, 1, 2, 3, 4];
        assert_eq!(found(&code, 5), Some((7, vec![0x41, 0x5e, 0x41, 0x5f])));
        // vfork: pop %rdi; mov $58, %eax
        assert_eq!(found(&[0x5f, 0xb8, 58, 0, 0, 0], 5), Some((1, vec![0x57])));
        // mov %rcx, %r10; mov $0x142, %eax
        assert_eq!(found(&[0x49, 0x89, 0xca, 0xb8, 0x42, 1, 0, 0], 5), Some((3, vec![])));
    }

    #[test]
    fn what_cannot_be_undone_is_left_alone() {
        // mov %rdi, %rbx, which was not pushed; an argument that is overwritten; a store; a jump.
        for code in
            [&[0x48, 0x89, 0xfb][..], &[0x48, 0x89, 0xf7], &[0x48, 0x89, 0x07], &[0xeb, 0x00], &[0x48, 0x01, 0xc7]]
        {
            let mut code = code.to_vec();
            code.extend([0xb8, 1, 0, 0, 0]);
            assert_eq!(found(&code, 5), None, "{code:x?}");
        }
    }

    #[test]
    fn padding_is_what_does_nothing() {
        assert_eq!(padding_before(&[0xc3, 0x66, 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0]), 11);
        assert_eq!(padding_before(&[0xc3, 0x90, 0x90, 0x90, 0x90]), 0);
        assert_eq!(padding_before(&[0x90, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc]), 6);
        assert_eq!(padding_before(&[0x48, 0x8b, 0x05, 0, 0, 0, 0]), 0);
        let mut runs = vec![];
        // Padding behind a jump; what aligns a loop is executed.
        let code =
            [0xeb, 0x10, 0x0f, 0x1f, 0x44, 0, 0, 0x89, 0xf8, 0x0f, 0x1f, 0x44, 0, 0, 0xc3, 0x0f, 0x1f, 0x44, 0, 0];
        unreached(&code, |at, len| {
            runs.push((at, len));
            false
        });
        assert_eq!(runs, [(2, 5), (15, 5)]);
    }
}
