//! The ring: frames in memory that the server reads (docs/gttr.md, "Rings").
//!
//! A frame costs no system call, except now and then: to wake a reader that sleeps, to see whether it is still there,
//! and to wait for room where the parameters ask for that. What takes descriptors is done aside; the only one that is
//! kept is the ring's memfd, for a server that is started anew.

use core::fmt::Write as _;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use gttr::{Ext, ExtWriter, Frame, FrameType};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock, fstat, openat, statat};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SocketType};
use rustix::thread::futex;
use rustix::time::{ClockId, Timespec};
use socktrace_ring::{Memory, PAGE_LEN, Reader, Words, Writer, create, is_ring_len, numbers, unmap};

use super::own::{NotKept, Own, out_of_sight};
use super::stall::Waited;
use super::unfinished::{self};
use super::{limits, sendmsg, socket};
use crate::process::aside::{aside, is_alone};
use crate::process::clock::{monotonic_ns, now_ns};
use crate::process::{self, stack};
use crate::sys::confined::is_confined;
use crate::sys::params::{self, OnFull};
use crate::sys::text::Text;
use crate::sys::{fetch, listener, sock_diag};

/// How often the server is looked for, in nanoseconds: a restarted one takes the ring over after this long.
const LOOK_NS: u64 = 100_000_000;
/// How often a server that has not taken the ring is told of it again, in nanoseconds: it may not go by the lock, and give
/// up a ring that nobody is connected for (docs/gttr.md, "Announcing").
const TELL_NS: u64 = 2_000_000_000;
/// How long a wait for room is at a time, in nanoseconds. The server wakes whoever waits, so this is for one that was
/// killed meanwhile.
pub(super) const WAIT_NS: u64 = 10_000_000;
/// How long a server that has no room for another agent, or that may just be starting, is waited for at the end, whatever the
/// parameters say.
const BUSY_NS: u64 = 100_000_000;
/// How often it is looked whether the server has read a ring that is to be given back, in nanoseconds.
const DRAIN_NS: u64 = 1_000_000;
/// What a frame says that hands a ring over.
const ANNOUNCE: &[u8] = b"announce";
/// Process ids are below 2²² (proc(5), pid_max).
const PID_SHIFT: u32 = 40;
/// Bytes of the longest frame that is sent by the socket instead.
const MAX_NOTE_LEN: usize = 128;

/// The memfd of the ring, to be handed to the next server; none where there is no number for it.
pub(super) static OWN: Own = Own::none();
/// The ring; null until it is made.
static WRITER: AtomicPtr<Writer> = AtomicPtr::new(core::ptr::null_mut());
/// When the server was last looked for, nanoseconds.
static LOOKED_NS: AtomicU64 = AtomicU64::new(0);
/// Up to where the ring had been read then.
static HEAD: AtomicU64 = AtomicU64::new(0);
/// The server that was told of the ring last, as [`identity`] has it; 0: none was.
static SERVER: AtomicU64 = AtomicU64::new(0);
/// In the place of such a number: whoever has put the probe here has the ring.
const WHO_ATTACHED: u64 = 1;
/// The ring of before [`stop`], for the next start; null: there is none.
static KEPT: AtomicPtr<Writer> = AtomicPtr::new(core::ptr::null_mut());
/// When it was told, nanoseconds.
static TOLD_NS: AtomicU64 = AtomicU64::new(0);
/// How long room was waited for since the ring was read as far as [`WAITED_AT`].
pub(super) static WAITED: Waited = Waited::nothing();
static WAITED_AT: AtomicU64 = AtomicU64::new(0);

/// Makes the ring, if the limits of the program leave room for one; whether they do.
pub(super) fn init() -> bool {
    if !take_up() && !begin() {
        return false;
    }
    socket::begin_session();
    true
}

