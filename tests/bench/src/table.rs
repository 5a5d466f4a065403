//! The table.

use std::cmp::Ordering;

use anyhow::Result;

use crate::kind::{Kind, Workload};
use crate::session::{Cpus, Measured};
use crate::way::Way;

/// One workload, traced in one way.
#[derive(Debug)]
pub struct Row {
    pub workload: Workload,
    pub way: Way,
    /// Why there is no number.
    pub missing: Option<String>,
    pinned: Option<Measured>,
    unpinned: Option<Measured>,
}

impl Row {
    pub fn new(workload: Workload, way: Way) -> Self {
        Self { workload, way, missing: None, pinned: None, unpinned: None }
    }

    /// Notes what was measured, or why it could not be.
    pub fn set(&mut self, cpus: Cpus, measured: Result<Measured>) {
        match measured {
            Ok(measured) if cpus.programs.is_some() => self.pinned = Some(measured),
            Ok(measured) => self.unpinned = Some(measured),
            Err(error) => self.missing = Some(format!("{error:#}").lines().collect::<Vec<_>>().join(" ")),
        }
    }

    fn cells(&self) -> [String; 8] {
        let [workload, way] = [format!("({}) {}", self.workload.name, self.workload.what), self.way.name().into()];
        let (Some(pinned), Some(unpinned), None) = (&self.pinned, &self.unpinned, &self.missing) else {
            let why = self.missing.clone().unwrap_or_default();
            return [workload, way, why, "".into(), "".into(), "".into(), "".into(), "".into()];
        };
        let [time, low, high] = wall_ratio(pinned);
        let [free, free_low, free_high] = wall_ratio(unpinned);
        let [cpu, ..] = pinned.quartiles(|pair| pair.traced.cpu_ns() / pair.untraced.cpu_ns());
        let [untraced, ..] = pinned.quartiles(|pair| pair.untraced.wall_ns());
        let [collector, ..] = pinned.quartiles(|pair| pair.collector_ns as f64 / pair.traced.times as f64);
        let share = |found: u64, moved: u64| match moved {
            0 => "–".into(),
            _ => percentage(found, moved),
        };
        let (moved, found) = (&pinned.moved, &pinned.found);
        let recorded = format!("{} / {}", share(found.messages, moved.messages), share(found.bytes, moved.bytes));
        let rate = match self.workload.kind {
            Kind::Redis { .. } => format!("; {:.2} of the requests", 1.0 / time),
            _ => String::new(),
        };
        [
            workload,
            way,
            format!("{time:.2} ({low:.2}–{high:.2}){rate}"),
            format!("{cpu:.2}"),
            recorded,
            micros(collector),
            micros(untraced),
            format!("{free:.2} ({free_low:.2}–{free_high:.2})"),
        ]
    }
}

fn wall_ratio(measured: &Measured) -> [f64; 3] {
    measured.quartiles(|pair| pair.traced.wall_ns() / pair.untraced.wall_ns())
}

fn micros(ns: f64) -> String {
    format!("{:.2} µs", ns / 1000.0)
}

/// 100 only if it is all; what is there beside it is not the program's, but Frida's own, say.
fn percentage(part: u64, whole: u64) -> String {
    match part.cmp(&whole) {
        Ordering::Less => format!("{:.2} %", part as f64 * 100.0 / whole as f64),
        Ordering::Equal => "100 %".into(),
        Ordering::Greater => format!("100 % (+{})", part - whole),
    }
}

const HEADS: [&str; 8] = [
    "workload",
    "traced by",
    "time ÷ untraced",
    "CPU ÷ untraced",
    "messages / bytes recorded",
    "collector's CPU",
    "untraced",
    "unpinned, time ÷ untraced",
];

/// Prints it as Markdown.
pub fn print(rows: &[Row], rounds: usize) {
    let cells: Vec<[String; 8]> = std::iter::once(HEADS.map(Into::into)).chain(rows.iter().map(Row::cells)).collect();
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 8] = std::array::from_fn(width);
    for (at, row) in cells.iter().enumerate() {
        let padded: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        println!("| {} |", padded.join(" | "));
        if at == 0 {
            println!("|{}|", widths.map(|width| "-".repeat(width + 2)).join("|"));
        }
    }
    println!();
    println!(
        "Medians (quartiles) of {rounds} pairs of runs, untraced and traced in turn; of fewer where it takes twice as"
    );
    println!(
        "long or more, for bpftrace, and in the last column. The traced program has one processor to itself and the"
    );
    println!(
        "collector the other, but for the last column. Times in µs and the collector's CPU time are for one time: a"
    );
    println!(
        "message sent and one received (in each of 4 threads), a request, a program. (f): redis-server is traced,"
    );
    println!("redis-benchmark shares its processor. (g): the messages are programs started.");
}
