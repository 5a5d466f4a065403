//! Threads, signal handlers, children, sudden ends: the program goes on as it would untraced, and all is on record.

use std::fs;

use serde_json::json;
use socktrace_e2e::{
    Account, Ending, Frida, Recording, Server, SockType, Stage, Workload, assert_same, assert_same_up_to_a_kill,
};

fn record(stage: &Stage, sock_type: SockType, cases: &[&str]) -> (Account, Recording) {
    let server = Server::start(stage, sock_type);
    let parameters = stage.parameters(json!({ "out_sock_type": sock_type.name() }));
    let account = Workload::spawn(stage, &parameters, cases).finish();
    (account, server.stop())
}

fn record_and_compare(sock_type: SockType, case: &str) {
    let stage = Stage::new();
    let (account, recording) = record(&stage, sock_type, &[case]);
    assert_same(&account, &recording);
}

macro_rules! tests {
    ($($(#[doc = $doc:literal])+ $case:ident $dgram:ident $stream:ident $shm:ident,)+) => {
        $($(#[doc = $doc])+
        #[test]
        fn $dgram() {
            record_and_compare(SockType::Dgram, stringify!($case));
        }

        $(#[doc = $doc])+
        #[test]
        fn $stream() {
            record_and_compare(SockType::Stream, stringify!($case));
        }

        $(#[doc = $doc])+
        #[test]
        fn $shm() {
            record_and_compare(SockType::Shm, stringify!($case));
        })+
    };
}

tests! {
    /// Eight threads, each on connections of its own.
    threads threads_by_dgram threads_by_stream threads_by_shm,
    /// A thread cancelled in a blocked call ends as cancelled.
    cancelled cancelled_by_dgram cancelled_by_stream cancelled_by_shm,
    /// A handler speaks on a socket while the program is anywhere in a call, the tracer's part included.
    signals signals_by_dgram signals_by_stream signals_by_shm,
    /// Daemons close all descriptors, the tracer's own among them.
    close_all close_all_by_dgram close_all_by_stream close_all_by_shm,
    /// The same by close_range(3, ~0).
    close_all_by_range close_range_by_dgram close_range_by_stream close_range_by_shm,
    /// Calls that fail for want of a descriptor fail, the others do not.
    descriptors_full descriptors_full_by_dgram descriptors_full_by_stream descriptors_full_by_shm,
    /// Children do not hang, whatever the parent's other threads were doing.
    forked_among_threads forked_among_threads_by_dgram forked_among_threads_by_stream forked_among_threads_by_shm,
}

/// Every process announces itself; what a child says on an inherited connection is on that connection's record.
fn forked(sock_type: SockType) {
    let stage = Stage::new();
    let (account, recording) = record(&stage, sock_type, &["forked"]);
    assert_same(&account, &recording);
    let parent = account.pid();
    let mut children: Vec<u32> = account.moved.iter().map(|moved| moved.pid).collect();
    children.retain(|&pid| Some(pid) != parent);
    children.sort_unstable();
    children.dedup();
    assert_eq!(children.len(), 4, "three children and a grandchild");
    let starts: Vec<_> = recording.of_type("start").collect();
    assert_eq!(starts.len(), 1);
    assert_eq!(starts[0].pid, parent);
    for child in children {
        let forks: Vec<_> = recording.of_type("fork").filter(|fork| fork.pid == Some(child)).collect();
        assert_eq!(forks.len(), 1, "process {child} announces itself once");
        assert!(forks[0].ppid.is_some());
        let exe = forks[0].exe.as_deref();
        assert_eq!(exe, Workload::program().canonicalize().expect("the workload is there").to_str());
        assert_eq!(forks[0].seq, Some(1), "numbers begin anew in a child");
    }
}

#[test]
fn forked_by_dgram() {
    forked(SockType::Dgram);
}

#[test]
fn forked_by_stream() {
    forked(SockType::Stream);
}

/// Programs that the traced one executes get no descriptor that they would not get untraced.
#[test]
fn executed_programs_inherit_nothing_of_ours() {
    let cases = ["executed", "vforked"];
    let stage = Stage::new();
    let (account, recording) = record(&stage, SockType::Stream, &cases);
    assert_same(&account, &recording);

    let stage = Stage::new();
    let script = stage.path("nothing.js");
    fs::write(&script, "rpc.exports = { init() {} };").expect("a file in the test's directory");
    let untraced = Workload::spawn_by(&Frida::with_script(&script), &stage, &json!({}), &cases).finish();
    assert_eq!(account.notes("inherited"), untraced.notes("inherited"));
}

/// All that was sent before a SIGKILL is on record.
fn killed(stage: &Stage, sock_type: SockType, case: &str) -> (Account, Recording) {
    let server = Server::start(stage, sock_type);
    let parameters = stage.parameters(json!({ "out_sock_type": sock_type.name() }));
    let mut workload = Workload::spawn(stage, &parameters, &[case]);
    assert_eq!(workload.process.wait(), Ending::Signaled(9));
    (workload.account(), server.stop())
}

#[test]
fn killed_by_dgram() {
    let stage = Stage::new();
    let (account, recording) = killed(&stage, SockType::Dgram, "killed");
    assert_same(&account, &recording);
}

#[test]
fn killed_by_stream() {
    let stage = Stage::new();
    let (account, recording) = killed(&stage, SockType::Stream, "killed");
    assert_same(&account, &recording);
}

#[test]
fn killed_by_shm() {
    let stage = Stage::new();
    let (account, recording) = killed(&stage, SockType::Shm, "killed");
    assert_same(&account, &recording);
}

/// The event that was just being written may be missing, and then the recording says so.
#[test]
fn killed_at_any_time_by_shm() {
    let stage = Stage::new();
    let (account, mut recording) = killed(&stage, SockType::Shm, "killed_at_any_time");
    let unfinished = recording.of_type("lost").count();
    assert!(unfinished <= 1, "{unfinished} events");
    recording.events.retain(|event| event.kind != "lost");
    assert_same_up_to_a_kill(&account, &recording);
}

#[test]
fn killed_at_any_time_by_dgram() {
    let stage = Stage::new();
    let (account, recording) = killed(&stage, SockType::Dgram, "killed_at_any_time");
    assert_same_up_to_a_kill(&account, &recording);
}

/// On a stream the last frame may be torn: that is all that may be malformed.
#[test]
fn killed_at_any_time_by_stream() {
    let stage = Stage::new();
    let (account, mut recording) = killed(&stage, SockType::Stream, "killed_at_any_time");
    let torn = recording.of_type("bad_frame").count();
    assert!(torn <= 1, "{torn} bad frames");
    recording.events.retain(|event| event.kind != "bad_frame");
    assert_same_up_to_a_kill(&account, &recording);
}
