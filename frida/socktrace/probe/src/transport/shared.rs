//! The ring: frames in memory that the server reads (docs/gttr.md, "Rings").
//!
//! A frame costs no system call, except now and then: to wake a reader that sleeps, to see whether it is still there,
//! and to wait for room where the parameters ask for that.

use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use gttr::{Ext, ExtWriter, Frame, FrameType};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use rustix::net::sockopt::socket_type;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SocketType};
use rustix::thread::futex;
use rustix::time::{ClockId, Timespec};
use socktrace_ring::{Full, Record, Writer, create, numbers};

use super::own::Own;
use super::unfinished::Unfinished;
use super::{Undelivered, socket, stall};
use crate::clock::{monotonic_ns, now_ns};
use crate::params::{self, Complaint, OnFull};
use crate::sys::copy_if_there;
use crate::{process, stack};

/// How often the server is looked for, in nanoseconds: a restarted one takes the ring over after this long, and it is
/// one system call in as much time.
const LOOK_NS: u64 = 100_000_000;
/// How long a wait for room is at a time, in nanoseconds. The server wakes whoever waits, so this is for one that was
/// killed meanwhile.
const WAIT_NS: u64 = 10_000_000;
/// How long a server that has no room for another agent is waited for at the end, whatever the parameters say.
const BUSY_NS: u64 = 100_000_000;
/// From so many bytes on, a payload may lie in memory of its own, which whoever received it in the same process may have
/// unmapped already: allocators map large buffers and unmap them when they are freed. A system call for the copy then costs
/// little beside it.
pub(crate) const MAPPED_LEN: usize = 32 << 10;
/// What a frame says that hands a ring over.
const ANNOUNCE: &[u8] = b"announce";
/// Process ids are below 2²² (proc(5), pid_max).
const PID_SHIFT: u32 = 40;
/// Bytes of the longest frame that is sent by the socket instead.
const MAX_NOTE_LEN: usize = 128;

/// The memfd of the ring, to be handed to the next server.
pub(super) static OWN: Own = Own::none();
/// The ring; null until it is made.
static WRITER: AtomicPtr<Writer> = AtomicPtr::new(core::ptr::null_mut());
/// When the server was last looked for, nanoseconds.
static LOOKED_NS: AtomicU64 = AtomicU64::new(0);
/// When the ring was first found full since there was room (CLOCK_MONOTONIC, nanoseconds); 0: there is room.
static FULL_SINCE_NS: AtomicU64 = AtomicU64::new(0);

pub(super) fn init() -> Result<(), Complaint> {
    make()?;
    socket::begin_session();
    // A server that is not there yet is looked for again.
    let _ = wake();
    Ok(())
}

/// Makes a ring, and no other is written to from here on.
fn make() -> Result<(), Complaint> {
    let (fd, memory) = create(params::get().ring_bytes as usize)
        .map_err(|_| "ring_bytes: no memory for a ring of this length in this process")?;
    let at = params::map(size_of::<Writer>())?.cast::<Writer>();
    // In a forked child, that of the parent's ring.
    OWN.close();
    OWN.keep(fd).map_err(|_| "no descriptor left for the ring")?;
    // SAFETY: mapped for this, large enough, page-aligned and ours alone.
    unsafe { at.write(Writer::new(memory)) };
    WRITER.store(at, Ordering::Release);
    Ok(())
}

/// A forked child begins, which shares its parent's ring: the number under which it has announced itself, if it has.
///
/// Frames say which process they are of by the number that it sees itself. Where that is another one than the server
/// sees, the server learns from an announcement who it is, because the kernel tells who has sent that.
pub(super) fn after_fork() -> Option<u64> {
    let writer = writer()?;
    if process::is_confined() {
        return None;
    }
    // The first process of a pid namespace, say: process 1 of another one may write to the parent's ring as well.
    if process::parent() == 0 {
        if make().is_ok() {
            // The server takes a ring for one that is written to as long as the connection lasts that it came by.
            socket::OWN.close();
        }
    } else if is_known_by_number(writer) {
        return None;
    }
    let memory = OWN.current()?;
    let number = announcement(process::own_pid());
    let is_told = match socket::OWN.current() {
        Some(fd) => tell(fd, memory, number).is_ok(),
        None => false,
    };
    if !is_told {
        socket::OWN.close();
        announce(memory, Some(number)).ok()?;
    }
    Some(number)
}