/// Goes on with the ring of before [`stop`], if it is one that is handed over: whoever attaches again and again does not have
/// the process grow. What nobody has read of it is dropped, as is what was lost.
fn take_up() -> bool {
    let kept = KEPT.swap(core::ptr::null_mut(), Ordering::AcqRel);
    // SAFETY: null, or what `begin` has made, which is never unmapped while it may be here.
    let Some(writer) = (unsafe { kept.as_ref() }) else { return false };
    let (memory, params) = (*writer.memory(), params::get());
    let is_as_wanted = params.hand_over && memory.ring_len() as u64 == params.ring_bytes;
    if !is_as_wanted || unfinished::is_any() || OWN.current().is_none() {
        OWN.close();
        return false;
    }
    let Some(mut reader) = Reader::new(memory) else { return false };
    while reader.step_over() {}
    reader.free();
    let words = memory.words();
    for word in [&words.sleeps, &words.stopped, &words.taken, &words.numbers] {
        word.store(0, Ordering::Relaxed);
    }
    words.lost_events.store(0, Ordering::Relaxed);
    words.lost_bytes.store(0, Ordering::Relaxed);
    words.lost_since.store(0, Ordering::Relaxed);
    SERVER.store(WHO_ATTACHED, Ordering::Relaxed);
    WRITER.store(kept, Ordering::Release);
    true
}

/// The program's limits may have changed. A ring that they leave no room for is given back, and a shorter one made if they
/// leave room for that; whether there is one. It stays while anybody may be in the middle of a frame.
pub(super) fn fit_limits() -> bool {
    let Some(writer) = writer() else { return false };
    let memory = *writer.memory();
    // First, before a thread of ours that helps out.
    if process::who().is_guest || unfinished::is_any() || !is_alone() {
        return true;
    }
    let limits = limits::now(PAGE_LEN + 2 * memory.ring_len());
    let fits = limits.ring_len(memory.ring_len());
    if fits == Some(memory.ring_len()) || limits.are_exceeded() {
        return true;
    }
    leave();
    let words = memory.words();
    if fits.is_none() {
        // What comes next goes another way, and must not be there first.
        let started_ns = monotonic_ns();
        while words.tail_position() != words.head_position() && monotonic_ns() - started_ns < BUSY_NS {
            wake(words);
            pause(DRAIN_NS);
        }
    }
    let (events, bytes, since_ns) = process::own().lost.now();
    words.told_losses(events, bytes);
    WRITER.store(core::ptr::null_mut(), Ordering::Release);
    OWN.close();
    // SAFETY: this is the only thread, and not in the middle of a frame.
    unsafe { unmap(memory) };
    // Nobody would take another one out of the process.
    let is_made = !params::get().hand_over && begin();
    if let (true, 1.., Some(writer)) = (is_made, events, self::writer()) {
        writer.memory().words().note_losses(events, bytes, since_ns);
    }
    is_made
}

/// Makes a ring, and no other is written to from here on; whether it could be.
fn begin() -> bool {
    let Some(mut len) = limits::now(0).ring_len(params::get().ring_bytes as usize) else { return false };
    // Nobody has been told of this one, whoever has the one before it.
    SERVER.store(0, Ordering::Relaxed);
    let Ok(at) = params::map(size_of::<Writer>()) else { return false };
    let memory = loop {
        match make(len) {
            Ok(memory) => break memory,
            // There is less than there seems to be.
            Err(_) if is_ring_len(len / 2) => len /= 2,
            Err(_) => return false,
        }
    };
    let at = at.cast::<Writer>();
    // SAFETY: mapped for this, large enough, page-aligned and ours alone.
    unsafe { at.write(Writer::new(memory)) };
    WRITER.store(at, Ordering::Release);
    true
}

/// Makes a ring and tells the server of it. Its memfd is kept if there is a number for it; if there is none, there is a ring
/// only if the server has it by now.
fn make(len: usize) -> Result<Memory, Errno> {
    let mut made = None;
    let kept = OWN.keep(|| {
        let (fd, memory) = create(len)?;
        made = Some(memory);
        lock(&fd, &memory);
        Ok(fd)
    });
    match (kept, made) {
        (Ok(_), Some(memory)) => {
            // A server that is not there yet is looked for again.
            let _ = see_to_server(memory.words(), None);
            Ok(memory)
        }
        (Err(NotKept::NotMade(errno)), _) => Err(errno),
        (_, made) => {
            if let Some(memory) = made {
                // SAFETY: nobody has seen it.
                unsafe { unmap(memory) };
            }
            if params::get().hand_over {
                // It is taken by its number.
                return Err(Errno::MFILE);
            }
            let made = aside(|| {
                let (fd, memory) = create(len)?;
                lock(&fd, &memory);
                let again = open_again("/proc/thread-self", fd.as_raw_fd());
                let told = tell(Some(again.as_ref().unwrap_or(&fd)), memory.words(), None);
                if told.is_err() {
                    // SAFETY: as above.
                    unsafe { unmap(memory) };
                }
                told.map(|()| memory)
            });
            made.unwrap_or(Err(Errno::MFILE))
        }
    }
}

