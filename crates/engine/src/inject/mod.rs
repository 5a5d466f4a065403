//! The probe, put into a running process from outside by ptrace(2): without Frida, without a file that the process would have
//! to reach, and without a call of its libc's but those that the probe makes itself.
//!
//! ```text
//! tracee   a thread of the process is stopped, the one that is disturbed least
//! image    the probe is relocated here and written into memory that the thread maps
//! call     the thread calls socktrace_start on a stack of ours, and goes on with what it was doing
//! ```
//!
//! Where its events go is handed over from outside, too: the ring's memory is taken from the process's descriptors, and given
//! to the collector, so that nothing depends on a path or a network that both have.

mod call;
mod image;
mod memory;
mod objects;
mod tracee;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socktrace_collect::{Door, Sender};
use socktrace_event::proc_text;
use socktrace_params::{Params, Transport};

use crate::collector::Collector;
use crate::place::{Place as Folder, Removal};
use crate::{Attached, Engine, Error, Events, Options, Target, preload, target};
use image::{Image, Place};
use memory::{Mapping, Memory, mappings};
use objects::Object;
use tracee::{Refused, Stopped, Watched};

const NEVER_HEARD: &str = "the probe is in, and nothing came from it";
/// How long calls of the processes' that have a time limit are seen to their end when we leave. Those that take longer then
/// have as much time as when they were interrupted.
const MAX_WATCH: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(1);
/// How long a process is waited for that has just been started, until its libraries are loaded.
const MAX_START: Duration = Duration::from_secs(2);
/// Bytes of what the probe says is wrong.
const MAX_COMPLAINT: usize = 1024;
/// In the place of a path, where nothing can ever be.
const NO_SOCKET: &[u8] = b"/dev/null/handed-over";
/// What the ring is called among a process's descriptors (memfd_create(2)).
const RING: &[u8] = b"/memfd:socktrace-ring";

#[derive(Debug)]
struct Inject;

pub(crate) fn make(_: &Options) -> Box<dyn Engine> {
    Box::new(Inject)
}

impl Engine for Inject {
    fn hindrance(&self, target: Target<'_>) -> Option<String> {
        match target {
            Target::Program { .. } => Some("inject gets into processes that run: choose another engine".into()),
            Target::Process(pid) => target::refusal_to_ptrace(pid),
        }
    }

    fn to_attach(self: Box<Self>, pids: &[u32], params: &Params<'_>) -> Result<(Events, Box<dyn Attached>), Error> {
        // What these execute reaches it by a path, or is named.
        let (mut collector, _) = Collector::for_processes(pids)?;
        let door = collector.door()?;
        let told = Params { transport: Transport::Shm, ..collector.tell(params) };
        // Always the same, unless there is something that goes by it: the same parameters take no more memory of the process's.
        let out_socket_path = if told.follow_children { told.out_socket_path } else { NO_SOCKET };
        let told = Params { out_socket_path, ..told };
        let library = told.follow_children.then(|| preload::prepare(&collector.place, &told)).transpose()?;
        let preload = library.as_ref().map_or(&b""[..], |library| library.as_os_str().as_bytes());
        let mut text = Vec::new();
        Params { preload, ..told }.write_injected_to(&mut text);
        let (events, folder) = collector.split();
        Ok((events, Box::new(Injector { folder, text, door, tracers: HashMap::new() })))
    }
}

/// What it takes to get into processes.
struct Injector {
    folder: Folder,
    /// The parameters.
    text: Vec<u8>,
    door: Door,
    /// Who has a thread of a process, or had.
    tracers: HashMap<u32, Tracer>,
}

/// A thread of ours that has one of a process, for as long as that takes.
struct Tracer {
    jobs: mpsc::Sender<Job>,
    thread: JoinHandle<()>,
}

/// Something to be done to a process.
struct Job {
    work: Arc<Work>,
    tell: mpsc::Sender<Result<(), String>>,
}