/// A vforked child does the same before its first frame, as far as it can without changing what is its parent's.
pub(super) fn announce_guest(pid: u32) -> Option<u64> {
    if process::is_confined() || is_known_by_number(writer()?) && process::parent() != 0 {
        return None;
    }
    let number = announcement(pid);
    note(socket::OWN.if_there()?, ANNOUNCE, Some(OWN.if_there()?), Some(number)).ok()?;
    Some(number)
}

/// Whether the server sees the writers of the ring under the numbers that they see themselves.
fn is_known_by_number(writer: &Writer) -> bool {
    writer.memory().words().numbers.load(Ordering::Relaxed) == numbers::SAME
}

/// A number that is not used twice within a ring: two processes have not both one number and one time.
fn announcement(pid: u32) -> u64 {
    now_ns() ^ u64::from(pid) << PID_SHIFT
}

/// Announces this process on a connection; a server that does not read is waited for as in a stall.
fn tell(fd: BorrowedFd<'_>, memory: BorrowedFd<'_>, number: u64) -> Result<(), Errno> {
    loop {
        match note(fd, ANNOUNCE, Some(memory), Some(number)) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN | Errno::NOBUFS) if stall::wait_for_room(fd).is_ok() => {}
            told => return told.inspect(|()| stall::end()),
        }
    }
}

/// The ring stays mapped, for threads that are in the middle of a frame; the server reads it to its end.
pub(super) fn stop() {
    leave();
    WRITER.store(core::ptr::null_mut(), Ordering::Release);
    OWN.close();
}

#[inline]
fn writer() -> Option<&'static Writer> {
    // SAFETY: null, or set by `init` to memory that is never unmapped.
    unsafe { WRITER.load(Ordering::Acquire).as_ref() }
}

/// Sees to it, now and then, that there is a server that has the ring, and that it does not sleep.
#[inline]
pub(super) fn look_after(now_ns: u64) {
    let Some(writer) = writer() else { return };
    let looked = LOOKED_NS.load(Ordering::Relaxed);
    if now_ns.wrapping_sub(looked) >= LOOK_NS || writer.memory().words().sleeps.load(Ordering::Relaxed) != 0 {
        look(writer, now_ns, looked);
    }
}

#[cold]
#[inline(never)]
fn look(writer: &Writer, now_ns: u64, looked: u64) {
    if process::is_confined() || process::who().is_guest {
        return;
    }
    writer.memory().words().sleeps.store(0, Ordering::Relaxed);
    // One thread does.
    if LOOKED_NS.compare_exchange(looked, now_ns, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        let _ = stack::on_own(wake);
    }
}

/// Makes the server look at its rings, or hands the ring to the one that there is now.
///
/// # Errors
///
/// No server has the ring: those of connect(2) and sendmsg(2).
fn wake() -> Result<(), Errno> {
    let Some(memory) = OWN.current() else { return Ok(()) };
    let Some(fd) = socket::OWN.current() else { return announce(memory, None) };
    // A server of datagrams does not know who is still there: it is told with each.
    let is_stream = socket_type(fd) == Ok(SocketType::STREAM);
    match note(fd, b"wake", (!is_stream).then_some(memory), None) {
        // One that has not read the last one yet is awake, or will be.
        Ok(()) | Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => Ok(()),
        Err(_) => {
            socket::OWN.close();
            announce(memory, None)
        }
    }
}

/// Hands the ring to the server, by whichever type of socket it has. After an error a later look tries again.
fn announce(memory: BorrowedFd<'_>, number: Option<u64>) -> Result<(), Errno> {
    let socket = match socket::open(SocketType::STREAM) {
        Err(Errno::PROTOTYPE) => socket::open(SocketType::DGRAM),
        other => other,
    }?;
    let fd = socket::OWN.keep(socket)?;
    note(fd, ANNOUNCE, Some(memory), number).inspect_err(|_| socket::OWN.close())
}

