//! The lines that `strace -f -o FILE` writes, as calls in the order in which they returned.

use std::collections::BTreeMap;

use super::syntax::{Value, arguments};

/// One system call that has returned.
#[derive(Clone, Debug)]
pub struct Call {
    /// The thread.
    pub tid: u32,
    /// The system call.
    pub name: String,
    /// Its arguments.
    pub arguments: Vec<Value>,
    /// What it returned; negative if it failed.
    pub result: i64,
    /// A descriptor's `<…>`, where it returned one.
    pub result_names: String,
}

impl Call {
    /// An argument as text; empty if there is none, or it is no word.
    pub fn word(&self, argument: usize) -> &str {
        self.arguments.get(argument).map_or("", Value::word)
    }
}

/// Puts the two halves of interrupted lines together and takes them apart. Signals, ends of processes and calls that
/// never returned are left out.
pub fn parse(trace: &str) -> Result<Vec<Call>, String> {
    let mut calls = Vec::new();
    let mut unfinished: BTreeMap<u32, &str> = BTreeMap::new();
    for line in trace.lines() {
        let error = |what: &str| format!("{what} in strace's line: {line:.200}");
        let (tid, text) = line.split_once(' ').ok_or_else(|| error("no thread id"))?;
        let tid: u32 = tid.parse().map_err(|_| error("no thread id"))?;
        let text = text.trim_start();
        if text.starts_with("+++") || text.starts_with("---") {
            continue;
        }
        if let Some(text) = text.strip_suffix("<unfinished ...>") {
            unfinished.insert(tid, text);
            continue;
        }
        let whole;
        let text = if text.starts_with("<... ") {
            let (_, later) = text.split_once(" resumed>").ok_or_else(|| error("no ' resumed>'"))?;
            let earlier = unfinished.remove(&tid).ok_or_else(|| error("the end of a call without its beginning"))?;
            whole = format!("{earlier}{later}");
            &whole
        } else {
            text
        };
        calls.extend(call(tid, text).map_err(|what| error(&what))?);
    }
    Ok(calls)
}

/// A whole line; none if the call did not return.
fn call(tid: u32, text: &str) -> Result<Option<Call>, String> {
    let (name, rest) = text.split_once('(').ok_or("no parenthesis")?;
    let (arguments, rest) = arguments(rest)?;
    let result = rest.trim_start().strip_prefix("= ").ok_or("no result")?;
    if result.starts_with('?') {
        return Ok(None);
    }
    let end = result.find([' ', '<']).unwrap_or(result.len());
    let (number, names) = result.split_at(end);
    let result = match number.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(hex, 16),
        None => number.parse(),
    };
    let result = result.map_err(|_| format!("{number} is no result"))?;
    Ok(Some(Call { tid, name: name.into(), arguments, result, result_names: names.into() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_put_together() {
        let trace = "\
            7  socket(AF_UNIX, SOCK_STREAM|SOCK_CLOEXEC, 0) = 12<UNIX-STREAM:[40]>\n\
            8  recvfrom(3<UNIX:[1->2]>,  <unfinished ...>\n\
            7  sendto(4<UNIX:[2->1]>, \"\\x61\", 1, 0, NULL, 0) = 1\n\
            8  <... recvfrom resumed>\"\\x61\", 10, 0, NULL, NULL) = 1\n\
            8  --- SIGCHLD {si_signo=SIGCHLD} ---\n\
            7  read(5<\\x2f>, 0x7f, 3) = -1 EAGAIN (Resource temporarily unavailable)\n\
            7  recvfrom(3<UNIX:[1->2]>, 0x7f, 10, 0, NULL, NULL) = ? ERESTARTSYS (To be restarted)\n\
            7  +++ exited with 0 +++\n";
        let calls = parse(trace).unwrap();
        let short: Vec<_> = calls.iter().map(|call| (call.tid, &*call.name, call.result)).collect();
        assert_eq!(short, [(7, "socket", 12), (7, "sendto", 1), (8, "recvfrom", 1), (7, "read", -1)]);
        assert_eq!(calls[0].result_names, "<UNIX-STREAM:[40]>");
        assert_eq!(calls[2].arguments[1], Value::Text(b"a".into(), false));
    }

    #[test]
    fn lines_that_are_not_understood_are_errors() {
        assert!(parse("7  <... read resumed>\"\", 1) = 0\n").is_err());
        assert!(parse("7  read(3, \"\\x61\", 1\n").is_err());
        assert!(parse("read(3, \"\\x61\", 1) = 1\n").is_err());
    }
}
