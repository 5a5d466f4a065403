//! The file: blocks of pcapng (draft-ietf-opsawg-pcapng).

use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::time::Duration;

use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::pcapng::blocks::interface_statistics::{InterfaceStatisticsBlock, InterfaceStatisticsOption};
use pcap_file::pcapng::blocks::name_resolution::{Ipv4Record, NameResolutionBlock, Record};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::{DataLink, Endianness, PcapError};

/// Interfaces, in the order in which they are described.
const IP: u32 = 0;
const DBUS: u32 = 1;
/// Timestamps are in nanoseconds (if_tsresol).
const NANOSECONDS: u8 = 9;
/// Names longer than this are cut by Wireshark, with a NUL (its MAXDNSNAMELEN is 257).
const MAX_NAME_LEN: usize = 255;

pub(super) struct Blocks<W: Write> {
    writer: PcapNgWriter<W>,
    packets: u64,
    last_ns: u64,
    has_dbus: bool,
}

impl<W: Write> std::fmt::Debug for Blocks<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blocks").field("packets", &self.packets).finish_non_exhaustive()
    }
}

impl<W: Write> Blocks<W> {
    /// Writes the beginning.
    pub(super) fn new(writer: W) -> io::Result<Self> {
        let program = concat!("socktrace ", env!("CARGO_PKG_VERSION"));
        let section = SectionHeaderBlock {
            endianness: Endianness::Little,
            options: vec![
                SectionHeaderOption::OS("Linux".into()),
                SectionHeaderOption::UserApplication(program.into()),
            ],
            ..SectionHeaderBlock::default()
        };
        let mut writer = PcapNgWriter::with_section_header(writer, section).map_err(io_error)?;
        let description = "AF_UNIX sockets, as synthetic TCP and UDP";
        writer.write_pcapng_block(interface("socktrace", description, DataLink::RAW)).map_err(io_error)?;
        Ok(Self { writer, packets: 0, last_ns: 0, has_dbus: false })
    }

    /// Says what an address is called, for the packets that follow.
    pub(super) fn name(&mut self, address: Ipv4Addr, name: &str) -> io::Result<()> {
        let end = (0..=name.len().min(MAX_NAME_LEN)).rev().find(|&at| name.is_char_boundary(at)).unwrap_or(0);
        let octets = address.octets();
        let record = Ipv4Record { ip_addr: (&octets[..]).into(), names: vec![name[..end].into()] };
        let block = NameResolutionBlock { records: vec![Record::Ipv4(record)], options: vec![] };
        self.writer.write_pcapng_block(block).map(drop).map_err(io_error)
    }

    /// Writes a packet, of which `missing` bytes at the end are not there.
    pub(super) fn packet(&mut self, ns: u64, data: &[u8], missing: usize, comment: &str) -> io::Result<()> {
        self.packet_of(IP, ns, data, missing, comment)
    }

    /// Writes a message of D-Bus.
    pub(super) fn dbus(&mut self, ns: u64, message: &[u8], comment: &str) -> io::Result<()> {
        if !std::mem::replace(&mut self.has_dbus, true) {
            let description = "D-Bus messages of the same sockets";
            self.writer.write_pcapng_block(interface("D-Bus", description, DataLink::DBUS)).map_err(io_error)?;
        }
        self.packet_of(DBUS, ns, message, 0, comment)
    }

    fn packet_of(&mut self, id: u32, ns: u64, data: &[u8], missing: usize, comment: &str) -> io::Result<()> {
        let block = EnhancedPacketBlock {
            interface_id: id,
            // Written in nanoseconds.
            timestamp: Duration::from_nanos(ns),
            original_len: u32::try_from(data.len() + missing).unwrap_or(u32::MAX),
            data: data.into(),
            options: vec![EnhancedPacketOption::Comment(comment.into())],
        };
        self.packets += 1;
        self.last_ns = self.last_ns.max(ns);
        self.writer.write_pcapng_block(block).map(drop).map_err(io_error)
    }

    /// Writes the end: how many events were lost.
    pub(super) fn statistics(&mut self, lost: u64) -> io::Result<()> {
        let block = InterfaceStatisticsBlock {
            interface_id: IP,
            // The upper half comes first in the file, which the crate does not see to.
            timestamp: self.last_ns.rotate_left(32),
            options: vec![
                InterfaceStatisticsOption::IsbIfRecv(self.packets.saturating_add(lost)),
                InterfaceStatisticsOption::IsbIfDrop(lost),
            ],
        };
        self.writer.write_pcapng_block(block).map_err(io_error)?;
        self.writer.get_mut().flush()
    }

    pub(super) fn packets(&self) -> u64 {
        self.packets
    }

    pub(super) fn get_mut(&mut self) -> &mut W {
        self.writer.get_mut()
    }
}

fn interface<'a>(name: &'a str, description: &'a str, linktype: DataLink) -> InterfaceDescriptionBlock<'a> {
    InterfaceDescriptionBlock {
        linktype,
        snaplen: 0,
        options: vec![
            InterfaceDescriptionOption::IfName(name.into()),
            InterfaceDescriptionOption::IfDescription(description.into()),
            InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
        ],
    }
}

fn io_error(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}
