//! Whether a recording says what the account says.

use std::collections::{BTreeMap, BTreeSet};

use socktrace_e2e::{Account, Connection, Direction, Event, Moved, Recording};

const MSG_OOB: u32 = 0x1;
const MSG_CTRUNC: u32 = 0x8;

/// What differs in what moved and how connections ended; the account's name for a call is not looked at.
pub fn differences_of_calls(account: &Account, recording: &Recording) -> Vec<String> {
    let mut differences = Vec::new();
    let recorded = Recorded::of(account, recording, &mut differences);
    compare_moved(account, &recorded, &mut differences);
    compare_ends(account, &recorded, &mut differences);
    differences
}

/// What differs, each with its seed.
pub fn differences(account: &Account, recording: &Recording) -> Vec<String> {
    let mut differences = Vec::new();
    compare_numbers(recording, &mut differences);
    let recorded = Recorded::of(account, recording, &mut differences);
    compare_moved(account, &recorded, &mut differences);
    compare_offsets(account, &recorded, &mut differences);
    compare_ends(account, &recorded, &mut differences);
    differences.iter().map(|difference| with_seed(account, difference)).collect()
}

/// The seeds of processes that could not tell the server everything, because it did not read for too long: what they
/// recorded is true, but proves little.
pub fn seeds_with_losses(account: &Account, recording: &Recording) -> BTreeSet<u64> {
    let stalled = recording.of_type("lost").filter(|lost| lost.reason.as_deref() == Some("the server did not read"));
    let pids: BTreeSet<u32> = stalled.filter_map(|lost| lost.pid).collect();
    account.moved.iter().filter(|moved| pids.contains(&moved.pid)).map(|moved| moved.seed).collect()
}

/// A difference is told of an inode or a process: `inode=N …` or `pid=N …`.
fn with_seed(account: &Account, difference: &str) -> String {
    let number = |name: &str| difference.split_once(name)?.1.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok();
    let (inode, pid): (Option<u64>, Option<u64>) = (number("inode="), number("pid="));
    let moved = account.moved.iter().find(|moved| Some(moved.inode) == inode || Some(u64::from(moved.pid)) == pid);
    let closed = account.closed.iter().find(|end| Some(end.inode) == inode || Some(u64::from(end.pid)) == pid);
    match moved.map(|moved| moved.seed).or(closed.map(|closed| closed.seed)) {
        Some(seed) => format!("seed {seed}: {difference}"),
        None => difference.to_owned(),
    }
}

/// The numbers of a process's events have no gap, and its times do not run backwards with them. A program that is
/// executed begins anew.
fn compare_numbers(recording: &Recording, differences: &mut Vec<String>) {
    let mut of_process: BTreeMap<u32, Vec<&Event>> = BTreeMap::new();
    for event in &recording.events {
        if matches!(event.kind.as_str(), "lost" | "error" | "bad_frame") {
            differences.push(format!("pid={} {event:?}", event.pid.unwrap_or(0)));
        }
        if let Some(pid) = event.pid.filter(|_| event.kind != "host_init") {
            of_process.entry(pid).or_default().push(event);
        }
    }
    for (pid, mut events) in of_process {
        events.sort_by_key(|event| (event.ts_ns, event.seq));
        let mut last = 0;
        for event in events {
            let seq = event.seq.unwrap_or(0);
            // By time, each number is the next: where it is not, one is missing, or time ran backwards.
            if seq != last + 1 && seq != 1 {
                differences.push(format!("pid={pid} number {last} is followed by {seq}: {event:?}"));
                break;
            }
            last = seq;
        }
    }
}

/// One call, put together of its parts.
#[derive(Debug)]
struct Call {
    inode: u64,
    conn_id: String,
    event: Event,
    data: Vec<u8>,
}

/// A recording by sockets.
struct Recorded {
    calls: Vec<Call>,
    connections: BTreeMap<String, Connection>,
}

