//! Patterns of socket paths.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use globset::Glob;
use regex::bytes::{Regex, RegexBuilder};

use crate::filter::Invalid;

/// Patterns of the paths that are wanted, and of those that are not.
#[derive(Clone, Debug, Default)]
pub struct Globs {
    wanted: Vec<Regex>,
    excluded: Vec<Regex>,
}

impl Globs {
    /// As in [`Filter::paths`](crate::Filter::paths).
    ///
    /// # Errors
    ///
    /// A pattern is none.
    pub fn new(patterns: &[OsString]) -> Result<Self, Invalid> {
        let mut globs = Self::default();
        for pattern in patterns {
            let (list, glob) = match pattern.as_bytes().strip_prefix(b"!") {
                Some(glob) => (&mut globs.excluded, glob),
                None => (&mut globs.wanted, pattern.as_bytes()),
            };
            let matcher = |glob: &[u8]| matcher(glob).map_err(|why| Invalid::Pattern(pattern.clone(), why));
            list.push(matcher(glob)?);
            // /var/run/x.sock is /run/x.sock: whoever asks for one means both.
            if let Some(resolved) = resolve_literal_part(glob) {
                list.push(matcher(&resolved)?);
            }
        }
        Ok(globs)
    }

    /// Whether every path is wanted.
    pub fn is_empty(&self) -> bool {
        self.wanted.is_empty() && self.excluded.is_empty()
    }

    /// Whether there are patterns of what is wanted, not only of what is not.
    pub fn has_wanted(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// Whether the patterns let a name through: a path, `@name`, or empty.
    pub fn want(&self, name: &[u8]) -> bool {
        (self.wanted.is_empty() || self.wants(name)) && !self.excludes(name)
    }

    /// Whether one of the patterns of what is wanted matches.
    pub fn wants(&self, name: &[u8]) -> bool {
        any(&self.wanted, name)
    }

    /// Whether one of the patterns of what is not wanted matches.
    pub fn excludes(&self, name: &[u8]) -> bool {
        any(&self.excluded, name)
    }
}

fn any(list: &[Regex], name: &[u8]) -> bool {
    let matches = |name: &[u8]| list.iter().any(|glob| glob.is_match(name));
    !list.is_empty() && (matches(name) || resolve_folder(name).is_some_and(|path| matches(path.as_os_str().as_bytes())))
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
pub(crate) fn last_line(error: &str) -> String {
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
}
