//! Joins the two ends of a connection where both are traced: the second end's open event names the first.

use std::borrow::Cow;
use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use gttr::{Frame, FrameType};
use lru::LruCache;
use socktrace_event::{Event, Layer, Open, Sink, Taken, Text, What};

/// Connections that are remembered for their other end to be found. Both ends are usually heard of within a moment; an
/// agent that makes up connections costs no more memory than this many, whose names have a limit, too: some 30 MB.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1 << 14).expect("not 0");

/// In front of a sink: adds `peer_conn_id` and `peer_comm` to open events.
#[derive(Debug)]
pub struct Joined {
    /// Connections by the inode number of their socket, and by that of the socket at their other end.
    own: LruCache<u64, Arc<str>>,
    peer: LruCache<u64, Arc<str>>,
}

impl Default for Joined {
    fn default() -> Self {
        Self { own: LruCache::new(REMEMBERED), peer: LruCache::new(REMEMBERED) }
    }
}

impl Joined {
    /// Hands an event on, one of a connection that opens with what is found of its other end.
    fn join<R>(&mut self, event: &Event<'_>, hand_on: impl FnOnce(&Event<'_>) -> R) -> R {
        let What::Open(open) = &event.what else { return hand_on(event) };
        let (other, name) = (self.other_end(open), peer_name(open));
        let peer_conn_id = other.as_deref().map(|other| Text(Cow::Borrowed(other)));
        let peer_comm = name.as_deref().map(Text::escaped_name);
        let what = What::Open(Open { peer_conn_id, peer_comm, ..open.clone() });
        hand_on(&Event { what, ..event.clone() })
    }

    /// The other end of a connection that opens, if it was heard of.
    fn other_end(&mut self, open: &Open<'_>) -> Option<Arc<str>> {
        let named = open.peer_inode.and_then(|inode| self.own.get(&inode).cloned());
        let found = named.or_else(|| open.inode.and_then(|inode| self.peer.get(&inode).cloned()));
        // At most some 800 bytes: longer ones are shortened when they are decoded.
        let name: Arc<str> = (*open.conn_id).into();
        if let Some(inode) = open.inode {
            self.own.put(inode, Arc::clone(&name));
        }
        if let Some(inode) = open.peer_inode {
            self.peer.put(inode, name);
        }
        found.filter(|other| **other != *open.conn_id)
    }
}

/// The name of the process at the other end (proc_pid_comm(5)), which need not be that of its executable: Debian's redis-server
/// is a link to another program. Only where the number that the traced process was told leads to the executable that it
/// was told: it may be a number of another pid namespace.
fn peer_name(open: &Open<'_>) -> Option<Vec<u8>> {
    let (pid, exe) = (open.peer_pid?, open.peer_exe.as_deref().filter(|exe| !exe.is_empty())?);
    let found = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    if &*Text::escaped_name(found.as_os_str().as_bytes()) != exe {
        return None;
    }
    let mut name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    name.pop_if(|byte| *byte == b'\n');
    Some(name)
}

impl Layer for Joined {
    fn event<S: Sink + ?Sized>(&mut self, event: &Event<'_>, payload: &[u8], to: &mut S) -> Taken<S::Error> {
        self.join(event, |event| to.event(event, payload))
    }

    fn frame<S: Sink + ?Sized>(&mut self, frame: &Frame<'_>, event: Option<&Event<'_>>, to: &mut S) -> Taken<S::Error> {
        match event {
            Some(event) => self.join(event, |event| to.frame(frame, Some(event))),
            None if frame.kind == FrameType::Open => {
                self.join(&Event::from_frame(frame), |event| to.frame(frame, Some(event)))
            }
            None => to.frame(frame, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[derive(Default)]
    struct Opened(Vec<(String, Option<String>)>);

    impl Sink for Opened {
        type Error = Infallible;

        fn event(&mut self, event: &Event<'_>, _: &[u8]) -> Taken<Infallible> {
            let What::Open(open) = &event.what else { return Ok(()) };
            self.0.push((open.conn_id.to_string(), open.peer_conn_id.as_deref().map(str::to_owned)));
            Ok(())
        }
    }

    fn open(conn_id: &'static str, inode: u64, peer_inode: Option<u64>) -> Event<'static> {
        Event::now(What::Open(Open { conn_id: conn_id.into(), inode: Some(inode), peer_inode, ..Open::default() }))
    }

    #[test]
    fn whichever_end_comes_second_names_the_first() {
        let mut joined = Joined::default().before(Opened::default());
        // An accepting end knows its peer; a connecting one that is not accepted yet may not.
        for event in [
            open("client", 1, None),
            open("server", 2, Some(1)),
            open("server2", 4, Some(3)),
            open("client2", 3, None),
            open("alone", 9, Some(8)),
            // Reported again, after a server was restarted: not its own peer.
            open("alone", 9, Some(8)),
        ] {
            joined.event(&event, b"").unwrap();
        }
        let named: Vec<_> = joined.sink.0.iter().map(|(id, peer)| (id.as_str(), peer.as_deref())).collect();
        assert_eq!(
            named,
            [
                ("client", None),
                ("server", Some("client")),
                ("server2", None),
                ("client2", Some("server2")),
                ("alone", None),
                ("alone", None),
            ]
        );
    }
}
