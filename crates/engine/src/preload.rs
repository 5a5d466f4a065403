//! The probe as a library that the dynamic loader loads first (ld.so(8), LD_PRELOAD).

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use socktrace_event::PathError;
use socktrace_params::Params;

use crate::collector::Collector;
use crate::place::{Place, Removal};
use crate::start::{Program, Signals, Start, With};
use crate::{Engine, Error, Events, Options, Running, Target, gadget, program};

/// The probe looks for its own entry in LD_PRELOAD by this name, and for its parameters beside it.
pub(crate) const PROBE: &str = "socktrace-probe.so";
/// Their name.
pub(crate) const PARAMETERS: &str = "params";

/// Another name of the folder, by which the probe is preloaded. A program that was built with AddressSanitizer ends at
/// once unless the first of its libraries is the sanitizer's, for that stands in for libc's functions and nobody
/// may come before it. It knows its own library by these two names in the library's path (gcc's and clang's). The
/// probe leaves functions that are not libc's to whom they belong, so it may be first.
const ALIAS: &str = "not-libasan.so-nor-libclang_rt.asan";

const NEVER_LOADED: &str = "the probe never loaded: the program ended before its libraries were loaded, its dynamic \
                            loader ignores LD_PRELOAD, or the program may not read the probe";

/// `gadget`: Frida Gadget's library, which is preloaded in the probe's place.
#[derive(Debug)]
struct Preload {
    gadget: Option<PathBuf>,
}

pub(crate) fn make(options: &Options) -> Box<dyn Engine> {
    Box::new(Preload { gadget: options.gadget.clone() })
}

impl Engine for Preload {
    fn hindrance(&self, target: Target<'_>) -> Option<String> {
        match target {
            Target::Program { path, arguments } => program::hindrance(path, arguments),
            Target::Process(pid) => Some(format!("process {pid}: has loaded its libraries already")),
        }
    }

    fn to_run(self: Box<Self>, params: &Params<'_>) -> Result<(Events, Box<dyn Running>), Error> {
        let collector = Collector::for_program()?;
        let (place, told) = (&collector.place, collector.tell(params));
        let library = match self.gadget {
            Some(gadget) => gadget::prepare(place, &gadget, &told)?,
            None => prepare(place, &told)?,
        };
        let list = list_with(env::var_os("LD_PRELOAD"), library.as_os_str());
        let (events, place) = collector.split();
        Ok((events, Box::new(Preloaded { place, list })))
    }
}

/// Where the probe is once it is in place.
pub(crate) fn library(place: &Place) -> PathBuf {
    place.path(ALIAS).join(PROBE)
}

/// Puts the probe and its parameters in place; returns what is to be preloaded.
pub(crate) fn prepare(place: &Place, params: &Params<'_>) -> Result<PathBuf, Error> {
    let mut text = Vec::new();
    params.write_to(&mut text);
    place.write(PARAMETERS, &text, 0o644)?;
    place.write(PROBE, socktrace_agent::PROBE, 0o755)?;
    let alias = place.path(ALIAS);
    symlink(".", &alias).map_err(PathError::io(&alias, "cannot be made"))?;
    Ok(library(place))
}

struct Preloaded {
    place: Place,
    /// LD_PRELOAD.
    list: OsString,
}

impl Running for Preloaded {
    fn start(&mut self, start: &Start<'_>, signals: &Signals) -> io::Result<Program> {
        start.spawn(signals, With { preload: Some(&self.list), traced: false }).map(Program::from)
    }

    fn silence(&self) -> &'static str {
        NEVER_LOADED
    }

    fn leave(self: Box<Self>) -> Removal {
        self.place.remove()
    }
}

/// LD_PRELOAD as it was, with one more entry.
fn list_with(before: Option<OsString>, library: &OsStr) -> OsString {
    let mut list = before.unwrap_or_default();
    if !list.is_empty() {
        list.push(":");
    }
    list.push(library);
    list
}

#[cfg(test)]
mod tests {
    use socktrace_params::{OnFull, Transport};

    use super::*;

    #[test]
    fn what_was_preloaded_still_is() {
        let with = |before: Option<&str>| list_with(before.map(Into::into), OsStr::new("/t/p.so"));
        assert_eq!(with(None), "/t/p.so");
        assert_eq!(with(Some("")), "/t/p.so");
        assert_eq!(with(Some("libfaketime.so")), "libfaketime.so:/t/p.so");
    }

    #[test]
    fn what_the_probe_finds_beside_itself() {
        let collector = Collector::for_program().unwrap();
        let params = Params { transport: Transport::Shm, on_full: OnFull::Block, max_fds: 9, ..Params::DEFAULT };
        let told = collector.tell(&params);
        let library = prepare(&collector.place, &told).unwrap();
        assert_eq!(std::fs::read(&library).unwrap(), socktrace_agent::PROBE);
        let text = std::fs::read(library.with_file_name(PARAMETERS)).unwrap();
        let read = socktrace_params::parse(&text).unwrap();
        assert_eq!(read, Params { text: &text, ..told });
        assert_eq!(read.out_socket_path, collector.place.path("sock").as_os_str().as_encoded_bytes());
    }
}
