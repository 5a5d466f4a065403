//! How much of what was moved a recording has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::workload::message;

/// What was found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found {
    pub messages: u64,
    pub bytes: u64,
    /// Processes beside the first.
    pub children: u64,
    /// Events that the recording itself says are missing.
    pub lost: u64,
}

/// What matters of a line of events.jsonl.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    path: Option<std::borrow::Cow<'a, str>>,
    conn_id: Option<&'a str>,
    file: Option<&'a str>,
    direction: Option<&'a str>,
    size: Option<u64>,
    part: Option<u32>,
    pid: Option<u32>,
    events: Option<u64>,
}

/// In a recording of ours. Bytes are those of the payload files, which have to have what the events say.
pub fn in_recording(directory: &Path, sockets: &Path, own_pid: u32) -> Result<Found> {
    let mut found = Found::default();
    let mut sizes: BTreeMap<(String, bool), u64> = BTreeMap::new();
    let mut pids = BTreeSet::new();
    let events = directory.join("events.jsonl");
    let mut reader = BufReader::new(File::open(&events).with_context(|| format!("{}", events.display()))?);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? != 0 {
        let event: Event<'_> =
            serde_json::from_slice(&line).with_context(|| String::from_utf8_lossy(&line).into_owned())?;
        pids.extend(event.pid.filter(|pid| *pid != own_pid && event.kind == "init"));
        found.lost += event.events.unwrap_or(0);
        let is_ours = event.path.as_deref().is_some_and(|path| Path::new(path).starts_with(sockets));
        if event.kind == "data" && is_ours {
            found.messages += u64::from(event.part.unwrap_or(0) == 0);
            let name = event.file.or(event.conn_id).context("data without a connection")?;
            let is_sent = event.direction == Some("out");
            match sizes.get_mut(&(name.into(), is_sent)) {
                Some(size) => *size += event.size.unwrap_or(0),
                None => drop(sizes.insert((name.into(), is_sent), event.size.unwrap_or(0))),
            }
        }
        line.clear();
    }
    found.children = pids.len() as u64;
    for ((name, is_sent), size) in sizes {
        let file = directory.join(format!("{name}.{}.bin", if is_sent { "out" } else { "in" }));
        let len = file.metadata().with_context(|| format!("{}", file.display()))?.len();
        if len != size {
            bail!("{}: {len} bytes, but its events have {size}", file.display());
        }
        found.bytes += len;
    }
    Ok(found)
}

/// Whether every payload file is byte for byte what the workload sends and receives, where nothing is missing.
pub fn check_bytes(directory: &Path, len: usize) -> Result<()> {
    let mut expected = message(0, len);
    let mut chunk = vec![0; len];
    for entry in directory.read_dir()? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "bin") {
            continue;
        }
        let mut left = path.metadata()?.len();
        let mut reader = BufReader::new(File::open(&path)?);
        for number in 1_u64.. {
            if left == 0 {
                break;
            }
            expected[..8].copy_from_slice(&number.to_le_bytes());
            reader.read_exact(&mut chunk).with_context(|| format!("{}: message {number}", path.display()))?;
            left -= len as u64;
            if chunk != expected {
                bail!("{}: message {number} is not what was sent", path.display());
            }
        }
    }
    Ok(())
}

/// In what strace wrote: of calls on AF_UNIX sockets that were accepted or connected.
pub fn in_strace(file: &Path) -> Result<Found> {
    let mut found = Found::default();
    let mut sockets = BTreeSet::new();
    let mut processes = BTreeSet::new();
    let mut unfinished: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut reader = BufReader::new(File::open(file)?);
    let mut line = Vec::new();
    while {
        line.clear();
        reader.read_until(b'\n', &mut line)?
    } != 0
    {
        let Some(end) = line.iter().position(|&b| b == b' ') else { continue };
        let tid = String::from_utf8_lossy(&line[..end]).into_owned();
        let call = line[end..].trim_ascii();
        if let Some(begun) = call.strip_suffix(b"<unfinished ...>") {
            unfinished.insert(tid, begun.trim_ascii_end().into());
            continue;
        }
        let whole: Vec<u8>;
        let call = if let Some(rest) = call.strip_prefix(b"<... ") {
            let Some(begun) = unfinished.remove(&tid) else { continue };
            let Some(at) = find(rest, b" resumed>") else { continue };
            whole = [&begun, &rest[at + b" resumed>".len()..]].concat();
            &whole
        } else {
            call
        };
        processes.insert(tid);
        let Some(parsed) = StraceCall::parse(call) else { continue };
        match parsed.name {
            b"accept" | b"accept4" if find(parsed.arguments, b"AF_UNIX").is_some() => {
                sockets.insert(parsed.result);
            }
            b"connect" if find(parsed.arguments, b"AF_UNIX").is_some() && parsed.result == 0 => {
                sockets.extend(parsed.fd());
            }
            b"read" if parsed.result == 0 => {
                // Its end; another file may have the number next.
                let _ = parsed.fd().map(|fd| sockets.remove(&fd));
            }
            b"sendto" | b"recvfrom" | b"read" | b"write"
                if parsed.result > 0 && parsed.fd().is_some_and(|fd| sockets.contains(&fd)) =>
            {
                found.messages += 1;
                // An abbreviated string ends in `"...`; the longest message is as long as strings may be.
                let is_whole = find(parsed.arguments, b"\"...").is_none();
                found.bytes += if is_whole { parsed.result.unsigned_abs() } else { 0 };
            }
            _ => {}
        }
    }
    found.children = processes.len().saturating_sub(1) as u64;
    Ok(found)
}

