//! pcapng, for Wireshark: connections as synthetic TCP conversations, datagrams as UDP.

mod addresses;
mod blocks;
mod conversation;
mod dbus;

use std::collections::HashMap;
use std::io::{self, Write};
use std::num::NonZeroUsize;

use lru::LruCache;
use socktrace_event::printable::name;
use socktrace_event::{Captured, Close, Data, Direction, Event, ProcessId, What};

use crate::pairs::Pairs;
use crate::ports::{DBUS_PORT, Ports, UNKNOWN_PORT};
use crate::processes::Processes;
use crate::stream::Track;
use crate::survey::{Key, Survey, View, index};
use crate::{Exporter, LeftOut, comment, is_client, is_datagram, is_from_start};
use addresses::Addresses;
use blocks::Blocks;
use conversation::{Conversation, Endpoint, Side};
use dbus::Messages;

/// Clients' ports begin here: above all that a dissector of Wireshark is registered for, and above all of servers, because
/// Wireshark asks the lower port's dissector first.
pub const FIRST_CLIENT_PORT: u16 = 61000;
const CLIENT_PORTS: u64 = (u16::MAX - FIRST_CLIENT_PORT) as u64 + 1;
/// Initial sequence numbers of conversations that get a port again, so that Wireshark knows a new one.
const INITIAL_STEP: u32 = 0x0010_0000;
/// Connections that are remembered while nobody knows whether more is to come, as it is live. Some 500 bytes each.
const MAX_LIVE: usize = 64 << 10;
/// Processes that are remembered to use one connection.
const MAX_USERS: usize = 1 << 10;
/// Connections that are remembered for a while after their end.
const MAX_CLOSED: NonZeroUsize = NonZeroUsize::new(16 << 10).expect("not 0");

/// One end of a connection, as its events tell.
#[derive(Debug)]
struct End {
    view: View,
    is_client: bool,
    from_start: bool,
    /// Received, sent.
    tracks: [Track; 2],
    /// Processes that were seen using it.
    users: Vec<ProcessId>,
}

#[derive(Debug)]
struct Talk {
    conversation: Conversation,
    is_datagram: bool,
    /// Of D-Bus: what the client, and the server, sends.
    dbus: Option<Box<[Messages; 2]>>,
    /// Ends of which more may be shown.
    ends: u32,
}

/// A connection whose port is not known before it has said something.
#[derive(Debug)]
struct Pending {
    client: String,
    server: String,
    is_datagram: bool,
    handshake: Option<(u64, String)>,
    ends: u32,
}

/// Writes pcapng.
#[derive(Debug)]
pub struct Pcapng<W: Write> {
    blocks: Blocks<W>,
    ports: Ports,
    processes: Processes,
    pairs: Pairs,
    addresses: Addresses,
    ends: LruCache<Key, End>,
    /// Connections that have ended, while it is live: their other end may still be heard of.
    closed: LruCache<Key, ()>,
    talks: HashMap<Key, Talk>,
    pending: HashMap<Key, Pending>,
    /// Conversations so far.
    count: u64,
    lost: u64,
    /// What is done with messages of D-Bus.
    dbus: Dbus,
}

/// What is done with messages of D-Bus, beside the stream that they are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dbus {
    /// Each is a packet of its own on an interface of another link type.
    Apart,
    /// Nothing, and there were none.
    NotMet,
    /// Nothing.
    LeftAlone,
}

