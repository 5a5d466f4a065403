//! Who writes to a ring. Its frames have the process ids that the writers see themselves. Where those are other numbers
//! than here, the processes have announced themselves over a socket, of which the kernel tells who sends
//! (docs/gttr.md, "Processes of other pid namespaces").

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use gttr::{Ext, Frame, FrameType};
use socktrace_ring::numbers;

use super::senders::{Senders, find_first, find_process, find_thread, namespace_of};

/// How long the announcement of a process is waited for that has written to the ring: it was sent before, and may not have
/// been received yet.
const MAX_WAIT: Duration = Duration::from_secs(1);
/// So many announcements are kept for the frame that speaks of them to come.
const MAX_ANNOUNCED: usize = 1024;
/// So many processes are remembered. A pid namespace rarely has as many numbers in use.
const MAX_MEMBERS: usize = 1 << 16;
/// So many processes of a ring that have not announced themselves are searched for; each takes a look at all of /proc.
const MAX_SEARCHES: u32 = 64;

/// A process that has announced a ring, or itself on one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Announcer {
    /// The number that it sees itself, if it has said so.
    pub pid: Option<u32>,
    /// Its number here, where that is another one; 0: it has none.
    pub host_pid: Option<u32>,
    /// What the frame by which it begins will speak of.
    pub announcement: Option<u64>,
}

impl Announcer {
    /// Who has sent these bytes, which came with a ring: the last frame of them speaks of it.
    pub(super) fn of(bytes: &[u8], sender: Option<u32>, senders: &mut Senders) -> Self {
        let (mut rest, mut announcer) = (bytes, Self::default());
        while let Ok(frame) = gttr::decode_datagram(rest) {
            if frame.kind == FrameType::Ring {
                announcer = Self { pid: frame.pid(), host_pid: None, announcement: announcement_of(&frame) };
            }
            rest = &rest[frame.encoded_len()..];
        }
        announcer.host_pid = sender.zip(announcer.pid).and_then(|(sender, pid)| senders.host_pid(sender, pid));
        announcer
    }
}

fn announcement_of(frame: &Frame<'_>) -> Option<u64> {
    frame.ext.iter().find_map(|value| match value {
        Ext::Announcement(number) => Some(number),
        _ => None,
    })
}

fn apart_of(frame: &Frame<'_>) -> Option<u64> {
    frame.ext.iter().find_map(|value| match value {
        Ext::Apart(number) => Some(number),
        _ => None,
    })
}

#[derive(Debug)]
struct Member {
    /// Its number here, where that is another one; 0: not known.
    host_pid: Option<u32>,
    /// Whether a frame of it has come.
    has_written: bool,
}

/// What is known of the processes that write to one ring.
#[derive(Debug, Default)]
pub(super) struct Writers {
    /// By the numbers that they see themselves.
    members: HashMap<u32, Member>,
    /// Announcements of which the ring has not spoken yet, and the sender's number here.
    announced: VecDeque<(u64, Option<u32>)>,
    /// Whether one has another number here.
    is_foreign: bool,
    /// Whether that is so of the one that was heard of first.
    is_made_elsewhere: Option<bool>,
    /// Its pid namespace.
    namespace: Option<u64>,
    searches: u32,
    /// The announcement that is waited for.
    waiting: Option<(u64, Instant)>,
    /// One did not come: none is waited for any more.
    has_given_up: bool,
    /// Processes that could not announce themselves and have another one's number, by what their frames say instead; their
    /// numbers here, 0 where that is not known.
    apart: HashMap<u64, u32>,
}

/// Which process a frame is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Its number here, where that is another one than in the frame; 0: it has none here, or it is not known.
    Known(Option<u32>),
    /// That is to be learned in a moment: its announcement has not been received yet.
    Awaited,
}

/// What is known of a thread that the ring names by the number that it sees itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Thread {
    /// It has this number here.
    Here(u32),
    /// No known writer has such a thread.
    Gone,
    /// Nothing, because not all writers are known.
    Unknown,
}

impl Writers {
    /// Learns of a process, and returns what the ring's page is to say: one of [`numbers`].
    pub(super) fn announce(&mut self, announcer: &Announcer) -> u32 {
        let Announcer { pid: Some(pid), host_pid, announcement } = *announcer else {
            return if self.is_foreign { numbers::OTHER } else { numbers::UNKNOWN };
        };
        self.is_made_elsewhere.get_or_insert(host_pid.is_some());
        if let Some(host_pid) = host_pid {
            self.is_foreign = true;
            self.namespace = self.namespace.or_else(|| namespace_of(host_pid));
        }
        match announcement {
            Some(number) => {
                if self.announced.len() >= MAX_ANNOUNCED {
                    self.announced.pop_front();
                }
                self.announced.push_back((number, host_pid));
            }
            // Of one that has been known under this number frames may still be in the ring.
            None if !self.members.contains_key(&pid) => self.set(pid, host_pid),
            None => {}
        }
        if self.is_foreign { numbers::OTHER } else { numbers::SAME }
    }

