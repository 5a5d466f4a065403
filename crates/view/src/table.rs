//! The table at the end: a line per connection.

use crate::connections::Count;

/// More connections than anybody reads; those with the most bytes are shown.
pub const MAX_ROWS: usize = 50;
/// Characters of a path that are shown: the end tells more than the beginning.
const MAX_PATH: usize = 48;

/// A socket without a path.
pub const UNNAMED: &str = "(unnamed)";

/// A line of it.
#[derive(Debug)]
pub struct Row {
    pub path: String,
    pub process: String,
    pub peer: String,
    pub sent: Count,
    pub received: Count,
    pub duration_ns: u64,
}

const HEAD: [&str; 6] = ["PATH", "PROCESS", "PEER", "SENT", "RECEIVED", "DURATION"];

/// The table's lines; the first is its head. Texts are escaped already. `hidden` connections had fewer bytes.
pub fn lines(rows: Vec<Row>, hidden: usize, ellipsis: &str) -> Vec<String> {
    let mut cells: Vec<[String; 6]> = vec![HEAD.map(str::to_owned)];
    cells.extend(rows.iter().map(|row| {
        [
            shorten(&row.path, ellipsis),
            row.process.clone(),
            row.peer.clone(),
            moved(row.sent),
            moved(row.received),
            format!("{}.{:03} s", row.duration_ns / 1_000_000_000, row.duration_ns / 1_000_000 % 1000),
        ]
    }));
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let mut lines: Vec<_> = cells
        .iter()
        .map(|row| {
            let padded = row.iter().zip(widths).enumerate().map(|(column, (cell, width))| {
                // Numbers to the right.
                if column < 3 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        })
        .collect();
    if hidden > 0 {
        lines.push(format!("{ellipsis} {hidden} more connections, with fewer bytes"));
    }
    lines
}

fn shorten(path: &str, ellipsis: &str) -> String {
    let len = path.chars().count();
    match path {
        "" => UNNAMED.into(),
        _ if len <= MAX_PATH => path.into(),
        _ => format!("{ellipsis}{}", path.chars().skip(len - MAX_PATH).collect::<String>()),
    }
}

fn moved(Count { messages, bytes }: Count) -> String {
    match messages {
        0 => "-".into(),
        1 => format!("1 message, {bytes} B"),
        n => format!("{n} messages, {bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(path: &str, bytes: u64) -> Row {
        let (process, peer) = ("a[1]".into(), "b[2]".into());
        let (sent, received) = (Count { messages: 1, bytes }, Count::default());
        Row { path: path.into(), process, peer, sent, received, duration_ns: 1_234_000_000 }
    }

    #[test]
    fn columns_stand_below_each_other() {
        let lines = lines(vec![row("/tmp/x", 1), row("", 1000)], 0, "…");
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[1], "/tmp/x     a[1]     b[2]     1 message, 1 B         -   1.234 s");
        assert!(lines[2].starts_with("(unnamed)  a[1]"));
    }

    #[test]
    fn the_busiest_of_many() {
        let lines = lines(vec![row("/10", 10)], 10, "…");
        assert!(lines[1].starts_with("/10 ") && lines[2] == "… 10 more connections, with fewer bytes");
    }
}
