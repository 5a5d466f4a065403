//! Many seeds, untraced and traced: the same results, and a recording that is the account's.

use std::ops::Range;

use socktrace_e2e::SockType;

use crate::runs::{Engine, Work, disturbed, operations, traced, untraced};

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
    let (results, mut complaints) = traced(engine, sock_type, work);
    complaints.extend(disturbed(&expected, &results));
    complaints
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

macro_rules! tests {
    ($($name:ident: $engine:ident $sock_type:ident $seeds:expr;)+) => {
        $(#[test]
        fn $name() {
            check(stringify!($name), Engine::$engine, SockType::$sock_type, $seeds);
        })+
    };
}

tests! {
    preload_by_dgram: Preload Dgram 0..500;
    preload_by_stream: Preload Stream 500..1000;
    frida_by_dgram: Frida Dgram 0..500;
    frida_by_stream: Frida Stream 500..1000;
}
