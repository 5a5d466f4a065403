//! What processes are called.

use std::collections::HashMap;

use socktrace_server::{Event, EventType};

/// The executables of processes by their ids, which a kernel gives out again only when it has used up all.
#[derive(Clone, Debug, Default)]
pub struct Processes {
    executables: HashMap<u32, Box<str>>,
}

impl Processes {
    /// Learns from any event.
    pub fn note(&mut self, event: &Event<'_>) {
        if let (Some(pid), Some(exe)) = (event.pid, event.exe.as_deref()) {
            self.set(pid, exe);
        }
        if let (EventType::Open, Some(pid), Some(exe)) = (event.kind, event.peer_pid, event.peer_exe.as_deref()) {
            // A traced process speaks for itself.
            if !exe.is_empty() && !self.executables.contains_key(&pid) {
                self.set(pid, exe);
            }
        }
    }

    fn set(&mut self, pid: u32, exe: &str) {
        if self.executables.get(&pid).is_none_or(|known| **known != *exe) {
            self.executables.insert(pid, exe.into());
        }
    }

    /// The executable's path.
    pub fn executable(&self, pid: u32) -> Option<&str> {
        self.executables.get(&pid).map(|exe| &**exe)
    }

    /// `redis-cli[5353]`, or `[5353]` where the executable is not known.
    pub fn label(&self, pid: u32) -> String {
        let exe = self.executable(pid).unwrap_or_default();
        let name = exe.rsplit('/').next().unwrap_or_default();
        format!("{}[{pid}]", name.strip_suffix(" (deleted)").unwrap_or(name))
    }
}
