//! Into the programs that this one executes: the dynamic linker loads a preloaded probe into them if their
//! environment says so (LD_PRELOAD, ld.so(8)). And what is said of those that it does not get into.
//!
//! These functions run between vfork and exec, where memory is the parent's, in signal handlers, and on small stacks: they
//! put together what they need in memory of their own ([`room`]).

pub(crate) mod environment;
mod program;
mod room;

use core::ffi::{CStr, c_char, c_int};
use core::fmt::Write as _;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use gttr::{Ext, ExtWriter, FrameType};
use rustix::fs::{Access, AtFlags, CWD, accessat, readlinkat_raw, statat};

use crate::emit::{Event, emit};
use crate::observe::failures;
use crate::process::clock::now_ns;
use crate::process::{self, stack};
use crate::sys::confined::is_confined;
use crate::sys::libc::{errno, own_environment, set_errno};
use crate::sys::text::Text;
use crate::sys::{self, params};
use crate::table::descriptors;
use crate::{patch, transport};
use environment::{LD_PRELOAD, leads_nowhere, survey, write_array, write_value};
use program::{FRONT_LEN, Found};
use room::Room;

pub(crate) use program::Target;
pub(crate) use room::{after_fork, give_back};

/// The name of the file with the parameters, beside the probe.
pub(crate) const PARAMS_NAME: &[u8] = b"/params";
/// Bytes for the extension values of an event: two paths or texts.
const VALUES_LEN: usize = 3072;
/// Bytes of a program's path that an event shows.
const MAX_PROGRAM_LEN: usize = 1024;

/// The probe's own path in LD_PRELOAD; null where it was not preloaded or is not to follow.
static PROBE_PATH: AtomicPtr<c_char> = AtomicPtr::new(core::ptr::null_mut());
/// The file beside it with its parameters.
static PARAMS_PATH: AtomicPtr<c_char> = AtomicPtr::new(core::ptr::null_mut());
/// Which file that was when the probe was loaded: device, inode number, and when it was last changed. Another one under
/// the same name is somebody else's.
static PARAMS_FILE: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
/// Whether it was there when that was last looked at.
static WAS_THERE: AtomicBool = AtomicBool::new(false);

/// Makes executed programs load the probe from this path, which stays in memory for good.
pub(crate) fn follow(path: &'static CStr) {
    let bytes = path.to_bytes();
    let folder = &bytes[..bytes.iter().rposition(|&b| b == b'/').unwrap_or(0)];
    let Ok(params) = params::map(folder.len() + PARAMS_NAME.len() + 1) else { return };
    // SAFETY: mapped with this length and zeroed, so that a NUL follows; ours alone.
    let params = unsafe {
        params.copy_from_nonoverlapping(folder.as_ptr(), folder.len());
        params.add(folder.len()).copy_from_nonoverlapping(PARAMS_NAME.as_ptr(), PARAMS_NAME.len());
        CStr::from_ptr(params.cast())
    };
    if let Some(file) = identity(params) {
        PARAMS_FILE.iter().zip(file).for_each(|(to, value)| to.store(value, Ordering::Relaxed));
        WAS_THERE.store(true, Ordering::Relaxed);
    }
    PARAMS_PATH.store(params.as_ptr().cast_mut(), Ordering::Relaxed);
    PROBE_PATH.store(path.as_ptr().cast_mut(), Ordering::Release);
}

/// The library that programs load which this one executes; null: none is to. For a socktrace that is traced itself.
#[cfg_attr(feature = "standalone", unsafe(no_mangle))]
pub extern "C" fn socktrace_followed_by() -> *const c_char {
    PROBE_PATH.load(Ordering::Acquire)
}

/// Keeps the probe out of the programs that are executed from here on, until it is told to follow again.
pub(crate) fn stop() {
    // No file has this number.
    PARAMS_FILE.iter().for_each(|value| value.store(0, Ordering::Relaxed));
    WAS_THERE.store(false, Ordering::Relaxed);
}

fn probe_path() -> Option<&'static CStr> {
    let path = PROBE_PATH.load(Ordering::Acquire);
    // SAFETY: null, or set by `follow`.
    (!path.is_null()).then(|| unsafe { CStr::from_ptr(path) })
}

