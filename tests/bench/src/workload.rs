//! The programs that are traced: each does something as often as its standard input says, and says how long it took.
//!
//! A line of standard input is a number of times, the end of it the program's; a line of standard output is wall and
//! CPU time in nanoseconds. The first line is `ready` and the process id.

use std::io::{self, BufRead as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, IntoRawFd as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::{ptr, thread};

use crate::clock::{self, Clock};
use crate::kind::Kind;
use crate::raw;

/// What is executed by [`Kind::Spawn`].
const SMALL_PROGRAM: &std::ffi::CStr = c"/bin/true";

/// Exchanges that are done by one call of a function.
const BLOCK: u64 = 16;

/// The message of this number, as both ends send it: the number, and a pattern.
pub fn message(number: u64, len: usize) -> Vec<u8> {
    let mut message: Vec<u8> = (0..len).map(|at| b'a' + (at % 26) as u8).collect();
    put_number(&mut message, number);
    message
}

fn put_number(message: &mut [u8], number: u64) {
    message[..8].copy_from_slice(&number.to_le_bytes());
}

/// Two ends of a connection; the first is used through libc, the second by raw system calls.
struct Connection {
    traced: UnixStream,
    raw: i32,
    message: Vec<u8>,
    reply: Vec<u8>,
    room: Vec<u8>,
    sent: u64,
}

impl Connection {
    fn new(path: &Path, len: usize) -> io::Result<Self> {
        let listener = listen_raw(path)?;
        let traced = UnixStream::connect(path)?;
        // SAFETY: accept4(2) without an address.
        let raw = unsafe { raw::call(libc::SYS_accept4, [listener, 0, 0, 0]) }? as i32;
        let (message, reply) = (message(0, len), message(0, len));
        Ok(Self { traced, raw, message, reply, room: vec![0; len], sent: 0 })
    }

    /// So many exchanges.
    fn exchanges(&mut self, times: u64) {
        for _ in 0..times / BLOCK {
            self.block();
        }
        for _ in 0..times % BLOCK {
            self.exchange();
        }
    }

    /// A function with a name: tests/instructions.rs counts what is between two calls.
    #[inline(never)]
    fn block(&mut self) {
        for _ in 0..BLOCK {
            self.exchange();
        }
    }

    /// One message there, one back.
    #[inline(always)]
    fn exchange(&mut self) {
        let (fd, len) = (self.traced.as_raw_fd(), self.message.len());
        self.sent += 1;
        put_number(&mut self.message, self.sent);
        // SAFETY: readable at its length.
        let sent = unsafe { libc::send(fd, self.message.as_ptr().cast(), len, 0) };
        assert_eq!(sent, len as isize, "send: {}", io::Error::last_os_error());
        assert_eq!(raw::read(self.raw, &mut self.room).expect("readv"), len);
        put_number(&mut self.reply, self.sent);
        assert_eq!(raw::write(self.raw, &self.reply).expect("writev"), len);
        // SAFETY: writable at its length.
        let received = unsafe { libc::recv(fd, self.room.as_mut_ptr().cast(), len, 0) };
        assert_eq!(received, len as isize, "recv: {}", io::Error::last_os_error());
    }
}

fn listen_raw(path: &Path) -> io::Result<usize> {
    // SAFETY: all zeroes is a valid sockaddr_un.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as u16;
    for (to, from) in address.sun_path.iter_mut().zip(path.as_os_str().as_bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: socket(2), bind(2) and listen(2), the address at its length.
    unsafe {
        let fd = raw::call(libc::SYS_socket, [libc::AF_UNIX as usize, libc::SOCK_STREAM as usize, 0, 0])?;
        raw::call(libc::SYS_bind, [fd, &raw const address as usize, size_of_val(&address), 0])?;
        raw::call(libc::SYS_listen, [fd, 1, 0, 0])?;
        Ok(fd)
    }
}

/// Sockets are made in a directory. Returns at the end of standard input.
pub fn run(kind: Kind, directory: &Path) -> io::Result<()> {
    match kind {
        Kind::Messages { len, threads: 1 } => {
            let mut connection = Connection::new(&directory.join("0"), len)?;
            serve(|times| connection.exchanges(times))
        }
        Kind::Messages { len, threads } => {
            let connect = |thread: usize| Connection::new(&directory.join(thread.to_string()), len);
            let mut connections = (0..threads).map(connect).collect::<io::Result<Vec<_>>>()?;
            serve(|times| {
                thread::scope(|scope| {
                    for connection in &mut connections {
                        scope.spawn(move || connection.exchanges(times));
                    }
                });
            })
        }
        Kind::Pipe { len } => {
            let (reader, writer) = io::pipe()?;
            let (reader, writer) = (reader.into_raw_fd(), writer.into_raw_fd());
            let mut buffer = message(0, len);
            serve(|times| {
                for _ in 0..times {
                    // SAFETY: readable and writable at its length.
                    let moved = unsafe {
                        (
                            libc::write(writer, buffer.as_ptr().cast(), len),
                            libc::read(reader, buffer.as_mut_ptr().cast(), len),
                        )
                    };
                    assert_eq!(moved, (len as isize, len as isize));
                }
            })
        }
        Kind::Tcp { len } => {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let one = TcpStream::connect(listener.local_addr()?)?;
            let (other, _) = listener.accept()?;
            one.set_nodelay(true)?;
            let (one, other) = (one.into_raw_fd(), other.into_raw_fd());
            let mut buffer = message(0, len);
            serve(|times| {
                for _ in 0..times {
                    // SAFETY: readable and writable at its length.
                    let moved = unsafe {
                        (
                            libc::send(one, buffer.as_ptr().cast(), len, 0),
                            libc::recv(other, buffer.as_mut_ptr().cast(), len, 0),
                        )
                    };
                    assert_eq!(moved, (len as isize, len as isize));
                }
            })
        }
        Kind::Spawn => serve(|times| (0..times).for_each(|_| spawn_and_wait())),
        Kind::Redis { .. } => Err(io::Error::other("redis is a program of its own")),
    }
}

fn spawn_and_wait() {
    unsafe extern "C" {
        static environ: *const *mut libc::c_char;
    }
    let (mut pid, mut status) = (0, 0);
    let arguments = [SMALL_PROGRAM.as_ptr().cast_mut(), ptr::null_mut()];
    // SAFETY: both lists end with a null pointer.
    let error = unsafe {
        libc::posix_spawn(&raw mut pid, SMALL_PROGRAM.as_ptr(), ptr::null(), ptr::null(), arguments.as_ptr(), environ)
    };
    assert_eq!(error, 0, "posix_spawn");
    // SAFETY: a child of ours.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0);
}

fn serve(mut work: impl FnMut(u64)) -> io::Result<()> {
    println!("ready {}", std::process::id());
    for line in io::stdin().lock().lines() {
        let times = line?.trim().parse().map_err(io::Error::other)?;
        let (wall, cpu) = (clock::now(Clock::Monotonic), clock::now(Clock::OwnCpu));
        work(times);
        let (wall, cpu) = (clock::now(Clock::Monotonic) - wall, clock::now(Clock::OwnCpu) - cpu);
        println!("{wall} {cpu}");
        io::stdout().flush()?;
    }
    Ok(())
}
