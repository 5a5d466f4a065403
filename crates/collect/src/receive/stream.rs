//! Stream connections, one per agent, any number of them.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{Shutdown, SocketFlags, accept_with, shutdown};
use socktrace_event::{Limited, notice};

use super::Socket;
use super::ancillary::{Came, receive};
use super::handoff::{Handoff, Part};
use crate::descriptors::agent_share;
use crate::door::{Door, Handed};
use crate::listen::Bound;
use crate::sender::Sender;
use crate::shares::{Shares, Verdict};

/// The most that is read from one agent before the others have their turn, in bytes.
const READ_LEN: usize = 64 << 10;
/// Agents served per turn, after which it may be time to flush.
const TURN: usize = 128;
/// Agents accepted per turn, so that a crowd at the door does not starve those inside.
const ACCEPT_TURN: usize = 64;
/// How long no agent is accepted when there is no descriptor for it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// So often is read from an agent that is turned away: a socket holds less, unless root has said otherwise.
const MAX_LAST_READS: usize = 64;
/// What epoll hands back for the listening socket.
const LISTENER: u64 = 0;
/// And where rings come in this process.
const DOOR: u64 = u64::MAX;

/// An agent that has connected.
struct Agent {
    socket: OwnedFd,
    sender: Sender,
}

/// A listening socket and the agents that have connected.
pub(super) struct Agents<'a> {
    listener: &'a Bound,
    epoll: OwnedFd,
    /// By their number, in the order in which they came, from 1.
    agents: HashMap<u64, Agent>,
    count: u64,
    shares: Shares,
    /// Accepted, for only then it is known whose it is, and to wait until another one leaves.
    waiting: Option<Agent>,
    /// A descriptor to be closed when there is none left, so that one agent can be accepted all the same.
    reserve: Option<OwnedFd>,
    chunk: Vec<u8>,
    accepting: bool,
    said_full: bool,
    turned_away: Limited,
    shut: bool,
}

