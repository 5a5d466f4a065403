//! Stream connections, one per agent, any number of them.

use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, Shutdown, SocketFlags, accept_with, recvmsg, shutdown,
};

use super::Source;
use super::handoff::{Handoff, Part};
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
    listener: BorrowedFd<'a>,
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
    pub(super) fn new(listener: BorrowedFd<'a>) -> io::Result<Self> {
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
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let len = match recvmsg(agent, &mut [IoSliceMut::new(&mut self.chunk)], &mut ancillary, flags) {
            Ok(received) => received.bytes,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Err(_) => 0,
        };
        // Where there is more than one, the kernel closes what there is no room for.
        let fd = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let is_foreign = fd.is_some() && is_foreign(agent);
        to.put(std::iter::once((Part::of_stream(key, len, fd, is_foreign), &self.chunk[..len])))?;
        if len == 0 {
            // Closing takes it out of epoll, too.
            self.agents.remove(&key);
        }
        Ok(true)
    }
}

/// Whether the other end is in a pid namespace below ours, where threads have other numbers (pid_namespaces(7)).
fn is_foreign(agent: &OwnedFd) -> bool {
    // Not rustix's, whose pid may not be 0, as it is for a process that cannot be seen from here.
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    let at = (&raw mut peer).cast();
    // SAFETY: room for a `struct ucred`, and its length.
    let failed = unsafe { libc::getsockopt(agent.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, at, &raw mut len) };
    if failed != 0 || peer.pid == 0 {
        return failed == 0;
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", peer.pid)).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.is_some_and(|numbers| numbers.split_whitespace().count() > 1)
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
