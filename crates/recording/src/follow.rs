//! A recording by time, as it grows.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use socktrace_event::PathError;

use crate::events_file::NAME as EVENTS;
use crate::ordered::Ordered;
use crate::reader::Recorded;

/// What is added to a recording all the time is put in order as far as it is older than this: recorders write every 100 ms.
const LAG: Duration = Duration::from_millis(200);
/// When something has been added, what comes so soon after is put in order with it.
const GATHERING_TIME: Duration = Duration::from_millis(20);

/// What comes next in a recording that is followed.
#[derive(Debug)]
pub enum Next {
    /// An event.
    Event(Recorded),
    /// Nothing for now: the next call waits until there is more.
    Pause,
    /// Its events.jsonl has been emptied or replaced: what is there now comes next.
    Replaced,
    /// Its events.jsonl has been removed, and no more comes.
    Removed,
    /// Its recorder has ended, or there is no more and nobody follows it; no more comes.
    End,
}

#[derive(Debug)]
enum State {
    /// What is there is read.
    There,
    /// What is added is waited for, forever or so long.
    Waiting(Option<Duration>),
    /// What was added is handed on, and whether it was anything.
    Added(bool),
}

/// Reads a recording by time, and on as it grows.
#[derive(Debug)]
pub struct Follow {
    folder: PathBuf,
    ordered: Ordered,
    growth: Option<Growth>,
    state: State,
}

impl Follow {
    /// Reads what is there, and if it `goes_on` what is added, until its recorder ends.
    ///
    /// # Errors
    ///
    /// It is no recording, or cannot be read or watched.
    pub fn open(folder: &Path, goes_on: bool) -> Result<Self, PathError> {
        // Before the first reading, so that nothing is written between that and a wait.
        let growth = goes_on.then(|| Growth::watch(folder)).transpose()?;
        Ok(Self { folder: folder.to_owned(), ordered: Ordered::open(folder)?, growth, state: State::There })
    }

    /// How far it is read.
    pub fn ordered(&self) -> &Ordered {
        &self.ordered
    }

    /// What comes next.
    ///
    /// # Errors
    ///
    /// It cannot be read or watched, or is something else than a recording.
    pub fn next_event(&mut self) -> Result<Next, PathError> {
        loop {
            match (&self.state, &self.growth) {
                (State::There, growth) => match self.ordered.next_event()? {
                    Some(recorded) => return Ok(Next::Event(recorded)),
                    None if growth.is_none() || self.ordered.has_ended => return Ok(Next::End),
                    None => return Ok(self.pause(Some(Duration::ZERO))),
                },
                (&State::Waiting(time), growth) => {
                    let waited = growth.as_ref().map_or(Ok(()), |growth| growth.wait(time));
                    waited.map_err(PathError::io(&self.folder, "cannot be watched"))?;
                    self.state = State::Added(self.ordered.read_added()?);
                }
                (&State::Added(has_come), _) => {
                    let lag = if has_come { LAG } else { Duration::ZERO };
                    if let Some(recorded) = self.ordered.next_added(lag.as_nanos() as u64) {
                        return Ok(Next::Event(recorded));
                    }
                    return Ok(match self.ordered.recording() {
                        _ if has_come => self.pause(Some(GATHERING_TIME)),
                        _ if self.ordered.has_ended => Next::End,
                        recording if recording.is_in_place() => self.pause(None),
                        _ if !self.folder.join(EVENTS).exists() => Next::Removed,
                        _ => {
                            (self.ordered, self.state) = (Ordered::open(&self.folder)?, State::There);
                            Next::Replaced
                        }
                    });
                }
            }
        }
    }

    fn pause(&mut self, time: Option<Duration>) -> Next {
        self.state = State::Waiting(time);
        Next::Pause
    }
}

/// Tells when the directory has grown (inotify(7)).
#[derive(Debug)]
struct Growth(OwnedFd);

impl Growth {
    fn watch(folder: &Path) -> Result<Self, PathError> {
        // Of the directory and of what is in it.
        let flags = WatchFlags::MODIFY
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF;
        let watched = inotify::init(CreateFlags::CLOEXEC).and_then(|inotify| {
            match inotify::add_watch(&inotify, folder, flags) {
                // Whoever opens the recording says what is wrong with it.
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => Ok(Self(inotify)),
                Err(error) => Err(error),
            }
        });
        watched.map_err(PathError::io(folder, "cannot be watched"))
    }

    /// Waits until something has happened there, or the time is over; what exactly does not matter.
    fn wait(&self, time: Option<Duration>) -> Result<(), Errno> {
        let timeout = time.and_then(|time| Timespec::try_from(time).ok());
        let happened =
            poll(&mut [PollFd::new(&self.0, PollFlags::IN)], timeout.as_ref()).and_then(|ready| match ready {
                0 => Ok(0),
                _ => rustix::io::read(&self.0, &mut [0; 4096]),
            });
        match happened {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    /// The numbers of the events up to what is no event, and that.
    fn next(follow: &mut Follow) -> (Vec<u64>, Next) {
        let mut numbers = Vec::new();
        loop {
            match follow.next_event().unwrap() {
                Next::Event(recorded) => numbers.push(recorded.event().seq.unwrap_or(0)),
                // It may be told of the same thing twice.
                Next::Pause if numbers.is_empty() => {}
                other => return (numbers, other),
            }
        }
    }

    #[test]
    fn what_comes_is_read_until_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(EVENTS);
        let line = |seq: u64| format!("{{\"type\":\"ready\",\"ts_ms\":{seq},\"pid\":1,\"seq\":{seq}}}\n");
        fs::write(&path, [line(1), line(3), line(2)].concat()).unwrap();
        let mut follow = Follow::open(folder.path(), true).unwrap();
        assert!(matches!(next(&mut follow), (numbers, Next::Pause) if numbers == [1, 2, 3]));
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(line(5).as_bytes()).unwrap();
        file.write_all(line(4).as_bytes()).unwrap();
        assert!(matches!(next(&mut follow), (numbers, Next::Pause) if numbers == [4, 5]));
        fs::write(&path, line(6)).unwrap();
        assert!(matches!(next(&mut follow), (numbers, Next::Replaced) if numbers.is_empty()));
        assert!(matches!(next(&mut follow), (numbers, Next::Pause) if numbers == [6]));
        fs::remove_file(&path).unwrap();
        assert!(matches!(next(&mut follow), (numbers, Next::Removed) if numbers.is_empty()));
        fs::write(&path, line(7) + "{\"type\":\"host_shutdown\",\"ts_ms\":8}\n").unwrap();
        for goes_on in [true, false] {
            let mut follow = Follow::open(folder.path(), goes_on).unwrap();
            assert!(matches!(next(&mut follow), (numbers, Next::End) if numbers == [7, 0]));
            assert_eq!(follow.ordered().condition(), crate::Condition { has_ended: true, ..Default::default() });
        }
    }
}
