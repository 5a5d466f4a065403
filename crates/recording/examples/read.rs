//! Prints what was said on each connection of a recording, by time.

use std::error::Error;
use std::path::Path;

use socktrace_event::{Direction, What};
use socktrace_recording::Ordered;

/// So much of a message is printed, in bytes.
const SHOWN_LEN: usize = 60;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args_os().nth(1).ok_or("usage: read DIR")?;
    print!("{}", read(dir.as_ref())?);
    Ok(())
}

/// One line for each message.
pub fn read(dir: &Path) -> Result<String, Box<dyn Error>> {
    let mut text = String::new();
    for recorded in Ordered::open(dir)?.events() {
        let recorded = recorded?;
        if let What::Data(data) = &recorded.event().what {
            let arrow = if data.direction == Direction::Out { "->" } else { "<-" };
            let payload = recorded.payload(SHOWN_LEN);
            text.push_str(&format!("{} {arrow} {}", data.conn_id, payload.bytes.escape_ascii()));
            text.push_str(&payload.missing.map_or("\n".into(), |why| format!(" ({why})\n")));
        }
    }
    Ok(text)
}
