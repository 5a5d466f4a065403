//! Signal handlers that jump out of whatever is under way (siglongjmp(3)), the tracer's part of a call included.

use serde_json::json;
use socktrace_e2e::{Connection, Direction, Server, SockType, Stage, Workload};

#[derive(Clone, Copy, Debug)]
enum Engine {
    Preload,
    Frida,
}

/// A handler that jumps out in the middle of an event costs that event, and nobody waits for it.
fn jumped_out(engine: Engine, sock_type: SockType) {
    /// Few of a run's jumps are in the middle of an event, and perhaps none.
    const RUNS: usize = 20;
    let any = (0..RUNS).any(|_| run(engine, sock_type));
    assert!(any, "no jump was in the middle of an event");
}

/// Whether there was an event that was jumped out of, if there can be one.
fn run(engine: Engine, sock_type: SockType) -> bool {
    let stage = Stage::new();
    let server = Server::start(&stage, sock_type);
    let mut parameters = stage.parameters(json!({ "out_sock_type": sock_type.name() }));
    if sock_type == SockType::Shm {
        // Less room than is written in the time that the server would wait for the rest of an event.
        for (name, value) in
            [("on_full", json!("block")), ("max_wait_ms", json!(60_000)), ("ring_bytes", json!(1 << 18))]
        {
            parameters[name] = value;
        }
    }
    let workload = match engine {
        Engine::Preload => Workload::preload(&stage, &parameters, &["jumped_out"]),
        Engine::Frida => Workload::spawn(&stage, &parameters, &["jumped_out"]),
    };
    let account = workload.finish();
    let recording = server.stop();
    let reasons: Vec<&str> = recording.of_type("lost").filter_map(|lost| lost.reason.as_deref()).collect();
    if sock_type == SockType::Shm {
        let jumped = "a signal handler jumped out of a call while the event was written";
        assert!(reasons.iter().all(|reason| *reason == jumped), "{reasons:?}");
    } else {
        assert!(reasons.is_empty(), "{reasons:?}");
    }
    let recorded = recording.connections();
    let of_account = |(_, connection): &(String, Connection)| {
        let inode = connection.opened.first().and_then(|open| open.inode);
        account.sockets().into_iter().any(|is| Some(is) == inode)
    };
    let after: Vec<(String, Connection)> = recorded.into_iter().filter(of_account).collect();
    assert_eq!(after.len(), 2);
    for (id, connection) in after {
        let inode = connection.opened[0].inode;
        for direction in [Direction::In, Direction::Out] {
            let moved = account.moved.iter().filter(|is| Some(is.inode) == inode && is.direction == direction);
            let truth: Vec<u8> = moved.flat_map(|moved| &moved.data).copied().collect();
            assert!(connection.bytes(direction) == truth, "{id} {direction:?}");
        }
    }
    sock_type != SockType::Shm || !reasons.is_empty()
}

macro_rules! tests {
    ($($name:ident: $engine:ident $sock_type:ident,)+) => {
        $(#[test]
        fn $name() {
            jumped_out(Engine::$engine, SockType::$sock_type);
        })+
    };
}

tests! {
    preload_by_dgram: Preload Dgram,
    preload_by_stream: Preload Stream,
    preload_by_shm: Preload Shm,
    frida_by_dgram: Frida Dgram,
    frida_by_stream: Frida Stream,
    frida_by_shm: Frida Shm,
}