    fn set(&mut self, pid: u32, host_pid: Option<u32>) {
        if self.members.len() >= MAX_MEMBERS {
            self.members.clear();
        }
        self.members.insert(pid, Member { host_pid, has_written: false });
    }

    /// Which process the next frame of the ring is of.
    #[inline]
    pub(super) fn origin(&mut self, frame: &Frame<'_>) -> Origin {
        let begins = matches!(frame.kind, FrameType::Start | FrameType::Fork | FrameType::Exec);
        if begins || self.is_foreign || !self.apart.is_empty() { self.find_origin(frame) } else { Origin::Known(None) }
    }

    fn find_origin(&mut self, frame: &Frame<'_>) -> Origin {
        let Some(pid) = frame.pid() else { return Origin::Known(None) };
        if let Some(number) = apart_of(frame) {
            return Origin::Known(Some(self.find_apart(number, pid)));
        }
        match announcement_of(frame) {
            Some(number) => match self.announced.iter().position(|(announced, _)| *announced == number) {
                Some(index) => {
                    let host_pid = self.announced.remove(index).and_then(|(_, host_pid)| host_pid);
                    self.set(pid, host_pid);
                }
                None if self.is_to_be_awaited(number) => return Origin::Awaited,
                None => self.forget_former(pid),
            },
            None if frame.kind == FrameType::Fork => self.forget_former(pid),
            None => {}
        }
        self.waiting = None;
        if !self.is_foreign {
            return Origin::Known(None);
        }
        if !self.members.contains_key(&pid) {
            let host_pid = self.search(pid);
            self.set(pid, host_pid);
        }
        let member = self.members.get_mut(&pid);
        Origin::Known(member.and_then(|member| {
            member.has_written = true;
            member.host_pid
        }))
    }

    /// Another process begins under a number, which could not announce itself.
    fn forget_former(&mut self, pid: u32) {
        if self.members.get(&pid).is_some_and(|member| member.has_written) {
            self.members.remove(&pid);
        }
    }

    fn is_to_be_awaited(&mut self, number: u64) -> bool {
        match self.waiting {
            Some((waiting, since)) if waiting == number => self.has_given_up |= since.elapsed() > MAX_WAIT,
            _ => self.waiting = Some((number, Instant::now())),
        }
        !self.has_given_up
    }

    /// The number here of a process that has another one's number on this ring.
    fn find_apart(&mut self, number: u64, pid: u32) -> u32 {
        if let Some(&known) = self.apart.get(&number) {
            return known;
        }
        if self.apart.len() >= MAX_MEMBERS {
            self.apart.clear();
        }
        self.searches += 1;
        let writers: HashSet<u32> = self.members.iter().map(|(pid, member)| member.host_pid.unwrap_or(*pid)).collect();
        let is_new = |here: u32| self.apart.values().all(|&known| known != here);
        let found = if self.searches <= MAX_SEARCHES { find_first(pid, &writers, is_new) } else { None };
        *self.apart.entry(number).or_insert(found.unwrap_or(0))
    }

    /// The number here of a process that has not announced itself.
    fn search(&mut self, pid: u32) -> Option<u32> {
        if self.is_made_elsewhere == Some(false) {
            return None;
        }
        self.searches += 1;
        let namespace = self.namespace.filter(|_| self.searches <= MAX_SEARCHES);
        Some(namespace.and_then(|namespace| find_process(namespace, pid)).unwrap_or(0))
    }

    /// Whether numbers of threads are others than here.
    pub(super) fn is_foreign(&self) -> bool {
        self.is_foreign
    }

    /// Which thread here it is that the ring names by the number that it sees itself.
    pub(super) fn thread(&self, tid: u32) -> Thread {
        let members = self.members.iter().map(|(pid, member)| member.host_pid.unwrap_or(*pid));
        let members = members.chain(self.apart.values().copied());
        let announced = self.announced.iter().filter_map(|(_, host_pid)| *host_pid);
        let mut is_complete = tid != 0;
        for process in members.chain(announced) {
            match process {
                0 => is_complete = false,
                _ => {
                    if let Some(here) = find_thread(process, tid) {
                        return Thread::Here(here);
                    }
                }
            }
        }
        if is_complete { Thread::Gone } else { Thread::Unknown }
    }
}

#[cfg(test)]
mod tests {
    use gttr::ExtWriter;

    use super::*;

