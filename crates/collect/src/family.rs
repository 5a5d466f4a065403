//! Processes that a traced program has started, whoever they have become: one that root runs may change its user, and the
//! programs that it executes then are of another user than the collector.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use socktrace_event::Stat;

use crate::sender::Sender;

/// Parents that are looked at: more than a chain of processes has.
const MAX_PARENTS: usize = 64;
/// Members that are remembered, 16 bytes each.
const MAX_KNOWN: usize = 64 << 10;

/// A process, by its number and when it was started: the number alone is another process's some day.
type Process = (u32, u64);

/// Some processes and all that they have started, and so on.
#[derive(Debug, Default)]
pub(crate) struct Family {
    heads: Vec<u32>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Members. Their children belong to the family also when what was between them and a head has ended.
    members: HashSet<Process>,
    /// Whom they are of. Of a process that has ended nobody can tell any more who started it; one of these users' is taken
    /// for a member, for whoever is of the same user as a member can do with it what they like.
    users: HashSet<u32>,
}

impl Family {
    pub(crate) fn of(heads: &[u32]) -> Self {
        Self { heads: heads.to_vec(), ..Self::default() }
    }

    /// Whether there is one at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// Whether a process belongs to it.
    pub(crate) fn has(&self, sender: Sender) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut chain = Vec::new();
        let mut pid = sender.pid;
        for _ in 0..MAX_PARENTS {
            let Some(stat) = Stat::of(pid) else {
                // 0: it is not to be seen from here, which is not to have ended.
                return pid != 0 && chain.is_empty() && seen.users.contains(&sender.uid);
            };
            chain.push((pid, stat.started));
            if self.heads.contains(&pid) || seen.members.contains(&(pid, stat.started)) {
                if seen.members.len() + chain.len() > MAX_KNOWN {
                    seen.members.clear();
                }
                seen.members.extend(chain);
                seen.users.insert(sender.uid);
                return true;
            }
            pid = stat.parent;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};

    use super::*;

    fn sender(pid: u32) -> Sender {
        Sender { pid, uid: 65534 }
    }

    /// A shell that starts a shell that starts a program; they say who they are.
    #[test]
    fn grandchildren_belong_to_it_and_stay_when_their_parent_ends() {
        let mut parent = Command::new("sh")
            .args(["-c", "sh -c 'echo $$; sleep 60 & echo $!; wait' & wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(parent.stdout.take().unwrap()).lines();
        let mut next = || said.next().unwrap().unwrap().parse::<u32>().unwrap();
        let (child, grandchild) = (next(), next());
        let family = Family::of(&[parent.id()]);
        let mut ended = Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        assert!(!family.has(sender(ended.id())), "nobody of its user was seen");
        assert!(family.has(sender(parent.id())) && family.has(sender(child)) && family.has(sender(grandchild)));
        assert!(!family.has(sender(std::process::id())) && !family.has(sender(1)) && !family.has(sender(0)));
        for pid in [child, parent.id()] {
            let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        parent.wait().unwrap();
        assert!(family.has(sender(ended.id())));
        // Its parent is gone, and it is known.
        assert!(family.has(sender(grandchild)));
        let pid = rustix::process::Pid::from_raw(grandchild.cast_signed()).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}
