//! A connection as a TCP conversation, or its datagrams as UDP: packets with the right sequence numbers and checksums.

use std::io::{self, Write};
use std::net::Ipv4Addr;

use etherparse::{IpNumber, Ipv4Header, PacketBuilder, TcpHeader, TcpOptionElement, UdpHeader};

use super::blocks::Blocks;
use crate::stream::Place;

/// What fits into an IPv4 packet beside its header and TCP's, in bytes.
const MAX_SEGMENT: usize = 65535 - 20 - 20;
/// The same beside UDP's header.
const MAX_DATAGRAM: usize = 65535 - 20 - 8;
const TTL: u8 = 64;
const WINDOW: u16 = u16::MAX;
/// 65535 << 14 is 1 GiB, the largest window (RFC 7323): a UNIX socket has none that Wireshark could find full.
const WINDOW_SCALE: u8 = 14;
/// So many bytes go unacknowledged before an acknowledgement is made up.
const MAX_UNACKNOWLEDGED: u64 = 32 << 10;

/// Who sends a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

impl Side {
    pub(super) const fn of(is_client: bool) -> Self {
        if is_client { Self::Client } else { Self::Server }
    }

    pub(super) const fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// One end's address, and what it has sent.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) address: Ipv4Addr,
    pub(super) port: u16,
    /// Behind the last byte sent.
    next: u64,
    /// Behind the last that the other end has acknowledged.
    acknowledged: u64,
    has_gap: bool,
    has_finished: bool,
}

impl Endpoint {
    pub(super) fn new(address: Ipv4Addr, port: u16) -> Self {
        Self { address, port, next: 0, acknowledged: 0, has_gap: false, has_finished: false }
    }
}

/// A conversation.
#[derive(Debug)]
pub(super) struct Conversation {
    client: Endpoint,
    server: Endpoint,
    /// Sequence number before the first byte, of both ends.
    initial: u32,
    /// Of the packet before.
    last_ns: u64,
    buffer: Vec<u8>,
}

impl Conversation {
    pub(super) fn new(client: Endpoint, server: Endpoint, initial: u32) -> Self {
        Self { client, server, initial, last_ns: 0, buffer: Vec::new() }
    }

    fn end(&mut self, side: Side) -> &mut Endpoint {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }

    /// Of the last packet, in nanoseconds since the Unix epoch.
    pub(super) fn last_ns(&self) -> u64 {
        self.last_ns
    }

    /// Times do not run backwards within a conversation.
    fn at(&mut self, ns: u64) -> u64 {
        self.last_ns = self.last_ns.max(ns);
        self.last_ns
    }

    /// SYN, SYN and ACK, ACK.
    pub(super) fn handshake<W: Write>(&mut self, out: &mut Blocks<W>, ns: u64, comment: &str) -> io::Result<()> {
        let ns = self.at(ns);
        for (side, acknowledges) in [(Side::Client, false), (Side::Server, true)] {
            let mut header = self.header(side, 0);
            header.syn = true;
            header.sequence_number = self.initial;
            header.ack = acknowledges;
            header.acknowledgment_number = if acknowledges { self.initial.wrapping_add(1) } else { 0 };
            let options =
                [TcpOptionElement::MaximumSegmentSize(u16::MAX - 40), TcpOptionElement::WindowScale(WINDOW_SCALE)];
            // Seven bytes, of the forty that there is room for.
            header.set_options(&options).map_err(io::Error::other)?;
            self.write(out, side, header, &[], ns, comment)?;
        }
        self.acknowledge(out, Side::Client, ns, comment)
    }

    /// A message, in as many segments as it takes.
    pub(super) fn message<W: Write>(
        &mut self,
        out: &mut Blocks<W>,
        (side, place): (Side, Place),
        bytes: &[u8],
        ns: u64,
        comment: &str,
    ) -> io::Result<()> {
        let count = bytes.len().div_ceil(MAX_SEGMENT).max(1);
        let mut at = place.at;
        for index in 0..count {
            let start = index * MAX_SEGMENT;
            let segment = &bytes[start..bytes.len().min(start + MAX_SEGMENT)];
            let Endpoint { next, acknowledged, has_gap, .. } = *self.end(side);
            // A late segment may still fill the gap.
            if at >= next && (has_gap || next - acknowledged >= MAX_UNACKNOWLEDGED) {
                let before = self.last_ns;
                self.acknowledge(out, side.other(), before, "acknowledgement, made up by socktrace")?;
            }
            let ns = self.at(ns);
            let mut header = self.header(side, at);
            header.psh = index + 1 == count && !segment.is_empty();
            let numbered = (count > 1).then(|| format!("{comment}, segment {} of {count}", index + 1));
            self.write(out, side, header, segment, ns, numbered.as_deref().unwrap_or(comment))?;
            let end = self.end(side);
            end.has_gap |= at > end.next;
            at += segment.len() as u64;
            end.next = end.next.max(at);
        }
        let end = self.end(side);
        end.has_gap |= place.until > end.next;
        end.next = end.next.max(place.until);
        Ok(())
    }

