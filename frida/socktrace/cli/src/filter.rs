//! Which events are let through.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use globset::{Glob, GlobMatcher};
use regex::bytes::Regex;
use socktrace_server::event::Direction;
use socktrace_server::{Event, EventType, ProcessId};

use crate::args::{DirectionArg, FilterArgs};

/// So many paths are remembered with their verdict; a program may bind a new one for every message.
const MAX_REMEMBERED: usize = 64 << 10;

/// `--path` and `--pid`: what is recorded and shown.
#[derive(Debug)]
pub struct Scope {
    globs: Globs,
    pids: Vec<u32>,
    /// Verdicts on connections, whose later events do not name a path.
    connections: HashMap<Box<str>, bool>,
    verdicts: HashMap<Box<str>, bool>,
}

impl Scope {
    /// # Errors
    ///
    /// A pattern is none.
    pub fn new(args: &FilterArgs) -> Result<Self> {
        Ok(Self {
            globs: Globs::new(&args.path)?,
            pids: args.pid.clone(),
            connections: HashMap::new(),
            verdicts: HashMap::new(),
        })
    }

    /// Whether everything is asked for.
    pub fn is_all(&self) -> bool {
        self.pids.is_empty() && self.globs.is_empty()
    }

    /// Whether the event is asked for. What belongs to no process or no connection always is.
    pub fn lets_through(&mut self, event: &Event<'_>) -> bool {
        let is_other = |process: ProcessId| !process.here().is_some_and(|pid| self.pids.contains(&pid));
        if !self.pids.is_empty() && event.process().is_some_and(is_other) && !is_host(event.kind) {
            return false;
        }
        if self.globs.is_empty() {
            return true;
        }
        let conn_id = event.conn_id.as_deref();
        let own = event.path.as_deref().map(|path| self.path_is_wanted(path));
        match (event.kind, conn_id) {
            (EventType::Open, Some(conn_id)) => {
                let wanted = own.unwrap_or(true);
                self.connections.insert(conn_id.into(), wanted);
                wanted
            }
            (EventType::Data, Some(conn_id)) => {
                own == Some(true) || self.connections.get(conn_id).copied().unwrap_or(own.is_none())
            }
            (_, Some(conn_id)) => self.connections.get(conn_id).copied().or(own).unwrap_or(true),
            (EventType::Listen | EventType::Fail, None) => own.unwrap_or(true),
            _ => true,
        }
    }

    fn path_is_wanted(&mut self, path: &str) -> bool {
        if let Some(&wanted) = self.verdicts.get(path) {
            return wanted;
        }
        let wanted = self.globs.want(path);
        if self.verdicts.len() >= MAX_REMEMBERED {
            self.verdicts.clear();
        }
        self.verdicts.insert(path.into(), wanted);
        wanted
    }
}

/// The server's own events have a pid, too: the server's.
fn is_host(kind: EventType) -> bool {
    matches!(kind, EventType::HostInit | EventType::HostShutdown | EventType::BadFrame)
}

/// The patterns of `--path`.
#[derive(Debug)]
struct Globs {
    wanted: Vec<GlobMatcher>,
    excluded: Vec<GlobMatcher>,
}

impl Globs {
    fn new(patterns: &[String]) -> Result<Self> {
        let mut globs = Self { wanted: Vec::new(), excluded: Vec::new() };
        for pattern in patterns {
            let (list, glob) = match pattern.strip_prefix('!') {
                Some(glob) => (&mut globs.excluded, glob),
                None => (&mut globs.wanted, &**pattern),
            };
            let matcher = |glob: &str| Glob::new(glob).with_context(|| format!("--path {pattern}: not a pattern"));
            list.push(matcher(glob)?.compile_matcher());
            // /var/run/x.sock is /run/x.sock: whoever asks for one means both.
            if let Some(resolved) = resolve_literal_part(glob) {
                list.push(matcher(&resolved)?.compile_matcher());
            }
        }
        Ok(globs)
    }

    fn is_empty(&self) -> bool {
        self.wanted.is_empty() && self.excluded.is_empty()
    }

    fn want(&self, path: &str) -> bool {
        let resolved = resolve_folder(path);
        let any = |list: &[GlobMatcher]| {
            list.iter().any(|glob| glob.is_match(path) || resolved.as_ref().is_some_and(|path| glob.is_match(path)))
        };
        (self.wanted.is_empty() || any(&self.wanted)) && !any(&self.excluded)
    }
}

