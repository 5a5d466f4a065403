//! Records to events: what is known of processes, connections and calls that have come in part.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use gttr::{Ext, ExtWriter, Frame, FrameType};
use rustix::time::{ClockId, clock_gettime};
use socktrace_event::{
    Begun, Close, Direction, Eof, Event, Exec, Exit, Fail, Listen, Lost, Open, Sink, Stat, Taken, Text, What, errno,
    proc_text,
};

use crate::records::{Kind, OPEN_LEN, Peers, Process, Record};

/// A larger message comes in several events.
const PART: usize = 1 << 20;
/// What a message's values take at most: eleven of 12 bytes, one of them a name.
const EXT_LEN: usize = 192;
/// What is missing of a call after so long does not come: the kernel writes the pieces one behind the other.
const STALE: Duration = Duration::from_millis(200);
/// `sk_state` of a socket that listens, and of one that is connected (TCP_LISTEN, TCP_ESTABLISHED).
const LISTENS: u32 = 10;
const CONNECTED: u32 = 1;
/// Of the path in a connection's name the end is kept, as in the probe's.
const NAMED: usize = 100;

/// System calls that move bytes, by their numbers on x86_64.
const CALLS: [(i16, &str); 16] = [
    (0, "read"),
    (1, "write"),
    (19, "readv"),
    (20, "writev"),
    (40, "sendfile"),
    (44, "sendto"),
    (45, "recvfrom"),
    (46, "sendmsg"),
    (47, "recvmsg"),
    (275, "splice"),
    (295, "preadv"),
    (296, "pwritev"),
    (299, "recvmmsg"),
    (307, "sendmmsg"),
    (327, "preadv2"),
    (328, "pwritev2"),
];
const IO_URING_ENTER: i16 = 426;

fn call_name(number: i16) -> Option<&'static str> {
    let named = || CALLS.iter().find(|(known, _)| *known == number).map(|(_, name)| *name);
    if number == IO_URING_ENTER { Some("io_uring") } else { named() }
}

#[derive(Debug, Default)]
struct Known {
    own_pid: u32,
    /// Number of the last event.
    seq: u64,
    /// Whether it was introduced.
    is_told: bool,
}

#[derive(Debug)]
struct Connection {
    conn_id: String,
    path: String,
    network: u32,
    fd: i32,
    pid: u32,
    /// What each process received and sent.
    moved: Vec<(u32, [u64; 2])>,
}

impl Connection {
    /// What the process had moved before, of all that had been moved, and that it moves some more.
    fn advance(&mut self, pid: u32, way: usize, before: u64, more: u64) -> u64 {
        let others: u64 = self.moved.iter().filter(|(other, _)| *other != pid).map(|(_, moved)| moved[way]).sum();
        let offset = before.saturating_sub(others);
        match self.moved.iter_mut().find(|(other, _)| *other == pid) {
            Some((_, moved)) => moved[way] = moved[way].max(offset + more),
            None => {
                let mut moved = [0; 2];
                moved[way] = offset + more;
                self.moved.push((pid, moved));
            }
        }
        offset
    }
}

/// A call whose bytes come in several records.
#[derive(Debug)]
struct Partial {
    head: Head,
    bytes: Vec<u8>,
    /// Bytes that came, and parts that were told.
    came: u32,
    told: u32,
    offset: u64,
    since: Instant,
}

/// What a record says of its call.
#[derive(Clone, Copy, Debug)]
struct Head {
    time: u64,
    inode: u64,
    pid: u32,
    tid: u32,
    own_tid: u32,
    fd: i32,
    result: i32,
    wanted: u32,
    call: i16,
    is_sent: bool,
    room: u32,
}

impl From<&Record<'_>> for Head {
    fn from(record: &Record<'_>) -> Self {
        let &Record { time, inode, pid, tid, own_tid, fd, result, wanted, call, is_sent, room, .. } = record;
        Self { time, inode, pid, tid, own_tid, fd, result, wanted, call, is_sent, room }
    }
}