    /// The end of what one end sends.
    pub(super) fn finish<W: Write>(
        &mut self,
        out: &mut Blocks<W>,
        side: Side,
        ns: u64,
        comment: &str,
    ) -> io::Result<()> {
        if std::mem::replace(&mut self.end(side).has_finished, true) {
            return Ok(());
        }
        let (ns, at) = (self.at(ns), self.end(side).next);
        let mut header = self.header(side, at);
        header.fin = true;
        // Its own sequence number is before the FIN, not behind it.
        header.sequence_number = header.sequence_number.wrapping_sub(1);
        self.write(out, side, header, &[], ns, comment)?;
        self.acknowledge(out, side.other(), ns, comment)
    }

    /// Nothing more is to come: a gap at the end is one, too.
    pub(super) fn leave<W: Write>(&mut self, out: &mut Blocks<W>) -> io::Result<()> {
        for side in [Side::Client, Side::Server] {
            if self.end(side).has_gap {
                let ns = self.last_ns;
                self.acknowledge(out, side.other(), ns, "acknowledgement, made up by socktrace")?;
            }
        }
        Ok(())
    }

    fn acknowledge<W: Write>(&mut self, out: &mut Blocks<W>, side: Side, ns: u64, comment: &str) -> io::Result<()> {
        let at = self.end(side).next;
        let header = self.header(side, at);
        self.write(out, side, header, &[], ns, comment)
    }

    fn header(&mut self, side: Side, at: u64) -> TcpHeader {
        let initial = self.initial;
        // TCP counts in 32 bits and starts over.
        let number =
            |at: u64, finished: bool| initial.wrapping_add(1).wrapping_add(at as u32).wrapping_add(finished.into());
        let (other_port, other) = (self.end(side.other()).port, self.end(side.other()));
        let acknowledgment = number(other.next, other.has_finished);
        let end = self.end(side);
        let mut header = TcpHeader::new(end.port, other_port, number(at, end.has_finished), WINDOW);
        (header.ack, header.acknowledgment_number) = (true, acknowledgment);
        header
    }

    fn write<W: Write>(
        &mut self,
        out: &mut Blocks<W>,
        side: Side,
        header: TcpHeader,
        bytes: &[u8],
        ns: u64,
        comment: &str,
    ) -> io::Result<()> {
        if header.ack {
            let other = self.end(side.other());
            (other.acknowledged, other.has_gap) = (other.next, false);
        }
        let (from, to) = (self.end(side).address.octets(), self.end(side.other()).address.octets());
        self.buffer.clear();
        PacketBuilder::ipv4(from, to, TTL)
            .tcp_header(header)
            .write(&mut self.buffer, bytes)
            .map_err(io::Error::other)?;
        out.packet(ns, &self.buffer, 0, comment)
    }

    /// A datagram of which the last `missing` bytes are not there, in as many packets as it takes.
    pub(super) fn datagram<W: Write>(
        &mut self,
        out: &mut Blocks<W>,
        side: Side,
        (bytes, missing): (&[u8], u64),
        ns: u64,
        comment: &str,
    ) -> io::Result<()> {
        let ns = self.at(ns);
        let count = bytes.len().div_ceil(MAX_DATAGRAM).max(1);
        for index in 0..count {
            let start = index * MAX_DATAGRAM;
            let piece = &bytes[start..bytes.len().min(start + MAX_DATAGRAM)];
            let room = MAX_DATAGRAM - piece.len();
            let missing = if index + 1 == count { usize::try_from(missing).map_or(room, |m| m.min(room)) } else { 0 };
            let numbered = (count > 1).then(|| format!("{comment}, piece {} of {count}", index + 1));
            self.write_datagram(out, side, piece, missing, ns, numbered.as_deref().unwrap_or(comment))?;
        }
        Ok(())
    }

    fn write_datagram<W: Write>(
        &mut self,
        out: &mut Blocks<W>,
        side: Side,
        bytes: &[u8],
        missing: usize,
        ns: u64,
        comment: &str,
    ) -> io::Result<()> {
        let (from, from_port) = (self.end(side).address, self.end(side).port);
        let (to, to_port) = (self.end(side.other()).address, self.end(side.other()).port);
        // At most MAX_DATAGRAM.
        let length = u16::try_from(UdpHeader::LEN + bytes.len() + missing).map_err(io::Error::other)?;
        let ip = Ipv4Header::new(length, TTL, IpNumber::UDP, from.octets(), to.octets()).map_err(io::Error::other)?;
        let udp = if missing == 0 {
            UdpHeader::with_ipv4_checksum(from_port, to_port, &ip, bytes).map_err(io::Error::other)?
        } else {
            // None can be made of bytes that are not there; 0 is none (RFC 768).
            UdpHeader { source_port: from_port, destination_port: to_port, length, checksum: 0 }
        };
        self.buffer.clear();
        ip.write(&mut self.buffer)?;
        udp.write(&mut self.buffer)?;
        self.buffer.extend_from_slice(bytes);
        out.packet(ns, &self.buffer, missing, comment)
    }
}