/// Sends a frame about the ring, and about the process that sends it if there is a number.
fn note(fd: BorrowedFd<'_>, text: &[u8], memory: Option<BorrowedFd<'_>>, number: Option<u64>) -> Result<(), Errno> {
    let mut buffer = [0; MAX_NOTE_LEN];
    let mut ext = ExtWriter::new(&mut buffer);
    ext.put(Ext::Pid(process::who().pid));
    if let Some(number) = number {
        ext.put(Ext::Announcement(number));
    }
    let frame = Frame { conn: text, ext: ext.finish(), ..Frame::new(FrameType::Ring, now_ns() / 1_000_000) };
    let mut bytes = [0; MAX_NOTE_LEN];
    // A short text and two numbers: it fits.
    let len = frame.encode(&mut bytes).unwrap_or(0);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = memory.map(|memory| [memory]);
    if let Some(fds) = &fds {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    socket::send_with(fd, &[&bytes[..len]], &mut ancillary).map(|_| ())
}

/// Who writes a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writing {
    /// The thread.
    pub(crate) tid: u32,
    /// Where its call is on the stack.
    pub(crate) call: usize,
    /// Whether the payload may have been unmapped since the call was made.
    pub(crate) may_be_gone: bool,
}

/// The ring, while frames go there.
#[derive(Clone, Copy)]
pub(crate) struct Ring(&'static Writer);

/// The ring, if there is one.
#[inline]
pub(crate) fn ring() -> Option<Ring> {
    writer().map(Ring)
}

impl Ring {
    /// Sees to the server and takes the place for a frame of a length.
    #[inline(always)]
    pub(crate) fn begin(self, len: usize, from: Writing, now_ns: u64) -> Result<Begun, Undelivered> {
        look_after(now_ns);
        self.reserve(len, from)
    }

    #[inline(always)]
    fn reserve(self, len: usize, Writing { tid, call, .. }: Writing) -> Result<Begun, Undelivered> {
        let unfinished = Unfinished::new(self.0, tid, call);
        match self.0.reserve_noting(len, tid, |position| unfinished.at(position)) {
            Ok(record) => {
                if FULL_SINCE_NS.load(Ordering::Relaxed) != 0 {
                    FULL_SINCE_NS.store(0, Ordering::Relaxed);
                }
                Ok(Begun { record, unfinished })
            }
            Err(Full) => match wait_for_room(self.0, len, tid, &unfinished) {
                Ok(record) => Ok(Begun { record, unfinished }),
                Err(why) => {
                    unfinished.done();
                    Err(why)
                }
            },
        }
    }

    pub(super) fn put(self, frame: &[&[u8]], from: Writing) -> Result<(), Undelivered> {
        let len = frame.iter().map(|part| part.len()).sum();
        let mut record = self.reserve(len, from)?;
        let is_whole = frame.iter().all(|part| record.push_if_there(part, from.may_be_gone));
        record.commit();
        if is_whole { Ok(()) } else { Err(Undelivered::Unmapped) }
    }
}

/// A frame's place in the ring, noted as unfinished.
pub(crate) struct Begun {
    record: Record,
    unfinished: Unfinished,
}

impl Begun {
    /// Appends to the frame.
    #[inline(always)]
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.record.push(bytes);
    }

    /// The same of bytes that may not be there any more, if they are so many that the program may have mapped them for
    /// this one call. If they are not, the frame is left out.
    fn push_if_there(&mut self, bytes: &[u8], may_be_gone: bool) -> bool {
        if !may_be_gone || bytes.len() < MAPPED_LEN {
            self.record.push(bytes);
            return true;
        }
        // SAFETY: `push_by` has room for so many.
        self.record.push_by(bytes.len(), |to| unsafe { copy_if_there(bytes.as_ptr(), to, bytes.len()) })
    }

    /// The same of a number of bytes that the compiler knows.
    #[inline(always)]
    pub(crate) fn push_array<const N: usize>(&mut self, bytes: [u8; N]) {
        self.record.push_array(bytes);
    }

    /// The same of a number of bytes that the compiler knows and `write` writes.
    #[inline(always)]
    pub(crate) fn push_with<const N: usize>(&mut self, write: impl FnOnce(&mut [u8; N])) {
        self.record.push_with(write);
    }

    /// The frame is complete.
    #[inline(always)]
    pub(crate) fn commit(self) {
        self.record.commit();
        self.unfinished.done();
    }
}