/// Makes events of records.
#[derive(Debug)]
pub(crate) struct Teller {
    max_bytes: u64,
    processes: HashMap<u32, Known>,
    connections: HashMap<u64, Connection>,
    listening: HashSet<u64>,
    partial: HashMap<u32, Partial>,
    /// Connections told of so far.
    count: u64,
    /// What is added to the kernel's time for that of the Unix epoch.
    epoch: u64,
    own_network: u32,
}

impl Teller {
    pub(crate) fn new(max_bytes: u64) -> Self {
        let namespace = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
        let number = namespace.to_string_lossy().trim_start_matches("net:[").trim_end_matches(']').parse();
        let mut teller = Self {
            max_bytes,
            processes: HashMap::new(),
            connections: HashMap::new(),
            listening: HashSet::new(),
            partial: HashMap::new(),
            count: 0,
            epoch: 0,
            own_network: number.unwrap_or(0),
        };
        teller.set_clock();
        teller
    }

    /// Follows the clock, which may be set.
    pub(crate) fn set_clock(&mut self) {
        self.epoch = nanoseconds(ClockId::Realtime).saturating_sub(nanoseconds(ClockId::Monotonic));
    }

    /// Hands a record's events on.
    pub(crate) fn take<S: Sink + ?Sized>(&mut self, record: &Record<'_>, to: &mut S) -> Taken<S::Error> {
        if !matches!(record.kind, Kind::Fork | Kind::Exec | Kind::Exit) {
            self.introduce(record.pid, record.time, to)?;
        }
        match record.kind {
            Kind::Data => self.data(record, to),
            Kind::Piece => self.piece(record, to),
            Kind::Open => self.open(record, to),
            Kind::Fail => self.fail(record, to),
            Kind::EndOfFile => self.end_of_file(record, to),
            Kind::Fork | Kind::Exec => self.process(record, to),
            Kind::Exit => self.exit(record, to),
        }
    }

    /// A process that was there before. What there is to say of it is in proc(5).
    pub(crate) fn found<S: Sink + ?Sized>(&mut self, pid: u32, sockets: &[u8], to: &mut S) -> Taken<S::Error> {
        self.introduce(pid, nanoseconds(ClockId::Monotonic), to)?;
        for bytes in sockets.chunks_exact(OPEN_LEN) {
            if let Some(record) = Record::parse(bytes)
                && record.kind == Kind::Open
            {
                self.introduce(record.pid, record.time, to)?;
                self.open(&record, to)?;
            }
        }
        Ok(())
    }

