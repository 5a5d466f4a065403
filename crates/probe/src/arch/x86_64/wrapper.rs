//! Whether a function is what libc's function of its name is: a system call with that call's number.

use super::instruction;

/// Bytes of a function that are looked at, where it does not say how long it is.
const MAX_LEN: usize = 256;

/// Whether the code of a function has the number of a system call, and that or a function that it calls has the
/// instruction. One that goes on to libc's function has not, and is nothing of ours: libc's is hooked. `code` gives that
/// of the library at an address, at most so many bytes; none where it has none.
pub(crate) fn makes_call<'a>(code: impl Fn(usize, usize) -> &'a [u8], at: usize, len: usize, number: u32) -> bool {
    let look = |at, len| {
        let len = if len == 0 { MAX_LEN } else { len };
        look(code(at, len), at, number)
    };
    let found = look(at, len);
    let is_in_callee = |callee: &usize| look(*callee, 0).makes_call;
    found.has_number && (found.makes_call || found.calls.iter().any(is_in_callee))
}

#[derive(Default)]
struct Found {
    has_number: bool,
    makes_call: bool,
    /// What it calls first; 0: nothing more.
    calls: [usize; 4],
}

fn look(code: &[u8], at: usize, number: u32) -> Found {
    let (mut found, mut offset, mut calls) = (Found::default(), 0, 0);
    while let Some(rest) = code.get(offset..).filter(|rest| !rest.is_empty()) {
        let (len, goes_on) = match (instruction::decode(rest), instruction::control(rest)) {
            (Some(known), _) => (known.len, true),
            (None, Some(control)) => control,
            (None, None) => break,
        };
        found.has_number |= is_number(&rest[..len], number);
        match *rest {
            [0x0f, 0x05, ..] => found.makes_call = true,
            [0xe8, a, b, c, d, ..] if calls < found.calls.len() => {
                let distance = i32::from_le_bytes([a, b, c, d]) as isize;
                found.calls[calls] = (at + offset + len).wrapping_add_signed(distance);
                calls += 1;
            }
            // The end of a function of unknown length.
            [0xc3, ..] if !goes_on && len == 1 && code.len() == MAX_LEN => break,
            _ => {}
        }
        offset += len;
    }
    found
}

/// Whether an instruction puts the number into a register: `mov $n, %reg`, or `xor %reg, %reg` for 0.
fn is_number(code: &[u8], number: u32) -> bool {
    let code = if code[0] & 0xf0 == 0x40 { &code[1..] } else { code };
    match *code {
        [0xb8..=0xbf, a, b, c, d] | [0xc7, 0xc0..=0xc7, a, b, c, d] => u32::from_le_bytes([a, b, c, d]) == number,
        [0x31 | 0x33, modrm] => number == 0 && modrm >> 6 == 3 && modrm >> 3 & 7 == modrm & 7,
        _ => false,
    }
}
