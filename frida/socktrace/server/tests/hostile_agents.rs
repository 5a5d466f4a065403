//! Agents that take more than their share of what a server has, or speak for others, beside honest ones.

mod harness;

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use gttr::{Direction, Ext, ExtWriter, Frame, FrameType};
use harness::{Server, data, encode, skipped, until};
use rustix::process::Signal;

/// Another user.
const NOBODY: u32 = 65534;
/// The server's peak, in KiB, whatever agents do: two buffers of what has arrived, incomplete frames, and what is waiting
/// to be written take some 100 MiB at worst.
const MAX_PEAK_KIB: u64 = 160 << 10;

/// A process of its own, which connects before it executes cat(1), and goes away when it is dropped.
struct Process(Child);

impl Process {
    /// `act` is called in the new process, as this user, and must do no more than system calls.
    fn start(uid: Option<u32>, act: impl FnMut() -> io::Result<()> + Send + Sync + 'static) -> Self {
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        if let Some(uid) = uid {
            command.uid(uid);
        }
        // SAFETY: between fork and exec, only what the caller promises.
        unsafe { command.pre_exec(act) };
        Self(command.spawn().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Connects, says something, and leaves the connection open across execve(2).
fn connect_and_say(address: &rustix::net::SocketAddrUnix, bytes: &[u8]) -> io::Result<()> {
    use rustix::net::{AddressFamily, SendFlags, SocketType, connect, send, socket};
    let socket = socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    connect(&socket, address)?;
    send(&socket, bytes, SendFlags::NOSIGNAL)?;
    std::mem::forget(socket);
    Ok(())
}

/// A process with one connection, by which it has said something.
fn agent(server: &Server, uid: Option<u32>, bytes: Vec<u8>) -> Process {
    let address = rustix::net::SocketAddrUnix::new(server.sock()).unwrap();
    Process::start(uid, move || connect_and_say(&address, &bytes))
}

/// Lets every user connect, as the collector of `run` and `attach` may do.
fn open_to_everybody(server: &Server) {
    for (path, mode) in [(server.dir.path(), 0o711), (&*server.sock(), 0o666)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
}

fn has(server: &Server, conn_id: &str) -> bool {
    server.events_so_far().iter().any(|event| event["conn_id"] == conn_id)
}

fn peak_kib(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn processes_beyond_the_descriptor_limit_wait() {
    const PROCESSES: usize = 40;
    let mut server = Server::start_in(tempfile::tempdir().unwrap(), "stream", "ulimit -n 40");
    let processes: Vec<_> =
        (0..PROCESSES).map(|n| agent(&server, None, data(format!("c{n}").as_bytes(), Direction::In, b"x"))).collect();
    until("out of descriptors", || server.stderr().contains("no file descriptor"));
    drop(processes);
    until("all are heard", || server.events_so_far().len() == PROCESSES + 1);
    assert_eq!(server.stop_and_get_agents_events().len(), PROCESSES);
}

#[test]
fn one_process_does_not_shut_the_others_out() {
    let mut server = Server::start_in(tempfile::tempdir().unwrap(), "stream", "ulimit -n 128");
    let frame = data(b"greedy", Direction::In, b"x");
    let mut greedy = Vec::new();
    let mut said = 0;
    for _ in 0..500 {
        let mut agent = server.stream();
        // Of one that is turned away: what it has said is recorded, and it knows of what is not.
        said += usize::from(agent.write_all(&frame).is_ok());
        greedy.push(agent);
    }
    until("some are turned away", || server.stderr().contains("another of its connections is closed"));
    // Each has a connection for as long as it wants, and so has the next.
    let processes: Vec<_> = (0..10)
        .map(|n| {
            let process = agent(&server, None, data(format!("c{n}").as_bytes(), Direction::In, b"x"));
            until("it is heard", || has(&server, &format!("c{n}")));
            process
        })
        .collect();
    drop(greedy);
    drop(processes);
    let events = server.stop_and_get_agents_events();
    assert_eq!(events.iter().filter(|event| event["conn_id"] == "greedy").count(), said);
    assert!(server.stderr().lines().count() < 20, "{}", server.stderr());
}

#[test]
fn one_user_does_not_shut_the_others_out() {
    let test = "one_user_does_not_shut_the_others_out";
    if !rustix::process::geteuid().is_root() {
        return skipped(test);
    }
    let mut server = Server::start_in(tempfile::tempdir().unwrap(), "stream", "ulimit -n 128");
    open_to_everybody(&server);
    // A connection each, so that no process has more than any other.
    let address = rustix::net::SocketAddrUnix::new(server.sock()).unwrap();
    let crowd: Vec<_> = (0..120)
        .map(|n| {
            let (address, frame) = (address.clone(), data(format!("crowd{n}").as_bytes(), Direction::In, b"x"));
            Process::start(Some(NOBODY), move || {
                // One that is turned away may not come to speak.
                let _ = connect_and_say(&address, &frame);
                Ok(())
            })
        })
        .collect();
    until("some are turned away", || server.stderr().contains("of user 65534"));
    let process = agent(&server, None, data(b"good", Direction::In, b"x"));
    until("it is heard", || has(&server, "good"));
    drop((crowd, process));
    server.stop();
}

/// Says something of a connection as another user, by a process that neither it began with nor descends from that.
fn say_as_nobody(server: &Server, sock_type: &str, bytes: Vec<u8>) -> Process {
    let sock: PathBuf = server.sock();
    let address = rustix::net::SocketAddrUnix::new(&sock).unwrap();
    let is_stream = sock_type == "stream";
    Process::start(Some(NOBODY), move || {
        use rustix::net::{AddressFamily, SendFlags, SocketType, connect, send, socket};
        if is_stream {
            return connect_and_say(&address, &bytes);
        }
        let socket = socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
        connect(&socket, &address)?;
        send(&socket, &bytes, SendFlags::NOSIGNAL)?;
        Ok(())
    })
}

#[test]
fn another_users_connection_cannot_be_spoken_for() {
    let test = "another_users_connection_cannot_be_spoken_for";
    if !rustix::process::geteuid().is_root() {
        return skipped(test);
    }
    for sock_type in ["stream", "dgram"] {
        let mut server = Server::start(sock_type);
        open_to_everybody(&server);
        // Not by this process, whose children could say what it says.
        let open = encode(&Frame { conn: b"c|connect", path: b"/x", ..Frame::new(FrameType::Open, 1) });
        let honest = [open, data(b"c", Direction::Out, b"honest ")].concat();
        let _honest = if sock_type == "stream" {
            Some(agent(&server, None, honest))
        } else {
            let address = rustix::net::SocketAddrUnix::new(server.sock()).unwrap();
            let frame = data(b"c", Direction::Out, b"honest ");
            Some(Process::start(None, move || say_datagram(&address, &frame)))
        };
        until("it is heard", || has(&server, "c"));
        let _hostile = say_as_nobody(&server, sock_type, data(b"c", Direction::Out, b"hostile"));
        until("kept apart", || {
            server.events_so_far().iter().any(|e| e["conn_id"].as_str().is_some_and(|c| c.contains('%')))
        });
        // What is somebody's own is nobody else's, whoever they are.
        let _own = say_as_nobody(&server, sock_type, data(b"own", Direction::Out, b"own"));
        until("it is heard", || has(&server, "own"));
        let events = server.stop_and_get_agents_events();
        assert_eq!(server.payload("c.out.bin"), b"honest ");
        let apart = events.iter().find(|e| e["conn_id"].as_str().is_some_and(|c| c.contains('%'))).unwrap();
        assert_eq!(server.payload(&format!("{}.out.bin", apart["file"].as_str().unwrap())), b"hostile");
        assert_eq!(server.payload("own.out.bin"), b"own");
        assert!(server.stderr().contains("of user 65534 names a connection of another user's"), "{}", server.stderr());
    }
}

fn say_datagram(address: &rustix::net::SocketAddrUnix, bytes: &[u8]) -> io::Result<()> {
    use rustix::net::{AddressFamily, SendFlags, SocketType, connect, send, socket};
    let socket = socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
    connect(&socket, address)?;
    send(&socket, bytes, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The worst of each kind, number by number.
fn worst(kind: &str, number: u64) -> Vec<u8> {
    let mut long = vec![0xff; 60_000];
    long[..8].copy_from_slice(&number.to_le_bytes());
    let mut ext = [0; 256];
    let mut ext = ExtWriter::new(&mut ext);
    ext.put(Ext::Pid(u32::try_from(number).unwrap() + 10));
    ext.put(Ext::Seq(u64::MAX - number));
    ext.put(Ext::TsNs(u64::MAX));
    ext.put(Ext::Inode(number));
    ext.put(Ext::PeerInode(u64::MAX - number));
    ext.put(Ext::LostEvents(u64::MAX));
    ext.put(Ext::LostBytes(u64::MAX));
    let ext = ext.finish();
    match kind {
        "opens" => encode(&Frame { conn: &long, path: &long, ext, ..Frame::new(FrameType::Open, u64::MAX) }),
        "connections" => {
            let direction = Direction::Out;
            encode(&Frame { conn: &long, payload: b"x", direction, ext, ..Frame::new(FrameType::Data, 1) })
        }
        "short connections" => data(format!("n{number}").as_bytes(), Direction::Out, b"x"),
        "reasons" => encode(&Frame { conn: &long, ext, ..Frame::new(FrameType::Lost, 1) }),
        "bad frames" => b"GTTR\x02no frame".to_vec(),
        _ => unreachable!(),
    }
}

#[test]
fn memory_has_a_limit_whatever_agents_send() {
    let kinds =
        [("opens", 800), ("connections", 800), ("short connections", 5000), ("reasons", 50), ("bad frames", 10_000)];
    for (kind, count) in kinds {
        let dir = tempfile::tempdir().unwrap();
        let mut server = Server::start_in(dir, "stream", "set -- \"$@\" --no-events");
        let mut agent = server.stream();
        let mut bytes = Vec::new();
        for number in 0..count {
            bytes.extend(worst(kind, number));
            if bytes.len() > 1 << 20 || number + 1 == count {
                agent.write_all(&bytes).unwrap();
                bytes.clear();
            }
        }
        server.stream().write_all(&data(b"good", Direction::In, b"afterwards")).unwrap();
        until("recorded", || server.out.join("good.in.bin").metadata().is_ok_and(|file| file.len() == 10));
        let peak = peak_kib(&server);
        assert!(peak < MAX_PEAK_KIB, "{kind}: {peak} KiB");
        assert!(server.stderr().len() < 10_000, "{kind}: {} bytes on standard error", server.stderr().len());
        let len = fs::metadata(server.out.join("events.jsonl")).unwrap().len();
        assert!(kind == "reasons" || len < 100_000, "{kind}: {len} bytes of events");
        drop(agent);
        server.stop();
    }
}

/// Frames of the largest kind that never end, by as many connections as one process likes.
#[test]
fn incomplete_frames_have_a_limit() {
    let mut server = Server::start("stream");
    let frame = data(b"c", Direction::In, &vec![0; gttr::MAX_PAYLOAD_LEN as usize]);
    let good = data(b"good", Direction::In, &vec![1; 1 << 20]);
    let (first, rest) = good.split_at(good.len() / 2);
    let mut honest = server.stream();
    honest.write_all(first).unwrap();
    let hostile: Vec<_> = (0..20)
        .map(|_| {
            let mut agent = server.stream();
            agent.write_all(&frame[..frame.len() - 1]).unwrap();
            agent
        })
        .collect();
    let peak = peak_kib(&server);
    assert!(peak < MAX_PEAK_KIB, "{peak} KiB");
    honest.write_all(rest).unwrap();
    until("recorded", || server.out.join("good.in.bin").metadata().is_ok_and(|file| file.len() == 1 << 20));
    drop(hostile);
    server.stop();
}

#[test]
fn a_conn_field_that_is_too_long_is_shortened_by_its_hash() {
    let mut server = Server::start("dgram");
    let agent = server.datagrams();
    let names: Vec<Vec<u8>> = [b'a', b'b'].iter().map(|&last| [vec![b'x'; 300], vec![last]].concat()).collect();
    for name in &names {
        let open = [name, &b"|"[..], &[b'h'; 300]].concat();
        agent.send(&encode(&Frame { conn: &open, ..Frame::new(FrameType::Open, 1) })).unwrap();
        agent.send(&data(name, Direction::In, &name[300..])).unwrap();
    }
    let events = server.stop_and_get_agents_events();
    let text = |at: usize, field: &str| events[at][field].as_str().unwrap().to_owned();
    for (at, payload) in [(0, b"a"), (2, b"b")] {
        // All that is said of one connection goes by one name.
        assert_eq!(text(at, "conn_id"), text(at + 1, "conn_id"));
        assert!(text(at, "conn_id").len() <= 200 && text(at, "how").len() <= 200);
        assert_eq!(server.payload(&format!("{}.in.bin", text(at + 1, "file"))), payload);
    }
    assert_ne!(text(0, "conn_id"), text(2, "conn_id"));
}

/// More rings than there may be, by one process; another's is read all the same.
#[test]
fn one_process_does_not_take_all_rings() {
    use socktrace_ring::{MIN_RING_LEN, Writer, create, unmap};
    const RINGS: usize = 4200;
    let mut server = Server::start("stream");
    let agent = server.stream();
    for _ in 0..RINGS {
        let (fd, memory) = create(MIN_RING_LEN).unwrap();
        announce(&agent, fd.as_fd());
        // SAFETY: nothing of this process uses it any more.
        unsafe { unmap(memory) };
    }
    until("they are too many", || server.stderr().contains("too many rings"));
    let (fd, memory) = create(MIN_RING_LEN).unwrap();
    let frame = data(b"good", Direction::In, b"still here");
    let mut record = Writer::new(memory).reserve(frame.len(), 0).unwrap();
    record.push(&frame);
    record.commit();
    let address = rustix::net::SocketAddrUnix::new(server.sock()).unwrap();
    let _honest = Process::start(None, move || {
        use rustix::net::{AddressFamily, SocketType, connect, socket};
        let socket = socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
        connect(&socket, &address)?;
        announce(&socket, fd.as_fd());
        std::mem::forget(socket);
        Ok(())
    });
    until("it is read", || has(&server, "good"));
    assert!(server.stderr().lines().count() < 20, "{}", server.stderr());
    drop(agent);
    server.signal(Signal::TERM);
    server.wait();
    assert!(server.events().iter().any(|e| e["reason"].as_str().is_some_and(|r| r.contains("too many rings"))));
}

fn announce(agent: impl AsFd, fd: std::os::fd::BorrowedFd<'_>) {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut frame = [0; gttr::HEADER_LEN + 8];
    Frame { conn: b"announce", ..Frame::new(FrameType::Ring, 1) }.encode(&mut frame).unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(agent, &[io::IoSlice::new(&frame)], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
}

/// Descriptors that come with datagrams and are no rings, faster than they can be looked at.
#[test]
fn descriptors_in_messages_do_not_shut_others_out() {
    let mut server = Server::start_in(tempfile::tempdir().unwrap(), "dgram", "ulimit -n 256");
    let agent: UnixDatagram = server.datagrams();
    let file = fs::File::open(Path::new("/")).unwrap();
    for _ in 0..20_000 {
        announce(&agent, file.as_fd());
    }
    let (fd, memory) = socktrace_ring::create(socktrace_ring::MIN_RING_LEN).unwrap();
    let frame = data(b"good", Direction::In, b"still here");
    let mut record = socktrace_ring::Writer::new(memory).reserve(frame.len(), 0).unwrap();
    record.push(&frame);
    record.commit();
    announce(&agent, fd.as_fd());
    until("it is read", || has(&server, "good"));
    server.stop();
}