    /// An event of a process, with what all have.
    fn event<'a>(&mut self, head: &Head, fd: i32, what: What<'a>) -> Event<'a> {
        let known = self.processes.entry(head.pid).or_default();
        known.seq += 1;
        let own_pid = if known.own_pid == 0 { head.pid } else { known.own_pid };
        let ns = head.time + self.epoch;
        Event {
            ts_ms: ns / 1_000_000,
            fd: Some(fd),
            pid: Some(own_pid),
            host_pid: (own_pid != head.pid).then_some(head.pid),
            tid: Some(head.own_tid),
            seq: Some(known.seq),
            ts_ns: Some(ns),
            what,
            ..Event::default()
        }
    }

    fn introduce<S: Sink + ?Sized>(&mut self, pid: u32, time: u64, to: &mut S) -> Taken<S::Error> {
        let known = self.processes.entry(pid).or_default();
        if known.is_told {
            return Ok(());
        }
        known.is_told = true;
        let status = proc_text(&format!("/proc/{pid}/status")).unwrap_or_default();
        // The last is what the process sees itself (proc_pid_status(5)).
        let own = status.lines().find_map(|line| line.strip_prefix("NSpid:")?.split_whitespace().last()?.parse().ok());
        known.own_pid = own.unwrap_or(pid);
        let own_tid = known.own_pid;
        let mut comm = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        comm.pop_if(|byte| *byte == b'\n');
        let exe = exe_of(pid);
        let begun = Begun {
            ppid: Stat::of(pid).map(|stat| stat.parent),
            exe: exe.as_deref().map(Text::escaped_name),
            comm: Some(Text::escaped_name(&comm)),
        };
        let event = self.event(&head_of(pid, own_tid, time), -1, What::Start(begun));
        to.event(&event, b"")
    }

    fn process<S: Sink + ?Sized>(&mut self, record: &Record<'_>, to: &mut S) -> Taken<S::Error> {
        let Some(process) = Process::parse(record.rest) else { return Ok(()) };
        let head = Head::from(record);
        let known = self.processes.entry(record.pid).or_default();
        let is_fork = record.kind == Kind::Fork;
        let was_told = std::mem::replace(&mut known.is_told, true);
        known.own_pid = process.own_pid;
        if is_fork {
            known.seq = 0;
        } else if was_told {
            let exec = Exec { program: Some(Text::escaped_name(process.program)), ..Exec::default() };
            to.event(&self.event(&head, -1, What::Exec(exec)), b"")?;
            self.processes.entry(record.pid).or_default().seq = 0;
        }
        let exe = exe_of(record.pid).unwrap_or_else(|| process.program.to_vec());
        let begun = Begun {
            ppid: Some(process.parent),
            exe: (!exe.is_empty()).then(|| Text::escaped_name(&exe)),
            comm: Some(Text::escaped_name(process.comm)),
        };
        let what = if is_fork { What::Fork(begun) } else { What::Start(begun) };
        to.event(&self.event(&head, -1, what), b"")
    }

    fn exit<S: Sink + ?Sized>(&mut self, record: &Record<'_>, to: &mut S) -> Taken<S::Error> {
        if let Some(partial) = self.partial.remove(&record.tid) {
            self.cut(partial, to)?;
        }
        // As wait(2) has it.
        let status = record.result.cast_unsigned();
        let (signal, code) = (status & 0x7f, status >> 8 & 0xff);
        let exit = Exit {
            raw: (signal != 0).then(|| Text(Cow::Owned(format!("signal={signal}")))),
            status: (signal == 0).then_some(code),
            sockets: None,
        };
        let event = self.event(&Head::from(record), -1, What::Exit(exit));
        self.processes.remove(&record.pid);
        to.event(&event, b"")
    }

    fn open<S: Sink + ?Sized>(&mut self, record: &Record<'_>, to: &mut S) -> Taken<S::Error> {
        let Some(peers) = Peers::parse(record.rest) else { return Ok(()) };
        if self.connections.contains_key(&record.inode) || self.listening.contains(&record.inode) {
            return Ok(());
        }
        let head = Head::from(record);
        let (own, peer) = (socket_path(peers.own), socket_path(peers.peer));
        let socket_type = Some(type_name(peers.socket_type));
        let (inode, is_own) = (Some(record.inode), !own.is_empty());
        let is_old = record.call == -1;
        let path = if is_own || peer.is_empty() { own } else { peer };
        if is_old && (peers.state == LISTENS || (peers.peer_inode == 0 && peers.state != CONNECTED)) {
            self.listening.insert(record.inode);
            if path.is_empty() {
                return Ok(());
            }
            let how = "preexisting:getsockname".into();
            let listen = Listen { path: Text(path.into()), how, inode, socket_type };
            return to.event(&self.event(&head, record.fd, What::Listen(listen)), b"");
        }
        self.count += 1;
        let conn_id = self.name(&head, &path);
        let connection = Connection {
            conn_id: conn_id.clone(),
            path: path.clone(),
            network: peers.network,
            fd: record.fd,
            pid: record.pid,
            moved: Vec::new(),
        };
        self.connections.insert(record.inode, connection);
        let how = match (is_old, is_own) {
            (true, true) => "preexisting:getsockname".into(),
            (true, false) => "preexisting:getpeername".into(),
            _ => call_name(record.call).unwrap_or_default().into(),
        };
        let has_peer = peers.peer_pid != 0;
        let exe = if has_peer { exe_of(peers.peer_pid) } else { None };
        let open = Open {
            path: Text(path.into()),
            conn_id: Text(conn_id.into()),
            how,
            inode,
            socket_type,
            peer_pid: has_peer.then_some(peers.peer_pid),
            peer_uid: has_peer.then_some(peers.peer_uid),
            peer_gid: has_peer.then_some(peers.peer_gid),
            peer_inode: (peers.peer_inode != 0).then_some(peers.peer_inode),
            peer_exe: exe.as_deref().map(Text::escaped_name),
            ..Open::default()
        };
        to.event(&self.event(&head, record.fd, What::Open(open)), b"")
    }

    /// What a connection is called, as the probe would (docs/gttr.md, "Names").
    fn name(&self, head: &Head, path: &str) -> String {
        let is_valid = |c: char| c.is_ascii_alphanumeric() || "_.:@=+-".contains(c);
        let named: String = path.chars().map(|c| if is_valid(c) { c } else { '_' }).collect();
        // All of it is ASCII by now.
        let named = &named[named.len().saturating_sub(NAMED)..];
        let named = if named.is_empty() { "unnamed" } else { named };
        let (ms, count) = ((head.time + self.epoch) / 1_000_000, self.count);
        format!("{named}:fd={}:t={ms}:p={}:i={}:n={count}", head.fd, head.pid, head.inode)
    }

    fn data<S: Sink + ?Sized>(&mut self, record: &Record<'_>, to: &mut S) -> Taken<S::Error> {
        // What came in part and is not at its end is not going to be: the thread is at its next call.
        if let Some(partial) = self.partial.remove(&record.tid) {
            self.cut(partial, to)?;
        }
        let head = Head::from(record);
        let way = usize::from(record.is_sent);
        let connection = self.connection(&head);
        let offset = connection.advance(head.pid, way, record.before, u64::from(head.result.unsigned_abs()));
        let is_all = record.rest.len() == record.wanted as usize;
        if is_all && record.rest.len() <= PART {
            return self.message(&head, offset, record.rest, None, to);
        }
        let partial = Partial { head, bytes: Vec::new(), came: 0, told: 0, offset, since: Instant::now() };
        self.partial.insert(head.tid, partial);
        self.piece(record, to)
    }

    fn piece<S: Sink + ?Sized>(&mut self, record: &Record<'_>, to: &mut S) -> Taken<S::Error> {
        let Some(mut partial) = self.partial.remove(&record.tid) else { return Ok(()) };
        if partial.came != record.at || partial.head.inode != record.inode {
            return self.cut(partial, to);
        }
        partial.came += record.rest.len() as u32;
        partial.since = Instant::now();
        partial.bytes.extend_from_slice(record.rest);
        let is_all = partial.came == partial.head.wanted;
        while partial.bytes.len() > PART || (is_all && !partial.bytes.is_empty()) {
            let rest = partial.bytes.split_off(partial.bytes.len().min(PART));
            let bytes = std::mem::replace(&mut partial.bytes, rest);
            let parts = (partial.head.wanted as usize).div_ceil(PART) as u32;
            let part = (parts > 1).then_some((partial.told, parts));
            partial.told += 1;
            self.message(&partial.head, partial.offset, &bytes, part, to)?;
        }
        if !is_all {
            self.partial.insert(record.tid, partial);
        }
        Ok(())
    }

    /// Tells what there is of a call whose rest does not come.
    fn cut<S: Sink + ?Sized>(&mut self, partial: Partial, to: &mut S) -> Taken<S::Error> {
        let Partial { head, bytes, came, told, offset, .. } = partial;
        let part = (told > 0).then_some((told, told + 1));
        self.event_of(&head, offset, &bytes, part, u64::from(head.wanted - came), to)
    }

    fn message<S: Sink + ?Sized>(
        &mut self,
        head: &Head,
        offset: u64,
        bytes: &[u8],
        part: Option<(u32, u32)>,
        to: &mut S,
    ) -> Taken<S::Error> {
        // What the kernel did not even try: a call whose bytes it does not find.
        let moved = moved(head);
        let uncaptured = moved.min(self.max_bytes).saturating_sub(u64::from(head.wanted));
        self.event_of(head, offset, bytes, part, uncaptured, to)
    }

    fn event_of<S: Sink + ?Sized>(
        &mut self,
        head: &Head,
        offset: u64,
        bytes: &[u8],
        part: Option<(u32, u32)>,
        uncaptured: u64,
        to: &mut S,
    ) -> Taken<S::Error> {
        let event = self.event(head, head.fd, What::Unknown);
        let connection = self.connection(head);
        let mut room = [0; EXT_LEN];
        let mut ext = ExtWriter::new(&mut room);
        let mut put = |value: Option<Ext<'_>>| value.into_iter().for_each(|value| ext.put(value));
        put(event.pid.map(Ext::Pid));
        put(event.tid.map(Ext::Tid));
        put(event.seq.map(Ext::Seq));
        put(event.ts_ns.map(Ext::TsNs));
        put(call_name(head.call).map(|name| Ext::Call(name.as_bytes())));
        put(Some(Ext::Total(moved(head))));
        put(Some(Ext::Offset(offset)));
        put(part.map(|(part, _)| Ext::Part(part)));
        put(part.map(|(_, parts)| Ext::Parts(parts)));
        put((uncaptured > 0).then_some(Ext::Uncaptured(uncaptured)));
        put((moved(head) < u64::from(head.result.unsigned_abs())).then_some(Ext::Truncated(1)));
        // Sinks make less work of a frame than of an event.
        let frame = Frame {
            fd: head.fd,
            direction: if head.is_sent { Direction::Out } else { Direction::In },
            path: connection.path.as_bytes(),
            conn: connection.conn_id.as_bytes(),
            payload: bytes,
            ext: ext.finish(),
            host_pid: event.host_pid,
            ..Frame::new(FrameType::Data, event.ts_ms)
        };
        to.frame(&frame, None)
    }

    fn fail<S: Sink + ?Sized>(&mut self, record: &Record<'_>, to: &mut S) -> Taken<S::Error> {
        let head = Head::from(record);
        let event = self.event(&head, record.fd, What::Unknown);
        let connection = self.connection(&head);
        let number = -record.result;
        let fail = Fail {
            path: Some(Text::from(&*connection.path)),
            conn_id: Some(Text::from(&*connection.conn_id)),
            call: call_name(record.call).map(Text::from),
            errno: Some(number),
            error: Some(Text(errno::name(number))),
            ..Fail::default()
        };
        to.event(&Event { what: What::Fail(fail), ..event }, b"")
    }

    fn end_of_file<S: Sink + ?Sized>(&mut self, record: &Record<'_>, to: &mut S) -> Taken<S::Error> {
        let head = Head::from(record);
        let event = self.event(&head, record.fd, What::Unknown);
        let connection = self.connection(&head);
        let eof = Eof {
            direction: Direction::In,
            path: Text::from(&*connection.path),
            conn_id: Text::from(&*connection.conn_id),
        };
        to.event(&Event { what: What::Eof(eof), ..event }, b"")
    }

    /// The connection of a socket; one whose opening was lost has a name all the same.
    fn connection(&mut self, head: &Head) -> &mut Connection {
        if !self.connections.contains_key(&head.inode) {
            self.count += 1;
            let conn_id = self.name(head, "");
            let connection =
                Connection { conn_id, path: String::new(), network: 0, fd: head.fd, pid: head.pid, moved: Vec::new() };
            self.connections.insert(head.inode, connection);
        }
        self.connections.get_mut(&head.inode).expect("it was put there")
    }

    /// Sockets that may be asked after: an iterator goes through those of one network namespace.
    pub(crate) fn inodes(&self) -> Vec<u64> {
        let ours = self.connections.iter().filter(|(_, connection)| connection.network == self.own_network);
        ours.map(|(&inode, _)| inode).collect()
    }

    /// Sockets that are not there any more were closed, at `time` (of the kernel) at the latest.
    pub(crate) fn gone<S: Sink + ?Sized>(&mut self, inodes: &[u64], time: u64, to: &mut S) -> Taken<S::Error> {
        for inode in inodes {
            let Some(connection) = self.connections.remove(inode) else { continue };
            // Its process may have ended: then what was its own goes with it, and its last event was told.
            if !self.processes.contains_key(&connection.pid) {
                continue;
            }
            let Connection { conn_id, fd, pid, .. } = connection;
            let own_tid = self.processes.get(&pid).map_or(pid, |known| known.own_pid);
            let close = Close { conn_id: Text(conn_id.into()), how: "close".into(), since_ns: None };
            to.event(&self.event(&head_of(pid, own_tid, time), fd, What::Close(close)), b"")?;
        }
        Ok(())
    }

    /// Tells of calls whose rest has not come for a while; `all`: of all of them.
    pub(crate) fn stale<S: Sink + ?Sized>(&mut self, all: bool, to: &mut S) -> Taken<S::Error> {
        let late = |partial: &Partial| all || partial.since.elapsed() > STALE;
        let threads: Vec<_> = self.partial.iter().filter(|(_, partial)| late(partial)).map(|(&tid, _)| tid).collect();
        threads
            .iter()
            .filter_map(|tid| self.partial.remove(tid))
            .collect::<Vec<_>>()
            .into_iter()
            .try_for_each(|partial| self.cut(partial, to))
    }

    /// Tells of a loss that the kernel has counted.
    pub(crate) fn lost<S: Sink + ?Sized>(&mut self, pid: u32, lost: Lost<'_>, to: &mut S) -> Taken<S::Error> {
        let time = nanoseconds(ClockId::Monotonic);
        let since_ns = lost.since_ns.map(|ns| ns + self.epoch);
        let until_ns = lost.until_ns.map(|ns| ns + self.epoch);
        let known = self.processes.contains_key(&pid);
        let own_tid = self.processes.get(&pid).map_or(pid, |known| known.own_pid);
        let event = self.event(&head_of(pid, own_tid, time), -1, What::Lost(Lost { since_ns, until_ns, ..lost }));
        if !known {
            self.processes.remove(&pid);
        }
        to.event(&event, b"")
    }
}