/// Has the memory be locked for as long as anybody has it mapped through this descriptor (flock(2)): the server, which is
/// given another one, sees by that whether there are writers.
fn lock(fd: &OwnedFd, memory: &Memory) {
    // Where there can be no other one, the server would find the lock to be its own.
    let has_other = open_again("/proc/thread-self", fd.as_raw_fd()).is_some();
    let is_locked = has_other && flock(fd, FlockOperation::NonBlockingLockExclusive).is_ok();
    memory.words().locked.store(u32::from(is_locked), Ordering::Relaxed);
}

/// A forked child begins, which shares its parent's ring: the number under which it has announced itself, if it has.
///
/// Frames say which process they are of by the number that it sees itself. Where that is another one than the server
/// sees, the server learns from an announcement who it is, because the kernel tells who has sent that.
pub(super) fn after_fork() -> Option<u64> {
    let writer = writer()?;
    // The first process of a pid namespace, say: process 1 of another one may write to the parent's ring as well.
    let is_first = process::parent() == 0;
    let has_own = is_first && !is_confined() && begin_apart(writer);
    IS_SHARED_ACROSS.store(is_first && !has_own, Ordering::Relaxed);
    if is_confined() || !has_own && (is_first || is_known_by_number(writer)) {
        return None;
    }
    let words = self::writer()?.memory().words();
    let number = announcement(process::own_pid());
    let started_ns = monotonic_ns();
    loop {
        match see_to_server(words, Some(number)) {
            Ok(()) => return Some(number),
            // A server that has no room for another connection now is waited for, but not for long.
            Err(Errno::AGAIN) if monotonic_ns() - started_ns < BUSY_NS => pause(WAIT_NS),
            Err(_) => return None,
        }
    }
}

/// Makes a ring for this process alone; whether it could be, and the server has it. If not, the one from before stays.
fn begin_apart(before: &'static Writer) -> bool {
    if params::get().hand_over {
        return false;
    }
    let server = SERVER.load(Ordering::Relaxed);
    OWN.close();
    let is_made = begin();
    if is_made && SERVER.load(Ordering::Relaxed) != 0 {
        return true;
    }
    if is_made && let Some(made) = writer() {
        WRITER.store(core::ptr::from_ref(before).cast_mut(), Ordering::Release);
        OWN.close();
        // SAFETY: made a moment ago by this thread, and no frame was written to it.
        unsafe { unmap(*made.memory()) };
    }
    SERVER.store(server, Ordering::Relaxed);
    false
}

/// Whether the ring is one to which another process of this one's number may write.
static IS_SHARED_ACROSS: AtomicBool = AtomicBool::new(false);

/// A number for the frames of this process, if there may be another of its number in the ring; else 0.
pub(super) fn number_apart() -> u64 {
    if IS_SHARED_ACROSS.load(Ordering::Relaxed) { announcement(process::own_pid()) | 1 } else { 0 }
}

/// A vforked child does the same before its first frame, as far as it can without changing what is its parent's.
pub(super) fn announce_guest(pid: u32) -> Option<u64> {
    let writer = writer()?;
    if !guests_announce_themselves() {
        return None;
    }
    let (fd, number) = (OWN.if_there()?.as_raw_fd(), announcement(pid));
    let told = aside(|| tell(open_or_fetch(fd).as_ref(), writer.memory().words(), Some(number)));
    told?.ok().map(|()| number)
}

/// Whether a vforked child's number may be another one where the server is: that of its parent is, or it is in a new pid
/// namespace.
pub(super) fn guests_announce_themselves() -> bool {
    let may_be_other = |writer: &Writer| !is_known_by_number(writer) || process::parent() == 0;
    !is_confined() && writer().is_some_and(may_be_other)
}

/// Whether the server sees the writers of the ring under the numbers that they see themselves.
fn is_known_by_number(writer: &Writer) -> bool {
    writer.memory().words().numbers.load(Ordering::Relaxed) == numbers::SAME
}

/// A number that is not used twice within a ring: two processes have not both one number and one time.
fn announcement(pid: u32) -> u64 {
    now_ns() ^ u64::from(pid) << PID_SHIFT
}

