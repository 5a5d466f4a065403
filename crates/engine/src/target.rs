//! A running process, looked at before Frida is asked into it: what Frida alone would do to some cannot be undone.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, geteuid, pidfd_getfd, pidfd_open};
use socktrace_event::{errno, proc_text};

use crate::{inject, program, seccomp};

/// What proc_pid_status(5) says of a process.
#[derive(Debug, Default)]
struct Status {
    state: char,
    tgid: u32,
    tracer: u32,
    /// Real, effective, saved and file-system user.
    users: Vec<u32>,
    seccomp: u32,
    /// 1 where there are some and the kernel does not count them (before Linux 5.9).
    filters: u32,
    is_kernel_thread: bool,
}

impl Status {
    fn of(pid: u32) -> Option<Self> {
        proc_text(&format!("/proc/{pid}/status")).map(|text| Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let value =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
        let number = |name: &str| value(name).and_then(|value| value.parse().ok());
        let seccomp = number("Seccomp").unwrap_or(0);
        let users = value("Uid").unwrap_or_default().split_whitespace();
        Self {
            state: value("State").and_then(|state| state.chars().next()).unwrap_or('?'),
            tgid: number("Tgid").unwrap_or(0),
            tracer: number("TracerPid").unwrap_or(0),
            users: users.filter_map(|user| user.parse().ok()).collect(),
            seccomp,
            filters: number("Seccomp_filters").unwrap_or(u32::from(seccomp == seccomp::FILTERED)),
            // A process that has ended has no memory either.
            is_kernel_thread: value("VmSize").is_none() && value("Kthread") != Some("0"),
        }
    }
}

/// Why a process is left alone, in one line that names it; None if nothing is known that would keep Frida out.
pub fn refusal(pid: u32) -> Option<String> {
    why_not(pid)
        .or_else(|| why_not_frida(pid))
        .or_else(|| traced_already(pid))
        .map(|why| format!("process {pid}: {why}"))
}

/// The same of ptrace(2), by which a probe is put in.
pub fn refusal_to_ptrace(pid: u32) -> Option<String> {
    why_not(pid).or_else(|| traced_already(pid)).map(|why| format!("process {pid}: {why}"))
}

/// A thread that has the process's memory: the first one, unless that has ended.
pub fn some_thread_of(pid: u32) -> Option<u32> {
    let is_alive = |&tid: &u32| {
        let stat = proc_text(&format!("/proc/{pid}/task/{tid}/stat")).unwrap_or_default();
        stat.rsplit_once(')')
            .is_some_and(|(_, rest)| !matches!(rest.trim_start().as_bytes().first(), None | Some(b'Z' | b'X')))
    };
    let entries = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let mut tids: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    tids.sort_by_key(|&tid| tid != pid);
    tids.into_iter().find(is_alive)
}

/// The effective user, by proc_pid_status(5).
pub fn effective_user(status: &str) -> Option<u32> {
    Status::parse(status).users.get(1).copied()
}

/// The number by which a process knows itself, by proc_pid_status(5): the one in the innermost pid namespace.
pub fn innermost_number(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().next_back()?.parse().ok()
}

/// What a seccomp filter would end a process for that the injected probe does, in words. One of its threads is stopped.
pub fn deadly_call_to_inject(pid: u32, stopped: u32) -> Option<String> {
    let status = Status::of(pid)?;
    if status.seccomp == seccomp::STRICT {
        return Some("is in seccomp's strict mode, in which whatever is done in it would end it".into());
    }
    if status.seccomp != seccomp::FILTERED || has_as_many_filters(&status) {
        return None;
    }
    match seccomp::call_deadly_to_inject(stopped, status.filters) {
        Ok(None) => None,
        Ok(Some(call)) => Some(format!(
            "is under a seccomp filter that would end it at {call}(2), which the probe makes: `socktrace run` traces a program \
             from before it sets its filter"
        )),
        Err(_) => Some(
            "is under a seccomp filter, which may end it for what the probe does; root may look at the filter, and attach if it \
             does no harm; `socktrace run` traces a program from before it sets one"
                .into(),
        ),
    }
}

/// A container's own filter, under which we are, too.
fn has_as_many_filters(status: &Status) -> bool {
    Status::of(std::process::id()).is_some_and(|ours| ours.filters >= status.filters)
}

fn traced_already(pid: u32) -> Option<String> {
    let Probe::ReportsTo(collector) = probe_in(pid) else { return None };
    let name = name_of(collector).unwrap_or_else(|| "another socktrace".into());
    Some(format!("is traced by {name}[{collector}] already"))
}

fn why_not(pid: u32) -> Option<String> {
    let Some(status) = Status::of(pid) else { return Some("no such process".into()) };
    if status.tgid != pid {
        return Some(format!("is a thread of process {}: attach to that", status.tgid));
    }
    if matches!(status.state, 'Z' | 'X') && !has_threads(pid) {
        return Some("has ended, and only waits for its parent to take notice".into());
    }
    if status.is_kernel_thread {
        return Some("is a thread of the kernel's".into());
    }
    if let Some(why) = no_permission(pid) {
        return Some(why);
    }
    if let Some(why) = program::hindrance_of_process(pid) {
        return Some(why.into());
    }
    if status.tracer != 0 {
        let name = name_of(status.tracer).unwrap_or_else(|| "a tracer".into());
        return Some(format!("is traced by {name}[{}], and a process has one tracer: end that first", status.tracer));
    }
    None
}

/// What else keeps Frida out.
fn why_not_frida(pid: u32) -> Option<String> {
    let status = Status::of(pid)?;
    if matches!(status.state, 'Z' | 'X') {
        return Some("its main thread has ended, and Frida cannot attach to the others: `--engine inject` does".into());
    }
    if status.state == 'T' {
        return Some(format!("is stopped, and Frida would let it go on: continue it first (kill -CONT {pid})"));
    }
    // Frida looks there for what the process has in its memory.
    if fs::symlink_metadata(format!("/proc/{pid}/root/proc/self"))
        .is_err_and(|error| error.kind() == ErrorKind::NotFound)
    {
        let why = "has another root, in which no /proc is mounted, without which Frida cannot get in: `socktrace run` traces \
                   such a program from its start";
        return Some(why.into());
    }
    let me = geteuid();
    if !me.is_root() && status.users.get(1).is_some_and(|&user| user != me.as_raw()) {
        return Some(
            "belongs to another user, and a probe reports to its own user and to root only: root can attach".into(),
        );
    }
    seccomp_refusal(pid, &status)
}

/// Whether threads are left of a process whose first one has ended.
fn has_threads(pid: u32) -> bool {
    fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|tasks| tasks.count() > 1)
}