/// Bytes that the call moved: what a datagram had beyond the room for it is gone.
fn moved(head: &Head) -> u64 {
    let result = u64::from(head.result.unsigned_abs());
    if head.room == 0 { result } else { result.min(head.room.into()) }
}

fn head_of(pid: u32, own_tid: u32, time: u64) -> Head {
    Head { time, inode: 0, pid, tid: pid, own_tid, fd: -1, result: 0, wanted: 0, call: -1, is_sent: false, room: 0 }
}

pub(crate) fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

fn exe_of(pid: u32) -> Option<Vec<u8>> {
    let exe = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    Some(exe.as_os_str().as_bytes().to_vec())
}

fn type_name(number: u32) -> Text<'static> {
    Text(match number {
        1 => "stream".into(),
        2 => "dgram".into(),
        5 => "seqpacket".into(),
        n => n.to_string().into(),
    })
}

/// A name as people write it (docs/gttr.md, "Names"), of sun_path (unix(7)).
fn socket_path(name: &[u8]) -> String {
    match name {
        [] => String::new(),
        [0, name @ ..] => format!("@{}", &*Text::escaped_name(name)),
        path => Text::escaped_name(path.split(|&byte| byte == 0).next().unwrap_or_default()).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::records::HEAD_LEN;

    #[derive(Default)]
    struct Told(Vec<(String, Vec<u8>)>);

    impl Sink for Told {
        type Error = Infallible;

        fn event(&mut self, event: &Event<'_>, payload: &[u8]) -> Taken<Infallible> {
            let text = match &event.what {
                What::Data(data) => format!(
                    "{}/{}+{} {:?} {:?}",
                    data.size,
                    data.total.unwrap_or(0),
                    data.offset.unwrap_or(0),
                    data.part,
                    data.uncaptured
                ),
                other => format!("{:?}", other.kind()),
            };
            self.0.push((text, payload.to_vec()));
            Ok(())
        }
    }

    /// A process that is none.
    const PID: u32 = u32::MAX;

    fn record(kind: Kind, before: u64, result: i32, wanted: u32, at: u32, rest: &[u8]) -> Record<'_> {
        let (pid, tid, own_tid) = (PID, PID, 1);
        let (time, inode, fd, call, is_sent, room) = (1, 7, 3, 1, true, 0);
        Record { kind, time, inode, before, pid, tid, own_tid, fd, result, wanted, at, call, is_sent, room, rest }
    }

    fn told(records: &[Record<'_>]) -> Vec<(String, Vec<u8>)> {
        let (mut teller, mut told) = (Teller::new(u64::MAX), Told::default());
        records.iter().for_each(|record| teller.take(record, &mut told).unwrap());
        teller.stale(true, &mut told).unwrap();
        told.0
    }

    #[test]
    fn a_call_of_several_pieces_is_one_message() {
        let told = told(&[
            record(Kind::Data, 0, 5, 5, 0, b"ab"),
            record(Kind::Piece, 0, 5, 5, 2, b"cde"),
            record(Kind::Data, 5, 1, 1, 0, b"f"),
        ]);
        let data: Vec<_> = told[1..].iter().map(|(text, bytes)| (text.as_str(), bytes.as_slice())).collect();
        assert_eq!(told[0].0, "Start");
        assert_eq!(data, [("5/5+0 None None", &b"abcde"[..]), ("1/1+5 None None", b"f")]);
    }

    #[test]
    fn what_is_missing_of_a_call_is_counted() {
        let told = told(&[
            record(Kind::Data, 0, 9, 9, 0, b"ab"),
            // Nothing of the call before comes any more.
            record(Kind::Data, 9, 4, 4, 0, b"cd"),
            // There was one between.
            record(Kind::Piece, 9, 4, 4, 3, b"f"),
            // Bytes that nobody could find.
            record(Kind::Data, 13, 6, 0, 0, b""),
        ]);
        let texts: Vec<_> = told[1..].iter().map(|(text, _)| text.as_str()).collect();
        assert_eq!(texts, ["2/9+0 None Some(7)", "2/4+9 None Some(2)", "0/6+13 None Some(6)"]);
    }

    #[test]
    fn a_large_call_comes_in_parts() {
        let all = vec![7; PART + 5];
        let len = all.len() as u32;
        let told = told(&[
            record(Kind::Data, 0, len as i32, len, 0, &all[..PART - 1]),
            record(Kind::Piece, 0, len as i32, len, PART as u32 - 1, &all[PART - 1..]),
        ]);
        assert_eq!(told[1].0, format!("{PART}/{len}+0 Some(0) None"));
        assert_eq!(told[2].0, format!("5/{len}+0 Some(1) None"));
        assert_eq!([&*told[1].1, &told[2].1].concat(), all);
    }

    #[test]
    fn each_process_counts_its_own_bytes() {
        let mut connection =
            Connection { conn_id: String::new(), path: String::new(), network: 0, fd: 0, pid: 1, moved: Vec::new() };
        assert_eq!(connection.advance(1, 0, 0, 10), 0);
        assert_eq!(connection.advance(2, 0, 10, 5), 0);
        assert_eq!(connection.advance(1, 0, 15, 1), 10);
        // Some were lost.
        assert_eq!(connection.advance(1, 0, 116, 1), 111);
    }

    #[test]
    fn names() {
        assert_eq!(socket_path(b""), "");
        assert_eq!(socket_path(b"\0svc\xff"), r"@svc\xff");
        assert_eq!(socket_path(b"/run/x\0\0"), "/run/x");
        assert_eq!(call_name(44), Some("sendto"));
        assert_eq!(OPEN_LEN, HEAD_LEN + 256);
    }
}