impl Recorded {
    fn of(account: &Account, recording: &Recording, differences: &mut Vec<String>) -> Self {
        let (connections, shared) = (recording.connections(), shared(account));
        let mut calls: Vec<Call> = Vec::new();
        for (conn_id, connection) in &connections {
            let Some(inode) = connection.opened.first().and_then(|open| open.inode) else {
                differences.push(format!("{conn_id} was never opened: {:?}", connection.data.first()));
                continue;
            };
            let begun = connection.opened.iter().filter(|open| !open.how.as_deref().unwrap_or("").contains("resumed:"));
            // Two threads that use a connection for the first time at once both announce it; neither waits for the other.
            if begun.count() > 1 && !shared.contains(&inode) {
                differences.push(format!("inode={inode} {conn_id} was opened more than once"));
            }
            for direction in [Direction::In, Direction::Out] {
                let mut rest = connection.bytes(direction);
                let mut parts: BTreeMap<(Option<u32>, Option<u64>), usize> = BTreeMap::new();
                for event in connection.data_of(direction) {
                    let size = usize::try_from(event.size.unwrap_or(0)).expect("a file's length");
                    let (data, after) = rest.split_at(size);
                    rest = after;
                    let key = (event.tid, event.offset);
                    if event.part.unwrap_or(0) == 0 {
                        parts.insert(key, calls.len());
                        let (conn_id, event) = (conn_id.clone(), event.clone());
                        calls.push(Call { inode, conn_id, event, data: data.to_vec() });
                    } else if let Some(first) = parts.get(&key) {
                        calls[*first].data.extend_from_slice(data);
                    } else {
                        differences.push(format!("inode={inode} a part without its first: {event:?}"));
                    }
                }
            }
        }
        calls.sort_by_key(|call| (call.event.ts_ns, call.event.seq));
        Self { calls, connections }
    }
}

/// Events that a vforked child gives, at most, before it is another program.
const FEW: Option<u64> = Some(3);

type Shared = BTreeSet<u64>;

fn shared(account: &Account) -> Shared {
    account.notes("shared").iter().map(|inode| inode.unsigned_abs()).collect()
}

/// Calls that have an order: those of a process on a socket in a direction; of a thread, where several use it at once.
type Lane = (u64, Direction, u32, u32);

fn compare_moved(account: &Account, recorded: &Recorded, differences: &mut Vec<String>) {
    let shared = shared(account);
    let lane = |inode: u64, direction, pid, tid| -> Lane {
        (inode, direction, pid, if shared.contains(&inode) { tid } else { 0 })
    };
    let mut lanes: BTreeMap<Lane, (Vec<&Moved>, Vec<&Call>)> = BTreeMap::new();
    for moved in &account.moved {
        lanes.entry(lane(moved.inode, moved.direction, moved.pid, moved.tid)).or_default().0.push(moved);
    }
    for call in &recorded.calls {
        let Event { direction, pid, tid, .. } = call.event;
        let (Some(direction), Some(pid)) = (direction, pid) else { continue };
        lanes.entry(lane(call.inode, direction, pid, tid.unwrap_or(0))).or_default().1.push(call);
    }
    for ((inode, direction, pid, _), (truth, calls)) in lanes {
        for number in 0..truth.len().max(calls.len()) {
            let difference = match (truth.get(number), calls.get(number)) {
                (Some(moved), Some(call)) => call_difference(moved, call),
                (Some(moved), None) => Some(format!("not recorded: {}", shown(moved))),
                (None, Some(call)) => Some(format!("recorded, but it was not: {:?}", call.event)),
                (None, None) => None,
            };
            if let Some(difference) = difference {
                differences.push(format!("inode={inode} pid={pid} {direction:?}, call {number}: {difference}"));
                break;
            }
        }
    }
}

fn shown(moved: &Moved) -> String {
    let beginning: Vec<String> = moved.data.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    let Moved { call, data, path, cut, flags, fds, .. } = moved;
    format!("{call} of {} bytes [{}…] {path:?} cut {cut:?} flags {flags} {fds:?}", data.len(), beginning.join(" "))
}

/// In an account: whatever call it was.
const UNNAMED: &str = "-";

