//! A server that is absent, dead, stopped or slow: the program does not notice, and the recording says what it lacks.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use socktrace_e2e::{
    Account, Server, SockType, Stage, Steps, Workload, assert_same, assert_same_but_for_losses, until,
};

fn parameters(stage: &Stage, sock_type: SockType) -> Value {
    stage.parameters(json!({ "out_sock_type": sock_type.name() }))
}

fn start(stage: &Stage, sock_type: SockType) -> (Steps, Workload) {
    let steps = Workload::prepare_steps(stage);
    (steps, Workload::spawn(stage, &parameters(stage, sock_type), &["steps"]))
}

/// Has the workload go on until the recording has bytes of it that were sent from now on.
fn speak_until_recorded(steps: &mut Steps, server: &Server) {
    let before = server.recording().of_type("data").count();
    until("events are recorded", || {
        steps.step("send 0 1 77");
        (server.recording().of_type("data").count() > before).then_some(())
    });
}

/// Until all that the program has done is in the directory's files.
fn wait_until_written(out: &Path, account: &Account) {
    until("everything is written", || {
        let files = fs::read_dir(out).expect("the output directory");
        let payload = files.filter_map(Result::ok).filter(|file| file.path().extension().is_some_and(|e| e == "bin"));
        let bytes: u64 = payload.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum();
        (bytes == account.bytes()).then_some(())
    });
}

macro_rules! tests {
    ($($(#[doc = $doc:literal])+ $test:ident $dgram:ident $stream:ident,)+) => {
        $($(#[doc = $doc])+
        #[test]
        fn $dgram() {
            $test(SockType::Dgram);
        }

        $(#[doc = $doc])+
        #[test]
        fn $stream() {
            $test(SockType::Stream);
        })+
    };
}

tests! {
    /// Started before the server: what comes later is recorded, what came before is counted.
    absent_at_first absent_at_first_by_dgram absent_at_first_by_stream,
    /// No server, ever: only the program is there to tell.
    never_there never_there_by_dgram never_there_by_stream,
    /// The server crashes and is started again.
    killed_and_restarted killed_and_restarted_by_dgram killed_and_restarted_by_stream,
    /// The server stops reading: the program is held up once, not at every call, and the losses are counted.
    stopped stopped_by_dgram stopped_by_stream,
    /// The server is behind for a moment: nothing is lost.
    behind_for_a_moment behind_for_a_moment_by_dgram behind_for_a_moment_by_stream,
}

fn absent_at_first(sock_type: SockType) {
    let stage = Stage::new();
    let (mut steps, workload) = start(&stage, sock_type);
    let pid = workload.process.pid();
    steps.step("open 0 a");
    steps.step("send 0 10 500");
    steps.step("open 1 b");
    steps.step("send 1 1 20");
    steps.step("close 1");
    let server = Server::start(&stage, sock_type);
    speak_until_recorded(&mut steps, &server);
    steps.step("send 0 10 500");
    steps.step("open 2 c");
    steps.step("send 2 3 30");
    drop(steps);
    let account = workload.finish();
    let recording = server.stop();
    assert!(recording.lost(pid).0 > 20, "the first messages are counted as lost");
    assert_same_but_for_losses(&account, &[&recording], pid);
}

fn never_there(sock_type: SockType) {
    let stage = Stage::new();
    let cases = ["calls", "large", "partial", "failures", "datagrams", "dups", "threads", "signals", "forked"];
    let account = Workload::spawn(&stage, &parameters(&stage, sock_type), &cases).finish();
    assert!(account.bytes() > 0);
}

fn killed_and_restarted(sock_type: SockType) {
    let stage = Stage::new();
    let first = Server::start_into(&stage, sock_type, "first");
    let (mut steps, workload) = start(&stage, sock_type);
    let pid = workload.process.pid();
    steps.step("open 0 a");
    steps.step("send 0 20 300");
    wait_until_written(&stage.path("first"), &workload.account());
    let before = first.recording();
    first.kill();
    steps.step("send 0 15 300");
    steps.step("open 1 b");
    steps.step("send 1 2 40");
    let second = Server::start_into(&stage, sock_type, "second");
    speak_until_recorded(&mut steps, &second);
    steps.step("send 0 5 300");
    steps.step("send 1 2 50");
    steps.step("close 0");
    drop(steps);
    let account = workload.finish();
    let after = second.stop();
    assert!(after.lost(pid).0 >= 30, "what was said to the dead server's socket is counted as lost");
    assert_same_but_for_losses(&account, &[&before, &after], pid);
    let resumed = after.of_type("open").filter(|open| open.path.as_deref().is_some_and(|path| path.ends_with("/a")));
    assert_eq!(resumed.count(), 2, "the new server hears of both ends of the connection that was open");
}

/// Calls under the stopped server; held up 100 ms each, they would take 20 s.
const CALLS: u32 = 200;

fn stopped(sock_type: SockType) {
    let stage = Stage::new();
    let server = Server::start(&stage, sock_type);
    let (mut steps, workload) = start(&stage, sock_type);
    let pid = workload.process.pid();
    steps.step("open 0 a");
    steps.step("send 0 20 300");
    server.signal(Signal::STOP);
    // Fills what there is between the two, and takes the one hold-up.
    steps.step("send 0 100 4000");
    let begun = Instant::now();
    let sends = steps.step(&format!("send 0 {CALLS} 4000"));
    let all = begun.elapsed();
    assert!(sends < Duration::from_secs(1), "{CALLS} sends took {sends:?}");
    assert!(all < Duration::from_secs(5), "{CALLS} sends and receives took {all:?}");
    server.signal(Signal::CONT);
    until("the losses are reported", || {
        steps.step("send 0 1 99");
        server.recording().of_type("lost").next().is_some().then_some(())
    });
    speak_until_recorded(&mut steps, &server);
    steps.step("close 0");
    drop(steps);
    let account = workload.finish();
    let recording = server.stop();
    assert!(recording.lost(pid).0 >= u64::from(CALLS));
    assert_same_but_for_losses(&account, &[&recording], pid);
}

fn behind_for_a_moment(sock_type: SockType) {
    const MOMENT: Duration = Duration::from_millis(30);
    /// A pause that a busy machine made longer than this shows nothing.
    const TOO_LONG: Duration = Duration::from_millis(60);
    for _ in 0..20 {
        let stage = Stage::new();
        let server = Server::start(&stage, sock_type);
        let (mut steps, workload) = start(&stage, sock_type);
        steps.step("open 0 a");
        server.signal(Signal::STOP);
        let begun = Instant::now();
        steps.begin("send 0 100 4000");
        std::thread::sleep(MOMENT);
        server.signal(Signal::CONT);
        let paused = begun.elapsed();
        steps.end();
        steps.step("close 0");
        drop(steps);
        let account = workload.finish();
        let recording = server.stop();
        if paused < TOO_LONG {
            return assert_same(&account, &recording);
        }
    }
    panic!("this machine is too busy to pause a process for {MOMENT:?}");
}