struct StraceCall<'a> {
    name: &'a [u8],
    arguments: &'a [u8],
    result: i64,
}

impl<'a> StraceCall<'a> {
    fn parse(call: &'a [u8]) -> Option<Self> {
        let open = call.iter().position(|&b| b == b'(')?;
        let equals = call.windows(3).rposition(|three| three == b" = ")?;
        let result = std::str::from_utf8(&call[equals + 3..]).ok()?.split_whitespace().next()?.parse().ok()?;
        Some(Self { name: &call[..open], arguments: &call[open + 1..equals], result })
    }

    fn fd(&self) -> Option<i64> {
        let digits = self.arguments.iter().take_while(|b| b.is_ascii_digit()).count();
        std::str::from_utf8(&self.arguments[..digits]).ok()?.parse().ok()
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

/// In what sockets.bt printed.
pub fn in_bpftrace(file: &Path) -> Result<Found> {
    let mut found = Found::default();
    let mut accepted = BTreeSet::new();
    let mut reader = BufReader::new(File::open(file)?);
    let mut line = Vec::new();
    while {
        line.clear();
        reader.read_until(b'\n', &mut line)?
    } != 0
    {
        let mut fields = line.trim_ascii_end().splitn(4, |&b| b == b' ');
        let (what, fd, _count, bytes) = (fields.next(), fields.next(), fields.next(), fields.next());
        match (what, fd, bytes) {
            (Some(b"c"), Some(fd), _) => {
                accepted.insert(fd.to_vec());
            }
            (Some(b"s"), Some(_), Some(bytes)) => found.add_printed(bytes),
            (Some(b"r"), Some(fd), Some(bytes)) if accepted.contains(fd) => found.add_printed(bytes),
            _ => {}
        }
    }
    Ok(found)
}

impl Found {
    /// Bytes as `%r` has them: `\x` and two digits for one that cannot be printed.
    fn add_printed(&mut self, text: &[u8]) {
        self.messages += 1;
        self.bytes += (text.len() - 3 * text.windows(2).filter(|two| two == b"\\x").count()) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_of(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn strace_lines() {
        let file = file_of(concat!(
            "7 connect(4, {sa_family=AF_UNIX, sun_path=\"/s\"}, 110) = 0\n",
            "7 connect(6, {sa_family=AF_INET, sin_port=htons(1)}, 16) = 0\n",
            "7 sendto(4, \"abc\", 3, 0, NULL, 0) = 3\n",
            "7 sendto(6, \"abc\", 3, 0, NULL, 0) = 3\n",
            "7 recvfrom(4,  <unfinished ...>\n",
            "8 write(1, \"x\", 1) = 1\n",
            "7 <... recvfrom resumed>\"de\", 3, 0, NULL, NULL) = 2\n",
            "7 recvfrom(4, 0x7f, 3, 0, NULL, NULL) = -1 EAGAIN (Resource temporarily unavailable)\n",
            "7 write(4, \"abcdefgh\"..., 9) = 9\n",
            "7 +++ exited with 0 +++\n",
        ));
        let found = in_strace(file.path()).unwrap();
        assert_eq!((found.messages, found.bytes, found.children), (3, 5, 1));
    }

    #[test]
    fn bpftrace_lines() {
        let file = file_of("begin\ns 4 3 a\\x00b\nr 0 2 1\\x0a\nc 5\nr 5 4 abcd\nLost 3 events\n");
        let found = in_bpftrace(file.path()).unwrap();
        assert_eq!((found.messages, found.bytes), (2, 7));
    }
}
