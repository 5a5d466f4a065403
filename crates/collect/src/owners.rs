//! Whose a connection is: one user's frames do not get into the payload files of another's connection.
//!
//! A frame names its connection, and a hostile one may name somebody else's. The kernel tells who sends it
//! ([`Sender`]) and by which ring or stream. A connection goes on being reported by the ring or stream that it began
//! with, by its user, by root and by the collector's own user; by a process of another user only if it is the process
//! that it began with or descends from it, as one that was forked and has changed its user. What anybody else says of it
//! is recorded as a connection of its own.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};

use gttr::{Frame, FrameType};
use rustix::time::{ClockId, clock_gettime};
use socktrace_event::util::safe_filename;
use socktrace_event::{Event, Layer, Limited, Sink, Stat, Taken, Text, What};

use crate::sender::Sender;

/// Connections whose owner is remembered, some 100 bytes each. Beyond that the oldest of the user who has most is
/// forgotten, and belongs to whoever names it next.
const REMEMBERED: usize = 64 << 10;
/// So many answers are remembered that took a look at the processes' parents.
const MAX_JUDGED: usize = 4096;
/// Parents that are looked at: more than a chain of processes has.
const MAX_PARENTS: usize = 64;

/// Who first named a connection.
#[derive(Clone, Copy, Debug)]
struct Owner {
    sender: Sender,
    channel: u64,
    /// When, in clock ticks since boot.
    since: u64,
}

/// The names by their hash: with random keys, so that nobody finds two that collide.
#[derive(Debug, Default)]
struct Known {
    hasher: RandomState,
    owners: HashMap<u64, Owner>,
    /// Of each user, in the order in which they came.
    by_user: HashMap<u32, VecDeque<u64>>,
    judged: HashMap<(u64, Sender), bool>,
}

/// In front of a sink: keeps apart what the sender of now says of others' connections.
#[derive(Debug, Default)]
pub struct Owners {
    known: Known,
    sender: Sender,
    channel: u64,
    /// What was found of the last connection: the next frame is often of the same.
    last: Vec<u8>,
    last_is_theirs: bool,
    told: Limited,
}

impl Owners {
    /// Whose the frames are that come from now on, and by which ring or stream, counted from 1; 0: by datagrams.
    pub fn sender(&mut self, sender: Sender, channel: u64) {
        if (self.sender, self.channel) != (sender, channel) {
            (self.sender, self.channel) = (sender, channel);
            self.last.clear();
        }
    }

    /// Whether the sender of now may speak of a connection; whoever is first to name it may.
    fn is_theirs(&mut self, conn_id: &[u8]) -> bool {
        // Empty is what nobody has looked for yet.
        if !conn_id.is_empty() && self.last == conn_id {
            return self.last_is_theirs;
        }
        let is_theirs = self.known.is_of(conn_id, self.sender, self.channel);
        self.last.clear();
        // What is longer is no connection's of an honest agent.
        if conn_id.len() <= gttr::MAX_CONN_ID_LEN {
            self.last.extend_from_slice(conn_id);
            self.last_is_theirs = is_theirs;
        }
        is_theirs
    }

    /// The frame's event, as one of a connection of its own.
    fn apart<'f>(&mut self, frame: &Frame<'f>, conn_id: &[u8]) -> Event<'f> {
        let Sender { uid, pid } = self.sender;
        let mut name = conn_id.to_vec();
        // Behind a byte that no connection's name has.
        name.extend_from_slice(format!("\0{uid}").as_bytes());
        let name = safe_filename(&name).into_owned();
        self.told.notice(|| {
            format!("process {pid} of user {uid} names a connection of another user's: what it says is kept apart, as {name}")
        });
        let mut event = Event::from_frame(frame);
        match &mut event.what {
            What::Data(data) => (data.conn_id, data.file) = (Text(name.clone().into()), Some(Text(name.into()))),
            What::Open(open) => open.conn_id = Text(name.into()),
            What::Close(close) => close.conn_id = Text(name.into()),
            _ => {}
        }
        event
    }
}

impl Known {
    fn is_of(&mut self, conn_id: &[u8], sender: Sender, channel: u64) -> bool {
        let hash = self.hasher.hash_one(conn_id);
        let Some(owner) = self.owners.get(&hash) else {
            self.add(hash, Owner { sender, channel, since: now() });
            return true;
        };
        if owner.sender.uid == sender.uid || (channel != 0 && channel == owner.channel) || sender.is_own() {
            return true;
        }
        if self.judged.len() >= MAX_JUDGED {
            self.judged.clear();
        }
        *self.judged.entry((hash, sender)).or_insert_with(|| descends(sender.pid, owner))
    }

