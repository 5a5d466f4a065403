//! Whether a recording says what the account says.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::account::{Account, Direction, Moved, Opened};
use crate::recording::{Connection, Event, Recording};

/// Differences that are shown.
const SHOWN: usize = 20;
/// Bytes shown around the first byte that differs.
const CONTEXT: usize = 8;

/// Fails the test with the differences, if there are any: connections, paths, calls and their bytes, listeners and
/// ends are as in the account; nothing is lost, malformed or out of place.
#[track_caller]
pub fn assert_same(account: &Account, recording: &Recording) {
    let mut differences = Vec::new();
    compare_connections(account, recording, &mut differences);
    compare_listeners(account, recording, &mut differences);
    compare_completeness(recording, &mut differences);
    report(&differences);
}

#[track_caller]
pub(crate) fn report(differences: &[String]) {
    let mut text = String::new();
    for difference in differences.iter().take(SHOWN) {
        // Writing to a String does not fail.
        let _ = writeln!(text, "  {difference}");
    }
    let count = differences.len();
    assert!(count == 0, "the recording differs from what the program did, {count} times:\n{text}");
}

/// The recorded connections by their socket's inode number.
pub fn connections_by_inode(recording: &Recording) -> BTreeMap<u64, Vec<(String, Connection)>> {
    let mut by_inode: BTreeMap<u64, Vec<(String, Connection)>> = BTreeMap::new();
    for (conn_id, connection) in recording.connections() {
        let inode = connection.opened.first().and_then(|open| open.inode).unwrap_or(0);
        by_inode.entry(inode).or_default().push((conn_id, connection));
    }
    by_inode
}

fn compare_connections(account: &Account, recording: &Recording, differences: &mut Vec<String>) {
    let mut recorded = connections_by_inode(recording);
    let mut inodes: Vec<u64> = account.opened.iter().map(|opened| opened.inode).collect();
    inodes.extend(account.moved.iter().map(|moved| moved.inode));
    inodes.sort_unstable();
    inodes.dedup();
    for inode in inodes {
        let opened = account.opened.iter().find(|opened| opened.inode == inode);
        let name = opened.map_or_else(|| format!("socket {inode}"), |o| format!("{} {} (fd {})", o.path, o.how, o.fd));
        let mut found = recorded.remove(&inode).unwrap_or_default();
        let Some((_, connection)) = found.pop() else {
            differences.push(format!("{name}: not recorded"));
            continue;
        };
        if !found.is_empty() {
            differences.push(format!("{name}: recorded {} times", found.len() + 1));
        }
        if let Some(opened) = opened {
            compare_open(&name, opened, &connection, differences);
        }
        let closed = account.closed.iter().find(|closed| closed.inode == inode);
        compare_close(&name, closed, &connection, differences);
        for direction in [Direction::In, Direction::Out] {
            let moved: Vec<&Moved> =
                account.moved.iter().filter(|m| m.inode == inode && m.direction == direction).collect();
            if recording.is_ordered_between_processes() {
                compare_moved(&name, direction, &moved, &connection, differences);
            } else {
                compare_moved_by_process(&name, direction, &moved, &connection, differences);
            }
        }
    }
    for (conn_id, connection) in recorded.into_values().flatten() {
        let (data, open) = (connection.data.len(), connection.opened.first());
        differences.push(format!("{conn_id}: recorded, with {data} data events, but it never was: {open:?}"));
    }
}

fn compare_open(name: &str, opened: &Opened, connection: &Connection, differences: &mut Vec<String>) {
    // A forked child on a stream of its own to the server says again what it goes on with.
    let is_first = |open: &&Event| !open.how.as_deref().is_some_and(|how| how.starts_with("resumed:"));
    let opened_once: Vec<&Event> = connection.opened.iter().filter(is_first).collect();
    let [event] = opened_once[..] else {
        return differences.push(format!("{name}: {} open events", opened_once.len()));
    };
    let socket_type = match opened.socket_type & 0xf {
        1 => "stream",
        2 => "dgram",
        _ => "seqpacket",
    };
    let said = (event.pid, event.fd, event.how.as_deref(), event.path.as_deref(), event.socket_type.as_deref());
    let is = (Some(opened.pid), Some(opened.fd), Some(&*opened.how), Some(&*opened.path), Some(socket_type));
    if said != is {
        differences.push(format!("{name}: its open event says {said:?}, it is {is:?}"));
    }
    let elsewhere = connection.data.iter().find(|data| data.path.as_deref() != Some(&*opened.path));
    if let (Some(data), "stream") = (elsewhere, socket_type) {
        differences.push(format!("{name}: a data event has the path {:?}", data.path));
    }
}

