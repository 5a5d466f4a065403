//! A ring that the server does not read: what becomes of what does not fit, and that it is counted.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use socktrace_e2e::{
    Ending, Recording, Server, SockType, Stage, Steps, Workload, assert_same, assert_same_but_for_losses, until,
};

/// Room for some dozens of messages of 4000 bytes.
const RING_LEN: u32 = 65536;
/// Calls under a server that does not read.
const CALLS: u32 = 200;

struct Traced {
    stage: Stage,
    server: Server,
    steps: Steps,
    workload: Workload,
}

impl Traced {
    fn new(sock_type: SockType, parameters: &Value) -> Self {
        let stage = Stage::new();
        let server = Server::start(&stage, sock_type);
        let steps = Workload::prepare_steps(&stage);
        let mut all = json!({ "out_sock_type": "shm", "ring_bytes": RING_LEN });
        all.as_object_mut().expect("an object").extend(parameters.as_object().expect("an object").clone());
        let workload = Workload::preload(&stage, &stage.parameters(all), &["steps"]);
        let mut traced = Self { stage, server, steps, workload };
        traced.steps.step("open 0 a");
        traced.steps.step("send 0 20 300");
        traced
    }

    /// Has the server read again, and the program say what it lost; what is recorded and what is not is what it did.
    #[track_caller]
    fn go_on_and_compare(mut self, least_lost: u64) {
        self.server.signal(Signal::CONT);
        until("the losses are reported", || {
            self.steps.step("send 0 1 99");
            self.server.recording().of_type("lost").next().is_some().then_some(())
        });
        self.steps.step("close 0");
        drop(self.steps);
        let pid = self.workload.process.pid();
        let account = self.workload.finish();
        let recording = self.server.stop();
        assert!(recording.lost(pid).0 >= least_lost, "{:?}", recording.lost(pid));
        let reasons: Vec<_> = recording.of_type("lost").map(|lost| lost.reason.as_deref()).collect();
        assert!(reasons.iter().all(|reason| *reason == Some("the ring was full")), "{reasons:?}");
        assert_same_but_for_losses(&account, &[&recording], pid);
    }
}

#[test]
fn dropped_and_counted() {
    let mut traced = Traced::new(SockType::Shm, &json!({ "on_full": "drop" }));
    traced.server.signal(Signal::STOP);
    traced.steps.step(&format!("send 0 {CALLS} 4000"));
    traced.go_on_and_compare(u64::from(CALLS));
}

/// Each call held up for the whole time would be a minute and more.
#[test]
fn waited_for_once() {
    const MAX_WAIT: Duration = Duration::from_millis(300);
    let parameters = json!({ "on_full": "block", "max_wait_ms": MAX_WAIT.as_millis() as u64 });
    let mut traced = Traced::new(SockType::Shm, &parameters);
    traced.server.signal(Signal::STOP);
    let begun = Instant::now();
    traced.steps.step("send 0 100 4000");
    assert!(begun.elapsed() >= MAX_WAIT, "it waits for room");
    let sends = traced.steps.step(&format!("send 0 {CALLS} 4000"));
    assert!(sends < MAX_WAIT * CALLS / 4, "{CALLS} sends took {sends:?}");
    traced.go_on_and_compare(u64::from(CALLS));
}

#[test]
fn behind_for_a_moment() {
    let Traced { stage: _stage, server, mut steps, workload } =
        Traced::new(SockType::Shm, &json!({ "on_full": "block", "max_wait_ms": 60_000 }));
    server.signal(Signal::STOP);
    steps.begin("send 0 400 4000");
    std::thread::sleep(Duration::from_millis(100));
    server.signal(Signal::CONT);
    steps.end();
    steps.step("close 0");
    drop(steps);
    let account = workload.finish();
    assert_same(&account, &server.stop());
}

/// The program is killed before it could say what it lost: the ring tells.
#[test]
fn killed_with_losses() {
    let Traced { stage: _stage, server, mut steps, mut workload } =
        Traced::new(SockType::Shm, &json!({ "on_full": "drop" }));
    until("what is in the ring is recorded", || (recorded_in(&server.recording()) == 40).then_some(()));
    server.signal(Signal::STOP);
    steps.step(&format!("send 0 {CALLS} 4000"));
    assert_eq!(workload.process.end_by(Signal::KILL), Ending::Signaled(9));
    server.signal(Signal::CONT);
    let recording = server.stop();
    // Reports are short, and find room where messages do not.
    let told: u64 = recording.of_type("lost").filter(|lost| lost.pid.is_some()).filter_map(|lost| lost.events).sum();
    let untold: Vec<_> = recording.of_type("lost").filter(|lost| lost.pid.is_none()).collect();
    let [lost] = untold[..] else { panic!("{untold:?}") };
    assert_eq!(lost.reason.as_deref(), Some("the ring was full, and the process ended before it could say so"));
    let events = lost.events.expect("a number");
    assert_eq!(recorded_in(&recording) + told + events, 40 + 2 * u64::from(CALLS));
    assert_eq!(lost.bytes, Some(4000 * events));
    assert!(lost.since_ns.is_some_and(|since| since < lost.until_ns.expect("a number")), "{lost:?}");
}

fn recorded_in(recording: &Recording) -> u64 {
    recording.of_type("data").count() as u64
}

/// A server of datagrams gives a ring up of which nothing is heard for five seconds.
#[test]
fn silent_for_long_by_dgram() {
    let Traced { stage: _stage, server, mut steps, workload } =
        Traced::new(SockType::Dgram, &json!({ "on_full": "drop" }));
    std::thread::sleep(Duration::from_secs(7));
    steps.step("send 0 1 50");
    steps.step("close 0");
    drop(steps);
    let account = workload.finish();
    assert_same(&account, &server.stop());
}
