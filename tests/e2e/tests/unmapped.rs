//! A program that unmaps what it has sent before the call that sent it has come back.

use serde_json::json;
use socktrace_e2e::{Server, SockType, Stage, Workload, assert_same_but_for_losses};

/// The program goes on, and what could not be read any more is counted.
fn unmapped(sock_type: SockType) {
    let stage = Stage::new();
    let server = Server::start(&stage, sock_type);
    let mut parameters = stage.parameters(json!({ "out_sock_type": sock_type.name(), "max_bytes": 1 << 20 }));
    if sock_type == SockType::Shm {
        parameters["on_full"] = json!("block");
        parameters["max_wait_ms"] = json!(60_000);
    }
    let workload = Workload::preload(&stage, &parameters, &["unmapped"]);
    let pid = workload.process.pid();
    let account = workload.finish();
    assert_same_but_for_losses(&account, &[&server.stop()], pid);
}

#[test]
fn by_shm() {
    unmapped(SockType::Shm);
}