/// Whether programs are still to load the probe, and can. Whoever put it there ends and takes it away: first its
/// parameters, which is what is looked for here, and a moment later the library itself. The dynamic linker complains, on
/// the program's standard error, of one that it does not find; so it has to be there as the new program will see it, from
/// its root directory (chroot(2)), in its mount namespace, and as its user.
fn is_there(probe: &CStr) -> bool {
    if is_confined() {
        return WAS_THERE.load(Ordering::Relaxed) && !transport::is_stopped();
    }
    // SAFETY: set by `follow` before the path of the probe.
    let params = unsafe { CStr::from_ptr(PARAMS_PATH.load(Ordering::Relaxed)) };
    let is_ours =
        |file: [u64; 4]| PARAMS_FILE.iter().zip(file).all(|(ours, value)| ours.load(Ordering::Relaxed) == value);
    let is_same = identity(params).is_some_and(is_ours);
    let is_there = is_same && accessat(CWD, probe, Access::READ_OK, AtFlags::empty()).is_ok();
    WAS_THERE.store(is_there, Ordering::Relaxed);
    is_there
}

/// The process has another root directory (chroot(2)), or other mounts (setns(2)). Where nobody can be asked whether the
/// probe is there as well, it is taken not to be: the dynamic linker would complain.
pub(crate) fn root_changed() {
    if is_confined() {
        WAS_THERE.store(false, Ordering::Relaxed);
    }
}

fn identity(path: &CStr) -> Option<[u64; 4]> {
    let stat = statat(CWD, path, AtFlags::empty()).ok()?;
    Some([stat.st_dev, stat.st_ino, stat.st_ctime.cast_unsigned(), stat.st_ctime_nsec])
}

/// A filter is about to be set, behind which nobody can be asked any more.
pub(crate) fn before_filter() {
    if process::is_started() && !is_confined() {
        room::keep_one();
    }
    if let Some(probe) = probe_path() {
        is_there(probe);
    }
}

/// Whether the probe is in force, with a process of its own to speak of.
fn is_tracing() -> bool {
    process::is_started() && descriptors::is_tracing()
}

/// A call that executes a program.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) name: &'static str,
    /// What it executes; `None` where that is found out, and told, later on the way: by execve(2), which this comes to.
    pub(crate) target: Option<Target<'a>>,
    /// Whether the target is a path, and not a name that is looked for in PATH.
    pub(crate) is_path: bool,
    /// Whether a child executes it, and this process goes on (posix_spawn(3)).
    pub(crate) is_spawn: bool,
}

impl<'a> Call<'a> {
    /// One that takes a path, as execve(2) does.
    ///
    /// # Safety
    ///
    /// `path` is what the program gave the call.
    pub(crate) unsafe fn of_path(
        name: &'static str,
        directory: Option<c_int>,
        path: *const c_char,
        flags: c_int,
    ) -> Self {
        // SAFETY: the caller's promise.
        let path = if is_tracing() { unsafe { readable_path(path) } } else { None };
        let target = path.map(|path| match directory {
            Some(directory) => Target { directory, path, flags },
            None => Target::at(path),
        });
        Self { name, target, is_path: true, is_spawn: false }
    }

    /// One that takes an open file.
    pub(crate) fn of_open(name: &'static str, fd: c_int) -> Self {
        Self { name, target: is_tracing().then(|| Target::open(fd)), is_path: true, is_spawn: false }
    }

    /// One whose end is libc's execve(2), to which it gives a path: where libc is patched, that tells of it.
    ///
    /// # Safety
    ///
    /// As of `of_path`.
    pub(crate) unsafe fn on_the_way(name: &'static str, file: *const c_char, searches: bool) -> Self {
        if patch::is_any() {
            return Self { name, target: None, is_path: false, is_spawn: false };
        }
        // SAFETY: the caller's promise.
        let call = unsafe { Self::of_path(name, None, file, 0) };
        let is_path = !searches || call.target.is_some_and(|target| target.path.to_bytes().contains(&b'/'));
        Self { is_path, ..call }
    }

    /// What it said of a failure: by -1 and `errno`, or by its result. 0: it has not failed.
    fn errno(&self, result: c_int) -> c_int {
        match (self.is_spawn, result) {
            (true, _) => result,
            (false, -1) => errno(),
            (false, _) => 0,
        }
    }
}