impl<W: Write> Pcapng<W> {
    /// Writes the file's beginning.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn new(writer: W, ports: Ports) -> io::Result<Self> {
        Ok(Self {
            blocks: Blocks::new(writer)?,
            ports,
            processes: Processes::default(),
            pairs: Pairs::default(),
            addresses: Addresses::new(),
            ends: LruCache::unbounded(),
            closed: LruCache::new(MAX_CLOSED),
            talks: HashMap::new(),
            pending: HashMap::new(),
            count: 0,
            lost: 0,
            dbus: Dbus::NotMet,
        })
    }

    /// Writes messages of D-Bus a second time, each as one packet on an interface with a link type of its own, as Wireshark
    /// dissects them. Readers that are built on libpcap take files of one link type only.
    #[must_use]
    pub fn with_dbus(mut self) -> Self {
        self.dbus = Dbus::Apart;
        self
    }

    /// Where it is written to.
    pub fn get_mut(&mut self) -> &mut W {
        self.blocks.get_mut()
    }

    /// Packets written so far.
    pub fn packets(&self) -> u64 {
        self.blocks.packets()
    }

    /// Counts packets that were written and then dropped on their way, to be told at the end.
    pub fn count_lost(&mut self, packets: u64) {
        self.lost = self.lost.saturating_add(packets);
    }

    /// Notes a connection with the first event of it.
    fn begin(&mut self, key: Key, event: &Event<'_>, survey: &Survey) {
        if self.ends.contains(&key) {
            return;
        }
        let view = survey.view(key).unwrap_or_else(|| self.live_view(key, event, survey));
        let end = End {
            view,
            is_client: is_client(event),
            from_start: is_from_start(event),
            tracks: Default::default(),
            users: event.process().into_iter().collect(),
        };
        let conversation = view.conversation;
        let is_known = self.talks.contains_key(&conversation) || self.pending.contains_key(&conversation);
        if view.is_shown() && !is_known {
            let (client, server) = self.names(event, &end, survey);
            let is_datagram = is_datagram(event);
            // Of one that was open before it was traced, the beginning was not seen.
            let syn = matches!(&event.what, What::Open(open) if !open.how.contains(':')) && !is_datagram;
            let handshake = syn.then(|| (event.time_ns(), comment::of_event(event, &self.processes)));
            let ends = view.shown_ends;
            self.pending.insert(conversation, Pending { client, server, is_datagram, handshake, ends });
        }
        self.ends.put(key, end);
    }

    /// What there is to be known of a connection that was not surveyed: the end that is heard of first is shown.
    fn live_view(&mut self, key: Key, event: &Event<'_>, survey: &Survey) -> View {
        let port = event.path().and_then(|path| self.ports.by_path(path));
        let What::Open(open) = &event.what else { return View::alone(key, port) };
        let Some(other) = self.pairs.other_end(open).map(|other| survey.key(other)) else {
            return View::alone(key, port);
        };
        match self.ends.peek(&other) {
            Some(first) => View::hidden(first.view.conversation),
            // It was accepted when the other end was done with it.
            None if self.closed.contains(&other) => View::hidden(other),
            None => View::alone(key, port),
        }
    }

    /// What the client's address and the server's are called.
    fn names(&self, event: &Event<'_>, end: &End, survey: &Survey) -> (String, String) {
        let label = |process| {
            if self.processes.name(process).is_some() {
                self.processes.label(process)
            } else {
                survey.processes.label(process)
            }
        };
        let own = event.process().map(label);
        let peer = end.view.peer.or(event.peer_process()).map(label);
        let (client, server) = if end.is_client { (own, peer) } else { (peer, own) };
        let path = name(event.path().unwrap_or_default());
        let server = match (server, path.is_empty()) {
            (Some(server), false) => format!("{server}:{path}"),
            (Some(server), true) => server,
            (None, false) => path.into_owned(),
            (None, true) => "unknown".to_owned(),
        };
        (client.unwrap_or_else(|| "unknown".to_owned()), server)
    }

    /// Writes how a conversation begins, once its port is known.
    fn start(&mut self, key: Key, port: u16) -> io::Result<()> {
        let Some(pending) = self.pending.remove(&key) else { return Ok(()) };
        let client = self.address(&pending.client)?;
        let server = self.address(&pending.server)?;
        let (number, round) = (self.count % CLIENT_PORTS, self.count / CLIENT_PORTS);
        self.count += 1;
        // Below CLIENT_PORTS.
        let client_port = FIRST_CLIENT_PORT + number as u16;
        let (client, server) = (Endpoint::new(client, client_port), Endpoint::new(server, port));
        let mut conversation = Conversation::new(client, server, INITIAL_STEP.wrapping_mul(round as u32));
        if let Some((ns, comment)) = &pending.handshake {
            conversation.handshake(&mut self.blocks, *ns, comment)?;
        }
        let Pending { is_datagram, ends, .. } = pending;
        let is_dbus = port == DBUS_PORT && !is_datagram;
        if is_dbus && self.dbus == Dbus::NotMet {
            self.dbus = Dbus::LeftAlone;
        }
        let dbus = (is_dbus && self.dbus == Dbus::Apart).then(Box::default);
        self.talks.insert(key, Talk { conversation, is_datagram, dbus, ends });
        Ok(())
    }

    fn address(&mut self, name: &str) -> io::Result<std::net::Ipv4Addr> {
        let (address, is_new) = self.addresses.of(name);
        if is_new {
            self.blocks.name(address, name)?;
        }
        Ok(address)
    }

    fn data(&mut self, key: Key, event: &Event<'_>, data: &Data<'_>, payload: Captured<'_>) -> io::Result<()> {
        let direction = data.direction;
        let Some(end) = self.ends.get_mut(&key).filter(|_| direction != Direction::None) else { return Ok(()) };
        if let Some(process) = event.process()
            && !end.users.contains(&process)
            && end.users.len() < MAX_USERS
        {
            end.users.push(process);
        }
        if !end.view.takes[index(direction)] {
            return Ok(());
        }
        let from_client = (direction == Direction::Out) == end.is_client;
        let place = end.tracks[index(direction)].place(event.process(), data, end.from_start);
        let conversation = end.view.conversation;
        if self.pending.contains_key(&conversation) {
            let port = end.view.port.or_else(|| Ports::by_bytes(payload.bytes, from_client));
            self.start(conversation, port.unwrap_or(UNKNOWN_PORT))?;
        }
        let Some(talk) = self.talks.get_mut(&conversation) else { return Ok(()) };
        let (total, ns, bytes) = (data.moved(), event.time_ns(), payload.bytes);
        let mut comment = comment::of_event(event, &self.processes);
        comment.push_str(&match data.parts {
            Some(parts) if parts > 1 => {
                format!(", part {} of {parts} of {total} bytes", data.part.unwrap_or(0).saturating_add(1))
            }
            _ => format!(", {total} bytes"),
        });
        if let Some(missing) = comment::of_payload(data, payload) {
            comment.push_str(", ");
            comment.push_str(&missing);
        }
        let side = Side::of(from_client);
        if talk.is_datagram {
            let missing = if data.is_split() { data.size } else { total }.saturating_sub(bytes.len() as u64);
            return talk.conversation.datagram(&mut self.blocks, side, (bytes, missing), ns, &comment);
        }
        talk.conversation.message(&mut self.blocks, (side, place), bytes, ns, &comment)?;
        let Some(dbus) = &mut talk.dbus else { return Ok(()) };
        let (ns, blocks) = (talk.conversation.last_ns(), &mut self.blocks);
        let mut hand_on = |message: &[u8]| blocks.dbus(ns, message, &comment);
        dbus[usize::from(!from_client)].feed(from_client, place.at, bytes, &mut hand_on)
    }

    /// One direction or both were shut (shutdown(2)): the sender says no more.
    fn shut(&mut self, key: Key, event: &Event<'_>) -> io::Result<()> {
        let Some(end) = self.ends.get(&key) else { return Ok(()) };
        if !end.view.takes[index(Direction::Out)] {
            return Ok(());
        }
        let (side, conversation) = (Side::of(end.is_client), end.view.conversation);
        let comment = comment::of_event(event, &self.processes);
        self.finish_side(conversation, side, event.time_ns(), &comment)
    }

    /// A connection's last descriptor was closed.
    fn close(&mut self, key: Key, event: &Event<'_>) -> io::Result<()> {
        let Some(end) = self.ends.get(&key) else { return Ok(()) };
        let (side, view) = (Side::of(end.is_client), end.view);
        let comment = comment::of_event(event, &self.processes);
        for (direction, side) in [(Direction::Out, side), (Direction::In, side.other())] {
            if view.takes[index(direction)] {
                self.finish_side(view.conversation, side, event.time_ns(), &comment)?;
            }
        }
        Ok(())
    }

    fn finish_side(&mut self, key: Key, side: Side, ns: u64, comment: &str) -> io::Result<()> {
        match self.talks.get_mut(&key) {
            Some(talk) if !talk.is_datagram => talk.conversation.finish(&mut self.blocks, side, ns, comment),
            _ => Ok(()),
        }
    }

    /// Forgets an end, and its conversation when both are.
    fn drop_end(&mut self, key: Key) -> io::Result<()> {
        let Some(end) = self.ends.pop(&key).filter(|end| end.view.is_shown()) else { return Ok(()) };
        let conversation = end.view.conversation;
        if let Some(pending) = self.pending.get_mut(&conversation) {
            pending.ends = pending.ends.saturating_sub(1);
            if pending.ends == 0 {
                self.pending.remove(&conversation);
            }
        }
        let Some(talk) = self.talks.get_mut(&conversation) else { return Ok(()) };
        talk.ends = talk.ends.saturating_sub(1);
        if talk.ends == 0 {
            talk.conversation.leave(&mut self.blocks)?;
            self.talks.remove(&conversation);
        }
        Ok(())
    }
}

