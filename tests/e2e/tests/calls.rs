//! Every hooked call, with known bytes: what is recorded is what moved, and the program is not disturbed.

use serde_json::json;
use socktrace_e2e::{Server, SockType, Stage, Workload, assert_same};

/// Cases by subject; those of one subject run in one process, one after the other.
const SUBJECTS: &[&[&str]] = &[
    &["calls", "seqpacket", "scattered", "large", "peek", "partial", "zero", "half_close", "errno_kept"],
    &["datagrams", "datagram_reply", "datagram_truncated"],
    &["failures", "bad_memory", "broken_pipe"],
    &["abstract_names", "relative_path", "symlinked_directory", "longest_path", "strange_path"],
    &["dups", "dup_over", "reused_number", "copy_closed_behind_libc"],
    &["closed_behind_libc"],
];

fn record_and_compare(sock_type: SockType, cases: &[&str]) {
    let stage = Stage::new();
    let server = Server::start(&stage, sock_type);
    let parameters = stage.parameters(json!({ "out_sock_type": sock_type.name() }));
    let account = Workload::spawn(&stage, &parameters, cases).finish();
    assert_same(&account, &server.stop());
}

/// The account itself: were a case wrong about Linux, it would be so here.
#[test]
fn the_workload_alone_is_undisturbed() {
    let stage = Stage::new();
    let cases: Vec<&str> = SUBJECTS.concat();
    let account = Workload::start(&stage, &cases).finish();
    assert!(account.bytes() > 0);
}

macro_rules! tests {
    ($($name:ident: $sock_type:ident $subject:literal,)+) => {
        $(#[test]
        fn $name() {
            record_and_compare(SockType::$sock_type, SUBJECTS[$subject]);
        })+
    };
}

tests! {
    streams_by_dgram: Dgram 0,
    streams_by_stream: Stream 0,
    streams_by_shm: Shm 0,
    datagrams_by_dgram: Dgram 1,
    datagrams_by_stream: Stream 1,
    datagrams_by_shm: Shm 1,
    failures_by_dgram: Dgram 2,
    failures_by_stream: Stream 2,
    failures_by_shm: Shm 2,
    names_by_dgram: Dgram 3,
    names_by_stream: Stream 3,
    names_by_shm: Shm 3,
    descriptors_by_dgram: Dgram 4,
    descriptors_by_stream: Stream 4,
    descriptors_by_shm: Shm 4,
    behind_libc_by_dgram: Dgram 5,
}
