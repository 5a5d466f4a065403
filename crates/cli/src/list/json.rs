//! A line of JSON for each socket.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;

use serde::Serialize;
use socktrace_event::{Text, printable};
use socktrace_sockets::{Peer, Snapshot, Socket};

use super::ways::Ways;

#[derive(Serialize)]
struct Line<'a> {
    path: String,
    socket_type: &'static str,
    state: &'static str,
    inode: u32,
    network_namespace: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(flatten)]
    queue: Queue,
    holders: Vec<Holder<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<End<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Queue {
    Listening { waiting: u32, backlog: u32 },
    Other { receive_queue: u32, send_queue: u32 },
}

#[derive(Serialize)]
struct Holder<'a> {
    #[serde(flatten)]
    process: Process<'a>,
    fds: &'a [i32],
    uid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<String>,
    engines: Vec<&'static str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    hindrances: BTreeMap<&'static str, &'a str>,
}

#[derive(Serialize)]
struct Process<'a> {
    pid: u32,
    comm: Text<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exe: Option<Text<'a>>,
}

#[derive(Serialize)]
struct End<'a> {
    inode: u32,
    path: String,
    holders: Vec<Process<'a>>,
}

/// Appends the line of a socket.
pub fn push(to: &mut Vec<u8>, snapshot: &Snapshot, socket: &Socket, ways: &Ways) {
    let process = |pid: u32| {
        let process = snapshot.processes.get(&pid)?;
        let exe = process.exe.as_ref().map(|exe| Text::escaped_name(exe.as_os_str().as_bytes()));
        Some(Process { pid, comm: Text::escaped_name(&process.comm), exe })
    };
    let holder = |holder: &socktrace_sockets::Holder| {
        let of = snapshot.processes.get(&holder.pid)?;
        Some(Holder {
            process: process(holder.pid)?,
            fds: &[],
            uid: of.uid,
            user: of.user.as_deref(),
            cgroup: of.cgroups.path(),
            unit: of.cgroups.unit(),
            container: of.cgroups.container(),
            engines: ways.engines(holder.pid),
            hindrances: ways.lacking().chain(ways.hindrances(holder.pid)).collect(),
        })
    };
    let holders = socket.holders.iter().filter_map(|held| Some(Holder { fds: &held.fds, ..holder(held)? })).collect();
    let end = |inode: u32| {
        let end = snapshot.sockets.get(&inode);
        let holders = end.iter().flat_map(|end| &end.holders).filter_map(|holder| process(holder.pid)).collect();
        End { inode, path: end.map(|end| end.address.escaped()).unwrap_or_default(), holders }
    };
    let (first, second) = (socket.receive_queue, socket.send_queue);
    let line = Line {
        path: socket.address.escaped(),
        socket_type: socket.kind.name(),
        state: socket.state(),
        inode: socket.inode,
        network_namespace: socket.network,
        uid: socket.owner,
        user: socket.owner.and_then(|uid| snapshot.user(uid)),
        queue: match socket.listens {
            true => Queue::Listening { waiting: first, backlog: second },
            false => Queue::Other { receive_queue: first, send_queue: second },
        },
        holders,
        peer: match socket.peer {
            Peer::Socket(inode) | Peer::Waiting(Some(inode)) => Some(end(inode)),
            _ => None,
        },
    };
    // Text, numbers and lists of them: nothing that JSON does not have.
    printable::push_json(to, &serde_json::to_vec(&line).unwrap_or_default());
    to.push(b'\n');
}
