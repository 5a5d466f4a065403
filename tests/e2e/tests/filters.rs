//! `socket_paths`, `max_bytes`, `max_fds`: what is asked for is recorded whole, the rest not at all.

use serde_json::json;
use socktrace_e2e::{
    Account, Direction, Recording, Server, SockType, Stage, Workload, assert_same, connections_by_inode,
};

fn record(stage: &Stage, parameters: serde_json::Value, cases: &[&str]) -> (Account, Recording) {
    let server = Server::start(stage, SockType::Dgram);
    let account = Workload::spawn(stage, &stage.parameters(parameters), cases).finish();
    (account, server.stop())
}

/// Runs the case `filtered` with filters on sockets of the stage's directory; recorded is what is at `expected`.
fn assert_filtered(filters: &[&str], expected: &[&str]) {
    let stage = Stage::new();
    let named = |name: &&str| match name.strip_prefix('@') {
        Some(_) => format!("@filtered:{}", stage.sockets().display()),
        None => stage.socket(name).display().to_string(),
    };
    let filters: Vec<String> = filters.iter().map(named).collect();
    let expected: Vec<String> = expected.iter().map(named).collect();
    let (account, recording) = record(&stage, json!({ "socket_paths": filters }), &["filtered"]);
    let account = account.only(|socket| expected.contains(&socket.path));
    assert!(!account.moved.is_empty(), "the workload has been at {expected:?}");
    assert_same(&account, &recording);
}

/// The one socket, in all the spellings that lead to it: plain, through a symlinked directory, relative.
#[test]
fn by_path() {
    assert_filtered(&["real/s"], &["real/s", "link/s"]);
}

#[test]
fn by_path_through_a_symlink() {
    assert_filtered(&["link/s"], &["real/s", "link/s"]);
}

#[test]
fn by_abstract_name() {
    assert_filtered(&["@"], &["@"]);
}

#[test]
fn by_several_paths() {
    assert_filtered(&["s", "@", "real/nothing"], &["s", "@"]);
}

#[test]
fn by_a_path_of_a_datagram_socket() {
    assert_filtered(&["real/d"], &["real/d"]);
}

#[test]
fn by_a_path_where_nothing_is() {
    let stage = Stage::new();
    let filter = stage.socket("nothing").display().to_string();
    let (_, recording) = record(&stage, json!({ "socket_paths": [filter] }), &["filtered", "calls"]);
    assert_same(&Account::default(), &recording);
}

/// Of each call the first `max_bytes` bytes; how many it moved is said all the same.
fn assert_cut(max_bytes: usize) {
    let stage = Stage::new();
    let (account, recording) = record(&stage, json!({ "max_bytes": max_bytes }), &["calls", "scattered", "datagrams"]);
    let mut seen = 0;
    for (inode, connections) in connections_by_inode(&recording) {
        let [(conn_id, connection)] = &connections[..] else { panic!("socket {inode}: {} records", connections.len()) };
        for direction in [Direction::In, Direction::Out] {
            let moved: Vec<_> = account.moved.iter().filter(|m| m.inode == inode && m.direction == direction).collect();
            let cut: Vec<u8> = moved.iter().flat_map(|m| m.data.iter().take(max_bytes)).copied().collect();
            assert!(connection.bytes(direction) == cut, "{conn_id} {direction:?}: the first bytes of each call");
            let mut offset = 0;
            let mut moved = moved.iter();
            for event in connection.data_of(direction) {
                // What is cut at this size still may take several frames: more scattered pieces than one takes.
                if event.part.unwrap_or(0) == 0 {
                    let moved = moved.next().expect("as many calls as events");
                    let total = moved.data.len() as u64;
                    assert_eq!((event.total, event.offset), (Some(total), Some(offset)), "{event:?}");
                    offset += total;
                    seen += 1;
                }
            }
        }
    }
    assert_eq!(seen, account.moved.len(), "every call is on record");
}

#[test]
fn max_bytes_cuts() {
    assert_cut(13);
}

#[test]
fn max_bytes_of_0_records_that_bytes_moved() {
    assert_cut(0);
}

/// Without parameters 4,096 bytes of a call are recorded, and descriptors below 4,096 traced.
#[test]
fn defaults() {
    let stage = Stage::new();
    let server = Server::start(&stage, SockType::Dgram);
    let parameters = json!({ "out_socket_path": stage.server_socket() });
    let account = Workload::spawn(&stage, &parameters, &["large"]).finish();
    let recording = server.stop();
    let size: usize = account.moved.iter().map(|moved| moved.data.len().min(4096)).sum();
    let recorded: u64 = recording.of_type("data").filter_map(|data| data.size).sum();
    assert_eq!(recorded, size as u64);
    assert_eq!(recording.of_type("data").filter(|data| data.part.unwrap_or(0) == 0).count(), account.moved.len());
}

/// `max_fds` says how far the scan for sockets that exist already goes. Those that are made later are traced whatever their
/// numbers, and nothing is said of it.
#[test]
fn max_fds() {
    const MAX_FDS: i32 = 50;
    let stage = Stage::new();
    let (account, recording) = record(&stage, json!({ "max_fds": MAX_FDS }), &["many_connections", "high_descriptors"]);
    assert!(account.opened.iter().any(|socket| socket.fd > MAX_FDS));
    assert_same(&account, &recording);
    let errors: Vec<_> = recording.of_type("error").filter_map(|error| error.raw.as_deref()).collect();
    assert!(errors.is_empty(), "{errors:?}");
}
