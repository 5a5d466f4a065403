//! What the program says of itself: the account, which has everything that moved, and the results, which are those of
//! every run with the same seed.
//!
//! Both files are written by system calls of the program's own (rustix makes them without libc), so that nothing of it
//! is traced; a record is one write(2) at the file's end, so that threads, signal handlers and processes never mix
//! theirs, and what was written outlives a SIGKILL.

use std::fmt::{self, Write as _};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};

use rustix::fs::{CWD, Mode, OFlags, openat};

static ACCOUNT: AtomicI32 = AtomicI32::new(-1);
static RESULTS: AtomicI32 = AtomicI32::new(-1);
static SEED: AtomicU64 = AtomicU64::new(0);

/// Opens the account, and the results beside it.
pub fn begin(account: &Path) -> Result<(), String> {
    let open = |path: &Path| {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND;
        openat(CWD, path, flags, Mode::RUSR | Mode::WUSR).map_err(|error| format!("{}: {error}", path.display()))
    };
    go_on(leak(open(account)?), leak(open(&account.with_extension("results"))?));
    Ok(())
}

fn leak(fd: OwnedFd) -> i32 {
    use std::os::fd::IntoRawFd as _;
    fd.into_raw_fd()
}

/// Goes on with the files of the program that executed this one.
pub fn go_on(account: i32, results: i32) {
    ACCOUNT.store(account, Relaxed);
    RESULTS.store(results, Relaxed);
}

/// The two files' descriptors.
pub fn descriptors() -> (i32, i32) {
    (ACCOUNT.load(Relaxed), RESULTS.load(Relaxed))
}

/// Says which seed the process is at.
pub fn set_seed(seed: u64) {
    SEED.store(seed, Relaxed);
}

fn put(file: &AtomicI32, line: &[u8]) {
    // SAFETY: opened by `begin` and never closed.
    let fd = unsafe { BorrowedFd::borrow_raw(file.load(Relaxed)) };
    if rustix::io::write(fd, line) != Ok(line.len()) {
        // Without its account a run proves nothing.
        std::process::abort();
    }
}

/// Text in a place of its own, for signal handlers, which must not ask for memory.
#[derive(Debug)]
struct Short {
    bytes: [u8; 512],
    len: usize,
}

impl fmt::Write for Short {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// A descriptor that went or came with a message.
#[derive(Clone, Debug)]
pub struct Passed {
    /// Its number here.
    pub fd: i32,
    /// What it leads to, in the words of docs/gttr.md, "Passed descriptors".
    pub what: String,
}

/// What one call, or one message of a call of many, moved.
#[derive(Clone, Debug, Default)]
pub struct Moved<'a> {
    /// Of the socket.
    pub inode: u64,
    /// `in` or `out`.
    pub direction: &'static str,
    /// The function that was called.
    pub call: &'static str,
    /// The bytes.
    pub data: &'a [u8],
    /// The path that the event has to have, where this program can tell.
    pub path: Option<&'a str>,
    /// Whether more of the message was there than was received, where this program can tell.
    pub cut: Option<bool>,
    /// MSG_OOB and MSG_CTRUNC, as asked for or returned.
    pub flags: i32,
    /// Descriptors.
    pub fds: &'a [Passed],
    /// pid, uid and gid of who sent it.
    pub credentials: Option<[u32; 3]>,
    /// The sender's pidfd.
    pub pidfd: Option<i32>,
    /// Whether the bytes may not be had, only their number (splice(2)).
    pub by_number: bool,
}

/// Accounts for what moved.
pub fn moved(moved: &Moved<'_>) {
    if moved.data.len() < 64 && moved.fds.is_empty() && moved.path.is_none() {
        let mut line = Short { bytes: [0; 512], len: 0 };
        // Under 512 bytes, with all numbers at their longest.
        write_moved(&mut line, moved).expect("a short line");
        return put(&ACCOUNT, &line.bytes[..line.len]);
    }
    let mut line = String::with_capacity(2 * moved.data.len() + 512);
    write_moved(&mut line, moved).expect("a String takes what it is given");
    put(&ACCOUNT, line.as_bytes());
}