/// A path of the program's that is there to be read: the kernel has read it. `None` where it has not.
unsafe fn readable_path<'a>(path: *const c_char) -> Option<&'a CStr> {
    if path.is_null() || leads_nowhere(path) || (!is_confined() && !sys::is_path_readable(path)) {
        return None;
    }
    // SAFETY: the caller's promise, and not a wild guess.
    Some(unsafe { CStr::from_ptr(path) })
}

/// Why a program is not traced although nothing about its file is in the way.
const NOT_ASKED_FOR: &str = "not asked for";
const NOT_REACHABLE: &str = "the probe cannot be reached from its root directory or mount namespace";
const NO_MEMORY: &str = "no memory for its environment with the probe in it";
const TOO_LARGE: &str = "its arguments and environment leave no room for the probe";

/// Executes a program with an environment that is `envp` with the probe in LD_PRELOAD, or without it where it is not to be
/// there; and says that it is executed, and whether it will be traced.
///
/// # Safety
///
/// As of execve(2); `exec` makes the call, with an environment.
pub(crate) unsafe fn execute(
    call: &Call<'_>,
    envp: *const *const c_char,
    exec: impl Fn(*const *const c_char) -> c_int,
) -> c_int {
    // Also when nothing is traced any more, the probe's name must not stay in the environment.
    if leads_nowhere(envp) || (!is_tracing() && probe_path().is_none()) {
        return exec(envp);
    }
    // SAFETY: the caller's promise.
    let mut plan = stack::on_own(|| unsafe { prepare(call, envp) });
    let mut result = exec(plan.envp);
    let mut errno = call.errno(result);
    if errno == 0 {
        return result;
    }
    /// E2BIG of errno(3): what the kernel takes of arguments and environment, or of one variable.
    const E2BIG: c_int = 7;
    if errno == E2BIG && plan.adds_probe {
        stack::on_own(|| tell(call, Some(TOO_LARGE), plan.buffer()));
        result = exec(envp);
        errno = call.errno(result);
    }
    if plan.is_told {
        stack::on_own(|| tell_failure(call, errno));
    }
    result
}

/// How a program is executed.
struct Plan {
    /// What it gets.
    envp: *const *const c_char,
    /// Where that is, if it was changed, and a buffer behind it.
    room: Option<Room>,
    /// Where the buffer begins.
    buffer_at: usize,
    /// Whether the program's own environment does not have the probe.
    adds_probe: bool,
    /// Whether it was said that the program is executed.
    is_told: bool,
}

impl Plan {
    fn unchanged(envp: *const *const c_char, is_told: bool) -> Self {
        Self { envp, room: None, buffer_at: 0, adds_probe: false, is_told }
    }

    fn buffer(&mut self) -> &mut [u8] {
        let at = self.buffer_at;
        self.room.as_mut().and_then(|room| room.bytes().get_mut(at..)).unwrap_or_default()
    }
}

/// Looks at the program, puts its environment together, and says what is executed.
///
/// # Safety
///
/// As of `execute`.
unsafe fn prepare(call: &Call<'_>, envp: *const *const c_char) -> Plan {
    // SAFETY: the caller's promise.
    let survey = unsafe { survey(envp) };
    let probe = probe_path();
    let path_len = probe.map_or(0, CStr::count_bytes);
    let value_len = LD_PRELOAD.len() + survey.preload.map_or(0, |(_, value)| value.len()) + path_len + 2;
    let array_len = (survey.count + 2) * size_of::<*const c_char>();
    let Some(mut room) = Room::claim(array_len + value_len + FRONT_LEN.max(VALUES_LEN)) else {
        tell(call, Some(NO_MEMORY), &mut []);
        return Plan::unchanged(envp, true);
    };
    let (array, rest) = room.bytes().split_at_mut(array_len);
    let (value, buffer) = rest.split_at_mut(value_len);
    let found = match &call.target {
        Some(target) if call.is_path && !is_confined() && (!call.is_spawn || is_single_threaded()) => {
            program::look(target, &mut buffer[..FRONT_LEN])
        }
        _ => Found::Program(None),
    };
    let Found::Program(hindrance) = found else {
        // It will fail, as the search through PATH does for most folders.
        return Plan::unchanged(envp, false);
    };
    let is_there = probe.is_some_and(is_there);
    let is_wanted = is_there && !hindrance.is_some_and(program::Hindrance::is_another_kind);
    let why = match (probe, hindrance) {
        (None, _) => Some(NOT_ASKED_FOR),
        (Some(_), Some(hindrance)) => Some(hindrance.text()),
        (Some(_), None) if !is_there => Some(NOT_REACHABLE),
        (Some(_), None) => None,
    };
    let changed = match probe {
        Some(probe) if is_wanted != survey.names(probe) => {
            let value = write_value(value, &survey, probe, is_wanted);
            // SAFETY: the caller's promise, and room for so many.
            Some(unsafe { write_array(array, envp, &survey, value) })
        }
        _ => None,
    };
    tell(call, why, buffer);
    Plan {
        envp: changed.unwrap_or(envp),
        room: Some(room),
        buffer_at: array_len + value_len,
        adds_probe: is_wanted && changed.is_some(),
        is_told: true,
    }
}

