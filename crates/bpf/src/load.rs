//! Gets the programs into the kernel, or says what is missing.

use std::io::{self, Read};
use std::path::Path;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::maps::{HashMap, MapData, RingBuf};
use aya::programs::{BtfTracePoint, Iter};
use aya::{Btf, Ebpf, EbpfLoader, VerifierLogLevel};
use rustix::thread::{CapabilitySet, capabilities};

use crate::source::{Kernel, LossMap};

/// The object, as `make bpf` builds it, where the linker puts it so that it can be read as ELF is.
static OBJECT: Aligned<[u8; include_bytes!("../object/socktrace.bpf.o").len()]> =
    Aligned(*include_bytes!("../object/socktrace.bpf.o"));

#[repr(align(8))]
struct Aligned<T>(T);

/// Programs and the tracepoints that they belong to.
const TRACEPOINTS: [(&str, &str); 5] = [
    ("sent", "sock_send_length"),
    ("received", "sock_recv_length"),
    ("forked", "sched_process_fork"),
    ("executed", "sched_process_exec"),
    ("ended", "sched_process_exit"),
];
/// Programs and what they go through.
const ITERATORS: [(&str, &str); 2] = [("alive", "unix"), ("existing", "task_file")];
/// Where the kernel describes its types.
const BTF: &str = "/sys/kernel/btf/vmlinux";
/// The outermost pid namespace's inode number (PROC_PID_INIT_INO).
const OUTERMOST: &str = "pid:[4026531836]";
/// What `traced` says of a process (object/socktrace.bpf.c).
const TRACED: u32 = 1;
const STARTER: u32 = 2;

/// The kernel wakes the reader when so many bytes are waiting, or a quarter of the ring buffer: to be woken for each record
/// costs more than the record does.
const WAKE_AT: u64 = 64 << 10;

/// Why the kernel cannot be asked. One line, which says what else would do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The user may not.
    #[error(
        "engine bpf: only root may look into the kernel (or who has CAP_BPF and CAP_PERFMON): run socktrace as root"
    )]
    NotPermitted,
    /// The kernel does not describe its types.
    #[error(
        "engine bpf: this kernel does not describe its types ({BTF}): one that is built with CONFIG_DEBUG_INFO_BTF does"
    )]
    NoBtf,
    /// The kernel lacks the tracepoints.
    #[error("engine bpf: this kernel has no tracepoint {0}: Linux 6.3 and later have it")]
    NoTracepoint(&'static str),
    /// Numbers of processes would be others' than ours.
    #[error(
        "engine bpf: the kernel tells processes by their numbers outside of this container (pid namespace): run socktrace there"
    )]
    Contained,
    /// The kernel refuses the programs.
    #[error("engine bpf: the kernel does not take its programs: {0}")]
    Refused(String),
}

impl Error {
    fn refused(error: impl std::error::Error) -> Self {
        let causes = std::iter::successors(error.source(), |error| error.source());
        let mut text = causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
        // Of the verifier's log the beginning, in one line.
        text.truncate(text.find('\n').unwrap_or(text.len()));
        Self::Refused(text)
    }
}

/// What is captured.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes of each call.
    pub max_bytes: u64,
    /// Bytes of the ring buffer, a power of two.
    pub ring_bytes: u32,
    /// Whether processes that traced ones fork are traced, too.
    pub follow_children: bool,
}

/// Says whom to trace.
#[derive(Debug)]
pub struct Control {
    traced: HashMap<MapData, u32, u32>,
    programs: Programs,
    found: Sender<(u32, Vec<u8>)>,
}

/// What is loaded, for as long as somebody has it.
#[derive(Clone, Debug)]
pub(crate) struct Programs(Arc<Mutex<Ebpf>>);

/// Whether this process may load the programs.
///
/// # Errors
///
/// Why not.
pub fn permitted() -> Result<(), Error> {
    let needed = CapabilitySet::BPF | CapabilitySet::PERFMON;
    let has = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    if !has.contains(needed) && !has.contains(CapabilitySet::SYS_ADMIN) {
        return Err(Error::NotPermitted);
    }
    if std::fs::read_link("/proc/self/ns/pid").is_ok_and(|namespace| namespace != Path::new(OUTERMOST)) {
        return Err(Error::Contained);
    }
    Ok(())
}

