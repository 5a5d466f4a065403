//! Bytes in hex and text, as tcpdump -X shows them.

use std::fmt::Write;

const PER_LINE: usize = 16;

/// Appends lines such as `0x0010:  6c6c 6f0a                                llo.`.
pub fn push(to: &mut String, bytes: &[u8], indent: &str) {
    for (number, line) in bytes.chunks(PER_LINE).enumerate() {
        // Writing to a String does not fail.
        let _ = write!(to, "{indent}{:#06x}:  ", number * PER_LINE);
        for at in 0..PER_LINE {
            match line.get(at) {
                Some(byte) => {
                    let _ = write!(to, "{byte:02x}");
                }
                None => to.push_str("  "),
            }
            if at % 2 == 1 {
                to.push(' ');
            }
        }
        to.push(' ');
        to.extend(line.iter().map(|&byte| if matches!(byte, b' '..=b'~') { char::from(byte) } else { '.' }));
        to.push('\n');
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn as_tcpdump_does() {
        let mut text = String::new();
        super::push(&mut text, b"GET / HTTP/1.1\r\nHost", "");
        let expected = "\
0x0000:  4745 5420 2f20 4854 5450 2f31 2e31 0d0a  GET / HTTP/1.1..
0x0010:  486f 7374                                Host
";
        assert_eq!(text, expected);
    }
}
