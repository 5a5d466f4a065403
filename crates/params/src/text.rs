//! The text: `key=value`, a NUL behind each.

use core::fmt::{self, Write};

use crate::{MAX_BYTES, MAX_FDS, MAX_SOCKET_PATH, MAX_WAIT_MS, OUT_SOCKET_PATH, OnFull, Params, RING_BYTES, Transport};

pub(crate) const SOCKET_PATH: &[u8] = b"socket_path";
/// The engine that takes the ring out of the process.
const INJECT: &[u8] = b"inject";
pub(crate) const IGNORE_FD: &[u8] = b"ignore_fd";

/// What is wrong with the parameters: which, and what it takes.
pub type Complaint = &'static str;

/// The names in a text, with their values, as they come.
pub fn entries(text: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    text.split(|&b| b == 0).filter(|entry| !entry.is_empty()).map(|entry| {
        let equals = entry.iter().position(|&b| b == b'=').unwrap_or(entry.len());
        (&entry[..equals], entry.get(equals + 1..).unwrap_or_default())
    })
}

/// All values that a name has in a text.
pub(crate) fn all<'a>(text: &'a [u8], name: &'static [u8]) -> impl Iterator<Item = &'a [u8]> + use<'a> {
    entries(text).filter(move |entry| entry.0 == name).map(|entry| entry.1)
}

pub(crate) fn number(text: &[u8]) -> Option<u64> {
    core::str::from_utf8(text).ok()?.parse().ok()
}

/// Reads parameters. Whoever wrote them has looked at the types; limits are checked here, so that every way in has the same.
///
/// # Errors
///
/// One line that names the parameter and what it takes.
pub fn parse(text: &[u8]) -> Result<Params<'_>, Complaint> {
    let mut params = Params { text, ..Params::DEFAULT };
    for (name, value) in entries(text) {
        match name {
            b"out_socket_path" => params.out_socket_path = value,
            b"out_sock_type" => {
                let takes = "out_sock_type: takes \"dgram\", \"stream\" or \"shm\"";
                params.transport = Transport::named(value).ok_or(takes)?;
            }
            b"max_fds" => {
                let in_range = number(value).filter(|&n| MAX_FDS.has(n));
                params.max_fds = in_range.ok_or("max_fds: takes a whole number from 1 to 1048576")? as u32;
            }
            b"max_bytes" => {
                let in_range = number(value).filter(|&n| MAX_BYTES.has(n));
                params.max_bytes = in_range.ok_or("max_bytes: takes a whole number from 0 up")?;
            }
            b"follow_children" => {
                params.follow_children = match value {
                    b"0" => false,
                    b"1" => true,
                    _ => return Err("follow_children: takes 0 or 1"),
                }
            }
            b"on_full" => {
                params.on_full = OnFull::named(value).ok_or("on_full: takes \"block\" or \"drop\"")?;
            }
            b"max_wait_ms" => {
                let takes = "max_wait_ms: takes a whole number of milliseconds from 0 to 60000";
                params.max_wait_ms = number(value).filter(|&n| MAX_WAIT_MS.has(n)).ok_or(takes)?;
            }
            b"ring_bytes" => {
                let takes = "ring_bytes: takes a power of two from 65536 to 1073741824";
                let in_range = number(value).filter(|&n| RING_BYTES.has(n) && n.is_power_of_two());
                params.ring_bytes = in_range.ok_or(takes)?;
            }
            b"engine" => (params.by_frida, params.hand_over) = (value == b"frida", value == INJECT),
            b"preload" => params.preload = value,
            SOCKET_PATH | IGNORE_FD => {}
            _ => return Err("unknown parameter: the agent and its probe do not belong together"),
        }
    }
    match params.out_socket_path.len() {
        0 => Err("out_socket_path: required, the path of the server's socket"),
        1..=MAX_SOCKET_PATH => Ok(params),
        _ => Err("out_socket_path: longer than the 107 bytes that a UNIX socket's path may have"),
    }
}

