//! How long an x86-64 instruction is, for the instructions that functions begin with (Intel SDM, volume 2).

/// An instruction that does the same elsewhere, once its displacement is adjusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    /// Bytes.
    pub(crate) len: usize,
    /// Where in it there is a 32-bit displacement from the instruction's end, if there is one.
    pub(crate) displacement: Option<usize>,
}

/// What follows an opcode.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Nothing, or immediate bytes.
    Plain(usize),
    /// A ModRM byte with what belongs to it, and immediate bytes.
    ModRm(usize),
    /// A ModRM byte; an immediate if its register field is 0 or 1 (test).
    Test(usize),
}

/// The instruction at the front of `code`; `None` for one that cannot be moved, or is not known here: jumps, calls,
/// returns, system calls.
pub(crate) fn decode(code: &[u8]) -> Option<Instruction> {
    let mut at = 0;
    let mut is_16_bit = false;
    loop {
        match *code.get(at)? {
            0x66 => is_16_bit = true,
            // Segments, and REPNE and REP, which here only belong to an instruction's name.
            0x2e | 0x64 | 0x65 | 0xf2 | 0xf3 => {}
            _ => break,
        }
        at += 1;
    }
    let rex = code.get(at).filter(|&&byte| byte & 0xf0 == 0x40).copied();
    at += usize::from(rex.is_some());
    let is_64_bit = rex.is_some_and(|rex| rex & 8 != 0);
    let opcode = *code.get(at)?;
    at += 1;
    let full = if is_16_bit { 2 } else { 4 };
    let form = if opcode == 0x0f {
        let second = *code.get(at)?;
        at += 1;
        two_bytes(second)?
    } else {
        one_byte(opcode, full, is_64_bit)?
    };
    let (immediate, has_modrm) = match form {
        Form::Plain(immediate) => (immediate, false),
        Form::ModRm(immediate) => (immediate, true),
        Form::Test(immediate) => (if *code.get(at)? & 0x30 == 0 { immediate } else { 0 }, true),
    };
    let mut displacement = None;
    if has_modrm {
        let modrm = *code.get(at)?;
        // Of FF, only inc, dec and push; the others leave.
        if opcode == 0xff && matches!(modrm >> 3 & 7, 2..=5) {
            return None;
        }
        at += 1;
        let (mode, rm) = (modrm >> 6, modrm & 7);
        let mut base = rm;
        if mode != 3 && rm == 4 {
            base = *code.get(at)? & 7;
            at += 1;
        }
        match mode {
            0 if rm == 5 => {
                displacement = Some(at);
                at += 4;
            }
            0 if base == 5 => at += 4,
            1 => at += 1,
            2 => at += 4,
            _ => {}
        }
    }
    at += immediate;
    (at <= code.len()).then_some(Instruction { len: at, displacement })
}

/// Whether an instruction, whole and alone, does nothing: nop, with prefixes and operands that make it longer.
pub(crate) fn is_nop(code: &[u8]) -> bool {
    let prefixes = code.iter().take_while(|&&byte| matches!(byte, 0x66 | 0x2e)).count();
    matches!(code[prefixes..], [0x90] | [0x0f, 0x1f, ..])
}

/// The length of an instruction by which a program goes elsewhere, which [`decode`] refuses, and whether it may go on to
/// the next one.
pub(crate) fn control(code: &[u8]) -> Option<(usize, bool)> {
    let found = match *code {
        // ret, hlt; jmp.
        [0xc3 | 0xf4, ..] => (1, false),
        [0xeb, _, ..] => (2, false),
        [0xe9, _, _, _, _, ..] => (5, false),
        // ud2.
        [0x0f, 0x0b, ..] => (2, false),
        // Conditional jumps, call, syscall.
        [0x70..=0x7f, _, ..] | [0x0f, 0x05, ..] => (2, true),
        [0xe8, _, _, _, _, ..] => (5, true),
        [0x0f, 0x80..=0x8f, _, _, _, _, ..] => (6, true),
        _ => return None,
    };
    Some(found)
}

fn one_byte(opcode: u8, full: usize, is_64_bit: bool) -> Option<Form> {
    Some(match opcode {
        // add, or, adc, sbb, and, sub, xor, cmp.
        0x00..=0x3f => match opcode & 7 {
            0..=3 => Form::ModRm(0),
            4 => Form::Plain(1),
            5 => Form::Plain(full),
            _ => return None,
        },
        // push and pop; nop; cdqe, cdq.
        0x50..=0x5f | 0x90 | 0x98 | 0x99 => Form::Plain(0),
        // movsxd; test, xchg, mov, lea; shifts; inc, dec, push.
        0x63 | 0x84..=0x8b | 0x8d | 0xd0..=0xd3 | 0xfe | 0xff => Form::ModRm(0),
        0x68 => Form::Plain(full),
        0x6a | 0xa8 | 0xb0..=0xb7 => Form::Plain(1),
        0x69 | 0x81 | 0xc7 => Form::ModRm(full),
        0x6b | 0x80 | 0x83 | 0xc0 | 0xc1 | 0xc6 => Form::ModRm(1),
        0xa9 => Form::Plain(full),
        0xb8..=0xbf => Form::Plain(if is_64_bit { 8 } else { full }),
        0xf6 => Form::Test(1),
        0xf7 => Form::Test(full),
        _ => return None,
    })
}