fn compare_close(name: &str, closed: Option<&Opened>, connection: &Connection, differences: &mut Vec<String>) {
    let is_end = |close: &&Event| !close.how.as_deref().is_some_and(|how| how.starts_with("shutdown:"));
    let opener = connection.opened.first().and_then(|open| open.pid);
    let ends: Vec<Option<&str>> = connection
        .closed
        .iter()
        .filter(is_end)
        .filter(|close| close.pid == opener)
        .map(|close| close.how.as_deref())
        .collect();
    // What is closed behind libc's back may be noticed or not.
    let vanished = closed.is_none() && ends.iter().all(|how| *how == Some("vanished"));
    if !vanished && ends != [closed.map(|closed| &*closed.how)] {
        differences.push(format!("{name}: its ends are {ends:?}, it was closed by {:?}", closed.map(|c| &c.how)));
    }
}

fn compare_moved_by_process(
    name: &str,
    direction: Direction,
    moved: &[&Moved],
    connection: &Connection,
    differences: &mut Vec<String>,
) {
    let mut pids: Vec<u32> = moved.iter().map(|moved| moved.pid).collect();
    pids.extend(connection.data_of(direction).filter_map(|event| event.pid));
    pids.sort_unstable();
    pids.dedup();
    for pid in pids {
        let of_process: Vec<&Moved> = moved.iter().filter(|moved| moved.pid == pid).copied().collect();
        compare_moved(name, direction, &of_process, &connection.of_process(pid), differences);
    }
}

fn compare_moved(
    name: &str,
    direction: Direction,
    moved: &[&Moved],
    connection: &Connection,
    differences: &mut Vec<String>,
) {
    let truth: Vec<u8> = moved.iter().flat_map(|moved| &moved.data).copied().collect();
    let bytes = connection.bytes(direction);
    if let Some(difference) = first_difference(&truth, bytes) {
        differences.push(format!("{name} {direction:?}: {difference}"));
    }
    compare_calls(name, direction, moved, connection, differences);
}

fn compare_calls(
    name: &str,
    direction: Direction,
    moved: &[&Moved],
    connection: &Connection,
    differences: &mut Vec<String>,
) {
    let mut calls = Vec::new();
    for event in connection.data_of(direction) {
        if event.part.unwrap_or(0) == 0 {
            calls.push((event.pid.unwrap_or(0), plain(event.call.as_deref().unwrap_or("")), event.total.unwrap_or(0)));
        }
    }
    for (number, moved) in moved.iter().enumerate() {
        let is = (moved.pid, plain(&moved.call), moved.data.len() as u64);
        let said = calls.get(number);
        if said != Some(&is) {
            return differences.push(format!("{name} {direction:?}: call {number} is {is:?}, recorded {said:?}"));
        }
    }
    if calls.len() != moved.len() {
        let more = calls[moved.len()];
        differences.push(format!(
            "{name} {direction:?}: recorded {} calls, were {}: {more:?}",
            calls.len(),
            moved.len()
        ));
    }
}

/// A fortified function's own name is that of what it checks the length for and then jumps to.
fn plain(call: &str) -> &str {
    call.strip_prefix("__").and_then(|call| call.strip_suffix("_chk")).unwrap_or(call)
}

fn first_difference(truth: &[u8], recorded: &[u8]) -> Option<String> {
    if truth == recorded {
        return None;
    }
    let at = truth.iter().zip(recorded).position(|(a, b)| a != b).unwrap_or(truth.len().min(recorded.len()));
    let around = |bytes: &[u8]| {
        let part = &bytes[at.saturating_sub(CONTEXT)..bytes.len().min(at + CONTEXT)];
        part.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ")
    };
    let (moved, had) = (truth.len(), recorded.len());
    let (is, said) = (around(truth), around(recorded));
    Some(format!("{moved} bytes moved, {had} recorded; from byte {at} on they differ: moved [{is}] recorded [{said}]"))
}

fn compare_listeners(account: &Account, recording: &Recording, differences: &mut Vec<String>) {
    let key = |fd: i32, inode: u64, how: &str, path: &str| (fd, inode, how.to_string(), path.to_string());
    let mut truth: Vec<_> = account.listening.iter().map(|l| key(l.fd, l.inode, &l.how, &l.path)).collect();
    for event in recording.of_type("listen") {
        let (how, path) = (event.how.as_deref().unwrap_or(""), event.path.as_deref().unwrap_or(""));
        let said = key(event.fd.unwrap_or(-1), event.inode.unwrap_or(0), how, path);
        match truth.iter().position(|is| *is == said) {
            Some(at) => drop(truth.swap_remove(at)),
            None => differences.push(format!("a listen event of what does not listen: {said:?}")),
        }
    }
    differences.extend(truth.iter().map(|is| format!("no listen event of {is:?}")));
}