/// What a call is recorded as: syscall(2) as the call of that number, a checked function as what it goes on to, stdio
/// as the write(2) that it makes.
fn recorded_as(call: &str) -> &str {
    let call = call.strip_prefix("syscall:").unwrap_or(call);
    let call = call.strip_prefix("__").and_then(|call| call.strip_suffix("_chk")).unwrap_or(call);
    match call {
        "sendfile64" => "sendfile",
        "fflush" | "fclose" => "write",
        call => call,
    }
}

fn call_difference(moved: &Moved, call: &Call) -> Option<String> {
    let Event { total, uncaptured, .. } = call.event;
    let len = moved.data.len() as u64;
    let captured = if moved.by_number {
        call.data.len() as u64 + uncaptured.unwrap_or(0) == len && moved.data.starts_with(&call.data)
    } else {
        uncaptured.is_none() && call.data == moved.data
    };
    let is = |what: &str, wrong: bool| wrong.then(|| format!("{what}: is {}, recorded {:?}", shown(moved), call.event));
    is("call", moved.call != UNNAMED && call.event.call.as_deref() != Some(recorded_as(&moved.call)))
        .or_else(|| is("bytes", !captured || total != Some(len)))
        .or_else(|| is("path", moved.path.is_some() && moved.path != call.event.path))
        .or_else(|| is("truncated", !may_say(moved.cut, call.event.truncated.as_deref())))
        .or_else(|| is("flags", !are_flags(moved, call.event.flags.as_deref().unwrap_or(""))))
        .or_else(|| is("fds", moved.fds != call.event.fds))
        .or_else(|| is("credentials", !are_credentials(moved, &call.event)))
        .or_else(|| is("pidfd", moved.pidfd != call.event.pidfd))
        .or_else(|| is("duration_ns", call.event.duration_ns.is_none()))
}

/// `yes` or `maybe` where the message was cut, never `yes` where it was not.
fn may_say(cut: Option<bool>, truncated: Option<&str>) -> bool {
    match cut {
        Some(true) => matches!(truncated, Some("yes" | "maybe")),
        Some(false) => matches!(truncated, None | Some("maybe")),
        None => true,
    }
}

fn are_flags(moved: &Moved, flags: &str) -> bool {
    let has = |name| flags.split('|').any(|flag| flag == name);
    let tells_of_control = recorded_as(&moved.call).ends_with("msg");
    has("MSG_OOB") == (moved.flags & MSG_OOB != 0)
        && (!tells_of_control || has("MSG_CTRUNC") == (moved.flags & MSG_CTRUNC != 0))
}

/// Of what is sent, the sender may say who it is; what is received says who sent it.
fn are_credentials(moved: &Moved, event: &Event) -> bool {
    match moved.direction {
        Direction::In => moved.credentials == event.credentials,
        Direction::Out => true,
    }
}

/// Each call's offset is where the process's call before it ended, or that of a vforked child, which shares its memory.
fn compare_offsets(account: &Account, recorded: &Recorded, differences: &mut Vec<String>) {
    let shared = shared(account);
    type OfProcess<'a> = (&'a str, Option<Direction>, Option<u32>);
    let mut lanes: BTreeMap<OfProcess<'_>, Vec<&Call>> = BTreeMap::new();
    for call in &recorded.calls {
        lanes.entry((&call.conn_id, call.event.direction, call.event.pid)).or_default().push(call);
    }
    let end_of = |event: &Event| event.offset.zip(event.total).map(|(offset, total)| offset + total);
    // An empty message would be where the next one is, too.
    let moving = recorded.calls.iter().filter(|call| call.event.total != Some(0) && call.event.seq <= FEW);
    let others: BTreeMap<_, &Event> =
        moving.map(|call| ((&*call.conn_id, call.event.direction, call.event.offset), &call.event)).collect();
    for ((_, direction, pid), mut calls) in lanes {
        if shared.contains(&calls[0].inode) {
            calls.sort_by_key(|call| call.event.offset);
        }
        for pair in calls.windows(2) {
            let (before, after) = (&pair[0].event, &pair[1].event);
            let mut end = end_of(before);
            while let Some(of_child) = others.get(&(&*pair[0].conn_id, direction, end)).filter(|_| end < after.offset) {
                end = end_of(of_child);
            }
            if end != after.offset {
                let (inode, pid) = (pair[0].inode, pid.unwrap_or(0));
                differences.push(format!("inode={inode} pid={pid} {direction:?}: {end:?} is followed by {after:?}"));
                break;
            }
        }
    }
}

