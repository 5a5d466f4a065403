//! The probe as a library that the dynamic loader loads first (ld.so(8), LD_PRELOAD).

use std::env;
use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{Parameters, Place};

/// The probe looks for its own entry in LD_PRELOAD by this name, and for its parameters beside it.
pub const PROBE: &str = "socktrace-probe.so";
/// Their name.
pub const PARAMETERS: &str = "params";

/// Another name of the folder, by which the probe is preloaded. A program that was built with AddressSanitizer ends at
/// once unless the first of its libraries is the sanitizer's, for that stands in for libc's functions and nobody
/// may come before it. It knows its own library by these two names in the library's path (gcc's and clang's). The
/// probe leaves functions that are not libc's to whom they belong, so it may be first.
const ALIAS: &str = "not-libasan.so-nor-libclang_rt.asan";

/// What is to be preloaded, once it is there.
pub fn library(place: &Place) -> PathBuf {
    place.path(ALIAS).join(PROBE)
}

/// Puts the probe and its parameters in place; returns what is to be preloaded.
///
/// # Errors
///
/// No space.
pub fn prepare(place: &Place, parameters: &Parameters) -> Result<PathBuf> {
    place.write(PARAMETERS, &parameters.to_text(), 0o644)?;
    place.write(PROBE, socktrace_agent::PROBE, 0o755)?;
    let alias = place.path(ALIAS);
    symlink(".", &alias).with_context(|| format!("{}: cannot be made", alias.display()))?;
    Ok(library(place))
}

/// LD_PRELOAD as it was, with one more entry.
pub fn list_with(library: &PathBuf) -> OsString {
    with(env::var_os("LD_PRELOAD"), library)
}

fn with(before: Option<OsString>, library: &PathBuf) -> OsString {
    let mut list = before.unwrap_or_default();
    if !list.is_empty() {
        list.push(":");
    }
    list.push(library);
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_preloaded_still_is() {
        let probe = PathBuf::from("/t/p.so");
        assert_eq!(with(None, &probe), "/t/p.so");
        assert_eq!(with(Some("".into()), &probe), "/t/p.so");
        assert_eq!(with(Some("libfaketime.so".into()), &probe), "libfaketime.so:/t/p.so");
    }
}
