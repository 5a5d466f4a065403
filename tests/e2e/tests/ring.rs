//! Frames in shared memory survive both sides: a program that is killed has left them there, and a server that is killed
//! leaves them to the next one. Nothing is lost and nothing is recorded twice.

use std::time::Duration;

use serde_json::{Value, json};
use socktrace_e2e::{Ending, Server, SockType, Stage, Workload, assert_same, assert_same_up_to_a_kill};

/// How often something is killed: SOCKTRACE_KILLS, by default few enough for every day.
fn kills() -> usize {
    const DEFAULT: usize = 25;
    std::env::var("SOCKTRACE_KILLS").map_or(DEFAULT, |kills| kills.parse().expect("SOCKTRACE_KILLS is a number"))
}

/// Room for what is said while there is no server, and time for one to come back on a busy machine.
fn parameters(stage: &Stage) -> Value {
    stage.parameters(json!({ "out_sock_type": "shm", "on_full": "block", "max_wait_ms": 60_000 }))
}

/// Times that look random and are the same in every run: whole milliseconds up to `max`.
fn moments(max: u64) -> impl Iterator<Item = Duration> {
    let next =
        |state: &u64| Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407));
    std::iter::successors(Some(42_u64), next).map(move |state| Duration::from_millis((state >> 33) % max))
}

fn server_killed(sock_type: SockType) {
    const CASES: [&str; 3] = ["threads", "forked", "lingering"];
    let mut killed = 0;
    let mut moments = moments(60);
    while killed < kills() {
        let stage = Stage::new();
        let mut server = Server::start(&stage, sock_type);
        let workload = Workload::preload(&stage, &parameters(&stage), &CASES);
        // To its last case, in which it does nothing more: the ring goes with it, so it must not end between two servers.
        while !stage.socket("lingers").exists() {
            std::thread::sleep(moments.next().expect("there is no end of them"));
            server.kill();
            server = Server::start(&stage, sock_type);
            killed += 1;
        }
        std::fs::write(stage.socket("end"), "").expect("a file in the test's directory");
        let account = workload.finish();
        assert_same(&account, &server.stop());
    }
}

#[test]
fn server_killed_by_stream() {
    server_killed(SockType::Shm);
}

/// The same with a server whose own socket is one of datagrams: the ring comes over that just as well.
#[test]
fn server_killed_by_dgram() {
    server_killed(SockType::Dgram);
}

#[test]
fn program_killed() {
    for _ in 0..kills() {
        let stage = Stage::new();
        let server = Server::start(&stage, SockType::Shm);
        let mut workload = Workload::preload(&stage, &parameters(&stage), &["killed_at_any_time"]);
        assert_eq!(workload.process.wait(), Ending::Signaled(9));
        let (account, mut recording) = (workload.account(), server.stop());
        // The event that was just being written may be missing, and then the recording says so.
        assert!(recording.of_type("lost").count() <= 1, "{:?}", recording.of_type("lost").collect::<Vec<_>>());
        recording.events.retain(|event| event.kind != "lost");
        assert_same_up_to_a_kill(&account, &recording);
    }
}