/// The ends of connections, and half of them, are recorded by how they came about.
fn compare_ends(account: &Account, recorded: &Recorded, differences: &mut Vec<String>) {
    type Both<'a> = (Vec<End<'a>>, Vec<&'a Event>);
    let mut ends: BTreeMap<(u64, u32), Both<'_>> = BTreeMap::new();
    // From which line of the account on a process has told of a connection: an end before may be of what nobody heard
    // of.
    let mut heard: BTreeMap<(u64, u32), usize> = BTreeMap::new();
    for moved in account.moved.iter().rev() {
        heard.insert((moved.inode, moved.pid), moved.line);
    }
    for connection in recorded.connections.values() {
        let Some(inode) = connection.opened.first().and_then(|open| open.inode) else { continue };
        let made = |open: &&Event| matches!(open.how.as_deref(), Some("connect" | "accept" | "accept4"));
        for open in connection.opened.iter().filter(made) {
            heard.insert((inode, open.pid.unwrap_or(0)), 0);
        }
        for close in &connection.closed {
            ends.entry((inode, close.pid.unwrap_or(0))).or_default().1.push(close);
        }
    }
    // What a program has told is not known to the one that it executes.
    let executed = account.notes("executed");
    for closed in &account.closed {
        let is_heard = heard.get(&(closed.inode, closed.pid)).is_some_and(|line| *line <= closed.line);
        let how = closed.how.as_str();
        let is_sure =
            is_heard && !executed.contains(&i64::from(closed.pid)) && how != UNSEEN && !how.starts_with("shutdown:");
        ends.entry((closed.inode, closed.pid)).or_default().0.push(End { how, is_sure });
    }
    let unseen: BTreeSet<u64> = account.closed.iter().filter(|end| end.how == UNSEEN).map(|end| end.inode).collect();
    let closes_all = account.notes("closes all");
    for ((inode, pid), (truth, mut recorded)) in ends {
        // A child may notice that what it inherited was closed unseen, or close what another thread had.
        if truth.is_empty() && (closes_all.contains(&i64::from(pid)) || unseen.contains(&inode)) {
            continue;
        }
        recorded.sort_by_key(|close| (close.ts_ns, close.seq));
        let said: Vec<&str> = recorded.iter().filter_map(|close| close.how.as_deref()).collect();
        if !are_ends(&truth, &said) {
            differences.push(format!("inode={inode} pid={pid}: it ended by {truth:?}, recorded {said:?}"));
        }
    }
}

/// In an account: a close that no hook could see.
const UNSEEN: &str = "unseen";

/// An end, or half of one, and whether it has to be recorded.
#[derive(Debug)]
struct End<'a> {
    how: &'a str,
    is_sure: bool,
}

/// Whether what was said are the ends in their order, without those only that need not be said. What was closed unseen
/// is noticed by any later call, or not. A datagram socket that changes its peer ends one conversation, and when it has
/// taken its peer away it has none to end.
fn are_ends(is: &[End<'_>], said: &[&str]) -> bool {
    let whole: Vec<&str> = said.iter().filter(|how| !["connect", "vanished"].contains(*how)).copied().collect();
    let may_lack = said.iter().filter(|how| **how == "connect").count();
    match_ends(is, &whole, may_lack)
}

fn match_ends(is: &[End<'_>], said: &[&str], may_lack: usize) -> bool {
    let Some((end, is_left)) = is.split_first() else { return said.is_empty() };
    let is_said = said.split_first().is_some_and(|(how, said_left)| {
        (end.how == *how || end.how == UNSEEN) && match_ends(is_left, said_left, may_lack)
    });
    is_said
        || (!end.is_sure && match_ends(is_left, said, may_lack))
        || (may_lack > 0 && match_ends(is_left, said, may_lack - 1))
}
