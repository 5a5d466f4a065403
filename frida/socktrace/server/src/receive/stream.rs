//! Stream connections, one per agent, any number of them.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{Shutdown, SocketFlags, accept_with, shutdown};

use super::Source;
use super::ancillary::{Came, receive};
use super::handoff::{Handoff, Part};
use crate::listen::Bound;
use crate::notice::notice;

/// The most that is read from one agent before the others have their turn, in bytes.
const READ_LEN: usize = 64 << 10;
/// Agents served per turn, after which it may be time to flush.
const TURN: usize = 128;
/// Agents accepted per turn, so that a crowd at the door does not starve those inside.
const ACCEPT_TURN: usize = 64;
/// How long no agent is accepted when there is no descriptor for it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listening socket and the agents that have connected.
pub(super) struct Agents<'a> {
    listener: &'a Bound,
    epoll: OwnedFd,
    /// By descriptor number, which is what epoll hands back.
    agents: HashMap<u64, OwnedFd>,
    chunk: Vec<u8>,
    accepting: bool,
    said_full: bool,
    shut: bool,
}

fn key(fd: impl AsFd) -> u64 {
    u64::from(fd.as_fd().as_raw_fd().unsigned_abs())
}

impl<'a> Agents<'a> {
    pub(super) fn new(listener: &'a Bound) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut agents = Self {
            listener,
            epoll,
            agents: HashMap::new(),
            chunk: vec![0; READ_LEN],
            accepting: false,
            said_full: false,
            shut: false,
        };
        agents.accept_again(true)?;
        Ok(agents)
    }

    /// Without a free descriptor the listener stays ready for ever; out of epoll's sight it does not make us spin.
    fn accept_again(&mut self, accepting: bool) -> io::Result<()> {
        if accepting && !self.accepting {
            let data = epoll::EventData::new_u64(key(self.listener));
            epoll::add(&self.epoll, self.listener, data, epoll::EventFlags::IN)?;
        } else if !accepting && self.accepting {
            epoll::delete(&self.epoll, self.listener)?;
        }
        self.accepting = accepting;
        Ok(())
    }

    fn accept(&mut self) -> io::Result<usize> {
        for accepted in 0..ACCEPT_TURN {
            let socket = match accept_with(self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => socket,
                Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => {
                    if !std::mem::replace(&mut self.said_full, true) {
                        notice("no file descriptor for another agent: it waits until one is free (see ulimit -n)");
                    }
                    self.accept_again(false)?;
                    return Ok(accepted);
                }
                // An agent that left before it was accepted, or nobody there.
                Err(_) => return Ok(accepted),
            };
            if !self.listener.admits(&socket) {
                continue;
            }
            if self.shut {
                let _ = shutdown(&socket, Shutdown::Read);
            }
            let data = epoll::EventData::new_u64(key(&socket));
            if epoll::add(&self.epoll, &socket, data, epoll::EventFlags::IN).is_err() {
                notice("the kernel watches no further agent: its connection is closed");
                continue;
            }
            self.agents.insert(key(&socket), socket);
        }
        Ok(ACCEPT_TURN)
    }

    /// Reads once from an agent; returns whether there was something, which the end of the stream is, too.
    fn read(&mut self, key: u64, to: &Handoff) -> io::Result<bool> {
        let Some(agent) = self.agents.get(&key) else { return Ok(false) };
        let (len, came) = match receive(agent, &mut self.chunk) {
            Ok(received) => received,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Err(_) => (0, Came::default()),
        };
        to.put(std::iter::once((Part::of_stream(key, len, came), &self.chunk[..len])))?;
        if len == 0 {
            // Closing takes it out of epoll, too.
            self.agents.remove(&key);
        }
        Ok(true)
    }
}

impl AsFd for Agents<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Source for Agents<'_> {
    fn receive(&mut self, to: &Handoff) -> io::Result<usize> {
        let mut taken = 0;
        if !self.accepting {
            self.accept_again(true)?;
            taken += self.accept()?;
        }
        let mut ready = [const { MaybeUninit::uninit() }; TURN];
        let ready = match epoll::wait(&self.epoll, &mut ready, Some(&Timespec::default())) {
            Ok((ready, _)) => ready,
            Err(Errno::INTR) => return Ok(taken),
            Err(e) => return Err(e.into()),
        };
        for event in ready {
            let ready = event.data.u64();
            if ready == key(self.listener) {
                taken += self.accept()?;
            } else {
                taken += usize::from(self.read(ready, to)?);
            }
        }
        Ok(taken)
    }

    fn retry_after(&self) -> Option<Duration> {
        (!self.accepting).then_some(ACCEPT_PAUSE)
    }

    fn shut(&mut self) {
        self.shut = true;
        let _ = shutdown(self.listener, Shutdown::Read);
        for agent in self.agents.values() {
            let _ = shutdown(agent, Shutdown::Read);
        }
    }
}