/// What a debugger is refused, Frida is, too (ptrace(2), "Ptrace access mode checking").
fn no_permission(pid: u32) -> Option<String> {
    let tid = some_thread_of(pid).unwrap_or(pid);
    let error = fs::OpenOptions::new().read(true).open(format!("/proc/{pid}/task/{tid}/mem")).err()?;
    if error.kind() == ErrorKind::NotFound {
        return Some("no such process".into());
    }
    if error.kind() != ErrorKind::PermissionDenied {
        return Some(format!("cannot be attached to: {}", errno::explain(&error)));
    }
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let permit = match scope.trim() {
        "1" => "root or CAP_SYS_PTRACE would, or `sysctl kernel.yama.ptrace_scope=0` for processes of your own",
        "2" => "root or CAP_SYS_PTRACE would (kernel.yama.ptrace_scope is 2)",
        "3" => "nothing would: kernel.yama.ptrace_scope is 3; after a reboot with another value, root",
        _ => "root or CAP_SYS_PTRACE would",
    };
    Some(format!("not permitted: {permit}"))
}

fn seccomp_refusal(pid: u32, status: &Status) -> Option<String> {
    let (strict, filtered) = (seccomp::STRICT, seccomp::FILTERED);
    if status.seccomp == strict {
        return Some("is in seccomp's strict mode, in which whatever Frida does would end it".into());
    }
    if status.seccomp != filtered {
        return None;
    }
    if has_as_many_filters(status) {
        return None;
    }
    match seccomp::deadly_call(pid, status.filters) {
        Ok(None) => None,
        Ok(Some(call)) => Some(format!(
            "is under a seccomp filter that would end it at {call}(2), which Frida or the probe makes: `socktrace run` \
             traces a program from before it sets its filter"
        )),
        Err(_) => Some(
            "is under a seccomp filter, which may end it for what Frida does; root may look at the filter, and attach if \
             it does no harm; `socktrace run` traces a program from before it sets one"
                .into(),
        ),
    }
}

/// Users as whom the process may connect to a socket.
pub fn users(pid: u32) -> Vec<u32> {
    Status::of(pid).map(|status| status.users).unwrap_or_default()
}

/// Whether abstract socket addresses mean the same to a process and to us (network_namespaces(7)).
pub fn has_our_network(pid: u32) -> bool {
    let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    of("self").is_some() && of("self") == of(&pid.to_string())
}

/// Whether there is a probe in a process already.
#[derive(Debug, PartialEq, Eq)]
pub enum Probe {
    Absent,
    /// It reports to nobody: whoever brought it has ended.
    Idle,
    /// It reports to this process.
    ReportsTo(u32),
}

/// Looks for a probe in a process, and for the collector that has it.
pub fn probe_in(pid: u32) -> Probe {
    let maps = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
    let is_probe = |line: &[u8]| line.windows(PROBE_NAME.len()).any(|window| window == PROBE_NAME);
    if !maps.split(|&b| b == b'\n').any(is_probe) && !inject::is_in(pid) {
        return Probe::Absent;
    }
    ring_reader_of(pid, &maps).or_else(|| collector_of(pid)).map_or(Probe::Idle, Probe::ReportsTo)
}

