//! The extension values of a data frame, all at once: what a traced program waits for should be a few stores.

/// Values of a data frame whose capture is whole, in one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataValues {
    /// [`Ext::Seq`](crate::Ext::Seq).
    pub seq: u64,
    /// [`Ext::Pid`](crate::Ext::Pid).
    pub pid: u32,
    /// [`Ext::Tid`](crate::Ext::Tid).
    pub tid: u32,
    /// [`Ext::TsNs`](crate::Ext::TsNs).
    pub ts_ns: u64,
    /// [`Ext::Total`](crate::Ext::Total).
    pub total: u64,
    /// [`Ext::Offset`](crate::Ext::Offset).
    pub offset: u64,
    /// [`Ext::DurationNs`](crate::Ext::DurationNs).
    pub duration_ns: u64,
}

/// Bytes of [`DataValues`] on the wire: five values of eight bytes and two of four, each with its head.
pub const DATA_VALUES_LEN: usize = 5 * 12 + 2 * 8;

impl DataValues {
    /// As on the wire.
    #[inline(always)]
    pub fn to_bytes(&self) -> [u8; DATA_VALUES_LEN] {
        let mut bytes = [0; DATA_VALUES_LEN];
        self.write_to(&mut bytes);
        bytes
    }

    /// Writes them as on the wire, all of it.
    #[inline(always)]
    pub fn write_to(&self, bytes: &mut [u8; DATA_VALUES_LEN]) {
        let (ids, longs) = bytes.split_at_mut(2 * 8);
        let mut id = |at: usize, tag: u16, value: u32| {
            let value = u64::from(value) << 32 | 4 << 16 | u64::from(tag);
            ids[8 * at..8 * at + 8].copy_from_slice(&value.to_le_bytes());
        };
        id(0, 2, self.pid);
        id(1, 3, self.tid);
        let mut long = |at: usize, tag: u16, value: u64| {
            let to = &mut longs[12 * at..12 * at + 12];
            to[..4].copy_from_slice(&(8 << 16 | u32::from(tag)).to_le_bytes());
            to[4..].copy_from_slice(&value.to_le_bytes());
        };
        long(0, 1, self.seq);
        long(1, 4, self.ts_ns);
        long(2, 6, self.total);
        long(3, 7, self.offset);
        long(4, 26, self.duration_ns);
    }
}
