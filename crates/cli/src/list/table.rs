//! The list as people read it: sockets by their paths, then the processes that hold them.

use std::collections::{BTreeMap, BTreeSet};

use socktrace_event::printable;
use socktrace_sockets::{Address, Kind, Peer, Process, Snapshot, Socket};

use super::rows::{Group, Link, Row, Rows};
use super::ways::Ways;

/// Holders of a socket that are named in a line; of more, how many.
const MAX_HOLDERS: usize = 3;
/// Processes that are named in a sentence.
const MAX_NAMED: usize = 8;
/// Columns of the longest state.
const STATE: usize = "closed by peer".len();
/// Columns of a process's name, and of a unit's, that are left where the terminal has few.
const MIN_CELL: usize = 12;
const GAP: &str = "  ";

/// What it has to look like.
#[derive(Clone, Copy)]
pub struct Look {
    /// Columns; None: as many as it takes.
    pub width: Option<usize>,
    pub utf8: bool,
}

impl Look {
    fn sign(self, utf8: &'static str, ascii: &'static str) -> &'static str {
        if self.utf8 { utf8 } else { ascii }
    }

    fn ellipsis(self) -> &'static str {
        self.sign("…", "...")
    }

    /// The text, or its beginning.
    fn beginning(self, text: &str, max: usize) -> String {
        if columns(text) <= max {
            return text.to_owned();
        }
        let kept = max.saturating_sub(columns(self.ellipsis()));
        text.chars().take(kept).chain(self.ellipsis().chars()).collect()
    }

    /// The text, or its end: of a path it tells more.
    fn end(self, text: &str, max: usize) -> String {
        let len = columns(text);
        if len <= max {
            return text.to_owned();
        }
        let kept = max.saturating_sub(columns(self.ellipsis()));
        self.ellipsis().chars().chain(text.chars().skip(len - kept)).collect()
    }
}

fn columns(text: &str) -> usize {
    text.chars().count()
}

/// All of it.
pub fn lines(snapshot: &Snapshot, rows: &Rows<'_>, ways: &Ways, look: Look) -> String {
    let mut text = String::new();
    for (group, rows) in &rows.0 {
        text += &head(group, look);
        // In the order in which they came first.
        let (mut order, mut counts) = (Vec::new(), BTreeMap::<_, usize>::new());
        for row in rows {
            let line = Line::of(snapshot, row, look);
            match counts.get_mut(&line) {
                Some(count) => *count += 1,
                None => {
                    counts.insert(line.clone(), 1);
                    order.push(line);
                }
            }
        }
        order.sort_by_key(|line| line.rank);
        order.iter().for_each(|line| text += &line.text(counts[line], look));
        text.push('\n');
    }
    text + &processes(snapshot, rows, ways, look)
}

/// What lines have in common: path and type.
fn head(group: &Group<'_>, look: Look) -> String {
    let mut rest = match group.kind {
        Kind::Other(number) => format!("{GAP}type {number}"),
        kind => format!("{GAP}{}", kind.name()),
    };
    if let Some(inode) = group.network {
        rest += &format!("{GAP}net:[{inode}]");
    }
    let path = match group.address {
        Address::Unnamed => "(unnamed)".to_owned(),
        address => printable::name(&address.escaped()).into_owned(),
    };
    let max = look.width.map_or(usize::MAX, |width| width.saturating_sub(columns(&rest)));
    format!("{}{rest}\n", look.end(&path, max))
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    /// What listens comes first.
    rank: u8,
    state: &'static str,
    parties: String,
    queue: String,
}

impl Line {
    fn of(snapshot: &Snapshot, row: &Row<'_>, look: Look) -> Self {
        let left = row.left.0;
        let mut parties = holders(snapshot, left);
        if let Some(right) = row.right {
            let sign = match row.link {
                Link::Pair => look.sign("⇄", "<->"),
                Link::One | Link::Client => look.sign("→", "->"),
            };
            parties = format!("{parties} {sign} {}", holders(snapshot, right.0));
        } else if let Peer::Socket(inode) = left.peer {
            // It is in a namespace that was not entered, or has been made since.
            parties = format!("{parties} {} ?[socket {inode}]", look.sign("→", "->"));
        }
        let right = row.right.map(|right| right.0).filter(|right| !right.listens);
        // Another line has what waits for a socket that several send to.
        let right = right.filter(|right| right.peer == Peer::Socket(left.inode));
        let queue = match (left.listens, right) {
            (true, _) => format!("{} of {} waiting", left.receive_queue, left.send_queue),
            (false, Some(right)) if left.receive_queue > 0 && right.receive_queue > 0 => {
                format!("{} B, {} B unread", left.receive_queue, right.receive_queue)
            }
            (false, Some(right)) if right.receive_queue > 0 => {
                format!("{} B unread {}", right.receive_queue, look.sign("▸", ">"))
            }
            (false, Some(_)) if left.receive_queue > 0 => {
                format!("{} {} B unread", look.sign("◂", "<"), left.receive_queue)
            }
            (false, None) if left.receive_queue > 0 => format!("{} B unread", left.receive_queue),
            _ => String::new(),
        };
        let rank = u8::from(!left.listens) + u8::from(row.right.is_some());
        Self { rank, state: left.state(), parties, queue }
    }

