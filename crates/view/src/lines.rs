//! Lines on their way to a reader.

/// Lines, and when what they tell of happened.
#[derive(Debug, Default)]
pub struct Lines {
    /// Their text.
    pub bytes: Vec<u8>,
    /// Time in nanoseconds since the Unix epoch and length of each piece that stays together.
    pub marks: Vec<(u64, usize)>,
    marked: usize,
}

impl Lines {
    /// What has been added since is of this time.
    pub fn mark(&mut self, ns: u64) {
        let len = self.bytes.len() - self.marked;
        if len > 0 {
            self.marks.push((ns, len));
            self.marked = self.bytes.len();
        }
    }

    /// Forgets them all.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.marks.clear();
        self.marked = 0;
    }
}
