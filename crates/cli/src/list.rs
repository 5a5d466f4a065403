//! `socktrace list`: the machine's sockets, who holds them, and how those can be traced.

mod json;
mod rows;
mod table;
mod ways;

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use anyhow::Result;
use rustix::termios::tcgetwinsize;
use socktrace_event::{End, notice};
use socktrace_sockets::Snapshot;
use socktrace_view::{Lines, Printer, is_utf8_locale};

use crate::args::{ListArgs, ViewArgs};
use crate::output::Destination;
use crate::select::Selection;
use rows::Rows;
use ways::Ways;

/// Narrower than that, lines are broken by the terminal.
const MIN_WIDTH: usize = 60;

/// `socktrace list`
pub fn list(args: &ListArgs) -> Result<ExitCode> {
    let selection = Selection::new(args)?;
    let snapshot = Snapshot::take()?;
    let wanted: Vec<_> = snapshot.sockets.values().filter(|socket| selection.wants(&snapshot, socket)).collect();
    let mut lines = Lines::default();
    if args.json {
        let ways = Ways::into(wanted.iter().flat_map(|socket| &socket.holders).map(|holder| holder.pid));
        wanted.iter().for_each(|socket| json::push(&mut lines.bytes, &snapshot, socket, &ways));
    } else if !wanted.is_empty() {
        let rows = Rows::of(&snapshot, &wanted);
        let ways = Ways::into(rows.pids());
        let look = table::Look { width: terminal_width(), utf8: is_utf8_locale() };
        lines.bytes = table::lines(&snapshot, &rows, &ways, look).into_bytes();
    }
    let printed = Destination::open(&ViewArgs::default(), true)?.print(&lines);
    if let Err(End::Failed(error)) = printed {
        return Err(error);
    }
    if wanted.is_empty() {
        notice(if snapshot.sockets.is_empty() { "there is no AF_UNIX socket" } else { "no socket matches" });
    }
    let unseen = snapshot.unseen.to_string();
    if !unseen.is_empty() {
        notice(&unseen);
    }
    Ok(if wanted.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// None: what is printed goes elsewhere, and is not cut off.
fn terminal_width() -> Option<usize> {
    let stdout = io::stdout();
    let size = stdout.is_terminal().then(|| tcgetwinsize(&stdout).ok()).flatten()?;
    (size.ws_col > 0).then(|| usize::from(size.ws_col).max(MIN_WIDTH))
}
