//! Values out of an input; where it has ended, zeroes, so that every input means something.

/// What is left of an input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// So many bytes, or what is left.
    pub(crate) fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    fn number<const LEN: usize>(&mut self) -> [u8; LEN] {
        let mut number = [0; LEN];
        let bytes = self.bytes(LEN);
        number[..bytes.len()].copy_from_slice(bytes);
        number
    }

    pub(crate) fn u8(&mut self) -> u8 {
        let [byte] = self.number();
        byte
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.number())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.number())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.number())
    }

    /// Bytes with their length (a u16) before them.
    pub(crate) fn text(&mut self) -> &'a [u8] {
        let len = self.u16();
        self.bytes(len.into())
    }
}
