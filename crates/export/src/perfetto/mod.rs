//! A Perfetto trace: a track per process and connection, messages as slices, flows from one end's send to the other end's
//! receive.

mod flows;
mod schema;

use std::collections::HashMap;
use std::io::{self, Write};

use prost::Message;
use socktrace_event::{Captured, Data, Direction, Event, ProcessId, What, printable};

use crate::processes::Processes;
use crate::stream::{Place, Track};
use crate::survey::{Key, Survey, index};
use crate::{Exporter, comment, is_client, is_datagram, is_from_start};
use flows::{Flows, Received};
use schema::{
    BOOTTIME, Clock, ClockSnapshot, DebugAnnotation, EventKind, ProcessDescriptor, REALTIME, Trace, TracePacket,
    TrackDescriptor, TrackEvent,
};

/// Bytes of a message that are shown.
const PREVIEW_LEN: usize = 96;
/// Any number will do for the one sequence that there is.
const SEQUENCE: u32 = 1;

/// One end of a connection.
#[derive(Debug)]
struct End {
    conversation: Key,
    /// Whether the other end is recorded, too.
    has_peer: bool,
    is_client: bool,
    is_datagram: bool,
    from_start: bool,
    name: String,
    /// Received, sent.
    tracks: [Track; 2],
    /// By the process's track.
    lanes: HashMap<u64, Vec<Lane>>,
}

/// A track of a process and connection. Calls of several threads may overlap, and slices of one track must not.
#[derive(Clone, Copy, Debug)]
struct Lane {
    uuid: u64,
    busy_until: u64,
}

/// What is known of both ends of a connection.
#[derive(Debug, Default)]
struct Pair {
    /// Ends that are still to be forgotten.
    ends: u32,
    /// What the client, and the server, has sent.
    flows: [Flows; 2],
}

/// Writes a Perfetto trace.
#[derive(Debug)]
pub struct Perfetto<W: Write> {
    writer: Writer<W>,
    processes: Processes,
    /// Track and name of each process.
    process_tracks: HashMap<ProcessId, (u64, String)>,
    ends: HashMap<Key, End>,
    pairs: HashMap<Key, Pair>,
    flows: u64,
    messages: u64,
}

impl<W: Write> Perfetto<W> {
    /// Writes a trace to `writer`.
    pub fn new(writer: W) -> Self {
        Self {
            writer: Writer { inner: writer, uuids: 0, has_begun: false },
            processes: Processes::default(),
            process_tracks: HashMap::new(),
            ends: HashMap::new(),
            pairs: HashMap::new(),
            flows: 0,
            messages: 0,
        }
    }

