//! Which events are let through.

use std::collections::HashMap;
use std::ffi::OsString;
use std::hash::{BuildHasher, RandomState};
use std::os::unix::ffi::OsStrExt;

use gttr::Frame;
use regex::bytes::{Regex, RegexBuilder};
use socktrace_event::{Direction, Event, Layer, ProcessId, Sink, Taken, What};

use crate::pattern::{Globs, last_line};

/// What somebody asks for: all of it that is said must hold.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Patterns of socket paths, one of which must match; after a `!`, of paths that are left out. `*` and `?` are what they
    /// are in a shell, and match slashes, too.
    pub paths: Vec<OsString>,
    /// Process ids, as the collector sees them.
    pub pids: Vec<u32>,
    /// Which way messages go; [`Direction::None`]: both.
    pub direction: Direction,
    /// A regular expression for the bytes of messages.
    pub grep: Option<OsString>,
}

/// What a [`Filter`] has is not what it should be: that, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// No pattern.
    #[error("{}: not a pattern: {why}", .0.display(), why = .1)]
    Pattern(OsString, String),
    /// No regular expression.
    #[error("{}: not a regular expression: {why}", .0.display(), why = .1)]
    Expression(OsString, String),
}

/// So many paths are remembered with their verdict; a program may bind a new one for every message.
const MAX_REMEMBERED: usize = 64 << 10;
/// So many connections are remembered with their verdict, at some 20 bytes each; of others the path of each event decides.
const MAX_CONNECTIONS: usize = 4 << 20;

/// By paths and processes: what is recorded and shown. By default everything.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    globs: Globs,
    pids: Vec<u32>,
    /// Verdicts on connections, whose later events do not name a path.
    connections: HashMap<u64, bool>,
    verdicts: HashMap<u64, bool>,
    /// Texts are remembered by their hashes, with a key of our own.
    hasher: RandomState,
}

impl Scope {
    /// # Errors
    ///
    /// A pattern is none.
    pub fn new(filter: &Filter) -> Result<Self, Invalid> {
        Ok(Self { globs: Globs::new(&filter.paths)?, pids: filter.pids.clone(), ..Self::default() })
    }

    /// Whether everything is asked for.
    pub fn is_all(&self) -> bool {
        self.pids.is_empty() && self.globs.is_empty()
    }

    /// Whether the event is asked for. What belongs to no process or no connection always is.
    pub fn lets_through(&mut self, event: &Event<'_>) -> bool {
        let is_other = |process: ProcessId| !process.here().is_some_and(|pid| self.pids.contains(&pid));
        if !self.pids.is_empty() && event.process().is_some_and(is_other) && !is_host(event) {
            return false;
        }
        if self.globs.is_empty() {
            return true;
        }
        let conn_id = event.conn_id().map(|conn_id| self.hasher.hash_one(conn_id));
        let own = event.path().map(|path| self.path_is_wanted(path));
        match (&event.what, conn_id) {
            (What::Open(_), Some(conn_id)) => {
                let wanted = own.unwrap_or(true);
                if self.connections.len() >= MAX_CONNECTIONS {
                    self.connections.clear();
                }
                self.connections.insert(conn_id, wanted);
                wanted
            }
            (What::Data(_), Some(conn_id)) => {
                own == Some(true) || self.connections.get(&conn_id).copied().unwrap_or(own.is_none())
            }
            (_, Some(conn_id)) => self.connections.get(&conn_id).copied().or(own).unwrap_or(true),
            (What::Listen(_) | What::Fail(_), None) => own.unwrap_or(true),
            _ => true,
        }
    }

    fn path_is_wanted(&mut self, path: &str) -> bool {
        let key = self.hasher.hash_one(path);
        if let Some(&wanted) = self.verdicts.get(&key) {
            return wanted;
        }
        // A name is bytes; what people write is matched with those.
        let name: Vec<u8> = gttr::unescape_path(path.as_bytes()).collect();
        let wanted = self.globs.want(&name);
        if self.verdicts.len() >= MAX_REMEMBERED {
            self.verdicts.clear();
        }
        self.verdicts.insert(key, wanted);
        wanted
    }
}