impl Params<'_> {
    /// Writes what an injected probe is told beside that.
    pub fn write_injected_to(&self, text: &mut impl Extend<u8>) {
        self.write_to(text);
        text.extend(b"engine=".iter().chain(INJECT).chain(b"\0preload=").chain(self.preload).chain(b"\0").copied());
    }

    /// Writes what a preloaded probe is told. Sockets to record, descriptors to ignore and what only Frida's agent knows are
    /// left out.
    pub fn write_to(&self, text: &mut impl Extend<u8>) {
        text.extend(OUT_SOCKET_PATH.bytes().chain(*b"="));
        text.extend(self.out_socket_path.iter().copied());
        // What is written to takes everything.
        let _ = write!(
            Text(text),
            "\0out_sock_type={}\0max_fds={}\0max_bytes={}\0on_full={}\0max_wait_ms={}\0ring_bytes={}\0follow_children={}\0",
            self.transport.name(),
            self.max_fds,
            self.max_bytes,
            self.on_full.name(),
            self.max_wait_ms,
            self.ring_bytes,
            u8::from(self.follow_children),
        );
    }
}

/// What takes bytes, for `write!`.
struct Text<'a, E>(&'a mut E);

impl<E: Extend<u8>> Write for Text<'_, E> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend(text.bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::format;
    use std::vec::Vec;

    use proptest::prelude::{any, prop, proptest};
    use proptest::strategy::Strategy;

    use super::*;

    #[test]
    fn each_parameter() {
        let text = b"out_socket_path=/s\0max_fds=9\0max_bytes=0\0out_sock_type=stream\0socket_path=/a=b\0socket_path=@c\0ignore_fd=3\0";
        let params = parse(text).unwrap();
        assert_eq!(params.out_socket_path, b"/s");
        assert_eq!((params.max_fds, params.max_bytes, params.transport), (9, 0, Transport::Stream));
        assert_eq!(params.socket_paths().collect::<Vec<_>>(), [&b"/a=b"[..], b"@c"]);
        assert!(params.ignored().eq([3]));
    }

    #[test]
    fn a_complaint_names_the_parameter() {
        let complaint = |text: &'static [u8]| parse(text).unwrap_err();
        assert!(complaint(b"max_fds=1\0").starts_with("out_socket_path: required"));
        assert!(complaint(b"out_socket_path=/s\0max_fds=0\0").starts_with("max_fds:"));
        assert!(complaint(b"out_socket_path=/s\0max_bytes=-1\0").starts_with("max_bytes:"));
        assert!(complaint(b"out_socket_path=/s\0out_sock_type=tcp\0").starts_with("out_sock_type:"));
        assert!(parse(&[&b"out_socket_path=/"[..], &[b'x'; 107]].concat()).unwrap_err().contains("107"));
    }

    #[test]
    fn limits_are_as_complaints_say() {
        for (name, limits) in [("max_fds", MAX_FDS), ("max_wait_ms", MAX_WAIT_MS), ("ring_bytes", RING_BYTES)] {
            let read = |n: u64| parse(format!("out_socket_path=/s\0{name}={n}\0").as_bytes()).map(drop);
            assert_eq!((read(limits.from), read(limits.to), read(limits.default)), (Ok(()), Ok(()), Ok(())), "{name}");
            let complaint = read(limits.to + 1).unwrap_err();
            assert!(complaint.starts_with(name), "{complaint}");
            assert!(complaint.ends_with(&format!(" {} to {}", limits.from, limits.to)), "{complaint}");
        }
        assert!(parse(b"out_socket_path=/s\0ring_bytes=65537\0").is_err());
        assert!(parse(format!("out_socket_path=/s\0max_bytes={}\0", u64::MAX).as_bytes()).is_ok());
    }

    fn in_limits(limits: crate::Number) -> impl Strategy<Value = u64> {
        limits.from..=limits.to
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            path in prop::collection::vec(1..=u8::MAX, 1..=MAX_SOCKET_PATH),
            transport in prop::sample::select(&[Transport::Dgram, Transport::Stream, Transport::Shm][..]),
            on_full in prop::sample::select(&[OnFull::Block, OnFull::Drop][..]),
            numbers in (in_limits(MAX_FDS), in_limits(MAX_BYTES), in_limits(MAX_WAIT_MS), 16..=30_u32),
            follow_children in any::<bool>(),
        ) {
            let (max_fds, max_bytes, max_wait_ms, ring_bits) = numbers;
            let written = Params {
                out_socket_path: &path,
                transport,
                max_fds: max_fds as u32,
                max_bytes,
                on_full,
                max_wait_ms,
                ring_bytes: 1 << ring_bits,
                follow_children,
                ..Params::DEFAULT
            };
            let mut text = Vec::new();
            written.write_to(&mut text);
            let read = parse(&text).unwrap();
            assert_eq!(Params { text: b"", ..read }, written);
        }
    }
}
