//! One workload, untraced and traced in turn.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::child::Running;
use crate::clock;
use crate::count::Found;
use crate::kind::{Kind, Workload};
use crate::subject::{Burst, Moved, Subject};
use crate::way::{Traced, Way};

/// How long a burst should take, in nanoseconds.
const BURST_NS: u64 = 100_000_000;
/// The same of messages: several times as long as a ring takes what comes without being read, so that a collector that is
/// too slow shows.
const MESSAGES_BURST_NS: u64 = 350_000_000;
/// The same for redis-benchmark, which looks at its clock four times a second and needs some time to connect.
const REDIS_BURST_NS: u64 = 400_000_000;
/// Payload that a burst may move, in bytes: recordings lie in memory, until their workload is done.
const MAX_BURST_BYTES: u64 = 96 << 20;
/// How often a thing is done to see how long it takes.
const TRIALS: [u64; 2] = [4, 64];
/// The same for redis.
const REDIS_TRIAL: u64 = 2000;
/// Rounds are enough for a way that takes this many times as long as nothing.
const ENOUGH: (usize, f64) = (3, 2.0);
/// How long a collector is looked at, and the part of that time that it may have worked for it to be called idle.
const LOOK: Duration = Duration::from_millis(8);
const IDLE_PART: u64 = 8;
/// How long it is waited for.
const SETTLING: Duration = Duration::from_secs(5);

/// Which processors are for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpus {
    pub programs: Option<usize>,
    pub collector: Option<usize>,
}

/// One pair of bursts.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    pub untraced: Burst,
    pub traced: Burst,
    /// CPU time of the collector for the traced one, in nanoseconds.
    pub collector_ns: u64,
}

/// Everything that was measured of a way.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    pub pairs: Vec<Pair>,
    pub moved: Moved,
    pub found: Found,
}

/// A traced program, how often it does something, and what was measured.
type State = (Traced, Side, Measured);

/// How often a program, untraced or traced, does something in a burst.
struct Side {
    wanted: Option<u64>,
    target_ns: u64,
}

impl Side {
    fn new(kind: Kind) -> Self {
        let target_ns = match kind {
            Kind::Redis { .. } => REDIS_BURST_NS,
            Kind::Messages { .. } => MESSAGES_BURST_NS,
            _ => BURST_NS,
        };
        Self { wanted: None, target_ns }
    }

    /// As many times as take long enough.
    fn burst(&mut self, kind: Kind, subject: &mut Subject, program: &mut Running) -> Result<Burst> {
        if let Some(times) = self.wanted {
            return subject.burst(program, times);
        }
        let trials: &[u64] = if matches!(kind, Kind::Redis { .. }) { &[REDIS_TRIAL] } else { &TRIALS };
        let mut last = subject.burst(program, trials[0])?;
        for &trial in &trials[1..] {
            if last.wall < self.target_ns {
                last = subject.burst(program, trial)?;
            }
        }
        let wished = (last.times as f64 * self.target_ns as f64 / last.wall.max(1) as f64) as u64;
        let most = match kind {
            Kind::Messages { len, threads } => MAX_BURST_BYTES / (2 * len * threads) as u64,
            _ => u64::MAX,
        };
        let times = wished.clamp(1, most);
        self.wanted = Some(times);
        // Caches, page tables and the collector's files are as they will be.
        subject.burst(program, times)
    }
}

/// Waits until a collector has nothing left to do; its CPU time by then.
fn settle(pid: u32) -> u64 {
    let start = Instant::now();
    loop {
        let before = clock::cpu_of(pid);
        let looked = Instant::now();
        std::thread::sleep(LOOK);
        let now = clock::cpu_of(pid);
        if u128::from((now - before) * IDLE_PART) < looked.elapsed().as_nanos() || start.elapsed() > SETTLING {
            return now;
        }
    }
}

