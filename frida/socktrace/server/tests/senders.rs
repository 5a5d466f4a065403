//! Which process an event is of is what the kernel says of who has sent its frame (unix(7), `SO_PASSCRED`).

mod harness;

use std::os::fd::AsRawFd;

use gttr::{Direction, Ext, ExtWriter, Frame, FrameType};
use harness::{Server, encode, skipped};
use serde_json::Value;

fn data_of(pid: u32) -> Vec<u8> {
    let mut buffer = [0; 16];
    let mut ext = ExtWriter::new(&mut buffer);
    ext.put(Ext::Pid(pid));
    let frame = Frame { direction: Direction::Out, conn: b"c", payload: b"x", ..Frame::new(FrameType::Data, 1) };
    encode(&Frame { ext: ext.finish(), ..frame })
}

/// Sends a frame from the first process of a new pid namespace; the number of that process here, or none if it may not be
/// made.
fn send_from_elsewhere(socket: i32, frame: &[u8]) -> Option<i64> {
    let flags = libc::CLONE_NEWPID | libc::SIGCHLD;
    // SAFETY: as fork(2); the child makes two system calls and is gone.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if child == 0 {
        // SAFETY: as many readable bytes, in memory of its own.
        unsafe {
            libc::write(socket, frame.as_ptr().cast(), frame.len());
            libc::_exit(0);
        }
    }
    // SAFETY: waits, and wants to know nothing.
    (child > 0).then(|| unsafe { libc::waitpid(child as i32, std::ptr::null_mut(), 0) })?;
    Some(child)
}

fn check(test: &str, sock_type: &str, socket: impl FnOnce(&Server) -> Box<dyn Socket>) {
    let mut server = Server::start(sock_type);
    let socket = socket(&server);
    let own = std::process::id();
    // What this process says of itself; what it hands on of another; what one says that sees itself as 1, and is gone.
    socket.send(&data_of(own));
    socket.send(&data_of(own + 1));
    let Some(elsewhere) = send_from_elsewhere(socket.as_raw_fd(), &data_of(1)) else {
        return skipped(test);
    };
    let events = server.stop_and_get_agents_events();
    let seen: Vec<_> = events.iter().map(|event| (event["pid"].as_i64().unwrap(), event["host_pid"].clone())).collect();
    let own = i64::from(own);
    assert_eq!(seen, [(own, Value::Null), (own + 1, Value::Null), (1, elsewhere.into())]);
}

trait Socket: AsRawFd {
    fn send(&self, bytes: &[u8]);
}

impl Socket for std::os::unix::net::UnixDatagram {
    fn send(&self, bytes: &[u8]) {
        assert_eq!(self.send(bytes).unwrap(), bytes.len());
    }
}

impl Socket for std::os::unix::net::UnixStream {
    fn send(&self, bytes: &[u8]) {
        std::io::Write::write_all(&mut &*self, bytes).unwrap();
    }
}

#[test]
fn senders_of_datagrams() {
    check("senders_of_datagrams", "dgram", |server| Box::new(server.datagrams()));
}

#[test]
fn senders_on_a_stream() {
    check("senders_on_a_stream", "stream", |server| Box::new(server.stream()));
}
