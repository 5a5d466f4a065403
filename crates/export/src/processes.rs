//! What processes are called.

use std::collections::HashMap;

use socktrace_event::{Event, ProcessId, What, printable, process_name};

/// So many processes have names; the others are numbers.
const MAX_PROCESSES: usize = 1 << 20;
/// NAME_MAX, each byte written `\xNN`.
const MAX_NAME_LEN: usize = 4 * 255;

/// The names of processes, the last that was recorded for each.
#[derive(Clone, Debug, Default)]
pub struct Processes {
    names: HashMap<ProcessId, Box<str>>,
}

impl Processes {
    /// Learns from any event.
    pub fn note(&mut self, event: &Event<'_>) {
        let (process, name) = match &event.what {
            What::Start(it) | What::Fork(it) => (event.process(), process_name(it.comm.as_deref(), it.exe.as_deref())),
            What::Open(open) => {
                // A traced process speaks for itself.
                let peer = event.peer_process().filter(|process| !self.names.contains_key(process));
                (peer, process_name(open.peer_comm.as_deref(), open.peer_exe.as_deref()))
            }
            _ => return,
        };
        if let (Some(process), Some(name)) = (process, name) {
            self.set(process, name);
        }
    }

    fn set(&mut self, process: ProcessId, name: &str) {
        if self.names.len() >= MAX_PROCESSES && !self.names.contains_key(&process) {
            return;
        }
        // As people write it, and no longer than a file name is.
        let name = &*printable::name(printable::beginning(name, MAX_NAME_LEN));
        if self.names.get(&process).is_none_or(|known| **known != *name) {
            self.names.insert(process, name.into());
        }
    }

    /// A process's name, if it is known.
    pub fn name(&self, process: ProcessId) -> Option<&str> {
        self.names.get(&process).map(|name| &**name)
    }

    /// `redis-cli[5353]`, or `[5353]` where the name is not known.
    pub fn label(&self, process: ProcessId) -> String {
        format!("{}[{process}]", self.name(process).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use socktrace_event::{Begun, Open};

    use super::*;

    #[test]
    fn names_are_those_of_the_right_process() {
        let mut processes = Processes::default();
        let mut note =
            |pid, host_pid, what| processes.note(&Event { pid: Some(pid), host_pid, what, ..Event::default() });
        note(1, None, What::Start(Begun { exe: Some("/sbin/init".into()), ..Begun::default() }));
        let (exe, comm) = (Some("/usr/bin/redis-check-rdb".into()), Some("redis-server".into()));
        note(1, Some(70), What::Start(Begun { exe, comm, ppid: None }));
        let peer = Open { peer_pid: Some(1), peer_exe: Some("/bin/server".into()), ..Open::default() };
        note(3, Some(72), What::Open(peer));
        let labels = [ProcessId::Here(1), ProcessId::Here(70), ProcessId::Elsewhere(1)].map(|id| processes.label(id));
        assert_eq!(labels, ["init[1]", "redis-server[70]", "server[?]"]);
    }
}
