//! What the programs in the kernel say (object/records.h), read without a copy.

/// Of `struct record`.
pub(crate) const HEAD_LEN: usize = 64;
const ADDRESS_LEN: usize = 112;
const PEERS_LEN: usize = 32 + 2 * ADDRESS_LEN;
/// A record of a socket that was there before, as the iterator writes it.
pub(crate) const OPEN_LEN: usize = HEAD_LEN + PEERS_LEN;

/// `enum kind`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Data,
    Piece,
    Open,
    Fail,
    EndOfFile,
    Fork,
    Exec,
    Exit,
}

/// `struct record`, and what follows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record<'a> {
    pub kind: Kind,
    /// CLOCK_MONOTONIC, in nanoseconds.
    pub time: u64,
    pub inode: u64,
    pub before: u64,
    pub pid: u32,
    pub tid: u32,
    pub own_tid: u32,
    pub fd: i32,
    pub result: i32,
    pub wanted: u32,
    pub at: u32,
    pub call: i16,
    pub is_sent: bool,
    pub room: u32,
    /// What is captured, or what belongs to the kind.
    pub rest: &'a [u8],
}

/// The integer of so many bytes at a place; none where the bytes end before.
macro_rules! at {
    ($bytes:expr, $place:expr, $type:ty) => {
        <$type>::from_ne_bytes($bytes.get($place..$place + size_of::<$type>())?.try_into().ok()?)
    };
}

impl<'a> Record<'a> {
    /// None: it is none of ours.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let kind = match at!(bytes, 58, u8) {
            1 => Kind::Data,
            2 => Kind::Piece,
            3 => Kind::Open,
            4 => Kind::Fail,
            5 => Kind::EndOfFile,
            6 => Kind::Fork,
            7 => Kind::Exec,
            8 => Kind::Exit,
            _ => return None,
        };
        let rest = bytes.get(HEAD_LEN..)?;
        let captured = at!(bytes, 52, u32) as usize;
        // Behind what is captured the record may go on: it has one of a few sizes.
        let rest = if matches!(kind, Kind::Data | Kind::Piece) { rest.get(..captured)? } else { rest };
        Some(Self {
            kind,
            time: at!(bytes, 0, u64),
            inode: at!(bytes, 8, u64),
            before: at!(bytes, 16, u64),
            pid: at!(bytes, 24, u32),
            tid: at!(bytes, 28, u32),
            own_tid: at!(bytes, 32, u32),
            fd: at!(bytes, 36, i32),
            result: at!(bytes, 40, i32),
            wanted: at!(bytes, 44, u32),
            at: at!(bytes, 48, u32),
            call: at!(bytes, 56, i16),
            is_sent: at!(bytes, 59, u8) == 2,
            room: at!(bytes, 60, u32),
            rest,
        })
    }
}

/// `struct peers`
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peers<'a> {
    pub peer_inode: u64,
    pub peer_pid: u32,
    pub peer_uid: u32,
    pub peer_gid: u32,
    pub network: u32,
    pub socket_type: u32,
    pub state: u32,
    /// Names as sun_path has them (unix(7)).
    pub own: &'a [u8],
    pub peer: &'a [u8],
}

impl<'a> Peers<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let name = |place: usize| {
            let len = at!(bytes, place, u32) as usize;
            bytes.get(place + 4..place + ADDRESS_LEN)?.get(..len)
        };
        Some(Self {
            peer_inode: at!(bytes, 0, u64),
            peer_pid: at!(bytes, 8, u32),
            peer_uid: at!(bytes, 12, u32),
            peer_gid: at!(bytes, 16, u32),
            network: at!(bytes, 20, u32),
            socket_type: at!(bytes, 24, u32),
            state: at!(bytes, 28, u32),
            own: name(32)?,
            peer: name(32 + ADDRESS_LEN)?,
        })
    }
}

/// `struct process`
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process<'a> {
    pub parent: u32,
    pub own_pid: u32,
    pub comm: &'a [u8],
    pub program: &'a [u8],
}

impl<'a> Process<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        const COMM: std::ops::Range<usize> = 8..24;
        let len = at!(bytes, COMM.end, u32) as usize;
        let comm = bytes.get(COMM)?.split(|&byte| byte == 0).next()?;
        let program = bytes.get(COMM.end + 4..)?.get(..len)?;
        Some(Self { parent: at!(bytes, 0, u32), own_pid: at!(bytes, 4, u32), comm, program })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_record_is_none() {
        assert!(Record::parse(&[]).is_none() && Record::parse(&[0; HEAD_LEN]).is_none());
        let mut bytes = [0; HEAD_LEN + 64];
        (bytes[58], bytes[59], bytes[52]) = (1, 2, 5);
        let record = Record::parse(&bytes).unwrap();
        assert_eq!((record.kind, record.is_sent, record.rest.len()), (Kind::Data, true, 5));
        bytes[52] = 65;
        assert!(Record::parse(&bytes).is_none(), "it ends before what is said to be captured");
    }

    #[test]
    fn names_end_where_they_say() {
        let mut bytes = [0; PEERS_LEN];
        bytes[32] = 3;
        bytes[36..39].copy_from_slice(b"\0ab");
        let peers = Peers::parse(&bytes).unwrap();
        assert_eq!((peers.own, peers.peer), (&b"\0ab"[..], &b""[..]));
        bytes[32] = 109;
        assert!(Peers::parse(&bytes).is_none());
    }
}
