//! What processes are called.

use std::collections::HashMap;

use socktrace_collect::{Event, EventType, ProcessId, printable, process_name};

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
        if let Some(process) = event.process()
            && let Some(name) = process_name(event.comm.as_deref(), event.exe.as_deref())
        {
            self.set(process, name);
        }
        if let (EventType::Open, Some(process)) = (event.kind, event.peer_process())
            && let Some(name) = process_name(event.peer_comm.as_deref(), event.peer_exe.as_deref())
            // A traced process speaks for itself.
            && !self.names.contains_key(&process)
        {
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
    use super::*;

    #[test]
    fn names_are_those_of_the_right_process() {
        let mut processes = Processes::default();
        let start = Event { kind: EventType::Start, pid: Some(1), ..Event::default() };
        processes.note(&Event { exe: Some("/sbin/init".into()), ..start.clone() });
        let exe = Some("/usr/bin/redis-check-rdb".into());
        processes.note(&Event { host_pid: Some(70), exe, comm: Some("redis-server".into()), ..start });
        let open = Event { kind: EventType::Open, pid: Some(3), host_pid: Some(72), ..Event::default() };
        processes.note(&Event { peer_pid: Some(1), peer_exe: Some("/bin/server".into()), ..open });
        let labels = [ProcessId::Here(1), ProcessId::Here(70), ProcessId::Elsewhere(1)].map(|id| processes.label(id));
        assert_eq!(labels, ["init[1]", "redis-server[70]", "server[?]"]);
    }
}
