//! Runs of the program: untraced, and by engine and transport.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use serde_json::{Value, json};
use socktrace_e2e::{Account, Frida, Recording, Server, SockType, Stage, Workload, preload_files};

use crate::compare;

/// How the probe comes into the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// LD_PRELOAD.
    Preload,
    /// Frida's `frida -f`.
    Frida,
}

/// What a seed's threads and processes logged, by their keys.
pub type Results = BTreeMap<(u64, String), Vec<String>>;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Work {
    /// The seeds.
    pub seeds: Range<u64>,
    /// The operations that are left of them.
    pub keep: Option<Vec<String>>,
}

impl Work {
    fn cases(&self) -> Vec<String> {
        let mut cases = vec![format!("seeds={}..{}", self.seeds.start, self.seeds.end)];
        cases.extend(self.keep.as_ref().map(|kept| format!("keep={}", kept.join(","))));
        cases
    }
}

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_socktrace-random"))
}

/// What the program gives without tracing.
pub fn untraced(work: &Work) -> Results {
    let stage = Stage::new();
    let cases = work.cases();
    let cases: Vec<&str> = cases.iter().map(String::as_str).collect();
    Workload::start_program(program(), &stage, &cases).finish();
    results(&stage)
}

/// What a traced run gave.
#[derive(Debug)]
pub struct Traced {
    /// The program's results.
    pub results: Results,
    /// How the recording differs from the program's account.
    pub differences: Vec<String>,
    /// Seeds of which events were lost, because the machine had no time for the server.
    pub with_losses: BTreeSet<u64>,
}

/// The program traced.
pub fn traced(engine: Engine, sock_type: SockType, work: &Work) -> Traced {
    let cases = work.cases();
    let cases: Vec<&str> = cases.iter().map(String::as_str).collect();
    let (stage, account, recording) = record(engine, sock_type, &cases);
    let mut results = results(&stage);
    if engine == Engine::Frida {
        forgive_frida(&mut results);
    }
    let with_losses = compare::seeds_with_losses(&account, &recording);
    Traced { results, differences: compare::differences(&account, &recording), with_losses }
}

/// With any script, an empty one too, a process forked from one that Frida has started ends by abort(3) with SIGSEGV: its
/// handler is still there and what it needs is not.
fn forgive_frida(results: &mut Results) {
    const SEGMENTATION_FAULT: &str = "status 0xb";
    const ABORTED: &str = "status 0x6";
    let aborted: BTreeSet<(u64, String)> = results
        .iter()
        .filter(|(_, lines)| lines.last().is_some_and(|line| line.ends_with("ends Abort")))
        .map(|(key, _)| key.clone())
        .collect();
    for ((seed, key), lines) in results {
        for line in lines.iter_mut().filter(|line| line.ends_with(SEGMENTATION_FAULT)) {
            let words: Vec<&str> = line.split(' ').collect();
            let child = match words[..] {
                [_, "child", "of", op, ..] | [op, "forked", ..] => format!("{key}.{op}"),
                _ => "0".to_owned(),
            };
            if aborted.contains(&(*seed, child)) {
                *line = line.replace(SEGMENTATION_FAULT, ABORTED);
            }
        }
    }
}

/// Every operation once: the directory, their lines by their numbers, the account and the recording.
pub fn covered(engine: Engine, sock_type: SockType) -> (Stage, BTreeMap<u64, String>, Account, Recording) {
    let (stage, account, recording) = record(engine, sock_type, &["coverage"]);
    let operations = results(&stage).into_iter().filter(|((_, key), _)| key == "-");
    let operations = operations.map(|((number, _), lines)| (number, lines.concat())).collect();
    (stage, operations, account, recording)
}

fn record(engine: Engine, sock_type: SockType, cases: &[&str]) -> (Stage, Account, Recording) {
    let stage = Stage::new();
    let server = Server::start(&stage, sock_type);
    let parameters = parameters(&stage, sock_type);
    let workload = match engine {
        Engine::Preload => Workload::preload_program(program(), &stage, &parameters, cases),
        Engine::Frida => {
            // Programs that are executed load the probe from there.
            let preload = preload_files(&stage, &parameters);
            let mut parameters = parameters;
            parameters["preload"] = json!(preload);
            Workload::spawn_program(program(), &Frida::new(), &stage, &parameters, cases)
        }
    };
    let account = workload.finish();
    // The payload files are read while the stage is there.
    let recording = server.stop();
    (stage, account, recording)
}

fn parameters(stage: &Stage, sock_type: SockType) -> Value {
    let mut parameters = stage.parameters(json!({ "out_sock_type": sock_type.name() }));
    if sock_type == SockType::Shm {
        // Of what a full ring does not take nothing could be compared.
        parameters["on_full"] = json!("block");
    }
    parameters
}

fn results(stage: &Stage) -> Results {
    let path = stage.path("account.results");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut results = Results::new();
    for line in text.lines() {
        let mut words = line.splitn(3, ' ');
        let (seed, key) = (words.next().and_then(|seed| seed.parse().ok()), words.next());
        let (Some(seed), Some(key), Some(rest)) = (seed, key, words.next()) else { panic!("a result: {line}") };
        results.entry((seed, key.to_owned())).or_default().push(rest.to_owned());
    }
    results
}

/// The first result in which each thread or process differs.
pub fn disturbed(untraced: &Results, traced: &Results) -> Vec<String> {
    let mut keys: Vec<&(u64, String)> = untraced.keys().chain(traced.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    let none = Vec::new();
    let first = |key: &(u64, String)| {
        let (is, was) = (untraced.get(key).unwrap_or(&none), traced.get(key).unwrap_or(&none));
        let at = (0..is.len().max(was.len())).find(|at| is.get(*at) != was.get(*at))?;
        let (seed, thread) = key;
        Some(format!("seed {seed}: {thread}: untraced {:?}, traced {:?}", is.get(at), was.get(at)))
    };
    keys.into_iter().filter_map(first).collect()
}

/// The operations that a run's results speak of.
pub fn operations(results: &Results) -> Vec<String> {
    let mut operations = Vec::new();
    for ((_, key), lines) in results {
        let begun = lines.iter().filter(|line| line.split(' ').nth(1) == Some("-"));
        operations.extend(begun.map(|line| format!("{key}:{}", line.split(' ').next().unwrap_or(""))));
    }
    operations
}