/// Waits for room if the parameters say so, for as long as they say, once: as long as the server then does not read,
/// nobody waits again.
#[cold]
#[inline(never)]
fn wait_for_room(writer: &Writer, len: usize, tid: u32, unfinished: &Unfinished) -> Result<Record, Undelivered> {
    let words = writer.memory().words();
    if len > writer.max_frame_len() || process::is_confined() {
        return Err(Undelivered::Full);
    }
    loop {
        let seen = words.room.load(Ordering::Acquire);
        words.waiting.fetch_add(1, Ordering::SeqCst);
        let reserved = writer.reserve_noting(len, tid, |position| unfinished.at(position));
        let left = if reserved.is_ok() || words.stopped.load(Ordering::Relaxed) != 0 { 0 } else { left_ns() };
        if left > 0 {
            let _ = stack::on_own(wake);
            let timeout = futex::Timespec { tv_sec: 0, tv_nsec: left.min(WAIT_NS) as _ };
            let _ = futex::wait(&words.room, futex::Flags::empty(), seen, Some(&timeout));
        }
        words.waiting.fetch_sub(1, Ordering::SeqCst);
        if let Ok(record) = reserved {
            return Ok(record);
        }
        if left == 0 {
            return Err(Undelivered::Full);
        }
    }
}

/// How long there is still to wait, in nanoseconds.
fn left_ns() -> u64 {
    let OnFull::Block { max_wait_ms } = params::get().on_full else { return 0 };
    let now_ns = monotonic_ns();
    let since = match FULL_SINCE_NS.compare_exchange(0, now_ns, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => now_ns,
        Err(since) => since,
    };
    (since + max_wait_ms * 1_000_000).saturating_sub(now_ns)
}

/// The process ends, or becomes another program: a server should have the ring by then, for it goes with the process.
///
/// While a server that was killed may come back, that is waited for as for room in the ring.
pub(super) fn leave() {
    let Some(writer) = writer() else { return };
    let words = writer.memory().words();
    if process::is_confined() || process::who().is_guest {
        return;
    }
    let started_ns = monotonic_ns();
    while words.tail_position() != words.head_position() {
        let Err(error) = wake() else { return };
        let is_there = error == Errno::AGAIN;
        let patience_ns = match params::get().on_full {
            OnFull::Block { max_wait_ms } if words.stopped.load(Ordering::Relaxed) == 0 => max_wait_ms * 1_000_000,
            _ if is_there => BUSY_NS,
            _ => 0,
        };
        if monotonic_ns() - started_ns >= patience_ns {
            return;
        }
        let pause = Timespec { tv_sec: 0, tv_nsec: WAIT_NS as _ };
        // A signal makes it shorter.
        let _ = rustix::thread::clock_nanosleep_relative(ClockId::Monotonic, &pause);
    }
}

/// Whether the server has said that it reads the ring no more.
pub(super) fn is_stopped() -> bool {
    writer().is_some_and(|writer| writer.memory().words().stopped.load(Ordering::Relaxed) != 0)
}

/// Notes what was lost, for the server to tell should this process not come to it.
pub(crate) fn note_loss(bytes: u64, ts_ns: u64) {
    let Some(writer) = writer() else { return };
    let words = writer.memory().words();
    words.lost_bytes.fetch_add(bytes, Ordering::Relaxed);
    let _ = words.lost_since.compare_exchange(0, ts_ns, Ordering::Relaxed, Ordering::Relaxed);
    words.lost_until.store(ts_ns, Ordering::Relaxed);
    words.lost_events.fetch_add(1, Ordering::Release);
}

/// A frame has told of these.
pub(crate) fn told_losses(events: u64, bytes: u64) {
    let Some(writer) = writer() else { return };
    let words = writer.memory().words();
    words.lost_events.fetch_sub(events, Ordering::Relaxed);
    words.lost_bytes.fetch_sub(bytes, Ordering::Relaxed);
    words.lost_since.store(0, Ordering::Relaxed);
}