fn pause(ns: u64) {
    let pause = Timespec { tv_sec: 0, tv_nsec: ns as _ };
    // A signal makes it shorter.
    let _ = rustix::thread::clock_nanosleep_relative(ClockId::Monotonic, &pause);
}

/// The ring stays mapped, for threads that are in the middle of a frame; the server reads it to its end.
pub(super) fn stop() {
    leave();
    let writer = WRITER.swap(core::ptr::null_mut(), Ordering::AcqRel);
    if params::get().hand_over {
        KEPT.store(writer, Ordering::Release);
    } else {
        OWN.close();
    }
}

#[inline]
pub(super) fn writer() -> Option<&'static Writer> {
    // SAFETY: null, or set by `init` to memory that is never unmapped.
    unsafe { WRITER.load(Ordering::Acquire).as_ref() }
}

/// Whether a server was told of the ring.
pub(super) fn has_server() -> bool {
    SERVER.load(Ordering::Relaxed) != 0
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
    if is_confined() || process::who().is_guest {
        return;
    }
    let words = writer.memory().words();
    let is_deaf = words.sleeps.load(Ordering::Relaxed) != 0 && !wake(words);
    let is_time = now_ns.wrapping_sub(looked) >= LOOK_NS;
    // One thread does.
    if !is_time && !is_deaf || LOOKED_NS.compare_exchange(looked, now_ns, Ordering::Relaxed, Ordering::Relaxed).is_err()
    {
        return;
    }
    // A server that is there has read something since, or there was nothing to be read.
    let head = words.head_position();
    let is_stuck = HEAD.swap(head, Ordering::Relaxed) == head && words.tail_position() != head;
    if SERVER.load(Ordering::Relaxed) == 0 || is_time && is_stuck || is_deaf {
        let _ = stack::on_own(|| see_to_server(words, None));
    }
}

/// Wakes a server that says that it sleeps; whether one does.
fn wake(words: &Words) -> bool {
    words.sleeps.store(0, Ordering::SeqCst);
    futex::wake(&words.sleeps, futex::Flags::empty(), 1).is_ok_and(|woken| woken > 0)
}

/// Sees whether the server has the ring that was told of it, and tells the one that there is now.
///
/// # Errors
///
/// No server has the ring: those of connect(2) and sendmsg(2), EPERM if who listens is a stranger.
fn see_to_server(words: &Words, number: Option<u64>) -> Result<(), Errno> {
    if params::get().hand_over {
        SERVER.store(WHO_ATTACHED, Ordering::Relaxed);
        return if number.is_some() { Err(Errno::NOTCONN) } else { Ok(()) };
    }
    let held = OWN.number().and_then(|_| OWN.current()).map(|fd| fd.as_raw_fd());
    let task = || tell(held.and_then(open_or_fetch).as_ref(), words, number);
    out_of_sight(task).unwrap_or(Err(Errno::MFILE))
}

/// The ring's memory in the table of a thread that has its own, by the number that it has in the process's.
fn open_or_fetch(fd: i32) -> Option<OwnedFd> {
    // Without a /proc, the very one has to do.
    open_again("/proc/self", fd).or_else(|| fetch(fd).ok())
}

/// The ring's memory by a descriptor of its own, which leads to another open file description: the one that is locked
/// stays ours. `whose` is where /proc has who has the ring's.
fn open_again(whose: &str, fd: i32) -> Option<OwnedFd> {
    let mut path = Text::<64>::new();
    let _ = write!(path, "{whose}/fd/{fd}");
    openat(CWD, path.as_c_str()?, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).ok()
}

/// Connects to the server and hands it the ring, unless it is the one that has it and there is no number to be told. Out of
/// the program's sight.
fn tell(memory: Option<&OwnedFd>, words: &Words, number: Option<u64>) -> Result<(), Errno> {
    let socket = match socket::open(SocketType::STREAM) {
        Err(Errno::PROTOTYPE) => socket::open(SocketType::DGRAM),
        other => other,
    }?;
    let (server, now_ns) = (identity(&socket), monotonic_ns());
    let is_same = number.is_none() && server == SERVER.load(Ordering::Relaxed);
    let is_taken = words.taken.load(Ordering::Relaxed) != 0;
    if is_same && (is_taken || now_ns - TOLD_NS.load(Ordering::Relaxed) < TELL_NS) {
        return Ok(());
    }
    note(socket.as_fd(), memory.ok_or(Errno::BADF)?.as_fd(), number)?;
    TOLD_NS.store(now_ns, Ordering::Relaxed);
    SERVER.store(server, Ordering::Relaxed);
    Ok(())
}