/// Whether no other thread can be opening a file meanwhile, for which it expects the lowest free number.
fn is_single_threaded() -> bool {
    /// A directory's links: itself twice, and one a thread.
    const LINKS: u64 = 3;
    statat(CWD, c"/proc/self/task", AtFlags::empty()).is_ok_and(|stat| stat.st_nlink == LINKS)
}

/// Says what is executed, and why it will not be traced, if it will not; `buffer` is for its values.
#[inline(never)]
fn tell(call: &Call<'_>, why: Option<&str>, buffer: &mut [u8]) {
    let Some(target) = &call.target else { return };
    // A program that is traced introduces itself. That this process executes it is news; that a child does is not.
    if call.is_spawn && why.is_none() {
        return;
    }
    let who = process::who();
    if who.is_guest && !transport::reaches_guests() {
        return;
    }
    // In a pid namespace the collector may not find out who has said this before the process is another program, which will
    // introduce itself.
    if who.is_guest && why.is_none() && transport::guests_announce_themselves() {
        return;
    }
    transport::before_last();
    let mut path = target.path.to_bytes();
    let (of_path, of_values) = buffer.split_at_mut(buffer.len().min(MAX_PROGRAM_LEN));
    if path.is_empty() && !is_confined() {
        let mut link = Text::<32>::new();
        let _ = write!(link, "/proc/thread-self/fd/{}", target.directory);
        let len = link.as_c_str().map_or(0, |link| readlinkat_raw(CWD, link, &mut *of_path).unwrap_or(0));
        path = &of_path[..len];
    }
    // Where there is no memory: the reason alone.
    let mut small = [0; 96];
    let mut values = ExtWriter::new(if of_values.is_empty() { &mut small } else { of_values });
    if let Some(why) = why {
        values.put(Ext::Untraced(why.as_bytes()));
    }
    values.put(Ext::Program(&path[..path.len().min(MAX_PROGRAM_LEN)]));
    match process::sockets_made() {
        made @ 1.. if !who.is_guest => values.put(Ext::SocketsMade(made)),
        _ => {}
    }
    let text: &[u8] = if call.is_spawn { call.name.as_bytes() } else { b"" };
    let event = Event { conn: [text, b"", b""], more: values.bytes(), ..Event::new(FrameType::Exec, now_ns()) };
    emit(&event, &[]);
}

/// Says that the program was not executed after all.
fn tell_failure(call: &Call<'_>, errno: c_int) {
    let (Some(target), 1..) = (&call.target, errno) else { return };
    if !process::who().is_guest || transport::reaches_guests() {
        failures::of_exec(call.name, target.path.to_bytes(), errno);
    }
    if !call.is_spawn {
        set_errno(errno);
    }
}

/// The program's own environment, if what it says of the probe has to be changed.
pub(crate) fn own_environment_to_change() -> Option<*const *const c_char> {
    let probe = probe_path()?;
    let envp = own_environment();
    // SAFETY: libc's `environ`, which the program may execute others with.
    let has_probe = unsafe { survey(envp) }.names(probe);
    (has_probe != is_there(probe)).then_some(envp)
}