/// A pattern with the symbolic links in its folders resolved, up to the first that has a special character.
fn resolve_literal_part(glob: &str) -> Option<String> {
    let special = glob.find(['*', '?', '[', '{', '\\']).unwrap_or(glob.len());
    let folder_len = glob[..special].rfind('/').filter(|&at| at > 0)?;
    let (folder, rest) = glob.split_at(folder_len);
    let resolved = fs::canonicalize(folder).ok()?;
    let resolved = resolved.to_str()?;
    (resolved != folder).then(|| format!("{}{rest}", globset::escape(resolved)))
}

/// A path with the symbolic links in its folder resolved; the socket itself may be gone.
fn resolve_folder(path: &str) -> Option<PathBuf> {
    let path = Path::new(path);
    if !path.is_absolute() {
        return None;
    }
    Some(fs::canonicalize(path.parent()?).ok()?.join(path.file_name()?))
}

/// `--direction` and `--grep`: which of the messages are shown.
#[derive(Debug)]
pub struct Selection {
    direction: Option<Direction>,
    grep: Option<Regex>,
    /// Whether some sockets only are asked for, so that processes which do not use them are not.
    by_path: bool,
}

impl Selection {
    /// # Errors
    ///
    /// The expression is none.
    pub fn new(args: &FilterArgs) -> Result<Self> {
        let grep = args.grep.as_deref().map(|text| {
            // Bytes, not characters: \xff is one byte, and . any.
            let regex = regex::bytes::RegexBuilder::new(text).unicode(false).dot_matches_new_line(true).build();
            // Characters beyond ASCII need the other mode.
            regex.or_else(|_| Regex::new(text)).with_context(|| format!("--grep {text}: not a regular expression"))
        });
        let direction = args.direction.map(|direction| match direction {
            DirectionArg::In => Direction::In,
            DirectionArg::Out => Direction::Out,
        });
        Ok(Self { direction, grep: grep.transpose()?, by_path: !args.path.is_empty() })
    }

    /// Whether every message is shown.
    pub fn is_all(&self) -> bool {
        self.direction.is_none() && self.grep.is_none()
    }

    /// Whether a message's bytes are looked at, so that all of them are needed.
    pub fn looks_inside(&self) -> bool {
        self.grep.is_some()
    }

    /// Whether a message is asked for.
    pub fn wants(&self, direction: Option<Direction>, bytes: &[u8]) -> bool {
        (self.direction.is_none() || self.direction == direction)
            && self.grep.as_ref().is_none_or(|grep| grep.is_match(bytes))
    }

    /// Whether the comings and goings of processes are shown.
    pub fn wants_processes(&self) -> bool {
        self.grep.is_none() && !self.by_path
    }

    /// Whether an event that is no message is shown: not when bytes are asked for, which it has none of.
    pub fn wants_event(&self, kind: EventType) -> bool {
        self.grep.is_none() || matches!(kind, EventType::Error | EventType::Lost | EventType::BadFrame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn globs(patterns: &[&str]) -> Globs {
        Globs::new(&patterns.iter().map(|&p| p.to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn wanted_and_excluded() {
        let both = globs(&["/tmp/*", "@bus*", "!*private*"]);
        assert!(both.want("/tmp/a/b.sock") && both.want("@bus-1"));
        assert!(!both.want("/tmp/private.sock") && !both.want("/run/x") && !both.want(""));
        let excluded = globs(&["!/tmp/*"]);
        assert!(excluded.want("/run/x") && excluded.want("") && !excluded.want("/tmp/x"));
    }

    #[test]
    fn links_in_folders_do_not_matter() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap().join("real");
        let link = folder.path().canonicalize().unwrap().join("link");
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let (real, link) = (format!("{}/x.sock", real.display()), format!("{}/x.sock", link.display()));
        assert!(globs(&[&link]).want(&real) && globs(&[&real]).want(&link));
        assert!(globs(&[&link.replace("x.sock", "*.sock")]).want(&real));
    }

    #[test]
    fn bytes_are_searched() {
        let of = |grep: &str| Selection::new(&FilterArgs { grep: Some(grep.into()), ..FilterArgs::default() });
        assert!(of(r"\xff.B").unwrap().wants(None, b"a\xff\nB"));
        assert!(of("ä").unwrap().wants(None, "ä".as_bytes()));
        assert!(of("(?i)get").unwrap().wants(None, b"GET /"));
        assert!(!of("PUT").unwrap().wants(None, b"GET /"));
        assert!(of("(").is_err());
    }
}