    /// Messages written so far.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    fn begin(&mut self, key: Key, event: &Event<'_>, survey: &Survey) {
        if self.ends.contains_key(&key) {
            return;
        }
        let view = survey.view(key);
        let conversation = view.map_or(key, |view| view.conversation);
        let peer = view.and_then(|view| view.peer);
        let has_peer = view.is_some_and(|view| view.is_paired);
        let peer = peer.or(event.peer_process()).map(|process| survey.processes.label(process));
        let path = printable::name(event.path().unwrap_or_default());
        let name = match (path.is_empty(), peer) {
            (false, Some(peer)) => format!("{path} {peer}"),
            (false, None) => path.into_owned(),
            (true, Some(peer)) => peer,
            (true, None) => "unnamed".to_owned(),
        };
        let end = End {
            conversation,
            has_peer,
            is_client: is_client(event),
            is_datagram: is_datagram(event),
            from_start: is_from_start(event),
            name,
            tracks: Default::default(),
            lanes: HashMap::new(),
        };
        if has_peer {
            self.pairs.entry(conversation).or_insert_with(|| Pair { ends: 2, ..Pair::default() });
        }
        self.ends.insert(key, end);
    }

    fn data(&mut self, key: Key, event: &Event<'_>, data: &Data<'_>, payload: Captured<'_>) -> io::Result<()> {
        let direction = data.direction;
        let Some(end) = self.ends.get_mut(&key).filter(|_| direction != Direction::None) else { return Ok(()) };
        let place = end.tracks[index(direction)].place(event.process(), data, end.from_start);
        // A call's first frame stands for all of them.
        if !data.is_first() {
            return Ok(());
        }
        let total = data.moved();
        let place = Place { at: place.at, until: place.at.saturating_add(total) };
        let is_sent = direction == Direction::Out;
        let (mut received, mut sent) = (Received::default(), Vec::new());
        if end.has_peer
            && let Some(pair) = self.pairs.get_mut(&end.conversation)
        {
            let flows = &mut pair.flows[usize::from(is_sent != end.is_client)];
            if is_sent {
                self.flows += 1;
                flows.sent(place, self.flows);
                sent.push(self.flows);
            } else if end.is_datagram {
                received = flows.datagram(place, data.truncated.is_some());
            } else {
                received = flows.received(place);
            }
        }
        let (begin, until) = span(event, data);
        let process = event.process().unwrap_or(ProcessId::Here(0));
        let parent = self.writer.process(process, &self.processes, &mut self.process_tracks)?;
        let lane = self.writer.lane(end.lanes.entry(parent).or_default(), (begin, until), parent, &end.name)?;
        sent.extend(received.part);
        let call = data.call.as_deref().unwrap_or(if is_sent { "sent" } else { "received" });
        let slice = TrackEvent {
            r#type: Some(EventKind::SliceBegin.into()),
            track_uuid: Some(lane),
            categories: vec![if is_sent { "out" } else { "in" }.to_owned()],
            name: Some(printable::sentence(&format!("{call} {total} B")).into_owned()),
            flow_ids: sent,
            terminating_flow_ids: received.whole,
            debug_annotations: annotations(event, data, payload, &self.processes),
        };
        self.messages += 1;
        self.writer.event(begin, slice)?;
        let end =
            TrackEvent { r#type: Some(EventKind::SliceEnd.into()), track_uuid: Some(lane), ..TrackEvent::default() };
        self.writer.event(until, end)
    }
}

/// From when to when a call went, in nanoseconds: `ts_ns` is when it began to send, or had received.
fn span(event: &Event<'_>, data: &Data<'_>) -> (u64, u64) {
    let (ns, duration) = (event.time_ns(), data.duration_ns.unwrap_or(0));
    let is_sent = data.direction == Direction::Out;
    let begin = event.entered_ns.unwrap_or(if is_sent { ns } else { ns.saturating_sub(duration) });
    (begin, begin.saturating_add(duration).max(if is_sent { begin } else { ns }))
}

fn annotations(
    event: &Event<'_>,
    data: &Data<'_>,
    payload: Captured<'_>,
    processes: &Processes,
) -> Vec<DebugAnnotation> {
    let named = |name: &str| DebugAnnotation { name: Some(name.to_owned()), ..DebugAnnotation::default() };
    let number = |name, value| DebugAnnotation { uint_value: Some(value), ..named(name) };
    let text = |name, value| DebugAnnotation { string_value: Some(value), ..named(name) };
    let mut all = vec![number("size", data.moved())];
    if !payload.bytes.is_empty() {
        all.push(text("preview", preview(payload.bytes)));
    }
    all.push(text("details", comment::of_event(event, processes)));
    if let Some(fd) = event.fd {
        all.push(DebugAnnotation { int_value: Some(fd.into()), ..named("fd") });
    }
    if let Some(tid) = event.tid {
        all.push(number("thread", tid.into()));
    }
    if let Some(missing) = comment::of_capture(data) {
        all.push(text("missing", missing));
    }
    all
}

/// Text as it is, other bytes escaped.
fn preview(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(PREVIEW_LEN)].escape_ascii().to_string()
}

/// The file.
struct Writer<W: Write> {
    inner: W,
    uuids: u64,
    has_begun: bool,
}

impl<W: Write> std::fmt::Debug for Writer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("uuids", &self.uuids).finish_non_exhaustive()
    }
}

impl<W: Write> Writer<W> {
    fn packet(&mut self, packet: TracePacket) -> io::Result<()> {
        let packet = TracePacket { trusted_packet_sequence_id: Some(SEQUENCE), ..packet };
        self.inner.write_all(&Trace { packet: vec![packet] }.encode_to_vec())
    }

