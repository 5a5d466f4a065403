//! What was not seen, and why: programs that the probe did not get into, or that do not use libc.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use socktrace_event::{Begun, Event, Exec, Fail, What, printable};

use crate::processes::Processes;

/// What a probe says of programs that it was told to leave alone.
pub const NOT_ASKED_FOR: &str = "not asked for";
/// Programs that are remembered; of more there is the count.
const MAX_REMEMBERED: usize = 1024;
/// More of a name or a reason is not shown, in bytes.
const MAX_TEXT_LEN: usize = 1 << 10;
/// Programs that a sentence names.
const MAX_NAMED: usize = 5;

/// Tells whether the program of a process, or where that has ended the one at a path, is one of Go's.
pub type IsGo = fn(Option<u32>, &Path) -> bool;

#[derive(Debug, Default)]
pub struct Unseen {
    /// None: the processes are not of this machine and of now.
    is_go: Option<IsGo>,
    /// Names and reasons of programs that were not traced, and how often they were executed.
    untraced: BTreeMap<(String, String), u64>,
    /// Executables of traced programs, and whether they are Go's.
    looked_at: HashMap<String, bool>,
    forgotten: u64,
}

impl Unseen {
    pub fn new(is_go: Option<IsGo>) -> Self {
        Self { is_go, ..Self::default() }
    }

    /// Learns from an event.
    pub fn note(&mut self, event: &Event<'_>) {
        match &event.what {
            What::Exec(Exec { untraced: Some(why), program, .. }) if &**why != NOT_ASKED_FOR => {
                let name = base_name(program.as_deref().unwrap_or_default());
                let key = (name, printable::beginning(why, MAX_TEXT_LEN).to_owned());
                if self.untraced.len() < MAX_REMEMBERED || self.untraced.contains_key(&key) {
                    *self.untraced.entry(key).or_default() += 1;
                } else {
                    self.forgotten += 1;
                }
            }
            // It was not executed after all.
            What::Fail(Fail { program: Some(program), .. }) => {
                let name = base_name(program);
                if let Some(key) = self.untraced.keys().find(|(program, _)| *program == name).cloned()
                    && let Some(count) = self.untraced.get_mut(&key)
                {
                    *count -= 1;
                    if *count == 0 {
                        self.untraced.remove(&key);
                    }
                }
            }
            What::Start(Begun { exe: Some(exe), .. })
                if self.looked_at.len() < MAX_REMEMBERED && !self.looked_at.contains_key(&**exe) =>
            {
                let Some(is_go) = self.is_go else { return };
                let pid = event.process().and_then(|process| process.here());
                self.looked_at.insert(exe.to_string(), is_go(pid, Path::new(&**exe)));
            }
            _ => {}
        }
    }

    /// Whether a program was traced that makes its system calls itself.
    pub fn has_go(&self) -> bool {
        self.looked_at.values().any(|&is_go| is_go)
    }

    /// What there is to say at the end.
    pub fn sentences(&self, processes: &Processes) -> Vec<String> {
        let mut sentences = Vec::new();
        if !self.untraced.is_empty() {
            let name = |((program, why), count): (&(String, String), &u64)| match count {
                1 => format!("{program} ({why})"),
                _ => format!("{program}, {count} times ({why})"),
            };
            let rest = self.untraced.len().saturating_sub(MAX_NAMED) as u64 + self.forgotten;
            sentences.push(format!("not traced: {}", listed(self.untraced.iter().take(MAX_NAMED).map(name), rest)));
        }
        let mut go: Vec<_> =
            self.looked_at.iter().filter(|(_, is_go)| **is_go).map(|(exe, _)| base_name(exe)).collect();
        go.sort_unstable();
        if !go.is_empty() {
            let (count, rest) = (go.len(), go.len().saturating_sub(MAX_NAMED) as u64);
            let names = listed(go.into_iter().take(MAX_NAMED), rest);
            let (is, its) = if count == 1 { ("is a Go program", "its") } else { ("are Go programs", "their") };
            sentences.push(format!(
                "{names} {is}: {its} system calls do not go through libc, so {its} sockets, and the programs that are \
                 executed in this way, are not seen"
            ));
        }
        let missing = processes.missing();
        if !missing.is_empty() {
            let rest = missing.len().saturating_sub(MAX_NAMED) as u64;
            let names = missing.into_iter().take(MAX_NAMED);
            sentences.push(format!(
                "executed, and not heard of since: {}; it ended before its libraries were loaded, or the probe could not \
                 start in it",
                listed(names, rest)
            ));
        }
        sentences
    }
}

fn base_name(path: &str) -> String {
    let name = path.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or(path);
    printable::name(printable::beginning(name, MAX_TEXT_LEN)).into_owned()
}

fn listed(names: impl Iterator<Item = String>, rest: u64) -> String {
    let mut text = names.collect::<Vec<_>>().join(", ");
    if rest > 0 {
        text.push_str(&format!(", and {rest} more"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec<'a>(program: &'a str, why: &'a str) -> Event<'a> {
        Event::now(What::Exec(Exec { program: Some(program.into()), untraced: Some(why.into()), ..Exec::default() }))
    }

    #[test]
    fn programs_are_named_once_with_the_reason() {
        let mut unseen = Unseen::default();
        let processes = Processes::new(false);
        assert!(unseen.sentences(&processes).is_empty());
        unseen.note(&exec("/bin/ls", NOT_ASKED_FOR));
        assert!(unseen.sentences(&processes).is_empty());
        unseen.note(&exec("/usr/bin/sudo", "setuid"));
        unseen.note(&exec("./busybox", "statically linked"));
        unseen.note(&exec("./busybox", "statically linked"));
        let expected = "not traced: busybox, 2 times (statically linked), sudo (setuid)";
        assert_eq!(unseen.sentences(&processes), [expected]);
        for number in 0..2000 {
            unseen.note(&exec(&format!("x{number}"), "setuid"));
        }
        assert!(unseen.sentences(&processes)[0].ends_with(", and 1997 more"), "{:?}", unseen.sentences(&processes));
    }

    #[test]
    fn what_was_not_executed_is_not_named() {
        let mut unseen = Unseen::default();
        unseen.note(&exec("/bin/x", "setuid"));
        let program = Some("/bin/x".into());
        unseen.note(&Event::now(What::Fail(Fail { program, ..Fail::default() })));
        assert!(unseen.sentences(&Processes::new(false)).is_empty());
    }
}
