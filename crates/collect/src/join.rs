//! Joins the two ends of a connection where both are traced: the second end's open event names the first.

use std::borrow::Cow;
use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use gttr::{Frame, FrameType};
use lru::LruCache;

use crate::event::{Event, EventType, Text};
use crate::sender::Sender;
use crate::sink::Sink;

/// Connections that are remembered for their other end to be found. Both ends are usually heard of within a moment; an
/// agent that makes up connections costs no more memory than this many, whose names have a limit, too: some 30 MB.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1 << 14).expect("not 0");

/// A [`Sink`] in front of another: adds `peer_conn_id` to open events.
pub struct Joined<'s> {
    sink: &'s mut dyn Sink,
    /// Connections by the inode number of their socket, and by that of the socket at their other end.
    own: LruCache<u64, Arc<str>>,
    peer: LruCache<u64, Arc<str>>,
}

impl std::fmt::Debug for Joined<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Joined").field("own", &self.own.len()).field("peer", &self.peer.len()).finish_non_exhaustive()
    }
}

impl<'s> Joined<'s> {
    /// In front of `sink`.
    pub fn new(sink: &'s mut dyn Sink) -> Self {
        Self { sink, own: LruCache::new(REMEMBERED), peer: LruCache::new(REMEMBERED) }
    }

    /// The other end of a connection that opens, if it was heard of.
    fn other_end(&mut self, event: &Event<'_>) -> Option<Arc<str>> {
        let conn_id: &str = event.conn_id.as_deref()?;
        let named = event.peer_inode.and_then(|inode| self.own.get(&inode).cloned());
        let found = named.or_else(|| event.inode.and_then(|inode| self.peer.get(&inode).cloned()));
        // At most some 800 bytes: longer ones are shortened when they are decoded.
        let name: Arc<str> = conn_id.into();
        if let Some(inode) = event.inode {
            self.own.put(inode, Arc::clone(&name));
        }
        if let Some(inode) = event.peer_inode {
            self.peer.put(inode, name);
        }
        found.filter(|other| **other != *conn_id)
    }
}

/// The name of the process at the other end (proc_pid_comm(5)), which need not be that of its executable: Debian's redis-server
/// is a link to another program. Only where the number that the traced process was told leads to the executable that it
/// was told: it may be a number of another pid namespace.
fn peer_name(event: &Event<'_>) -> Option<Vec<u8>> {
    let (pid, exe) = (event.peer_pid?, event.peer_exe.as_deref().filter(|exe| !exe.is_empty())?);
    let found = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    if &*Text::escaped_name(found.as_os_str().as_bytes()) != exe {
        return None;
    }
    let mut name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    name.pop_if(|byte| *byte == b'\n');
    Some(name)
}

impl Sink for Joined<'_> {
    fn sender(&mut self, sender: Sender, channel: u64) {
        self.sink.sender(sender, channel);
    }

    fn event(&mut self, event: &Event<'_>, payload: &[u8]) {
        if event.kind != EventType::Open {
            return self.sink.event(event, payload);
        }
        let (other, name) = (self.other_end(event), peer_name(event));
        let peer_conn_id = other.as_deref().map(|other| Text(Cow::Borrowed(other)));
        let peer_comm = name.as_deref().map(Text::escaped_name);
        self.sink.event(&Event { peer_conn_id, peer_comm, ..event.clone() }, payload);
    }

    fn frame(&mut self, frame: &Frame<'_>) {
        self.sink.came(frame);
        if frame.kind == FrameType::Open {
            self.event(&Event::from_frame(frame), frame.payload);
        } else {
            self.sink.frame(frame);
        }
    }

    fn is_recorded(&self, frame: &Frame<'_>) -> bool {
        self.sink.is_recorded(frame)
    }

    fn flush(&mut self) -> bool {
        self.sink.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Opened(Vec<(String, Option<String>)>);

    impl Sink for Opened {
        fn event(&mut self, event: &Event<'_>, _: &[u8]) {
            let text = |text: &Option<Text<'_>>| text.as_deref().map(str::to_owned);
            self.0.push((text(&event.conn_id).unwrap_or_default(), text(&event.peer_conn_id)));
        }

        fn flush(&mut self) -> bool {
            true
        }
    }

    fn open(conn_id: &'static str, inode: u64, peer_inode: Option<u64>) -> Event<'static> {
        Event { conn_id: Some(conn_id.into()), inode: Some(inode), peer_inode, ..Event::now(EventType::Open) }
    }

    #[test]
    fn whichever_end_comes_second_names_the_first() {
        let mut opened = Opened::default();
        let mut joined = Joined::new(&mut opened);
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
            joined.event(&event, b"");
        }
        let named: Vec<_> = opened.0.iter().map(|(id, peer)| (id.as_str(), peer.as_deref())).collect();
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
