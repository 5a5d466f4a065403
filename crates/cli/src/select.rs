//! Which sockets and processes are asked for, by path, process, name and unit.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;

use anyhow::{Context, Result, anyhow};
use socktrace_sockets::{Process, Snapshot, Socket, Unit, file_at};
use socktrace_view::Globs;

use crate::args::ListArgs;

/// Sockets by `--path`. What somebody else binds by another path, in another mount namespace say, is found by its file.
pub struct Paths {
    globs: Globs,
    files: Vec<(u64, u32)>,
}

impl Paths {
    /// # Errors
    ///
    /// One line that says what is no pattern.
    pub fn new(patterns: &[OsString]) -> Result<Self> {
        let globs = Globs::new(patterns).map_err(|error| anyhow!("--path {error}"))?;
        let files = patterns.iter().filter_map(|pattern| file_at(pattern)).collect();
        Ok(Self { globs, files })
    }

    /// Whether they say what is wanted, not only what is not.
    pub fn has_wanted(&self) -> bool {
        self.globs.has_wanted()
    }

    /// Whether a socket or its other end has such a path, and neither has one that is left out.
    pub fn want(&self, snapshot: &Snapshot, socket: &Socket) -> bool {
        if self.globs.is_empty() {
            return true;
        }
        let ends: Vec<_> = snapshot.ends(socket).collect();
        let names: Vec<_> = ends.iter().map(|end| end.address.bytes()).filter(|name| !name.is_empty()).collect();
        let is_wanted = !self.globs.has_wanted()
            || names.iter().any(|name| self.globs.wants(name))
            || ends.iter().any(|end| end.file.is_some_and(|file| self.files.contains(&file)));
        is_wanted && !names.iter().any(|name| self.globs.excludes(name))
    }

    /// A pattern for the path of a socket that was found by its file, where it has another path than was asked for.
    pub fn further_pattern(&self, socket: &Socket) -> Option<OsString> {
        let name = socket.address.bytes();
        let is_found = socket.file.is_some_and(|file| self.files.contains(&file));
        (is_found && !self.globs.wants(&name)).then(|| literally(&name))
    }
}

/// A pattern that matches just this name.
fn literally(name: &[u8]) -> OsString {
    let escape = |&b: &u8| if b"*?[]{}\\!,-".contains(&b) { vec![b'\\', b] } else { vec![b] };
    OsString::from_vec(name.iter().flat_map(escape).collect())
}

/// What `list` shows.
pub struct Selection<'a> {
    args: &'a ListArgs,
    paths: Paths,
    units: Vec<Unit>,
}

impl<'a> Selection<'a> {
    /// # Errors
    ///
    /// One line that names the option and says what is wrong with it.
    pub fn new(args: &'a ListArgs) -> Result<Self> {
        let paths = Paths::new(&args.scope.path)?;
        let units = args.unit.iter().map(|unit| self::unit(unit)).collect::<Result<_>>()?;
        Ok(Self { args, paths, units })
    }

    /// Whether a socket is asked for: by itself or by its other end.
    pub fn wants(&self, snapshot: &Snapshot, socket: &Socket) -> bool {
        let by_process = self.args.scope.pid.is_empty() && self.args.name.is_empty() && self.units.is_empty();
        let holders = || snapshot.ends(socket).flat_map(|end| &end.holders);
        let mut processes = holders().filter_map(|holder| snapshot.processes.get(&holder.pid));
        (!self.args.listening || socket.listens)
            && (by_process || processes.any(|process| self.wants_process(process)))
            && self.paths.want(snapshot, socket)
    }

    fn wants_process(&self, process: &Process) -> bool {
        let Self { args, units, .. } = self;
        let none_or = |is_none: bool, matches: bool| is_none || matches;
        none_or(args.scope.pid.is_empty(), args.scope.pid.contains(&process.pid))
            && none_or(args.name.is_empty(), args.name.iter().any(|name| process.is_named(name)))
            && none_or(units.is_empty(), units.iter().any(|unit| process.cgroups.is_in(unit)))
    }
}

/// What `--unit` names.
///
/// # Errors
///
/// One line.
pub fn unit(text: &OsStr) -> Result<Unit> {
    Unit::parse(text).context("--unit")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_matched_literally() {
        let name = b"/tmp/a*[b]{c,d}\\!\xff-e.sock";
        let globs = Globs::new(&[literally(name)]).unwrap();
        assert!(globs.wants(name) && !globs.wants(b"/tmp/aXb{c,d}\\!\xff-e.sock"));
    }
}
