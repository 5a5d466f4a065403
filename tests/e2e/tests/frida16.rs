//! The last Frida 16, which lacks what the agent uses of 17: the same recording.

use serde_json::json;
use socktrace_e2e::{Frida, Server, SockType, Stage, Workload, assert_same};

const CASES: &[&str] = &["calls", "scattered", "datagrams", "failures", "dups", "relative_path", "threads", "forked"];

#[test]
fn spawn() {
    let stage = Stage::new();
    let server = Server::start(&stage, SockType::Dgram);
    let parameters = stage.parameters(json!({}));
    let account = Workload::spawn_by(&Frida::of_version_16(), &stage, &parameters, CASES).finish();
    assert_same(&account, &server.stop());
}

#[test]
fn attach() {
    let stage = Stage::new();
    let mut steps = Workload::prepare_steps(&stage);
    let workload = Workload::start(&stage, &["steps"]);
    let pid = workload.process.pid();
    let server = Server::start(&stage, SockType::Stream);
    let parameters = stage.parameters(json!({ "out_sock_type": "stream" }));
    Frida::of_version_16().attach(&stage, "frida", &parameters, pid);
    server.wait_until_ready(pid);
    for step in ["open 0 a", "send 0 100 1000", "answer 0", "close 0"] {
        steps.step(step);
    }
    drop(steps);
    let account = workload.finish();
    assert_same(&account, &server.stop());
}