pub(crate) fn compare_completeness(recording: &Recording, differences: &mut Vec<String>) {
    for event in &recording.events {
        if matches!(event.kind.as_str(), "lost" | "error" | "bad_frame") {
            differences.push(format!("an event that says something went wrong: {event:?}"));
        }
    }
    for pid in recording.pids() {
        let missing = missing_numbers(&recording.events, pid);
        if missing != 0 {
            differences.push(format!("process {pid}: {missing} events are missing"));
        }
    }
}

/// Fails the test unless everything in the account is recorded, and no more than the one call that the program may
/// have made and not accounted for when it was killed.
#[track_caller]
pub fn assert_same_up_to_a_kill(account: &Account, recording: &Recording) {
    let mut differences = Vec::new();
    let mut unaccounted = 0;
    for (inode, connections) in connections_by_inode(recording) {
        for (conn_id, connection) in connections {
            for direction in [Direction::In, Direction::Out] {
                let moved = || account.moved.iter().filter(|m| m.inode == inode && m.direction == direction);
                let truth: Vec<u8> = moved().flat_map(|m| &m.data).copied().collect();
                if !connection.bytes(direction).starts_with(&truth) {
                    differences.push(format!("{conn_id} {direction:?}: {} bytes are not on record", truth.len()));
                }
                unaccounted += connection.data_of(direction).count() - moved().count();
            }
        }
    }
    if unaccounted > 1 {
        differences.push(format!("{unaccounted} calls are recorded that were not made"));
    }
    compare_completeness(recording, &mut differences);
    report(&differences);
}

/// How many of a process's event numbers, up to its last recorded one, are missing. A program that it executes begins
/// anew with 1.
fn missing_numbers<'a>(events: impl IntoIterator<Item = &'a Event>, pid: u32) -> u64 {
    let mut programs: Vec<Vec<u64>> = vec![Vec::new()];
    let mut of_process: Vec<&Event> = events.into_iter().filter(|event| event.pid == Some(pid)).collect();
    // Each program has a stream of its own to the server, which may hear of the later one sooner.
    of_process.sort_by_key(|event| event.ts_ns);
    for event in of_process {
        if event.kind == "init" {
            programs.push(Vec::new());
        }
        programs.last_mut().expect("it began with one").extend(event.seq);
    }
    let missing = |mut numbers: Vec<u64>| {
        let count = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), count, "process {pid} gave a number twice");
        numbers.last().copied().unwrap_or(0) - count as u64
    };
    programs.into_iter().map(missing).sum()
}

/// Fails the test unless a recording with losses is true in what it has, and says exactly what it has not: the
/// recorded bytes are those at their offset, and the lost events' counts make up for the rest.
#[track_caller]
pub fn assert_same_but_for_losses(account: &Account, recordings: &[&Recording], pid: u32) {
    let mut differences = Vec::new();
    let mut recorded_bytes = 0;
    let (mut events, mut bytes) = (0, 0);
    for recording in recordings {
        for (inode, connections) in connections_by_inode(recording) {
            for (conn_id, connection) in connections {
                for direction in [Direction::In, Direction::Out] {
                    let moved = account.moved.iter().filter(|m| m.inode == inode && m.direction == direction);
                    let truth: Vec<u8> = moved.flat_map(|m| &m.data).copied().collect();
                    recorded_bytes += connection.bytes(direction).len() as u64;
                    compare_at_offsets(&conn_id, direction, &truth, &connection, &mut differences);
                }
            }
        }
        let lost = recording.lost(pid);
        events += lost.0;
        bytes += lost.1;
        differences.extend(recording.of_type("bad_frame").map(|event| format!("{event:?}")));
    }
    let missing = missing_numbers(recordings.iter().flat_map(|recording| &recording.events), pid);
    if events != missing {
        differences.push(format!("{missing} events are missing, the lost events speak of {events}"));
    }
    let missing_bytes = account.bytes() - recorded_bytes;
    if bytes != missing_bytes {
        differences.push(format!("{missing_bytes} bytes are missing, the lost events speak of {bytes}"));
    }
    report(&differences);
}

fn compare_at_offsets(
    conn_id: &str,
    direction: Direction,
    truth: &[u8],
    connection: &Connection,
    differences: &mut Vec<String>,
) {
    let mut rest = connection.bytes(direction);
    for event in connection.data_of(direction) {
        let (size, offset) = (event.size.unwrap_or(0) as usize, event.offset.unwrap_or(0) as usize);
        let (recorded, later) = rest.split_at(size);
        rest = later;
        if event.parts.is_some() {
            return differences.push(format!("{conn_id}: this comparison is for calls of one part: {event:?}"));
        }
        if truth.get(offset..offset + size) != Some(recorded) {
            return differences.push(format!("{conn_id} {direction:?}: other bytes moved at offset {offset}"));
        }
    }
}