    fn event(&mut self, ns: u64, event: TrackEvent) -> io::Result<()> {
        if !std::mem::replace(&mut self.has_begun, true) {
            // Says that these times are those of the day.
            let clocks = [BOOTTIME, REALTIME].map(|id| Clock { clock_id: Some(id), timestamp: Some(ns) });
            let clock_snapshot = Some(ClockSnapshot { clocks: clocks.to_vec() });
            self.packet(TracePacket { clock_snapshot, timestamp: Some(ns), ..TracePacket::default() })?;
        }
        self.packet(TracePacket { timestamp: Some(ns), track_event: Some(event), ..TracePacket::default() })
    }

    fn track(&mut self, descriptor: TrackDescriptor) -> io::Result<()> {
        self.packet(TracePacket { track_descriptor: Some(descriptor), ..TracePacket::default() })
    }

    fn new_uuid(&mut self) -> u64 {
        self.uuids += 1;
        self.uuids
    }

    /// A process's track, announced when it is new or has executed another program.
    fn process(
        &mut self,
        process: ProcessId,
        processes: &Processes,
        tracks: &mut HashMap<ProcessId, (u64, String)>,
    ) -> io::Result<u64> {
        let name = processes.name(process).unwrap_or_default();
        if let Some((uuid, known)) = tracks.get(&process)
            && known == name
        {
            return Ok(*uuid);
        }
        let uuid = tracks.get(&process).map_or_else(|| self.new_uuid(), |(uuid, _)| *uuid);
        tracks.insert(process, (uuid, name.to_owned()));
        let process_name = (!name.is_empty()).then(|| name.to_owned());
        let (ProcessId::Here(pid) | ProcessId::Elsewhere(pid)) = process;
        let process = ProcessDescriptor { pid: i32::try_from(pid).ok(), process_name };
        self.track(TrackDescriptor { uuid: Some(uuid), process: Some(process), ..TrackDescriptor::default() })?;
        Ok(uuid)
    }

    /// A track of the connection that has nothing else at this time.
    fn lane(&mut self, lanes: &mut Vec<Lane>, span: (u64, u64), parent: u64, name: &str) -> io::Result<u64> {
        let (begin, until) = span;
        if let Some(lane) = lanes.iter_mut().find(|lane| lane.busy_until <= begin) {
            lane.busy_until = until;
            return Ok(lane.uuid);
        }
        let uuid = self.new_uuid();
        lanes.push(Lane { uuid, busy_until: until });
        // Tracks of one name below one process are shown as one.
        let (name, parent_uuid) = (Some(name.to_owned()), Some(parent));
        self.track(TrackDescriptor { uuid: Some(uuid), name, parent_uuid, process: None })?;
        Ok(uuid)
    }
}

impl<W: Write> Exporter for Perfetto<W> {
    fn event(&mut self, event: &Event<'_>, payload: Captured<'_>, survey: &Survey) -> io::Result<()> {
        self.processes.note(event);
        // The kernel has given a number out again: another process, and another track.
        if let (What::Fork(_), Some(process)) = (&event.what, event.process()) {
            self.process_tracks.remove(&process);
        }
        let Some(conn_id) = event.conn_id() else { return Ok(()) };
        let key = survey.key(conn_id);
        if matches!(event.what, What::Open(_) | What::Data(_)) {
            self.begin(key, event, survey);
        }
        match &event.what {
            What::Data(data) => self.data(key, event, data, payload),
            _ => Ok(()),
        }
    }

    fn needed_bytes(&self) -> usize {
        PREVIEW_LEN
    }

    fn forget(&mut self, event: &Event<'_>, survey: &Survey) -> io::Result<()> {
        let Some(end) = event.conn_id().and_then(|conn_id| self.ends.remove(&survey.key(conn_id))) else {
            return Ok(());
        };
        if end.has_peer
            && let Some(pair) = self.pairs.get_mut(&end.conversation)
        {
            pair.ends = pair.ends.saturating_sub(1);
            if pair.ends == 0 {
                self.pairs.remove(&end.conversation);
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        self.writer.inner.flush()
    }
}