type Work = dyn Fn(&mut Process<'_>) -> Result<(), String> + Send + Sync;

impl Attached for Injector {
    fn attach(&mut self, pid: u32) -> Result<(), Error> {
        let (text, door) = (self.text.clone(), self.door.clone());
        self.have_done(pid, Arc::new(move |process| process.enter(&text, &door)))
    }

    fn detach(&mut self, pid: u32) -> Result<(), Error> {
        self.have_done(pid, Arc::new(|process| process.leave()))
    }

    fn silence(&self) -> &'static str {
        NEVER_HEARD
    }

    fn leave(self: Box<Self>) -> Removal {
        let start = Instant::now();
        // Told by that that there are no more jobs.
        let threads: Vec<_> = self.tracers.into_values().map(|tracer| tracer.thread).collect();
        while start.elapsed() < MAX_WATCH && threads.iter().any(|thread| !thread.is_finished()) {
            thread::sleep(LOOK);
        }
        self.folder.remove()
    }
}

impl Injector {
    /// Has something done to a process: by who has a thread of it still, or by a thread of its own.
    fn have_done(&mut self, pid: u32, work: Arc<Work>) -> Result<(), Error> {
        let explain = |why| Error::Process { pid, why };
        let (tell, told) = mpsc::channel();
        let job = Job { work: work.clone(), tell };
        if let Some(tracer) = self.tracers.get(&pid)
            && tracer.jobs.send(job).is_ok()
            && let Ok(done) = told.recv()
        {
            return done.map_err(explain);
        }
        let (tell, told) = mpsc::channel();
        let (jobs, to_do) = mpsc::channel();
        let work = move || trace(pid, Job { work, tell }, &to_do);
        let thread = thread::Builder::new().name("inject".into()).spawn(work);
        let thread = thread.map_err(|error| explain(format!("no thread to do it: {error}")))?;
        self.tracers.insert(pid, Tracer { jobs, thread });
        let done = told.recv().unwrap_or_else(|_| Err("what was to get in has failed: please report this".into()));
        done.map_err(explain)
    }
}

/// Does a job, and what comes next for as long as a thread of the process has to be watched: its tracer is this thread.
fn trace(pid: u32, job: Job, to_do: &mpsc::Receiver<Job>) {
    let (mut job, mut watched) = (job, None);
    loop {
        let done = Process::with(pid, &mut watched, &*job.work);
        let _ = job.tell.send(done);
        let mut next = None;
        let mut is_wanted = || {
            next = to_do.try_recv().ok();
            next.is_some()
        };
        let goes_on = watched.as_ref().is_some_and(|watched: &Watched| watched.see_to_end(&mut is_wanted));
        match next {
            Some(next) if goes_on => job = next,
            _ => return,
        }
    }
}

/// A process of which a thread is stopped.
struct Process<'a> {
    pid: u32,
    memory: &'a Memory,
    thread: &'a mut Stopped,
    image: &'a Image<'static>,
    /// Where it lies already.
    place: Option<Place>,
    /// Whether another one does.
    has_other: bool,
    /// The addresses of what the probe wants of its libc.
    symbols: Symbols,
}

/// What the probe needs of a libc. The rest it does by itself.
#[derive(Clone, Copy, Debug, Default)]
struct Symbols {
    errno_location: Option<u64>,
    iterate_phdr: Option<u64>,
    environ: Option<u64>,
}

