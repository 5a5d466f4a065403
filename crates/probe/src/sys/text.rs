//! Text without allocation.

use core::ffi::CStr;

/// Text in a fixed buffer; what does not fit is cut. All zeroes is the empty text.
pub(crate) struct Text<const N: usize> {
    len: usize,
    bytes: [u8; N],
}

impl<const N: usize> Text<N> {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) -> bool {
        let len = bytes.len().min(N - self.len);
        self.bytes[self.len..self.len + len].copy_from_slice(&bytes[..len]);
        self.len += len;
        len == bytes.len()
    }

    /// Appends a path in the form events show it; whether it fitted.
    pub(crate) fn push_escaped(&mut self, path: &[u8]) -> bool {
        path.iter().all(|&b| {
            let len = gttr::escape_path(&[b], &mut self.bytes[self.len..]);
            self.len += len;
            len > 0
        })
    }

    /// Fills it by a function that writes to a buffer and gives the length written.
    pub(crate) fn fill(&mut self, fill: impl FnOnce(&mut [u8]) -> usize) {
        self.len = fill(&mut self.bytes).min(N);
    }

    /// With a NUL behind it, for a system call.
    pub(crate) fn as_c_str(&mut self) -> Option<&CStr> {
        *self.bytes.get_mut(self.len)? = 0;
        CStr::from_bytes_with_nul(&self.bytes[..=self.len]).ok()
    }
}

impl<const N: usize> core::fmt::Write for Text<N> {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        if self.push(s.as_bytes()) { Ok(()) } else { Err(core::fmt::Error) }
    }
}
