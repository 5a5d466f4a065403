//! Which events are let through.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use globset::Glob;
use gttr::Frame;
use regex::bytes::{Regex, RegexBuilder};
use socktrace_event::{Direction, Event, Layer, ProcessId, Sink, Taken, What};

use crate::args::{DirectionArg, FilterArgs};

/// So many paths are remembered with their verdict; a program may bind a new one for every message.
const MAX_REMEMBERED: usize = 64 << 10;
/// So many connections are remembered with their verdict, at some 20 bytes each; of others the path of each event decides.
const MAX_CONNECTIONS: usize = 4 << 20;

/// `--path` and `--pid`: what is recorded and shown.
#[derive(Debug)]
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
    pub fn new(args: &FilterArgs) -> Result<Self> {
        Ok(Self {
            globs: Globs::new(&args.path)?,
            pids: args.pid.clone(),
            connections: HashMap::new(),
            verdicts: HashMap::new(),
            hasher: RandomState::new(),
        })
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

/// The patterns of `--path`.
#[derive(Debug)]
struct Globs {
    wanted: Vec<Regex>,
    excluded: Vec<Regex>,
}

impl Globs {
    fn new(patterns: &[OsString]) -> Result<Self> {
        let mut globs = Self { wanted: Vec::new(), excluded: Vec::new() };
        for pattern in patterns {
            let (list, glob) = match pattern.as_bytes().strip_prefix(b"!") {
                Some(glob) => (&mut globs.excluded, glob),
                None => (&mut globs.wanted, pattern.as_bytes()),
            };
            let matcher = |glob: &[u8]| {
                matcher(glob).map_err(|why| anyhow!("--path {}: not a pattern: {why}", pattern.display()))
            };
            list.push(matcher(glob)?);
            // /var/run/x.sock is /run/x.sock: whoever asks for one means both.
            if let Some(resolved) = resolve_literal_part(glob) {
                list.push(matcher(&resolved)?);
            }
        }
        Ok(globs)
    }

    fn is_empty(&self) -> bool {
        self.wanted.is_empty() && self.excluded.is_empty()
    }

    fn want(&self, name: &[u8]) -> bool {
        let resolved = resolve_folder(name);
        let any = |list: &[Regex]| {
            list.iter().any(|glob| {
                glob.is_match(name) || resolved.as_ref().is_some_and(|path| glob.is_match(path.as_os_str().as_bytes()))
            })
        };
        (self.wanted.is_empty() || any(&self.wanted)) && !any(&self.excluded)
    }
}

/// One character of UTF-8, or a byte that is of none.
const ANY_CHARACTER: &str =
    r"(?:[\x00-\x7f]|[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}|[\x80-\xff])";
/// Stand for bytes that are no UTF-8 in the text of a pattern: private use, the last of Unicode.
const FIRST_STAND_IN: u32 = 0x10_ff00;

/// What a pattern matches. Globs know characters, and paths are bytes: `?` is a character where there is one, and bytes
/// that are none match themselves.
fn matcher(glob: &[u8]) -> Result<Regex, String> {
    let mut text = String::new();
    for chunk in glob.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().filter_map(|&byte| char::from_u32(FIRST_STAND_IN + u32::from(byte))));
    }
    let glob = Glob::new(&text).map_err(|error| error.kind().to_string())?;
    let mut regex = String::new();
    let (mut in_class, mut chars) = (false, glob.regex().chars().peekable());
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                regex.push(c);
                regex.extend(chars.next());
                continue;
            }
            '[' => in_class = true,
            ']' => in_class = false,
            '.' if !in_class && chars.peek() != Some(&'*') => {
                regex.push_str(ANY_CHARACTER);
                continue;
            }
            _ => {}
        }
        regex.push(c);
    }
    for byte in 0x80..=0xff_u8 {
        let stand_in = char::from_u32(FIRST_STAND_IN + u32::from(byte)).map(|c| c.to_string()).unwrap_or_default();
        let escaped: String = stand_in.bytes().map(|byte| format!("\\x{byte:02x}")).collect();
        if text.contains(&stand_in) {
            regex = regex.replace(&escaped, &format!("\\x{byte:02x}"));
        }
    }
    RegexBuilder::new(&regex).dot_matches_new_line(true).build().map_err(|error| last_line(&error.to_string()))
}

/// What is wrong: an error of regex's shows the pattern in lines of their own before it says that.
fn last_line(error: &str) -> String {
    error.lines().last().map(|line| line.trim_start_matches("error: ")).unwrap_or_default().to_owned()
}