impl Symbols {
    /// None: there is no libc in these.
    fn of(objects: &[Object<'_>]) -> Option<Self> {
        // libpthread had some of libc's functions before glibc 2.34.
        let libc = objects.iter().find(|object| object.find("getauxval").is_some())?;
        let own = |name| libc.find(name);
        // A program may have a copy of the variable, which is then the one that is used.
        let environ = objects.iter().find_map(|object| object.find("environ"));
        Some(Self { errno_location: own("__errno_location"), iterate_phdr: own("dl_iterate_phdr"), environ })
    }

    fn find(self, name: &str) -> Option<u64> {
        match name {
            "__errno_location" => self.errno_location,
            "dl_iterate_phdr" => self.iterate_phdr,
            "environ" => self.environ,
            // dlsym(3) would take the loader's lock.
            _ => None,
        }
    }
}

/// Whether an address is in the dynamic loader's code. musl's is in libc, where everything is.
fn is_loaders(mappings: &[Mapping], address: u64) -> bool {
    mappings.iter().any(|mapping| {
        (mapping.start..mapping.end).contains(&address)
            && mapping.name.contains("/ld-")
            && !mapping.name.contains("musl")
    })
}

impl Process<'_> {
    /// Stops a thread, does the work, and lets it go on in any case.
    fn with(pid: u32, watched: &mut Option<Watched>, work: &Work) -> Result<(), String> {
        let image = Image::of(socktrace_agent::PROBE).map_err(|error| error.to_string())?;
        let in_memory = |error: io::Error| format!("its memory: {}", socktrace_event::errno::explain(&error));
        let explain = |error: Refused| socktrace_event::errno::explain(&error);
        let start = Instant::now();
        let (memory, place, has_other, symbols, mut thread) = loop {
            let some_thread = target::some_thread_of(pid).ok_or("has ended")?;
            let mappings = mappings(pid, some_thread).map_err(in_memory)?;
            let memory = Memory::of(pid, some_thread).map_err(in_memory)?;
            let is_elsewhere = |mapping: &Mapping| mapping.name.contains(preload::PROBE);
            let has_other = image::is_in(&memory, &mappings) || mappings.iter().any(is_elsewhere);
            let (place, symbols) = (image.find(&memory, &mappings), Symbols::of(&Object::all(&memory, &mappings)));
            let is_young = start.elapsed() < MAX_START;
            let symbols = match symbols {
                Some(symbols) => symbols,
                None if !is_young => return Err("has no libc in its memory, whose functions could be hooked".into()),
                None => {
                    thread::sleep(LOOK);
                    continue;
                }
            };
            let thread = match watched.take() {
                Some(watched) => Stopped::again(pid, &watched, &mappings),
                None => Stopped::any_of(pid, &mappings),
            }
            .map_err(explain)?;
            // It may have its lists of libraries in its hands, which the probe goes through.
            if is_young && is_loaders(&mappings, thread.instruction()) {
                *watched = thread.release(&memory, place.map_or(0, Place::notes)).map_err(explain)?;
                thread::sleep(LOOK);
                continue;
            }
            break (memory, place, has_other, symbols, thread);
        };
        let mut process =
            Process { pid, memory: &memory, thread: &mut thread, image: &image, place, has_other, symbols };
        let done = work(&mut process);
        let notes = process.place.map_or(0, Place::notes);
        *watched = thread.release(&memory, notes).map_err(explain)?;
        done
    }