fn two_bytes(opcode: u8) -> Option<Form> {
    Some(match opcode {
        // nop with an operand, endbr64 among them; SSE moves and logic; cmov; setcc; imul; movzx, movsx.
        0x10 | 0x11 | 0x18..=0x1f | 0x28 | 0x29 | 0x40..=0x4f | 0x54..=0x57 | 0x6e | 0x6f | 0x7e | 0x7f => {
            Form::ModRm(0)
        }
        0x90..=0x9f | 0xaf | 0xb6 | 0xb7 | 0xbe | 0xbf | 0xd6 | 0xef => Form::ModRm(0),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn len(code: &[u8]) -> Option<usize> {
        let mut padded = code.to_vec();
        padded.extend([0x90; 16]);
        decode(&padded).map(|instruction| instruction.len)
    }

    #[test]
    fn what_libcs_functions_begin_with() {
        for code in [
            &[0xf3, 0x0f, 0x1e, 0xfa][..],                           // endbr64
            &[0x80, 0x3d, 0x31, 0x33, 0x0e, 0x00, 0x00],             // cmpb $0, d(%rip)
            &[0xb8, 0x29, 0x00, 0x00, 0x00],                         // mov $0x29, %eax
            &[0x41, 0x56],                                           // push %r14
            &[0x55],                                                 // push %rbp
            &[0x31, 0xed],                                           // xor %ebp, %ebp
            &[0x48, 0x83, 0xec, 0x68],                               // sub $0x68, %rsp
            &[0x48, 0x81, 0xec, 0x98, 0x00, 0x00, 0x00],             // sub $0x98, %rsp
            &[0x48, 0x89, 0x54, 0x24, 0x40],                         // mov %rdx, 0x40(%rsp)
            &[0x64, 0x48, 0x8b, 0x04, 0x25, 0x28, 0x00, 0x00, 0x00], // mov %fs:0x28, %rax
            &[0x64, 0x8b, 0x04, 0x25, 0x18, 0x00, 0x00, 0x00],       // mov %fs:0x18, %eax
            &[0x48, 0x8d, 0x05, 0x11, 0x22, 0x33, 0x00],             // lea d(%rip), %rax
            &[0x49, 0x89, 0xca],                                     // mov %rcx, %r10
            &[0x48, 0x63, 0xff],                                     // movslq %edi, %rdi
            &[0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8],                   // movabs
            &[0x66, 0x81, 0x3f, 0x01, 0x00],                         // cmpw $1, (%rdi)
            &[0xf6, 0xc2, 0x40],                                     // test $0x40, %dl
            &[0xf7, 0xd8],                                           // neg %eax
            &[0xc7, 0x44, 0x24, 0x10, 0x10, 0, 0, 0],                // movl $0x10, 0x10(%rsp)
            &[0x0f, 0x29, 0x84, 0x24, 0xa0, 0, 0, 0],                // movaps %xmm0, 0xa0(%rsp)
            &[0x66, 0x0f, 0xef, 0xc0],                               // pxor %xmm0, %xmm0
            &[0x42, 0x8b, 0x04, 0x85, 1, 2, 3, 4],                   // mov d(,%r8,4), %eax
        ] {
            assert_eq!(len(code), Some(code.len()), "{code:x?}");
        }
    }

    #[test]
    fn what_leaves_is_refused() {
        for code in [
            &[0x0f, 0x05][..],         // syscall
            &[0x74, 0x17],             // je
            &[0x0f, 0x84, 1, 2, 3, 4], // je
            &[0xe8, 1, 2, 3, 4],       // call
            &[0xe9, 1, 2, 3, 4],       // jmp
            &[0xeb, 0xfe],             // jmp
            &[0xff, 0x25, 1, 2, 3, 4], // jmp *d(%rip)
            &[0xff, 0xd0],             // call *%rax
            &[0xc3],                   // ret
            &[0xcc],                   // int3: a breakpoint of a debugger's
        ] {
            assert_eq!(len(code), None, "{code:x?}");
        }
        assert_eq!(decode(&[0xb8, 0x29]), None);
        assert_eq!(decode(&[]), None);
    }

    #[test]
    fn displacements_are_found() {
        assert_eq!(decode(&[0x80, 0x3d, 1, 2, 3, 4, 0]), Some(Instruction { len: 7, displacement: Some(2) }));
        assert_eq!(decode(&[0x48, 0x8d, 0x05, 1, 2, 3, 4]), Some(Instruction { len: 7, displacement: Some(3) }));
        assert_eq!(decode(&[0x48, 0x89, 0x54, 0x24, 0x40]), Some(Instruction { len: 5, displacement: None }));
    }

    /// Against a disassembler: every instruction of libc's text that is decoded has the length that objdump gives it.
    #[test]
    fn lengths_are_objdumps() {
        let libc = "/lib/x86_64-linux-gnu/libc.so.6";
        let args = ["-d", "--wide", "--section=.text", libc];
        let Ok(output) = std::process::Command::new("objdump").args(args).output() else {
            return println!("SKIPPED: objdump is missing: install binutils");
        };
        let (mut known, mut all) = (0, 0);
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let mut columns = line.split('\t').skip(1);
            let (Some(bytes), Some(_)) = (columns.next(), columns.next()) else { continue };
            let code: Vec<u8> = bytes.split_whitespace().filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
            all += 1;
            if let Some(len) = len(&code) {
                known += 1;
                assert_eq!(len, code.len(), "{line}");
            }
        }
        assert!(all > 100_000 && known * 2 > all, "{known} of {all}");
    }
}
