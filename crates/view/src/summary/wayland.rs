//! Wayland messages (The Wayland Protocol, "Wire Format"): object, opcode and size. What they mean depends on which
//! interface the object has, which only the whole conversation tells.

use super::Names;

const HEADER_LEN: usize = 8;

pub fn summarise(bytes: &[u8], path: &str) -> Option<String> {
    let name = path.rsplit('/').next()?;
    name.strip_prefix("wayland-")?;
    let mut names = Names::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        let word = |at: usize| Some(u32::from_ne_bytes(rest.get(at..at + 4)?.try_into().ok()?));
        let (object, second) = (word(0)?, word(4)?);
        let (size, opcode) = ((second >> 16) as usize, second & 0xffff);
        if object == 0 || size < HEADER_LEN || size % 4 != 0 || size > rest.len() {
            return None;
        }
        names.push(|| format!("{object}@{opcode}/{size}"));
        rest = &rest[size..];
    }
    names.finish("Wayland")
}

#[cfg(test)]
mod tests {
    use super::summarise;

    #[test]
    fn object_opcode_and_size() {
        let mut bytes = Vec::new();
        for word in [1_u32, 12 << 16 | 1, 2, 1, 12 << 16, 3] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        assert_eq!(summarise(&bytes, "/run/user/0/wayland-1").unwrap(), "Wayland 1@1/12, 1@0/12");
        assert_eq!(summarise(&bytes, "/run/user/0/bus"), None);
        assert_eq!(summarise(&bytes[..20], "/run/user/0/wayland-1"), None);
    }
}