    fn origin(writers: &mut Writers, kind: FrameType, pid: u32, announcement: Option<u64>) -> Origin {
        let mut buffer = [0; 64];
        let mut ext = ExtWriter::new(&mut buffer);
        ext.put(Ext::Pid(pid));
        if let Some(number) = announcement {
            ext.put(Ext::Announcement(number));
        }
        writers.origin(&Frame { ext: ext.finish(), ..Frame::new(kind, 0) })
    }

    fn announcer(pid: u32, host_pid: Option<u32>, announcement: Option<u64>) -> Announcer {
        Announcer { pid: Some(pid), host_pid, announcement }
    }

    // Numbers that no process has here.
    const A: u32 = 5_000_001;
    const B: u32 = 5_000_002;

    #[test]
    fn where_numbers_are_the_same_nothing_is_asked() {
        let mut writers = Writers::default();
        assert_eq!(writers.announce(&announcer(7, None, None)), numbers::SAME);
        assert_eq!(origin(&mut writers, FrameType::Data, 7, None), Origin::Known(None));
        assert_eq!(origin(&mut writers, FrameType::Fork, 8, None), Origin::Known(None));
        assert_eq!(origin(&mut writers, FrameType::Data, 8, None), Origin::Known(None));
        assert_eq!(writers.searches, 0);
    }

    #[test]
    fn a_number_that_two_processes_have_one_after_the_other() {
        let mut writers = Writers::default();
        assert_eq!(writers.announce(&announcer(1, Some(A), None)), numbers::OTHER);
        assert_eq!(origin(&mut writers, FrameType::Start, 1, None), Origin::Known(Some(A)));
        writers.announce(&announcer(2, Some(A), Some(100)));
        // The second one announces itself while frames of the first are in the ring.
        writers.announce(&announcer(2, Some(B), Some(200)));
        assert_eq!(origin(&mut writers, FrameType::Fork, 2, Some(100)), Origin::Known(Some(A)));
        assert_eq!(origin(&mut writers, FrameType::Data, 2, None), Origin::Known(Some(A)));
        assert_eq!(origin(&mut writers, FrameType::Fork, 2, Some(200)), Origin::Known(Some(B)));
        assert_eq!(origin(&mut writers, FrameType::Data, 2, None), Origin::Known(Some(B)));
        // A third could not, and is nowhere to be found.
        assert_eq!(origin(&mut writers, FrameType::Fork, 2, None), Origin::Known(Some(0)));
        assert!(writers.announced.is_empty());
    }

    #[test]
    fn an_announcement_that_comes_late_is_waited_for() {
        let mut writers = Writers::default();
        writers.announce(&announcer(1, Some(A), None));
        assert_eq!(origin(&mut writers, FrameType::Fork, 2, Some(100)), Origin::Awaited);
        assert_eq!(origin(&mut writers, FrameType::Fork, 2, Some(100)), Origin::Awaited);
        writers.announce(&announcer(2, Some(B), Some(100)));
        assert_eq!(origin(&mut writers, FrameType::Fork, 2, Some(100)), Origin::Known(Some(B)));
        // A vforked child begins by whatever it does first.
        writers.announce(&announcer(9, Some(B), Some(900)));
        assert_eq!(origin(&mut writers, FrameType::Data, 9, Some(900)), Origin::Known(Some(B)));
        // One that never comes is waited for once.
        assert_eq!(origin(&mut writers, FrameType::Fork, 3, Some(300)), Origin::Awaited);
        writers.waiting = Some((300, Instant::now() - 2 * MAX_WAIT));
        assert_eq!(origin(&mut writers, FrameType::Fork, 3, Some(300)), Origin::Known(Some(0)));
        assert_eq!(origin(&mut writers, FrameType::Fork, 4, Some(400)), Origin::Known(Some(0)));
    }

    #[test]
    fn a_process_of_another_namespace_on_the_ring_of_one_of_ours() {
        let mut writers = Writers::default();
        writers.announce(&announcer(7, None, None));
        assert_eq!(writers.announce(&announcer(1, Some(B), Some(100))), numbers::OTHER);
        assert_eq!(origin(&mut writers, FrameType::Fork, 1, Some(100)), Origin::Known(Some(B)));
        assert_eq!(origin(&mut writers, FrameType::Data, 7, None), Origin::Known(None));
        assert_eq!(origin(&mut writers, FrameType::Data, 8, None), Origin::Known(None));
    }

    #[test]
    fn threads_are_found() {
        let mut writers = Writers::default();
        let own = std::process::id();
        writers.announce(&announcer(own, None, None));
        assert_eq!(writers.thread(own), Thread::Here(own));
        assert_eq!(writers.thread(A), Thread::Gone);
        writers.announce(&announcer(1, Some(0), None));
        assert_eq!(writers.thread(A), Thread::Unknown);
    }
}