/// Which server a socket is connected to, as a number that another one hardly has: by its process, and by its socket's
/// file. Never 0.
fn identity(socket: &OwnedFd) -> u64 {
    let process = listener(socket.as_fd()).map_or(0, |(pid, _)| u64::from(pid));
    let file = match params::get().out_socket_path {
        [b'@', ..] if process == 0 => fstat(socket).ok().and_then(|own| sock_diag::peer_inode(own.st_ino)).unwrap_or(0),
        [b'@', ..] => 0,
        path => statat(CWD, path, AtFlags::empty())
            .map_or(0, |stat| stat.st_ino ^ (stat.st_ctime as u64).rotate_left(24) ^ stat.st_ctime_nsec.rotate_left(8)),
    };
    (process.rotate_left(40) ^ file) | 1 << 63
}

/// Sends a frame that hands the ring over, and tells of the process that sends it if there is a number.
fn note(fd: BorrowedFd<'_>, memory: BorrowedFd<'_>, number: Option<u64>) -> Result<(), Errno> {
    let mut buffer = [0; MAX_NOTE_LEN];
    let mut ext = ExtWriter::new(&mut buffer);
    ext.put(Ext::Pid(process::who().pid));
    if let Some(number) = number {
        ext.put(Ext::Announcement(number));
    }
    let frame = Frame { conn: ANNOUNCE, ext: ext.finish(), ..Frame::new(FrameType::Ring, now_ns() / 1_000_000) };
    let mut bytes = [0; MAX_NOTE_LEN];
    // A short text and two numbers: it fits.
    let len = frame.encode(&mut bytes).unwrap_or(0);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [memory];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg::send_with(fd, &[&bytes[..len]], &mut ancillary).map(|_| ())
}

/// How long there is still to wait, in nanoseconds.
pub(super) fn left_ns(words: &Words) -> u64 {
    let params = params::get();
    if params.on_full != OnFull::Block {
        return 0;
    }
    let head = words.head_position();
    if WAITED_AT.swap(head, Ordering::Relaxed) != head {
        WAITED.forget();
    }
    WAITED.left_ns(params.max_wait_ms * 1_000_000)
}

/// The process ends, or becomes another program: a server should have the ring by then, for it goes with the process.
///
/// While a server that was killed may come back, that is waited for as for room in the ring. What cannot get better is not:
/// a server that has ended in order, a path that this user cannot get to, a server that never was.
pub(super) fn leave() {
    let Some(writer) = writer() else { return };
    let words = writer.memory().words();
    if is_confined() || process::who().is_guest {
        return;
    }
    let started_ns = monotonic_ns();
    while words.tail_position() != words.head_position() {
        if words.sleeps.load(Ordering::Relaxed) != 0 && wake(words) {
            return;
        }
        let Err(error) = see_to_server(words, None) else { return };
        let comes_back = words.taken.load(Ordering::Relaxed) != 0 && words.stopped.load(Ordering::Relaxed) == 0;
        let busy_left_ns = BUSY_NS.saturating_sub(monotonic_ns() - started_ns);
        let left = match error {
            Errno::CONNREFUSED if comes_back && OWN.number().is_some() => left_ns(words),
            Errno::NOENT if comes_back && OWN.number().is_some() => left_ns(words).min(busy_left_ns),
            Errno::AGAIN => busy_left_ns,
            _ => 0,
        };
        if left == 0 {
            return;
        }
        WAITED.during(|| pause(left.min(WAIT_NS)));
    }
}

/// Whether the server has said that it reads the ring no more.
pub(super) fn is_stopped() -> bool {
    writer().is_some_and(|writer| writer.memory().words().stopped.load(Ordering::Relaxed) != 0)
}

/// Notes what was lost, for the server to tell should this process not come to it.
pub(crate) fn note_loss(bytes: u64, ts_ns: u64) {
    if let Some(writer) = writer() {
        writer.memory().words().note_losses(1, bytes, ts_ns);
    }
}

/// A frame has told of these.
pub(crate) fn told_losses(events: u64, bytes: u64) {
    if let Some(writer) = writer() {
        writer.memory().words().told_losses(events, bytes);
    }
}
