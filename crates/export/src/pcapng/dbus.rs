//! Messages of D-Bus, which Wireshark dissects one by one (LINKTYPE_DBUS) but not in a stream that begins with an
//! authentication (D-Bus Specification, "Message Protocol" and "Authentication Protocol").

use std::io;

/// Before its fields, a message has so many bytes.
const HEADER_LEN: usize = 16;
/// A longer message is not looked for, in bytes: the specification allows 128 MiB, and this much is kept in memory.
const MAX_LEN: usize = 16 << 20;
/// Lines of an authentication are shorter, in bytes.
const MAX_LINE_LEN: usize = 16 << 10;

/// Finds messages in what one end sends.
#[derive(Debug, Default)]
pub(super) struct Messages {
    state: State,
    held: Vec<u8>,
    /// Where in the stream the next bytes are expected.
    next: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Begin,
    Authentication,
    Messages,
    /// Bytes are missing, or it is something else: where a message begins cannot be said any more.
    Lost,
}

impl Messages {
    /// Takes bytes at a place in the stream, and hands on each message that they complete.
    pub(super) fn feed(
        &mut self,
        from_client: bool,
        at: u64,
        bytes: &[u8],
        hand_on: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        if at != self.next {
            self.state = State::Lost;
        }
        self.next = at + bytes.len() as u64;
        if self.state == State::Lost {
            self.held = Vec::new();
            return Ok(());
        }
        self.held.extend_from_slice(bytes);
        let mut used = 0;
        while let Some(len) = self.step(from_client, used) {
            if self.state == State::Messages && len >= HEADER_LEN {
                hand_on(&self.held[used..used + len])?;
            }
            used += len;
        }
        self.held.drain(..used);
        Ok(())
    }

    /// How many of the bytes held from `used` on are a line or a message; None: they are not enough for one, or none.
    fn step(&mut self, from_client: bool, used: usize) -> Option<usize> {
        let held = &self.held[used..];
        let first = *held.first()?;
        match self.state {
            State::Begin => {
                // A client begins with a NUL; a connection that was open before, with a message.
                self.state = if is_order(first) { State::Messages } else { State::Authentication };
                Some(usize::from(first == 0))
            }
            State::Authentication if !from_client && is_order(first) => {
                self.state = State::Messages;
                Some(0)
            }
            State::Authentication => {
                let line = held.windows(2).position(|two| two == b"\r\n");
                if line.is_none() && held.len() > MAX_LINE_LEN {
                    self.state = State::Lost;
                }
                let line = &held[..line?];
                if from_client && line == b"BEGIN" {
                    self.state = State::Messages;
                }
                Some(line.len() + 2)
            }
            State::Messages => {
                let header = held.first_chunk::<HEADER_LEN>()?;
                let len = message_len(header).filter(|&len| len <= MAX_LEN);
                if len.is_none() {
                    self.state = State::Lost;
                }
                len.filter(|&len| len <= held.len())
            }
            State::Lost => None,
        }
    }
}

/// The byte that says in which order others are, and with which each message begins.
const fn is_order(byte: u8) -> bool {
    matches!(byte, b'l' | b'B')
}

/// The length of a message by its header: the fields behind it are padded to eight bytes, and then comes the body.
fn message_len(header: &[u8; HEADER_LEN]) -> Option<usize> {
    let word = |at: usize| {
        let bytes = [header[at], header[at + 1], header[at + 2], header[at + 3]];
        let word = if header[0] == b'l' { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) };
        word as usize
    };
    let is_sound = is_order(header[0]) && matches!(header[1], 1..=4) && header[3] == 1;
    is_sound.then(|| HEADER_LEN + word(12).next_multiple_of(8) + word(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A call without fields, with a body.
    fn message(body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![b'l', 1, 0, 1];
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend([1, 0, 0, 0, 3, 0, 0, 0, 7, 7, 7, 0, 0, 0, 0, 0]);
        bytes.extend(body);
        bytes
    }

    fn found(from_client: bool, pieces: &[(u64, &[u8])]) -> Vec<Vec<u8>> {
        let (mut messages, mut found) = (Messages::default(), Vec::new());
        for (at, bytes) in pieces {
            let mut hand_on = |message: &[u8]| {
                found.push(message.to_vec());
                Ok(())
            };
            messages.feed(from_client, *at, bytes, &mut hand_on).unwrap();
        }
        found
    }

    #[test]
    fn behind_the_authentication() {
        let (one, two) = (message(b"one"), message(&[b'x'; 1000]));
        let client = [&b"\0AUTH EXTERNAL 30\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n"[..], &one, &two].concat();
        let server = [&b"OK 1234\r\nAGREE_UNIX_FD\r\n"[..], &one, &two].concat();
        for (from_client, bytes) in [(true, client), (false, server)] {
            assert_eq!(found(from_client, &[(0, &bytes)]), [one.clone(), two.clone()]);
            let single: Vec<_> = bytes.chunks(1).zip(0..).map(|(byte, at)| (at, byte)).collect();
            assert_eq!(found(from_client, &single), [one.clone(), two.clone()]);
        }
    }

    #[test]
    fn of_a_connection_that_was_open_before() {
        let one = message(b"one");
        assert_eq!(found(true, &[(0, &one)]), [one]);
    }

    #[test]
    fn not_behind_a_gap_nor_in_anything_else() {
        let one = message(b"one");
        assert_eq!(found(true, &[(0, &one), (500, &one)]), std::slice::from_ref(&one));
        assert!(found(true, &[(0, b"l this is no message at all")]).is_empty());
        let mut long = message(b"");
        long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(found(true, &[(0, &long), (long.len() as u64, &one)]).is_empty());
    }
}