/// Loads the programs. Nobody is traced yet.
///
/// # Errors
///
/// What is missing.
pub fn load(options: &Options) -> Result<(Kernel, Control), Error> {
    permitted()?;
    let btf = Btf::from_sys_fs().map_err(|_| Error::NoBtf)?;
    let mut loader = EbpfLoader::new();
    loader.btf(Some(&btf));
    // The verifier takes minutes to write down what it takes a moment to check.
    loader.verifier_log_level(VerifierLogLevel::DISABLE);
    loader.override_global("max_bytes", &options.max_bytes, true);
    let wake_at = WAKE_AT.min(u64::from(options.ring_bytes) / 4);
    loader.override_global("wake_at", &wake_at, true);
    let follow_children = u32::from(options.follow_children);
    loader.override_global("follow_children", &follow_children, true);
    loader.map_max_entries("records", options.ring_bytes);
    let mut ebpf = loader.load(&OBJECT.0).map_err(Error::refused)?;
    for (name, tracepoint) in TRACEPOINTS {
        let program: &mut BtfTracePoint = part(ebpf.program_mut(name)).map_err(Error::refused)?;
        program.load(tracepoint, &btf).map_err(|error| match error {
            aya::programs::ProgramError::Btf(_) => Error::NoTracepoint(tracepoint),
            error => Error::refused(error),
        })?;
        program.attach().map_err(Error::refused)?;
    }
    for (name, what) in ITERATORS {
        let program: &mut Iter = part(ebpf.program_mut(name)).map_err(Error::refused)?;
        program.load(what, &btf).map_err(Error::refused)?;
    }
    let mut map = |name| ebpf.take_map(name).ok_or_else(|| Error::Refused(format!("the object has no map {name}")));
    let records = RingBuf::try_from(map("records")?).map_err(Error::refused)?;
    let traced = HashMap::try_from(map("traced")?).map_err(Error::refused)?;
    let losses = LossMap::try_from(map("losses")?).map_err(Error::refused)?;
    let programs = Programs(Arc::new(Mutex::new(ebpf)));
    let (found, finds) = mpsc::channel();
    let kernel = Kernel::new(records, losses, programs.clone(), finds, options);
    Ok((kernel, Control { traced, programs, found }))
}

/// A program of the object as what it is.
fn part<'p, P>(program: Option<&'p mut aya::programs::Program>) -> Result<&'p mut P, aya::programs::ProgramError>
where
    &'p mut P: TryFrom<&'p mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    program.ok_or(aya::programs::ProgramError::UnexpectedProgramType)?.try_into()
}

impl Programs {
    fn lock(&self) -> MutexGuard<'_, Ebpf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an iterator says.
    pub(crate) fn list(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut programs = self.lock();
        let iterator: &mut Iter = part(programs.program_mut(name)).map_err(io::Error::other)?;
        let link = iterator.attach().and_then(|id| iterator.take_link(id)).map_err(io::Error::other)?;
        let mut said = Vec::new();
        link.into_file().map_err(io::Error::other)?.read_to_end(&mut said)?;
        Ok(said)
    }
}

impl Control {
    /// Whatever program this process starts within is traced.
    ///
    /// # Errors
    ///
    /// None but those of bpf(2).
    pub fn while_starting<T>(&mut self, start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let own = std::process::id();
        self.traced.insert(own, STARTER, 0).map_err(io::Error::other)?;
        let started = start();
        let _ = self.traced.remove(&own);
        started
    }

    /// Traces a process, and says which sockets it has.
    ///
    /// # Errors
    ///
    /// Too many processes are traced; those of bpf(2).
    pub fn trace(&mut self, pid: u32) -> io::Result<()> {
        self.traced.insert(pid, TRACED, 0).map_err(io::Error::other)?;
        let sockets = self.programs.list("existing")?;
        // Nobody listens any more where the source has ended.
        let _ = self.found.send((pid, sockets));
        Ok(())
    }

    /// Leaves it.
    pub fn leave(&mut self, pid: u32) {
        // It is not there where the process has ended.
        let _ = self.traced.remove(&pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_one_line() {
        let error = Error::refused(io::Error::other("first\nsecond"));
        assert_eq!(error.to_string(), "engine bpf: the kernel does not take its programs: first");
    }
}
