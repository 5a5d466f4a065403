//! Which process has sent a frame. The number that is in it is the one that the process sees itself, and every pid
//! namespace (pid_namespaces(7)) has a process 1; the kernel tells the number here, of whoever sends.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;

use gttr::Frame;
use socktrace_event::{Event, Layer, Sink, Stat, Taken, proc_text};

use crate::owners::Owners;

/// So many pairs of numbers are remembered; more are asked for again.
const MAX_REMEMBERED: usize = 4096;

/// What the kernel has said of senders.
#[derive(Debug, Default)]
pub(super) struct Senders {
    /// By the sender's number here and the number in the frame.
    known: HashMap<(u32, u32), Option<u32>>,
}

impl Senders {
    /// The number here of the process whose frame says that it is `pid`, where that is another one (0: it has none here, or
    /// it is not known); `sender` is who the kernel says has sent it.
    pub(super) fn host_pid(&mut self, sender: u32, pid: u32) -> Option<u32> {
        match sender {
            _ if sender == pid => None,
            0 => Some(0),
            _ => {
                if self.known.len() >= MAX_REMEMBERED {
                    self.known.clear();
                }
                *self.known.entry((sender, pid)).or_insert_with(|| host_pid(numbers_of(sender).as_deref(), sender, pid))
            }
        }
    }
}

/// `numbers` are those of the sender, from here down to the one that it sees itself; none: it is gone already.
fn host_pid(numbers: Option<&[u32]>, sender: u32, pid: u32) -> Option<u32> {
    match numbers {
        // Somebody who hands on what others say, or another way to make frames: taken at its word.
        Some([_]) => None,
        // The same from another namespace: a number there.
        Some(numbers) if numbers.last() != Some(&pid) => Some(0),
        _ => Some(sender),
    }
}

/// A process's numbers, in every pid namespace from ours down to its own (`NSpid`, proc_pid_status(5)).
fn numbers_of(pid: u32) -> Option<Vec<u32>> {
    numbers_in(&proc_text(&format!("/proc/{pid}/status"))?)
}

fn numbers_in(status: &str) -> Option<Vec<u32>> {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_whitespace().map(|number| number.parse().ok()).collect()
}

/// A process's pid namespace: the inode number of what names it. `None` where we may not ask.
pub(super) fn namespace_of(pid: u32) -> Option<u64> {
    fs::metadata(format!("/proc/{pid}/ns/pid")).ok().map(|namespace| namespace.ino())
}

/// The number here of a process that runs in this pid namespace and has this number there.
pub(super) fn find_process(namespace: u64, pid: u32) -> Option<u32> {
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let mut here = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    here.find(|&here| {
        numbers_of(here).is_some_and(|numbers| numbers.last() == Some(&pid)) && namespace_of(here) == Some(namespace)
    })
}

/// The number here of a process that has this number in a pid namespace of its own, and that one of `ancestors` has started, or
/// what it has started, and so on. Of several, of which `is_new` knows none, the one that was started last.
pub(super) fn find_first(pid: u32, ancestors: &HashSet<u32>, is_new: impl Fn(u32) -> bool) -> Option<u32> {
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let here = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_it = |&here: &u32| {
        numbers_of(here).is_some_and(|numbers| numbers.len() > 1 && numbers.last() == Some(&pid))
            && !ancestors.contains(&here)
            && is_new(here)
            && descends(here, ancestors)
    };
    here.filter(is_it).max_by_key(|&here| Stat::of(here).map(|stat| stat.started))
}

fn descends(pid: u32, ancestors: &HashSet<u32>) -> bool {
    /// More than a chain of processes has.
    const MAX_PARENTS: usize = 64;
    let parent = |&pid: &u32| Stat::of(pid).map(|stat| stat.parent);
    std::iter::successors(Some(pid), parent).skip(1).take(MAX_PARENTS).any(|parent| ancestors.contains(&parent))
}

/// The number here of the thread of a process that sees itself under another.
pub(super) fn find_thread(process: u32, tid: u32) -> Option<u32> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).ok()?.flatten();
    let mut here = threads.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    here.find(|here| {
        let numbers = proc_text(&format!("/proc/{process}/task/{here}/status")).and_then(|status| numbers_in(&status));
        numbers.is_some_and(|numbers| numbers.last() == Some(&tid))
    })
}

/// In front of a sink: says of frames which process has sent them, and keeps apart what is another user's.
pub(super) struct Attributed<'s> {
    pub(super) senders: &'s mut Senders,
    pub(super) owners: &'s mut Owners,
    /// The number here of the process that has sent what comes now; none: the kernel does not say.
    pub(super) sender: Option<u32>,
}

impl Layer for Attributed<'_> {
    fn frame<S: Sink + ?Sized>(&mut self, frame: &Frame<'_>, event: Option<&Event<'_>>, to: &mut S) -> Taken<S::Error> {
        let pid = self.sender.and_then(|sender| Some((sender, frame.pid()?)));
        match pid.and_then(|(sender, pid)| self.senders.host_pid(sender, pid)) {
            None => self.owners.frame(frame, event, to),
            host_pid => self.owners.frame(&Frame { host_pid, ..*frame }, event, to),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_process_a_frame_is_of() {
        assert_eq!(host_pid(Some(&[70, 1]), 70, 1), Some(70));
        assert_eq!(host_pid(Some(&[70, 9, 1]), 70, 1), Some(70));
        // Gone already.
        assert_eq!(host_pid(None, 70, 1), Some(70));
        // Not its own number.
        assert_eq!(host_pid(Some(&[70]), 70, 1), None);
        assert_eq!(host_pid(Some(&[70, 2]), 70, 1), Some(0));
    }

    #[test]
    fn what_the_kernel_says_of_this_process() {
        let own = std::process::id();
        assert_eq!(numbers_of(own).unwrap().first(), Some(&own));
        let mut senders = Senders::default();
        assert_eq!(senders.host_pid(own, own), None);
        assert_eq!(senders.host_pid(0, own), Some(0));
        assert_eq!(find_thread(own, numbers_of(own).unwrap()[0]), Some(own));
        // The kernel cuts its name within a character.
        let tid =
            || fs::read_link("/proc/thread-self").unwrap().file_name().unwrap().to_str().unwrap().parse().unwrap();
        let find = move || (find_thread(own, tid()), Some(tid()));
        let (found, tid) = std::thread::Builder::new().name("é".repeat(8)).spawn(find).unwrap().join().unwrap();
        assert_eq!(found, tid);
        let namespace = namespace_of(own).unwrap();
        assert_eq!(find_process(namespace, *numbers_of(own).unwrap().last().unwrap()), Some(own));
    }
}