fn write_moved(line: &mut impl fmt::Write, moved: &Moved<'_>) -> fmt::Result {
    begin_record(line, "moved", moved.inode)?;
    write!(line, ",\"direction\":\"{}\",\"call\":\"{}\"", moved.direction, moved.call)?;
    if let Some(path) = moved.path {
        write!(line, ",\"path\":\"{}\"", Escaped(path))?;
    }
    if let Some(cut) = moved.cut {
        write!(line, ",\"cut\":{cut}")?;
    }
    if moved.flags != 0 {
        write!(line, ",\"flags\":{}", moved.flags)?;
    }
    for (number, passed) in moved.fds.iter().enumerate() {
        let open = if number == 0 { ",\"fds\":[" } else { "," };
        write!(line, "{open}{{\"fd\":{},\"what\":\"{}\"}}", passed.fd, Escaped(&passed.what))?;
    }
    if !moved.fds.is_empty() {
        write!(line, "]")?;
    }
    if let Some([pid, uid, gid]) = moved.credentials {
        write!(line, ",\"credentials\":{{\"pid\":{pid},\"uid\":{uid},\"gid\":{gid}}}")?;
    }
    if let Some(pidfd) = moved.pidfd {
        write!(line, ",\"pidfd\":{pidfd}")?;
    }
    if moved.by_number {
        write!(line, ",\"by_number\":true")?;
    }
    line.write_str(",\"data\":\"")?;
    const HEX: &[u8; 16] = b"0123456789abcdef";
    for byte in moved.data {
        line.write_char(char::from(HEX[usize::from(byte >> 4)]))?;
        line.write_char(char::from(HEX[usize::from(byte & 15)]))?;
    }
    line.write_str("\"}\n")
}

fn begin_record(line: &mut impl fmt::Write, truth: &str, inode: u64) -> fmt::Result {
    let (pid, tid) = (rustix::process::getpid().as_raw_nonzero(), rustix::thread::gettid().as_raw_nonzero());
    let seed = SEED.load(Relaxed);
    write!(line, "{{\"truth\":\"{truth}\",\"seed\":{seed},\"pid\":{pid},\"tid\":{tid},\"inode\":{inode}")
}

/// Accounts for the end of a connection: the process's last descriptor of it was closed by `how`, or a direction shut.
pub fn closed(inode: u64, fd: i32, socket_type: i32, how: &str) {
    began("close", inode, fd, socket_type, how, "");
}

/// Accounts for an `open`, a `listen` or a `close`.
pub fn began(truth: &str, inode: u64, fd: i32, socket_type: i32, how: &str, path: &str) {
    let mut line = Short { bytes: [0; 512], len: 0 };
    begin_record(&mut line, truth, inode)
        .and_then(|()| write!(line, ",\"fd\":{fd},\"type\":{socket_type},\"how\":\"{how}\""))
        .and_then(|()| writeln!(line, ",\"path\":\"{}\"}}", Escaped(path)))
        .expect("a short line");
    put(&ACCOUNT, &line.bytes[..line.len]);
}

/// Says that several threads use a socket at once: what moved has an order within a thread only.
pub fn shared(inode: u64) {
    note("shared", inode);
}

/// Notes a number under a name.
pub fn note(name: &str, number: u64) {
    let pid = rustix::process::getpid().as_raw_nonzero();
    let line = format!("{{\"truth\":\"note\",\"pid\":{pid},\"name\":\"{name}\",\"number\":{number}}}\n");
    put(&ACCOUNT, line.as_bytes());
}

/// Has a panic, in any process, be in the account: it is this program's own mistake, or a call did what it never does.
pub fn report_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let (pid, seed) = (rustix::process::getpid().as_raw_nonzero(), SEED.load(Relaxed));
        let (at, what) =
            (panic.location().map_or("", |at| at.file()), format!("seed {seed}: {panic}").replace('\n', " "));
        let (at, what) = (Escaped(at), Escaped(&what));
        let line = format!("{{\"truth\":\"failed\",\"pid\":{pid},\"errno\":0,\"at\":\"{at}\",\"what\":\"{what}\"}}\n");
        put(&ACCOUNT, line.as_bytes());
        report(panic);
    }));
}

/// A line of the results: who (the process and thread, by how they came about), and what a call gave.
pub fn result(who: &str, what: fmt::Arguments<'_>) {
    let line = format!("{} {who} {what}\n", SEED.load(Relaxed));
    put(&RESULTS, line.as_bytes());
}

/// Text inside a JSON string.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if matches!(c, '"' | '\\') {
                f.write_char('\\')?;
            }
            f.write_char(c)?;
        }
        Ok(())
    }
}
