//! Many seeds, untraced and traced: the same results, and a recording that is the account's.

use std::ops::Range;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use socktrace_e2e::SockType;

use crate::runs::{Engine, Traced, Work, disturbed, operations, traced, untraced};

/// Differences that are shown.
const SHOWN: usize = 12;

/// The seeds to look at, where they are named: `N` or `FROM..TO`.
fn named_seeds() -> Option<Range<u64>> {
    let text = std::env::var("SOCKTRACE_SEED").ok()?;
    let number = |text: &str| -> u64 {
        text.parse().unwrap_or_else(|_| panic!("SOCKTRACE_SEED is the number of a seed or FROM..TO, not {text:?}"))
    };
    Some(match text.split_once("..") {
        Some((from, to)) => number(from)..number(to),
        None => number(&text)..number(&text) + 1,
    })
}

fn complaints(engine: Engine, sock_type: SockType, work: &Work) -> Vec<String> {
    let expected = untraced(work);
    let Traced { results, mut differences, with_losses } = traced(engine, sock_type, work);
    let is_of = |complaint: &String, seed: &u64| complaint.starts_with(&format!("seed {seed}:"));
    differences.retain(|difference| !with_losses.iter().any(|seed| is_of(difference, seed)));
    differences.extend(disturbed(&expected, &results));
    // A loss is told, and true; but what it is of is to be seen once, too.
    for seed in with_losses {
        let seeds = seed..seed + 1;
        differences.extend(again(engine, sock_type, &Work { seeds, keep: work.keep.clone() }));
    }
    differences
}

/// The differences of a seed that a loaded machine had no time for: of the first run without a loss.
fn again(engine: Engine, sock_type: SockType, work: &Work) -> Vec<String> {
    const TRIES: usize = 5;
    let without_loss = |_| Some(traced(engine, sock_type, work)).filter(|traced| traced.with_losses.is_empty());
    match (0..TRIES).find_map(without_loss) {
        Some(traced) => traced.differences,
        None => vec![format!("seed {}: events lost in each of {TRIES} runs", work.seeds.start)],
    }
}

#[track_caller]
fn check(name: &str, engine: Engine, sock_type: SockType, seeds: Range<u64>) {
    let seeds = named_seeds().unwrap_or(seeds);
    let only = (seeds.end == seeds.start + 1).then_some(seeds.start);
    let work = Work { seeds, keep: None };
    let complaints = complaints(engine, sock_type, &work);
    let Some(first) = complaints.first() else { return };
    let shown = complaints.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("\n  ");
    if let Some(seed) = only {
        let left = shorten(engine, sock_type, seed, first);
        panic!("seed {seed} differs:\n  {shown}\nthe fewest operations that do it:\n  {left}");
    }
    let seed = first.strip_prefix("seed ").and_then(|rest| rest.split(':').next()).unwrap_or("N");
    panic!(
        "{} differences:\n  {shown}\nrepeat it by\n  SOCKTRACE_SEED={seed} make random TEST={name}",
        complaints.len()
    );
}

/// What is wrong, whatever with: the numbers left out, and the details at the end.
fn kind(complaint: &str) -> String {
    const LEN: usize = 75;
    complaint.chars().filter(|c| !c.is_ascii_digit()).take(LEN).collect()
}

/// Leaves out operations for as long as there is still a complaint (delta debugging: Zeller, Hildebrandt 2002).
fn shorten(engine: Engine, sock_type: SockType, seed: u64, complaint: &str) -> String {
    let work = |keep: &[String]| Work { seeds: seed..seed + 1, keep: Some(keep.to_vec()) };
    let mut left = operations(&untraced(&Work { seeds: seed..seed + 1, keep: None }));
    let (mut found, mut pieces) = (complaint.to_owned(), 2);
    while left.len() > 1 && pieces <= left.len() {
        let len = left.len().div_ceil(pieces);
        let shorter = (0..left.len()).step_by(len).find_map(|start| {
            let mut without = left.clone();
            without.drain(start..(start + len).min(left.len()));
            let complaints = complaints(engine, sock_type, &work(&without));
            let same = complaints.into_iter().find(|other| kind(other) == kind(complaint));
            same.map(|complaint| (without, complaint))
        });
        match shorter {
            Some((without, complaint)) => {
                (left, found) = (without, complaint);
                pieces = (pieces - 1).max(2);
            }
            None if len == 1 => break,
            None => pieces = (2 * pieces).min(left.len()),
        }
    }
    let lines: Vec<String> = untraced(&work(&left))
        .into_iter()
        .flat_map(|((_, key), lines)| lines.into_iter().map(move |line| format!("{key} {line}")))
        .collect();
    format!("{}\nkeep={}\n{found}", lines.join("\n  "), left.join(","))
}

/// How the traced seeds are recorded, by the names of their tests; and the seeds, of which there are a thousand.
macro_rules! tests {
    ($($name:ident: $engine:ident $sock_type:ident $seeds:expr;)+) => {
        $(#[test]
        fn $name() {
            check(stringify!($name), Engine::$engine, SockType::$sock_type, $seeds);
        })+

        const TESTS: &[(&str, Engine, SockType)] =
            &[$((stringify!($name), Engine::$engine, SockType::$sock_type)),+];
    };
}

tests! {
    preload_by_dgram: Preload Dgram 0..167;
    preload_by_stream: Preload Stream 167..334;
    preload_by_shm: Preload Shm 334..500;
    frida_by_dgram: Frida Dgram 500..667;
    frida_by_stream: Frida Stream 667..834;
    frida_by_shm: Frida Shm 834..1000;
}

/// For SOCKTRACE_SOAK seconds: seeds that nobody has seen, by all engines and transports in turn.
#[test]
fn soak() {
    /// Seeds at a time.
    const SEEDS: u64 = 50;
    let Ok(seconds) = std::env::var("SOCKTRACE_SOAK") else { return };
    let seconds = seconds.parse().unwrap_or_else(|_| panic!("SOCKTRACE_SOAK is a number of seconds, not {seconds:?}"));
    let (start, mut done) = (Instant::now(), 0);
    // By the clock: another seed each time, printed with whatever fails.
    let first = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()) << 20;
    for (name, engine, sock_type) in TESTS.iter().copied().cycle() {
        if start.elapsed() >= Duration::from_secs(seconds) {
            break;
        }
        let from = first + done;
        check(name, engine, sock_type, from..from + SEEDS);
        done += SEEDS;
    }
    println!("{done} seeds from {first} on, in {} s", start.elapsed().as_secs());
}