    fn text(&self, count: usize, look: Look) -> String {
        let times = if count > 1 { format!("{}{count}", look.sign("×", "x")) } else { String::new() };
        let notes: Vec<_> = [&self.queue, &times].into_iter().filter(|note| !note.is_empty()).cloned().collect();
        let notes = notes.join(GAP);
        let before = format!("{GAP}{:<STATE$}{GAP}", self.state);
        let Some(width) = look.width else {
            return format!("{before}{}{GAP}{notes}", self.parties).trim_end().to_owned() + "\n";
        };
        let taken = columns(&before) + if notes.is_empty() { 0 } else { columns(&notes) + GAP.len() };
        let max = width.saturating_sub(taken);
        let parties = look.beginning(&self.parties, max);
        if notes.is_empty() { format!("{before}{parties}\n") } else { format!("{before}{parties:<max$}{GAP}{notes}\n") }
    }
}

/// Who holds a socket.
fn holders(snapshot: &Snapshot, socket: &Socket) -> String {
    let holders: Vec<_> = socket.holders.iter().filter_map(|holder| snapshot.processes.get(&holder.pid)).collect();
    if holders.is_empty() {
        let user = socket.owner.map(|uid| snapshot.user(uid).map_or_else(|| uid.to_string(), str::to_owned));
        return user.map_or_else(|| "?".into(), |user| format!("?[user {}]", printable::sentence(&user)));
    }
    let named: Vec<_> = holders.iter().take(MAX_HOLDERS).map(|process| name(process)).collect();
    match holders.len().saturating_sub(MAX_HOLDERS) {
        0 => named.join(", "),
        more => format!("{}, +{more}", named.join(", ")),
    }
}

fn name(process: &Process) -> String {
    format!("{}[{}]", printable::name(&process.name()), process.pid)
}

const HEAD: [&str; 5] = ["PROCESS", "USER", "UNIT OR CONTAINER", "SOCKETS", "CAN BE TRACED BY"];

/// The processes, and what keeps engines out of them.
fn processes(snapshot: &Snapshot, rows: &Rows<'_>, ways: &Ways, look: Look) -> String {
    let mut held = BTreeMap::<u32, usize>::new();
    for holder in rows.sockets().flat_map(|socket| &socket.holders) {
        *held.entry(holder.pid).or_default() += 1;
    }
    let mut shown: Vec<_> = held.iter().filter_map(|(pid, n)| Some((snapshot.processes.get(pid)?, n))).collect();
    shown.sort_by_cached_key(|(process, _)| (process.name(), process.pid));
    if shown.is_empty() {
        return String::new();
    }
    let mut cells = vec![HEAD.map(str::to_owned)];
    let mut kept_out = BTreeMap::<(&str, &str), BTreeSet<_>>::new();
    for (process, sockets) in &shown {
        let engines = ways.engines(process.pid).join(", ");
        for hindrance in ways.hindrances(process.pid) {
            kept_out.entry(hindrance).or_default().insert(process.pid);
        }
        let user = process.user.clone().unwrap_or_else(|| process.uid.to_string());
        let engines = if engines.is_empty() { "-".into() } else { engines };
        let group = process.cgroups.name();
        cells.push([
            name(process),
            printable::sentence(&user).into_owned(),
            printable::sentence(&group).into_owned(),
            sockets.to_string(),
            engines,
        ]);
    }
    let mut text = columns_below_each_other(&cells, look);
    for (engine, why) in ways.lacking() {
        text.push('\n');
        text += &folded(&printable::sentence(&format!("Nothing by {engine}: {why}")), look);
    }
    let mut reasons = BTreeMap::<_, Vec<_>>::new();
    for ((engine, why), pids) in kept_out {
        reasons.entry((why, pids)).or_default().push(engine);
    }
    for ((why, pids), engines) in reasons {
        let named: Vec<_> =
            pids.iter().take(MAX_NAMED).filter_map(|pid| snapshot.processes.get(pid)).map(name).collect();
        let more = pids.len().saturating_sub(MAX_NAMED);
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        let sentence = format!("Not by {}: {}{more}: {why}", engines.join(", "), named.join(", "));
        text.push('\n');
        text += &folded(&printable::sentence(&sentence), look);
    }
    text
}

fn columns_below_each_other(cells: &[[String; 5]], look: Look) -> String {
    let mut widths: [usize; 5] =
        std::array::from_fn(|at| cells.iter().map(|row| columns(&row[at])).max().unwrap_or_default());
    if let Some(width) = look.width {
        // The unit first: with its name it is known also when its end is missing.
        for at in [2, 0, 1] {
            let total = widths.iter().sum::<usize>() + GAP.len() * (widths.len() - 1);
            let less = total.saturating_sub(width);
            widths[at] = widths[at].saturating_sub(less).max(widths[at].min(MIN_CELL));
        }
    }
    let mut text = String::new();
    for row in cells {
        let mut line = String::new();
        for (at, (cell, width)) in row.iter().zip(widths).enumerate() {
            let cell = look.beginning(cell, width);
            // Numbers to the right.
            line += &if at == 3 { format!("{cell:>width$}{GAP}") } else { format!("{cell:<width$}{GAP}") };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// A sentence in lines that fit.
fn folded(sentence: &str, look: Look) -> String {
    let Some(width) = look.width else { return format!("{sentence}\n") };
    let (mut text, mut line) = (String::new(), String::new());
    for word in sentence.split(' ') {
        if !line.is_empty() && columns(&line) + 1 + columns(word) > width {
            text += &format!("{line}\n");
            line = " ".into();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line += word;
    }
    text + &line + "\n"
}