/// A pattern with the symbolic links in its folders resolved, up to the first that has a special character.
fn resolve_literal_part(glob: &[u8]) -> Option<Vec<u8>> {
    let special = glob.iter().position(|b| b"*?[{\\".contains(b)).unwrap_or(glob.len());
    let folder_len = glob[..special].iter().rposition(|&b| b == b'/').filter(|&at| at > 0)?;
    let (folder, rest) = glob.split_at(folder_len);
    let resolved = fs::canonicalize(OsStr::from_bytes(folder)).ok()?;
    let resolved = resolved.as_os_str().as_bytes();
    let escaped = |&b: &u8| if b"*?[]{}\\!,-".contains(&b) { vec![b'\\', b] } else { vec![b] };
    (resolved != folder).then(|| resolved.iter().flat_map(escaped).chain(rest.iter().copied()).collect())
}

/// A path with the symbolic links in its folder resolved; the socket itself may be gone.
fn resolve_folder(name: &[u8]) -> Option<PathBuf> {
    let path = Path::new(OsStr::from_bytes(name));
    if !path.is_absolute() {
        return None;
    }
    Some(fs::canonicalize(path.parent()?).ok()?.join(path.file_name()?))
}

/// `--direction` and `--grep`: which of the messages are shown.
#[derive(Debug)]
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
    pub fn new(args: &FilterArgs) -> Result<Self> {
        let grep = args.grep.as_deref().map(|given| {
            let mut text = String::new();
            for chunk in given.as_bytes().utf8_chunks() {
                text.push_str(chunk.valid());
                text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
            }
            // Bytes, not characters: \xff is one byte, and . any.
            let regex = RegexBuilder::new(&text).unicode(false).dot_matches_new_line(true).build();
            // Characters beyond ASCII need the other mode.
            regex.or_else(|_| Regex::new(&text)).map_err(|error| {
                let why = last_line(&error.to_string());
                anyhow!("--grep {}: not a regular expression: {why}", given.display())
            })
        });
        let direction = match args.direction {
            None => Direction::None,
            Some(DirectionArg::In) => Direction::In,
            Some(DirectionArg::Out) => Direction::Out,
        };
        Ok(Self { direction, grep: grep.transpose()?, by_path: !args.path.is_empty() })
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
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn globs(patterns: &[&str]) -> Globs {
        Globs::new(&patterns.iter().map(|&p| p.into()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn wanted_and_excluded() {
        let both = globs(&["/tmp/*", "@bus*", "!*private*"]);
        assert!(both.want(b"/tmp/a/b.sock") && both.want(b"@bus-1"));
        assert!(!both.want(b"/tmp/private.sock") && !both.want(b"/run/x") && !both.want(b""));
        let excluded = globs(&["!/tmp/*"]);
        assert!(excluded.want(b"/run/x") && excluded.want(b"") && !excluded.want(b"/tmp/x"));
    }

    #[test]
    fn links_in_folders_do_not_matter() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap().join("real");
        let link = folder.path().canonicalize().unwrap().join("link");
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let (real, link) = (format!("{}/x.sock", real.display()), format!("{}/x.sock", link.display()));
        assert!(globs(&[&link]).want(real.as_bytes()) && globs(&[&real]).want(link.as_bytes()));
        assert!(globs(&[&link.replace("x.sock", "*.sock")]).want(real.as_bytes()));
    }

    #[test]
    fn names_are_bytes_and_matched_as_people_write_them() {
        assert!(globs(&["/tmp/é*"]).want("/tmp/é.sock".as_bytes()) && globs(&["@é"]).want("@é".as_bytes()));
        assert!(globs(&["/?.sock"]).want("/é.sock".as_bytes()) && globs(&["/?.sock"]).want(b"/\xff.sock"));
        assert!(!globs(&["/?.sock"]).want(b"/ab.sock") && !globs(&["/e*"]).want("/é".as_bytes()));
        let bytes = Globs::new(&[OsString::from_vec(b"@\xff*\xfe".to_vec())]).unwrap();
        assert!(bytes.want(b"@\xff\xfe") && bytes.want(b"@\xffa\xfe") && !bytes.want(b"@\xfe\xff"));
        // A backslash makes the next character itself.
        assert!(globs(&[r"@a\\x01b"]).want(br"@a\x01b") && !globs(&[r"@a\\x01b"]).want(b"@a\x01b"));
        assert!(globs(&["@a.b[xy]"]).want(b"@a.bx") && !globs(&["@a.b[xy]"]).want(b"@acbx"));
    }

    #[test]
    fn bytes_are_searched() {
        let of = |grep: &str| Selection::new(&FilterArgs { grep: Some(grep.into()), ..FilterArgs::default() });
        assert!(of(r"\xff.B").unwrap().wants(Direction::None, b"a\xff\nB"));
        assert!(of("ä").unwrap().wants(Direction::None, "ä".as_bytes()));
        assert!(of("(?i)get").unwrap().wants(Direction::None, b"GET /"));
        assert!(!of("PUT").unwrap().wants(Direction::None, b"GET /"));
        assert!(of("(").is_err());
    }
}
