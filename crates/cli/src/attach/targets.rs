//! The processes that are asked for.

use std::ffi::{OsStr, OsString};

use anyhow::{Result, bail};
use socktrace_engine::processes_named;
use socktrace_event::notice;
use socktrace_sockets::{Process, Snapshot, Users, line_of, processes};

use crate::args::{AttachArgs, FilterArgs};
use crate::select::{self, Paths};

/// Their numbers, and the filters with what they were found by.
///
/// # Errors
///
/// One line that says of what there is none.
pub fn targets(args: &AttachArgs) -> Result<(Vec<u32>, FilterArgs)> {
    let mut filter = args.filter.clone();
    let mut pids = args.target_pids.clone();
    if let Some(name) = &args.name {
        let found = processes_named(name);
        if found.is_empty() {
            bail!("no process is named {}", name.display());
        }
        pids.extend(found);
    }
    if let Some(unit) = &args.unit {
        pids.extend(without_own(in_unit(unit)?));
    }
    if args.target_pids.is_empty() && args.name.is_none() && args.unit.is_none() {
        pids = without_own(with_path(&mut filter.scope.path)?);
    }
    pids.sort_unstable();
    pids.dedup();
    Ok((pids, filter))
}

fn in_unit(name: &OsStr) -> Result<Vec<u32>> {
    let unit = select::unit(name)?;
    let mut users = Users::default();
    let is_in = |&pid: &u32| Process::of(pid, &mut users).is_some_and(|process| process.cgroups.is_in(&unit));
    let found: Vec<_> = processes()?.into_iter().filter(is_in).collect();
    if found.is_empty() {
        bail!("no process is in a unit, container or cgroup named {}", name.display());
    }
    Ok(found)
}

/// Those that have a socket with such a path open, at either end. Paths of sockets that were found by their files are added.
fn with_path(patterns: &mut Vec<OsString>) -> Result<Vec<u32>> {
    let paths = Paths::new(patterns)?;
    let shown = || patterns.iter().map(|pattern| pattern.display().to_string()).collect::<Vec<_>>().join(", ");
    if !paths.has_wanted() {
        bail!("--path {} says which sockets are left out, not which processes are meant: name those, too", shown());
    }
    let snapshot = Snapshot::take()?;
    let wanted: Vec<_> = snapshot.sockets.values().filter(|socket| paths.want(&snapshot, socket)).collect();
    let found: Vec<_> = wanted.iter().flat_map(|socket| &socket.holders).map(|holder| holder.pid).collect();
    if found.is_empty() {
        let unseen = snapshot.unseen.to_string();
        let unseen = if unseen.is_empty() { unseen } else { format!("; {unseen}") };
        bail!("no process has a socket with the path {} open{unseen}", shown());
    }
    let ends = wanted.iter().flat_map(|socket| snapshot.ends(socket));
    let mut further: Vec<_> = ends.filter_map(|end| paths.further_pattern(end)).collect();
    further.sort_unstable();
    further.dedup();
    patterns.extend(further);
    Ok(found)
}

/// What started this socktrace is left out, with the terminal: what they carry would be what is shown of them. The first
/// process of all is the parent of everything, and no terminal.
fn without_own(mut pids: Vec<u32>) -> Vec<u32> {
    let line = line_of(std::process::id());
    pids.sort_unstable();
    pids.dedup();
    pids.retain(|pid| {
        let is_own = line.contains(pid) && *pid != 1;
        if is_own && *pid != std::process::id() {
            notice(&format!("process {pid}: is left out: this socktrace runs under it"));
        }
        !is_own
    });
    pids
}