/// Measures ways on one workload, in rounds: untraced, one way, untraced, the next.
pub fn measure(
    workload: &Workload,
    ways: &[Way],
    rounds: usize,
    cpus: Cpus,
    place: &Path,
) -> Result<Vec<Result<Measured>>> {
    let kind = workload.kind;
    let mut untraced = Subject::new(kind, place.join("untraced"), cpus.programs)?;
    let errors = place.join("errors.txt");
    let mut program = Running::start(&mut untraced.to_command()?, None, &errors)?;
    untraced.wait_until_ready(&mut program)?;
    let mut side = Side::new(kind);
    let mut sides: Vec<Result<State>> = Vec::new();
    // Calibrates.
    side.burst(kind, &mut untraced, &mut program)?;
    for &way in ways {
        let started = start(way, kind, cpus, place).and_then(|mut traced| {
            let mut side = Side::new(kind);
            side.burst(kind, &mut traced.subject, &mut traced.program)?;
            Ok((traced, side, Measured::default()))
        });
        sides.push(started);
    }
    for _ in 0..rounds {
        for state in &mut sides {
            let Ok((traced, traced_side, measured)) = state else { continue };
            let is_slow = || measured.quartiles(|pair| pair.traced.wall_ns() / pair.untraced.wall_ns())[0] > ENOUGH.1;
            if measured.pairs.len() >= ENOUGH.0 && is_slow() {
                continue;
            }
            let mut pair = || -> Result<Pair> {
                let before = settle(traced.collector_pid());
                let without = side.burst(kind, &mut untraced, &mut program)?;
                let with = traced_side.burst(kind, &mut traced.subject, &mut traced.program)?;
                let collector_ns = settle(traced.collector_pid()) - before;
                Ok(Pair { untraced: without, traced: with, collector_ns })
            };
            match pair() {
                Ok(pair) => measured.pairs.push(pair),
                Err(error) => *state = Err(error),
            }
        }
    }
    let finish = |state: Result<State>| {
        let (traced, _, mut measured) = state?;
        let (moved, found) = traced.finish()?;
        measured.add(moved, found);
        Ok(measured)
    };
    let measured = sides.into_iter().map(finish).collect();
    untraced.finish(&mut program)?;
    Ok(measured)
}

fn start(way: Way, kind: Kind, cpus: Cpus, place: &Path) -> Result<Traced> {
    let name = format!("{way:?}");
    let subject = Subject::new(kind, place.join(&name).join("sockets"), cpus.programs)?;
    Traced::start(way, subject, &place.join(&name), cpus.collector)
}

/// Measures a way that untraced programs feel as well: it is started for each burst and ended after it.
pub fn measure_alone(workload: &Workload, way: Way, rounds: usize, cpus: Cpus, place: &Path) -> Result<Measured> {
    let kind = workload.kind;
    let mut untraced = Subject::new(kind, place.join("untraced-alone"), cpus.programs)?;
    let mut program = Running::start(&mut untraced.to_command()?, None, &place.join("errors.txt"))?;
    untraced.wait_until_ready(&mut program)?;
    let (mut side, mut traced_side) = (Side::new(kind), Side::new(kind));
    side.burst(kind, &mut untraced, &mut program)?;
    let mut measured = Measured::default();
    for _ in 0..rounds {
        let without = side.burst(kind, &mut untraced, &mut program)?;
        let mut traced = start(way, kind, cpus, place)?;
        if traced_side.wanted.is_none() {
            traced_side.burst(kind, &mut traced.subject, &mut traced.program)?;
        }
        let before = settle(traced.collector_pid());
        let with = traced_side.burst(kind, &mut traced.subject, &mut traced.program)?;
        let collector_ns = settle(traced.collector_pid()) - before;
        measured.pairs.push(Pair { untraced: without, traced: with, collector_ns });
        let (moved, found) = traced.finish()?;
        measured.add(moved, found);
    }
    untraced.finish(&mut program)?;
    Ok(measured)
}

impl Measured {
    fn add(&mut self, moved: Moved, found: Found) {
        self.moved.messages += moved.messages;
        self.moved.bytes += moved.bytes;
        self.found.messages += found.messages;
        self.found.bytes += found.bytes;
        self.found.children += found.children;
        self.found.lost += found.lost;
    }

    /// A median of the pairs, and the quartiles around it.
    pub fn quartiles(&self, of: impl Fn(&Pair) -> f64) -> [f64; 3] {
        let mut values: Vec<f64> = self.pairs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let place = part * (values.len() - 1) as f64;
            let (low, high) = (values[place.floor() as usize], values[place.ceil() as usize]);
            low + (high - low) * place.fract()
        };
        [at(0.5), at(0.25), at(0.75)]
    }
}

impl Burst {
    /// Nanoseconds for one time.
    pub fn wall_ns(&self) -> f64 {
        self.wall as f64 / self.times as f64
    }

    /// CPU time of the program, likewise.
    pub fn cpu_ns(&self) -> f64 {
        self.cpu as f64 / self.times as f64
    }
}