    /// Puts the probe in and starts it.
    fn enter(&mut self, parameters: &[u8], door: &Door) -> Result<(), String> {
        if parameters.len() as u64 > image::NOTES_LEN {
            return Err("the parameters are too long".into());
        }
        if let Some(call) = target::deadly_call_to_inject(self.pid, self.thread.tid()) {
            return Err(call);
        }
        let place = match self.place {
            Some(place) => {
                // One that a collector has left behind, which was killed.
                self.call("socktrace_leave", [0, 0])?;
                place
            }
            None if self.has_other => {
                return Err(
                    "has a probe in it of another version, or that another engine has brought, and that was left \
                            behind: `--engine frida` may take it over"
                        .into(),
                );
            }
            None => self.put_in()?,
        };
        self.memory.write(place.notes(), parameters).map_err(|error| format!("its memory: {error}"))?;
        let complaint = self.call("socktrace_start", [place.notes(), parameters.len() as u64])?;
        if complaint != 0 {
            let text = self.memory.text(complaint, MAX_COMPLAINT);
            return Err(String::from_utf8_lossy(&text).into_owned());
        }
        let ring = self.take_ring()?;
        let status = proc_text(&format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let sender = Sender { pid: self.pid, uid: target::effective_user(&status).unwrap_or(u32::MAX) };
        door.hand_over(ring, sender, target::innermost_number(&status).unwrap_or(self.pid))
            .map_err(|error| format!("its ring: {}", socktrace_event::errno::explain(&error)))
    }

    /// Takes it out again: libc's functions are as they were, and what they led to stays, for a thread may be in it.
    fn leave(&mut self) -> Result<(), String> {
        if self.place.is_none() {
            return Err("there is no probe of this version in it".into());
        }
        self.call("socktrace_leave", [0, 0]).map(|_| ())
    }

    fn put_in(&mut self) -> Result<Place, String> {
        let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let (read, write) = (libc::PROT_READ, libc::PROT_WRITE);
        let base = self.map(0, self.image.len(), read | write, anonymous)?;
        let place = self.image.placed_at(base);
        self.place = Some(place);
        let bytes = self.image.relocated(place, |name| self.symbols.find(name)).map_err(|error| error.to_string())?;
        // Mapped as they are to be, and written to from outside: memory that was writable may not be made executable where
        // the process has forbidden that (PR_SET_MDWE, prctl(2)).
        for part in self.image.parts(place) {
            let (start, len) = (part.addresses.start, part.addresses.end - part.addresses.start);
            self.map(start, len, part.protection, anonymous | libc::MAP_FIXED)?;
        }
        self.memory.write(base, &bytes).map_err(|error| format!("its memory: {error}"))?;
        Ok(place)
    }

    /// mmap(2), in it.
    fn map(&mut self, at: u64, len: u64, protection: i32, flags: i32) -> Result<u64, String> {
        let arguments = [at, len, protection as u64, flags as u64, u64::MAX, 0];
        let mapped = self.thread.system_call(libc::SYS_mmap, arguments).map_err(|error| error.to_string())?;
        match mapped {
            -4095..0 => {
                let error = io::Error::from_raw_os_error(mapped.unsigned_abs() as i32);
                Err(format!("no memory for the probe in it: {}", socktrace_event::errno::explain(&error)))
            }
            address => Ok(address.cast_unsigned()),
        }
    }

    fn call(&mut self, function: &str, arguments: [u64; 2]) -> Result<u64, String> {
        let Some(place) = self.place else { return Err("no probe is in it".into()) };
        let function = self.image.function(place, function).map_err(|error| error.to_string())?;
        let is_back = |instruction| place.is_back(instruction);
        let called = self.thread.call(self.memory, function, arguments, place.stack_end(), place.door(), is_back);
        called.map_err(|error| socktrace_event::errno::explain(&error))
    }

    /// The ring's memory, by a descriptor of our own. The process keeps the memory, and what it has mapped keeps the lock that
    /// says that it is there.
    fn take_ring(&mut self) -> Result<OwnedFd, String> {
        let folder = format!("/proc/{}/task/{}/fd", self.pid, self.thread.tid());
        let entries = fs::read_dir(&folder).map_err(|error| format!("{folder}: {error}"))?.flatten();
        let is_ring = |path: &Path| fs::read_link(path).is_ok_and(|to| to.as_os_str().as_bytes().starts_with(RING));
        let mut rings: Vec<_> = entries.map(|entry| entry.path()).filter(|path| is_ring(path)).collect();
        let path = rings.pop().ok_or("its limits leave no room for a ring (RLIMIT_FSIZE, RLIMIT_AS, RLIMIT_NOFILE)")?;
        let file = File::options().read(true).write(true).open(&path);
        file.map(OwnedFd::from).map_err(|error| format!("{}: {error}", path.display()))
    }
}

/// Whether a probe was put into a process this way, of whichever version.
pub(crate) fn is_in(pid: u32) -> bool {
    let Some(tid) = target::some_thread_of(pid) else { return false };
    let (Ok(memory), Ok(mappings)) = (Memory::of(pid, tid), mappings(pid, tid)) else { return false };
    image::is_in(&memory, &mappings)
}