/// Whether a close event is the end of a connection, and not of a direction, nor a datagram socket's change of its peer.
fn is_end(event: &Event<'_>) -> bool {
    matches!(&event.what, What::Close(close) if !close.how.starts_with("shutdown:"))
}

/// Whether one says that the traced end sends no more (`SHUT_WR`, `SHUT_RDWR`).
fn shuts_sending(close: &Close<'_>) -> bool {
    close.how.starts_with("shutdown:") && close.how.ends_with("WR")
}

impl<W: Write> Exporter for Pcapng<W> {
    fn event(&mut self, event: &Event<'_>, payload: Captured<'_>, survey: &Survey) -> io::Result<()> {
        self.processes.note(event);
        if let What::Lost(lost) = &event.what {
            self.lost = self.lost.saturating_add(lost.events.unwrap_or(1));
        }
        let Some(conn_id) = event.conn_id() else { return Ok(()) };
        let key = survey.key(conn_id);
        let is_live = survey.view(key).is_none();
        match &event.what {
            What::Open(_) | What::Data(_) => {
                self.begin(key, event, survey);
                let port = self.ends.get(&key).map(|end| (end.view.conversation, end.view.port));
                // A connection that was surveyed has said all there is to be known.
                if let Some((conversation, port)) = port
                    && self.pending.contains_key(&conversation)
                    && (!is_live || port.is_some())
                {
                    self.start(conversation, port.unwrap_or(UNKNOWN_PORT))?;
                }
                if let What::Data(data) = &event.what {
                    self.data(key, event, data, payload)?;
                }
            }
            What::Close(close) if shuts_sending(close) => self.shut(key, event)?,
            What::Close(_) if !is_end(event) => {}
            What::Close(_) if is_live => {
                let is_last = self.ends.get_mut(&key).is_some_and(|end| {
                    end.users.retain(|&process| Some(process) != event.process());
                    end.users.is_empty()
                });
                if is_last {
                    if let Some(end) = self.ends.get(&key) {
                        let (conversation, port) = (end.view.conversation, end.view.port);
                        self.start(conversation, port.unwrap_or(UNKNOWN_PORT))?;
                    }
                    self.close(key, event)?;
                    self.drop_end(key)?;
                    self.closed.put(key, ());
                }
            }
            _ => {}
        }
        if is_live && self.ends.len() > MAX_LIVE {
            let oldest = self.ends.peek_lru().map(|(&key, _)| key);
            oldest.map_or(Ok(()), |key| self.drop_end(key))?;
        }
        Ok(())
    }

    fn needed_bytes(&self) -> usize {
        usize::MAX
    }

    fn forget(&mut self, event: &Event<'_>, survey: &Survey) -> io::Result<()> {
        let Some(conn_id) = event.conn_id() else { return Ok(()) };
        let key = survey.key(conn_id);
        if is_end(event) {
            self.close(key, event)?;
        }
        self.drop_end(key)
    }

    fn finish(&mut self) -> io::Result<()> {
        let began = |pending: &Pending| pending.handshake.as_ref().map(|(ns, _)| *ns);
        let mut all: Vec<_> = self.pending.iter().map(|(&key, pending)| (began(pending), key)).collect();
        all.sort_unstable();
        for (_, key) in all {
            self.start(key, UNKNOWN_PORT)?;
        }
        while let Some((&key, _)) = self.ends.peek_lru() {
            self.drop_end(key)?;
        }
        self.blocks.statistics(self.lost)
    }

    fn left_out(&self) -> Option<LeftOut> {
        (self.dbus == Dbus::LeftAlone).then_some(LeftOut::DbusMessages)
    }
}
