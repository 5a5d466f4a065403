//! What tracing costs: one table, of socktrace and of other ways to trace, on the same workloads (docs/benchmarks.md).
//!
//! The same executable is the program that is traced (`workload`), and what the Frida agent in JavaScript sends to
//! (`receive`).

mod child;
mod clock;
mod count;
mod kind;
mod raw;
mod session;
mod subject;
mod table;
mod way;
mod workload;

use std::ffi::{OsStr, OsString};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::kind::{Kind, Workload};
use crate::session::{Cpus, measure, measure_alone};
use crate::table::Row;
use crate::way::Way;

/// Rounds, unless `BENCH_ROUNDS` says otherwise: `make bench` takes some six minutes.
const ROUNDS: usize = 7;
/// For so many with processors for each side there is one with any processor for both.
const UNPINNED_PART: usize = 3;
/// The same for ways that have to be started anew for each.
const ALONE_PART: usize = 4;
/// Recordings lie in memory.
const PLACE: &str = "/dev/shm";
const PINNED: Cpus = Cpus { programs: Some(0), collector: Some(1) };
const UNPINNED: Cpus = Cpus { programs: None, collector: None };

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("socktrace-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match (arguments.first().and_then(|first| first.to_str()), arguments.get(1..).unwrap_or_default()) {
        (Some("workload"), [cpu, name, directory]) => {
            pin(cpu)?;
            let workload = name.to_str().and_then(Workload::named).context("no such workload")?;
            Ok(workload::run(workload.kind, Path::new(directory))?)
        }
        (Some("exec"), [cpu, program, rest @ ..]) => {
            pin(cpu)?;
            Err(Command::new(program).args(rest).exec()).with_context(|| format!("{}", program.display()))
        }
        (Some("receive"), [socket]) => receive(Path::new(socket)),
        (None, []) => bench(),
        _ => bail!("run it by `make bench`"),
    }
}

fn pin(cpu: &OsStr) -> Result<()> {
    match cpu.to_str().and_then(|cpu| cpu.parse().ok()) {
        Some(cpu) => clock::pin(cpu).with_context(|| format!("processor {cpu}")),
        None => Ok(()),
    }
}

/// Counts datagrams and their bytes until one is empty.
fn receive(path: &Path) -> Result<()> {
    let socket = UnixDatagram::bind(path)?;
    println!("ready");
    let mut buffer = vec![0; 1 << 20];
    let (mut messages, mut bytes) = (0_u64, 0);
    loop {
        let len = socket.recv(&mut buffer)?;
        if len == 0 {
            println!("{messages} {bytes}");
            return Ok(());
        }
        messages += 1;
        bytes += len;
    }
}

/// The workloads and ways that a variable names, separated by commas.
fn is_chosen(variable: &str, is_meant: impl Fn(&str) -> bool) -> bool {
    match std::env::var(variable) {
        Ok(choices) if !choices.is_empty() => choices.split(',').any(|choice| is_meant(choice.trim())),
        _ => true,
    }
}

fn bench() -> Result<()> {
    let rounds = match std::env::var("BENCH_ROUNDS") {
        Ok(rounds) if !rounds.is_empty() => {
            rounds.parse().ok().filter(|rounds| *rounds > 0).context("BENCH_ROUNDS: a number above 0 is needed")?
        }
        _ => ROUNDS,
    };
    let workloads: Vec<Workload> =
        kind::ALL.into_iter().filter(|it| is_chosen("BENCH_ONLY", |choice| it.is_chosen_by(choice))).collect();
    let ways: Vec<Way> = way::ALL.into_iter().filter(|it| is_chosen("BENCH_WAYS", |way| way == it.name())).collect();
    if workloads.is_empty() || ways.is_empty() {
        bail!("BENCH_ONLY takes letters from a to g (a,b), BENCH_WAYS names of the table's second column");
    }
    let mut rows = Vec::new();
    for workload in &workloads {
        eprintln!("socktrace-bench: ({}) {}", workload.name, workload.what);
        rows.extend(bench_workload(workload, &ways, rounds)?);
    }
    table::print(&rows, rounds);
    Ok(())
}

fn bench_workload(workload: &Workload, ways: &[Way], rounds: usize) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = ways.iter().map(|&way| Row::new(*workload, way)).collect();
    let needed = matches!(workload.kind, Kind::Redis { .. }).then_some(["redis-server", "redis-benchmark"]);
    let missing = needed.into_iter().flatten().find(|program| child::find_program(program).is_none());
    for row in &mut rows {
        row.missing = missing.map(|program| format!("{program} is not installed")).or_else(|| row.way.missing());
    }
    for (cpus, rounds) in [(PINNED, rounds), (UNPINNED, rounds.div_ceil(UNPINNED_PART))] {
        let place = tempfile::Builder::new().prefix("bench").tempdir_in(PLACE)?;
        let present = rows.iter_mut().filter(|row| row.missing.is_none());
        let (mut alone, mut together): (Vec<_>, Vec<_>) = present.partition(|row| row.way.is_felt_by_all());
        let these: Vec<Way> = together.iter().map(|row| row.way).collect();
        if !these.is_empty() {
            let measured = measure(workload, &these, rounds, cpus, place.path())?;
            for (row, measured) in together.iter_mut().zip(measured) {
                row.set(cpus, measured);
            }
        }
        for row in &mut alone {
            let rounds = rounds.div_ceil(ALONE_PART);
            row.set(cpus, measure_alone(workload, row.way, rounds, cpus, place.path()));
        }
    }
    Ok(rows)
}