/// In front of what records and shows.
impl Layer for Scope {
    fn event<S: Sink + ?Sized>(&mut self, event: &Event<'_>, payload: &[u8], to: &mut S) -> Taken<S::Error> {
        if self.lets_through(event) {
            return to.event(event, payload);
        }
        to.left_out(event);
        Ok(())
    }

    fn frame<S: Sink + ?Sized>(&mut self, frame: &Frame<'_>, event: Option<&Event<'_>>, to: &mut S) -> Taken<S::Error> {
        match event {
            _ if self.is_all() => to.frame(frame, event),
            Some(event) if self.lets_through(event) => to.frame(frame, Some(event)),
            Some(event) => {
                to.left_out(event);
                Ok(())
            }
            None => self.frame(frame, Some(&Event::from_frame(frame)), to),
        }
    }
}

/// The server's own events have a pid, too: the server's.
fn is_host(event: &Event<'_>) -> bool {
    matches!(event.what, What::HostInit(_) | What::HostShutdown(_) | What::BadFrame(_))
}

/// By directions and bytes: which of the messages are shown. By default all.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// `None`: both.
    direction: Direction,
    grep: Option<Regex>,
    /// Whether some sockets only are asked for, so that processes which do not use them are not.
    by_path: bool,
}

impl Selection {
    /// # Errors
    ///
    /// The expression is none.
    pub fn new(filter: &Filter) -> Result<Self, Invalid> {
        let grep = filter.grep.as_deref().map(|given| {
            let mut text = String::new();
            for chunk in given.as_bytes().utf8_chunks() {
                text.push_str(chunk.valid());
                text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
            }
            // Bytes, not characters: \xff is one byte, and . any.
            let regex = RegexBuilder::new(&text).unicode(false).dot_matches_new_line(true).build();
            // Characters beyond ASCII need the other mode.
            regex
                .or_else(|_| Regex::new(&text))
                .map_err(|error| Invalid::Expression(given.to_owned(), last_line(&error.to_string())))
        });
        Ok(Self { direction: filter.direction, grep: grep.transpose()?, by_path: !filter.paths.is_empty() })
    }

    /// Whether every message is shown.
    pub fn is_all(&self) -> bool {
        self.direction == Direction::None && self.grep.is_none()
    }

    /// Whether a message's bytes are looked at, so that all of them are needed.
    pub fn looks_inside(&self) -> bool {
        self.grep.is_some()
    }

    /// Whether a message is asked for.
    pub fn wants(&self, direction: Direction, bytes: &[u8]) -> bool {
        (self.direction == Direction::None || self.direction == direction)
            && self.grep.as_ref().is_none_or(|grep| grep.is_match(bytes))
    }

    /// Whether the comings and goings of processes are shown.
    pub fn wants_processes(&self) -> bool {
        self.grep.is_none() && !self.by_path
    }

    /// Whether an event that is no message is shown: not when bytes are asked for, which it has none of.
    pub fn wants_event(&self, what: &What<'_>) -> bool {
        self.grep.is_none() || matches!(what, What::Error(_) | What::Lost(_) | What::BadFrame(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_searched() {
        let of = |grep: &str| Selection::new(&Filter { grep: Some(grep.into()), ..Filter::default() });
        assert!(of(r"\xff.B").unwrap().wants(Direction::None, b"a\xff\nB"));
        assert!(of("ä").unwrap().wants(Direction::None, "ä".as_bytes()));
        assert!(of("(?i)get").unwrap().wants(Direction::None, b"GET /"));
        assert!(!of("PUT").unwrap().wants(Direction::None, b"GET /"));
        assert!(of("(").is_err());
    }
}
