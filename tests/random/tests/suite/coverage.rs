//! docs/coverage.md, made of what each operation gave: the committed one must say what this run has observed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use socktrace_e2e::{Account, Recording, SockType};

use crate::compare;
use crate::runs::{Engine, covered};

const HEAD: &str = "\
# What is recorded

Each operation, done once with known bytes under each engine, and what the recording had of it. This page is made by
`make coverage`; a test fails when it says something else than the recording does.

- **captured**: all of it, the bytes or the event, on the right connection;
- **counted**: the number of bytes, marked `uncaptured`, because they are never in the program's memory;
- **not seen**: nothing.

*preload* is `LD_PRELOAD` (`socktrace run`), *Frida* is agent.js.
";

/// What a recording has of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Captured,
    Counted,
    Not,
}

/// One operation's row.
#[derive(Debug)]
struct Row {
    group: String,
    operation: String,
    reason: String,
    /// Whether it did what it is to do; io_uring(7), for one, is not everywhere.
    is_done: bool,
    seen: Vec<Seen>,
}

fn page_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/coverage.md")
}

/// What the account says of one operation, and whether the recording has it.
fn seen(account: &Account, recording: &Recording, number: u64) -> Seen {
    let account = account.of_seed(number);
    let inodes: Vec<u64> = account.sockets();
    let recording = recording.of_inodes(&inodes);
    let differences = compare::differences_of_calls(&account, &recording);
    let uncaptured: u64 = recording.events.iter().filter_map(|event| event.uncaptured).sum();
    let has_begun = |kind: &str, truth: &[socktrace_e2e::Opened]| {
        truth.iter().all(|is| {
            recording.events.iter().any(|event| {
                event.kind == kind && event.inode == Some(is.inode) && event.how.as_deref() == Some(&*is.how)
            })
        })
    };
    let begun = has_begun("open", &account.opened) && has_begun("listen", &account.listening);
    match differences.is_empty() && begun {
        true if uncaptured > 0 => Seen::Counted,
        true => Seen::Captured,
        false => Seen::Not,
    }
}

fn rows() -> Vec<Row> {
    let mut rows: BTreeMap<u64, Row> = BTreeMap::new();
    for engine in [Engine::Preload, Engine::Frida] {
        let (_stage, results, account, recording) = covered(engine, SockType::Stream);
        for (number, line) in results {
            let words: Vec<&str> = line.split('|').collect();
            let [group, operation, reason, is_done] = words[..] else { panic!("an operation: {line}") };
            let row = rows.entry(number).or_insert_with(|| Row {
                group: group.to_owned(),
                operation: operation.to_owned(),
                reason: reason.to_owned(),
                is_done: is_done == "true",
                seen: Vec::new(),
            });
            row.seen.push(seen(&account, &recording, number));
        }
    }
    rows.into_values().collect()
}

fn cell(row: &Row, seen: Seen) -> String {
    match seen {
        Seen::Captured => "captured".to_owned(),
        Seen::Counted => "counted".to_owned(),
        Seen::Not => format!("not seen: {}", row.reason),
    }
}

fn line_of(row: &Row) -> String {
    let cells: Vec<String> = row.seen.iter().map(|seen| cell(row, *seen)).collect();
    format!("| {} | {} |", row.operation, cells.join(" | "))
}

/// The page; what this machine cannot do is as it was.
fn page(rows: &[Row], before: &str) -> String {
    let mut page = HEAD.to_owned();
    let mut group = "";
    for row in rows {
        if row.group != group {
            group = &row.group;
            // Writing to a String does not fail.
            let _ = write!(page, "\n## {group}\n\n| operation | preload | Frida |\n|---|---|---|\n");
        }
        let known = before.lines().find(|line| line.starts_with(&format!("| {} |", row.operation)));
        let line = match known {
            Some(known) if !row.is_done => known.to_owned(),
            _ => line_of(row),
        };
        let _ = writeln!(page, "{line}");
    }
    page
}

#[test]
fn the_page_says_what_is_observed() {
    let (file, rows) = (page_file(), rows());
    let unexplained: Vec<String> = rows
        .iter()
        .filter(|row| row.is_done && row.reason.is_empty() && row.seen.contains(&Seen::Not))
        .map(line_of)
        .collect();
    assert!(unexplained.is_empty(), "not seen, for no known reason:\n{}", unexplained.join("\n"));
    let before = std::fs::read_to_string(&file).unwrap_or_default();
    let page = page(&rows, &before);
    if std::env::var_os("SOCKTRACE_WRITE_COVERAGE").is_some() {
        std::fs::write(&file, &page).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    } else {
        let differs = page.lines().zip(before.lines()).find(|(is, was)| is != was);
        assert!(page == before, "docs/coverage.md is out of date, run `make coverage`: {differs:?}");
    }
}
