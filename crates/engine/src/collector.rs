//! The socket that a probe reports to, in a folder of its own: what all engines share that bring the probe.

use std::collections::HashMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::geteuid;
use socktrace_collect::{Bound, Door};
use socktrace_event::{Failed, Origin, Sink, Source, Stop};
use socktrace_params::Params;

use crate::place::Place;
use crate::{Error, Events, target};

/// The socket, and the folder with what programs load.
pub(crate) struct Collector {
    pub place: Place,
    bound: Bound,
}

impl Collector {
    /// For a program that is yet to be started, and what it starts.
    pub fn for_program() -> Result<Self, Error> {
        let place = Place::new()?;
        let mut bound = place.bind()?;
        // The program may change its user, and execute others then.
        bound.admit_family(&[std::process::id()])?;
        Ok(Self { place, bound })
    }

    /// For processes that run, which reach it by a path if all of them can, and for what they start. Returns those that do
    /// not reach it, too, and why.
    pub fn for_processes(pids: &[u32]) -> Result<(Self, HashMap<u32, Error>), Error> {
        let place = Place::new()?;
        let mut bound = place.bind()?;
        let (mut reached, mut unreached): (Vec<_>, Vec<_>) =
            pids.iter().partition(|&&pid| is_reached_by(pid, bound.path()));
        if !unreached.is_empty() && pids.iter().all(|&pid| target::has_our_network(pid)) {
            bound = place.bind_abstract()?;
            reached.append(&mut unreached);
        }
        let me = geteuid().as_raw();
        let mut others: Vec<_> =
            reached.iter().flat_map(|&pid| target::users(pid)).filter(|&user| user != me).collect();
        others.sort_unstable();
        others.dedup();
        if !others.is_empty() {
            bound.admit(&others)?;
        }
        bound.admit_family(&reached)?;
        let why = format!(
            "has its own root or mounts, where {} is not, and its own network namespace: TMPDIR may name a folder that it \
             shares with us",
            bound.path().display()
        );
        let error = |pid| (pid, Error::Process { pid, why: why.clone() });
        Ok((Self { place, bound }, unreached.into_iter().map(error).collect()))
    }

    /// What a probe is told that reports here.
    pub fn tell<'a>(&'a self, params: &Params<'a>) -> Params<'a> {
        Params { out_socket_path: self.bound.path().as_os_str().as_bytes(), ..*params }
    }

    /// A way to hand rings over that were taken from processes.
    pub fn door(&mut self) -> Result<Door, Error> {
        Ok(self.bound.door()?)
    }

    /// What comes to the socket, and the folder.
    pub fn split(self) -> (Events, Place) {
        (Events::from(Listening(self.bound)), self.place)
    }
}

/// The socket, which goes with its events.
struct Listening(Bound);

impl Source for Listening {
    type Error = io::Error;

    fn origin(&self) -> Origin<'_> {
        self.0.origin()
    }

    fn run<S: Sink + ?Sized>(self, stop: &Stop, sink: &mut S) -> Result<&'static str, Failed<io::Error, S::Error>> {
        (&self.0).run(stop, sink)
    }
}

/// Whether a file is the same one for a process, which may have another root or other mounts than we have.
fn is_reached_by(pid: u32, path: &Path) -> bool {
    let Ok(ours) = fs::metadata(path) else { return false };
    let theirs = Path::new("/proc").join(pid.to_string()).join("root").join(path.strip_prefix("/").unwrap_or(path));
    match fs::metadata(theirs) {
        Ok(theirs) => (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()),
        Err(error) => error.kind() == ErrorKind::PermissionDenied,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_process_reaches() {
        let own = std::process::id();
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        assert!(is_reached_by(own, &file) && !is_reached_by(own, Path::new("/no/such/file")));
    }
}
