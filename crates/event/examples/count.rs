//! Counts the events of an events.jsonl by their types, and the bytes that moved.

use std::collections::BTreeMap;
use std::io::{self, BufRead};

use socktrace_event::{Event, What};

fn main() -> io::Result<()> {
    println!("{}", count(io::stdin().lock())?);
    Ok(())
}

/// One line for each type of event.
pub fn count(lines: impl BufRead) -> io::Result<String> {
    let (mut counts, mut bytes) = (BTreeMap::new(), 0);
    for line in lines.lines() {
        let line = line?;
        let event: Event<'_> = serde_json::from_str(&line)?;
        if let What::Data(data) = &event.what {
            bytes += data.moved();
        }
        *counts.entry(format!("{:?}", event.kind())).or_insert(0) += 1;
    }
    let mut text: String = counts.iter().map(|(kind, count)| format!("{kind}: {count}\n")).collect();
    text.push_str(&format!("{bytes} bytes moved"));
    Ok(text)
}