impl<'a> Agents<'a> {
    pub(super) fn new(listener: &'a Bound) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut agents = Self {
            listener,
            epoll,
            agents: HashMap::new(),
            count: LISTENER,
            shares: Shares::default(),
            waiting: None,
            reserve: None,
            chunk: vec![0; READ_LEN],
            accepting: false,
            said_full: false,
            turned_away: Limited::default(),
            shut: false,
        };
        agents.accept_again(true)?;
        if let Some(door) = listener.opened_door() {
            epoll::add(&agents.epoll, door, epoll::EventData::new_u64(DOOR), epoll::EventFlags::IN)?;
        }
        agents.refill();
        Ok(agents)
    }

    /// Without a free descriptor the listener stays ready for ever; out of epoll's sight it does not make us spin.
    fn accept_again(&mut self, accepting: bool) -> io::Result<()> {
        if accepting && !self.accepting {
            let data = epoll::EventData::new_u64(LISTENER);
            epoll::add(&self.epoll, self.listener, data, epoll::EventFlags::IN)?;
        } else if !accepting && self.accepting {
            epoll::delete(&self.epoll, self.listener)?;
        }
        self.accepting = accepting;
        Ok(())
    }

    fn refill(&mut self) {
        if self.reserve.is_none() {
            // Which one does not matter.
            self.reserve = self.epoll.try_clone().ok();
        }
    }

    fn accept(&mut self, to: &Handoff) -> io::Result<usize> {
        for accepted in 0..ACCEPT_TURN {
            let mut is_short = false;
            let agent = match self.waiting.take() {
                Some(agent) => agent,
                None => match self.accept_one(&mut is_short) {
                    Ok(agent) => agent,
                    Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => {
                        self.pause()?;
                        return Ok(accepted);
                    }
                    // An agent that left before it was accepted, or nobody there.
                    Err(_) => return Ok(accepted),
                },
            };
            self.admit(agent, is_short, to)?;
            self.refill();
            if self.waiting.is_some() {
                self.pause()?;
                return Ok(accepted);
            }
        }
        Ok(ACCEPT_TURN)
    }

    fn pause(&mut self) -> io::Result<()> {
        if !std::mem::replace(&mut self.said_full, true) {
            notice("no file descriptor for another agent: it waits until one is free (see ulimit -n)");
        }
        self.accept_again(false)
    }

    /// Accepts an agent, by the last descriptor if it has to be.
    fn accept_one(&mut self, is_short: &mut bool) -> Result<Agent, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match accept_with(self.listener, flags) {
            Err(Errno::MFILE | Errno::NFILE) if self.reserve.take().is_some() => {
                *is_short = true;
                accept_with(self.listener, flags)?
            }
            result => result?,
        };
        let sender = Sender::of_peer(&socket);
        Ok(Agent { socket, sender })
    }

    /// Takes an agent in, if there is room or somebody has to make room for it; else it is turned away, or waits.
    fn admit(&mut self, agent: Agent, is_short: bool, to: &Handoff) -> io::Result<()> {
        if !self.listener.admits(agent.sender) {
            let Sender { pid, uid } = agent.sender;
            let why =
                || format!("process {pid} of user {uid} was not started by what is traced: its connection is closed");
            self.turned_away.notice(why);
            return Ok(());
        }
        if is_short || self.agents.len() >= agent_share() {
            match self.shares.judge(agent.sender, 1) {
                Verdict::Displaces(greediest) => {
                    let of_greediest = self.agents.iter().filter(|(_, agent)| agent.sender == greediest);
                    let newest = of_greediest.map(|(&number, _)| number).max();
                    if let Some((number, newest)) = newest.and_then(|number| self.agents.remove_entry(&number)) {
                        self.shares.take(greediest, 1);
                        self.turn_away(number, newest, to)?;
                    }
                }
                // Nobody else's wait may hold up those behind it: it is the collector's own user whom that would hurt.
                Verdict::Waits if agent.sender.is_own() => {
                    self.waiting = Some(agent);
                    return Ok(());
                }
                Verdict::HasEnough | Verdict::Waits => {
                    self.count += 1;
                    return self.turn_away(self.count, agent, to);
                }
            }
        }
        self.count += 1;
        if self.shut {
            let _ = shutdown(&agent.socket, Shutdown::Read);
        }
        let data = epoll::EventData::new_u64(self.count);
        if epoll::add(&self.epoll, &agent.socket, data, epoll::EventFlags::IN).is_err() {
            notice("the kernel watches no further agent: its connection is closed");
            return Ok(());
        }
        self.shares.add(agent.sender, 1);
        self.agents.insert(self.count, agent);
        Ok(())
    }

    /// Ends an agent's connection: what it has sent is taken, and when it sends more it gets EPIPE, and so knows what it
    /// loses.
    fn turn_away(&mut self, number: u64, agent: Agent, to: &Handoff) -> io::Result<()> {
        let Sender { pid, uid } = agent.sender;
        let count = self.shares.of(agent.sender);
        self.turned_away.notice(|| {
            format!(
                "process {pid} of user {uid} has {count} connections, and there are no descriptors for more: another of \
                 its connections is closed (see ulimit -n)"
            )
        });
        let _ = shutdown(&agent.socket, Shutdown::Read);
        for _ in 0..MAX_LAST_READS {
            if read_from(number, &agent, &mut self.chunk, to)? == Some(false) {
                return Ok(());
            }
        }
        to.put(std::iter::once((Part::of_stream(number, 0, Came::default()), &[][..])))
    }

    /// Takes the rings that were handed over here. Whether anybody writes to them is seen by their locks.
    fn take_in(&mut self, to: &Handoff) -> io::Result<usize> {
        let handed = self.listener.opened_door().map(Door::take).unwrap_or_default();
        let count = handed.len();
        for Handed { ring, sender, frame } in handed {
            self.count += 1;
            let came = Came { fd: Some(ring), sender: Some(sender) };
            let parts = [
                (Part::of_stream(self.count, frame.len(), came), &frame[..]),
                (Part::of_stream(self.count, 0, Came::default()), &[]),
            ];
            to.put(parts.into_iter())?;
        }
        Ok(count)
    }

    /// Reads once from an agent; returns whether there was something, which the end of the stream is, too.
    fn read(&mut self, number: u64, to: &Handoff) -> io::Result<bool> {
        let Some(agent) = self.agents.get(&number) else { return Ok(false) };
        let goes_on = read_from(number, agent, &mut self.chunk, to)?;
        if goes_on == Some(false) {
            self.shares.take(agent.sender, 1);
            // Closing takes it out of epoll, too.
            self.agents.remove(&number);
        }
        Ok(goes_on.is_some())
    }
}

/// Reads once; true: there may be more, false: it was the end, none: nothing is there.
fn read_from(number: u64, agent: &Agent, chunk: &mut [u8], to: &Handoff) -> io::Result<Option<bool>> {
    let (len, mut came) = match receive(&agent.socket, chunk) {
        Ok(received) => received,
        Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
        Err(_) => (0, Came::default()),
    };
    came.sender.get_or_insert(agent.sender);
    to.put(std::iter::once((Part::of_stream(number, len, came), &chunk[..len])))?;
    Ok(Some(len > 0))
}

impl AsFd for Agents<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Socket for Agents<'_> {
    fn receive(&mut self, to: &Handoff) -> io::Result<usize> {
        let mut taken = 0;
        if !self.accepting {
            self.accept_again(true)?;
            taken += self.accept(to)?;
        }
        let mut ready = [const { MaybeUninit::uninit() }; TURN];
        let ready = match epoll::wait(&self.epoll, &mut ready, Some(&Timespec::default())) {
            Ok((ready, _)) => ready,
            Err(Errno::INTR) => return Ok(taken),
            Err(e) => return Err(e.into()),
        };
        for event in ready {
            let ready = event.data.u64();
            taken += match ready {
                LISTENER => self.accept(to)?,
                DOOR => self.take_in(to)?,
                agent => usize::from(self.read(agent, to)?),
            };
        }
        Ok(taken)
    }

    fn retry_after(&self) -> Option<Duration> {
        (!self.accepting).then_some(ACCEPT_PAUSE)
    }

    fn shut(&mut self) {
        self.shut = true;
        let _ = shutdown(self.listener, Shutdown::Read);
        for agent in self.agents.values().chain(&self.waiting) {
            let _ = shutdown(&agent.socket, Shutdown::Read);
        }
    }
}