    fn add(&mut self, hash: u64, owner: Owner) {
        if self.owners.len() >= REMEMBERED
            && let Some(of_greediest) = self.by_user.values_mut().max_by_key(|hashes| hashes.len())
            && let Some(oldest) = of_greediest.pop_front()
        {
            self.owners.remove(&oldest);
        }
        self.owners.insert(hash, owner);
        self.by_user.entry(owner.sender.uid).or_default().push_back(hash);
    }
}

/// Whether it is the process that the connection began with, or was made by it.
fn descends(mut pid: u32, owner: &Owner) -> bool {
    for _ in 0..MAX_PARENTS {
        let Some(stat) = Stat::of(pid) else { return false };
        // Not another one that has its number by now.
        if pid == owner.sender.pid && stat.started <= owner.since {
            return true;
        }
        pid = stat.parent;
    }
    false
}

/// In clock ticks since boot, as the start of a process is given.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    let ticks = rustix::param::clock_ticks_per_second();
    time.tv_sec.unsigned_abs() * ticks + time.tv_nsec.unsigned_abs() * ticks / 1_000_000_000
}

impl Layer for Owners {
    fn frame<S: Sink + ?Sized>(&mut self, frame: &Frame<'_>, event: Option<&Event<'_>>, to: &mut S) -> Taken<S::Error> {
        if matches!(frame.kind, FrameType::Data | FrameType::Open | FrameType::Close)
            && let Some(conn_id) = frame.conn_id()
            && !self.is_theirs(conn_id)
        {
            return to.event(&self.apart(frame, conn_id), frame.payload);
        }
        to.frame(frame, event)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Users that are neither root nor who runs the tests.
    const ALICE: u32 = 4_000_001;
    const EVE: u32 = 4_000_002;
    /// No process has it (proc(5), pid_max).
    const NO_PID: u32 = 1 << 30;

    #[derive(Default)]
    struct Files(Vec<String>);

    impl Sink for Files {
        type Error = Infallible;

        fn event(&mut self, event: &Event<'_>, _: &[u8]) -> Taken<Infallible> {
            self.0.push(event.payload_file().unwrap_or_default().to_owned());
            Ok(())
        }
    }

    fn files(said: &[(Sender, u64, &str)]) -> Vec<String> {
        let mut owners = Owners::default().before(Files::default());
        for (sender, channel, conn) in said {
            owners.layer.sender(*sender, *channel);
            owners.frame(&Frame { conn: conn.as_bytes(), ..Frame::new(FrameType::Data, 1) }, None).unwrap();
        }
        owners.sink.0
    }

    fn process(uid: u32, pid: u32) -> Sender {
        Sender { pid, uid }
    }

    #[test]
    fn another_users_frames_are_kept_apart() {
        socktrace_event::silence_notices();
        let (alice, eve) = (process(ALICE, NO_PID), process(EVE, NO_PID + 1));
        let got =
            files(&[(alice, 1, "c"), (eve, 2, "c"), (alice, 1, "c"), (eve, 2, "d"), (alice, 3, "d"), (eve, 4, "c")]);
        assert_eq!([&*got[0], &*got[2], &*got[3]], ["c", "c", "d"]);
        for (at, prefix) in [(1, "c"), (4, "d"), (5, "c")] {
            let (kept, hash) = got[at].split_once('%').unwrap();
            assert!(kept.starts_with(prefix) && hash.len() == 32, "{}", got[at]);
        }
        // One for each user, not for each frame, and none that its name could be said by.
        assert_eq!(got[1], got[5]);
        let apart = got[1].clone();
        assert_ne!(files(&[(alice, 1, &apart)])[0], apart);
    }

    #[test]
    fn whoever_it_began_with_goes_on_as_another_user() {
        let own = std::process::id();
        let parent = Stat::of(own).unwrap().parent;
        let (before, after) = (process(ALICE, own), process(EVE, own));
        assert_eq!(files(&[(before, 1, "c"), (after, 2, "c")]), ["c", "c"], "the same process");
        assert_eq!(files(&[(process(ALICE, parent), 0, "c"), (after, 0, "c")]), ["c", "c"], "a child");
        assert_eq!(files(&[(process(ALICE, NO_PID), 9, "c"), (after, 9, "c")]), ["c", "c"], "the same ring");
        assert!(files(&[(before, 0, "c"), (process(EVE, parent), 0, "c")])[1].contains('%'), "a parent");
        assert_eq!(files(&[(before, 0, "c"), (process(0, NO_PID), 0, "c")]), ["c", "c"], "root");
    }

    #[test]
    fn a_flood_of_names_makes_nobody_elses_forgotten() {
        socktrace_event::silence_notices();
        let mut known = Known::default();
        let (alice, eve) = (process(ALICE, NO_PID), process(EVE, NO_PID + 1));
        assert!(known.is_of(b"c", alice, 1));
        for n in 0..REMEMBERED + 100 {
            known.is_of(n.to_string().as_bytes(), eve, 2);
        }
        assert!(!known.is_of(b"c", eve, 2));
        assert_eq!(known.owners.len(), REMEMBERED);
    }
}