/// The collector that has a ring of the process's in its memory, too. The probe need not keep a socket to it.
fn ring_reader_of(pid: u32, maps: &[u8]) -> Option<u32> {
    let rings = rings_in(maps);
    let reads = |other: u32| {
        let theirs = rings_in(&fs::read(format!("/proc/{other}/maps")).unwrap_or_default());
        theirs.iter().any(|ring| rings.contains(ring))
    };
    let others = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut collectors = others.filter(|&other| other != pid && name_of(other).is_some_and(|name| is_collector(&name)));
    if rings.is_empty() { None } else { collectors.find(|&other| reads(other)) }
}

/// Inode numbers of the rings that are mapped (proc_pid_maps(5)).
fn rings_in(maps: &[u8]) -> Vec<Vec<u8>> {
    const INODE: usize = 4;
    const NAME: &[u8] = b"/memfd:socktrace-ring";
    let lines = maps.split(|&b| b == b'\n').filter(|line| line.windows(NAME.len()).any(|window| window == NAME));
    let inode = |line: &[u8]| line.split(|&b| b == b' ').nth(INODE).map(<[u8]>::to_vec);
    let mut rings: Vec<_> = lines.filter_map(inode).collect();
    rings.dedup();
    rings
}

/// What its file is called, in a folder of ours or as a memfd.
const PROBE_NAME: &[u8] = b"socktrace-probe";

/// The process at the other end of one of its sockets that is a collector.
fn collector_of(pid: u32) -> Option<u32> {
    let pidfd = pidfd_open(Pid::from_raw(pid.cast_signed())?, PidfdFlags::empty()).ok()?;
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
    let is_socket = |path: &Path| fs::read_link(path).is_ok_and(|to| to.as_os_str().as_bytes().starts_with(b"socket:"));
    let sockets = entries.filter(|entry| is_socket(&entry.path()));
    let numbers = sockets.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let copies = numbers.filter_map(|number| pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()).ok());
    copies.filter_map(|socket| listener_of(&socket)).find(|&peer| name_of(peer).is_some_and(|name| is_collector(&name)))
}

fn is_collector(name: &str) -> bool {
    name.starts_with("socktrace")
}

/// Who listens at the other end of a connection (SO_PEERCRED, unix(7)), if it goes to a listening socket's.
fn listener_of(socket: &OwnedFd) -> Option<u32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    let at = (&raw mut peer).cast();
    // SAFETY: room for a `struct ucred`, and its length.
    let failed = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, at, &raw mut len) };
    (failed == 0 && peer.pid > 0).then(|| peer.pid.cast_unsigned())
}

/// A process's name (comm, proc(5)).
pub fn name_of(pid: u32) -> Option<String> {
    let comm = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&comm).trim_end_matches('\n').escape_debug().to_string())
}

/// Processes with this name, or of an executable of this name.
pub fn named(name: &OsStr) -> Vec<u32> {
    let own = std::process::id();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_named = |pid: u32| {
        let comm = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        let exe: Option<PathBuf> = fs::read_link(format!("/proc/{pid}/exe")).ok();
        comm.strip_suffix(b"\n").unwrap_or(&comm) == name.as_bytes()
            || exe.as_deref().and_then(Path::file_name).is_some_and(|file| file == name)
    };
    pids.filter(|&pid| pid != own && is_named(pid)).collect()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use rustix::process::{Signal, kill_process};

    use super::*;

    #[test]
    fn what_the_kernel_says() {
        let text = "Name:\tx\nState:\tT (stopped)\nTgid:\t7\nPid:\t7\nTracerPid:\t9\nUid:\t1\t2\t3\t4\nVmSize:\t 1 kB\nSeccomp:\t2\n";
        let status = Status::parse(text);
        assert_eq!((status.state, status.tgid, status.tracer, status.seccomp, status.filters), ('T', 7, 9, 2, 1));
        assert!(status.users == [1, 2, 3, 4] && !status.is_kernel_thread);
        assert_eq!(Status::parse(&format!("{text}Seccomp_filters:\t3\n")).filters, 3);
    }

    #[test]
    fn who_may_be_attached_to() {
        let nobody = i32::MAX as u32;
        assert_eq!(refusal(nobody).unwrap(), format!("process {nobody}: no such process"));
        let mut child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        let (id, pid) = (child.id(), Pid::from_child(&child));
        // By execve(2) it becomes what it is.
        while name_of(id).as_deref() != Some("sleep") {
            std::thread::yield_now();
        }
        assert_eq!(refusal(id), None);
        kill_process(pid, Signal::STOP).unwrap();
        while Status::of(id).unwrap().state != 'T' {
            std::thread::yield_now();
        }
        assert!(refusal(id).unwrap().contains("is stopped"), "{:?}", refusal(id));
        kill_process(pid, Signal::KILL).unwrap();
        while Status::of(id).unwrap().state != 'Z' {
            std::thread::yield_now();
        }
        assert!(refusal(id).unwrap().contains("has ended"));
        child.wait().unwrap();
    }

    #[test]
    fn no_probe_in_us() {
        assert_eq!(probe_in(std::process::id()), Probe::Absent);
    }

    #[test]
    fn kernel_threads() {
        // kthreadd, where there is no pid namespace.
        if name_of(2).as_deref() == Some("kthreadd") {
            assert!(refusal(2).unwrap().contains("kernel"));
        }
    }
}
