//! By which engines processes can be traced.

use std::collections::BTreeMap;

use socktrace_engine::{ENGINES, Options, Target};

/// Of each process, what keeps each engine out of it that attaches; None: nothing is known to.
pub struct Ways(BTreeMap<u32, Vec<(&'static str, Option<String>)>>);

impl Ways {
    pub fn into(pids: impl Iterator<Item = u32>) -> Self {
        let engines: Vec<_> = ENGINES.iter().filter(|engine| engine.attaches).collect();
        let mut ways = BTreeMap::new();
        for pid in pids {
            ways.entry(pid).or_insert_with(|| {
                let hindrance = |engine: &&socktrace_engine::Entry| {
                    let why = (engine.make)(&Options::default()).hindrance(Target::Process(pid));
                    (engine.name, why.map(|why| without_pid(&why, pid)))
                };
                engines.iter().map(hindrance).collect()
            });
        }
        Self(ways)
    }

    /// The engines that can trace it.
    pub fn engines(&self, pid: u32) -> Vec<&'static str> {
        self.of(pid).iter().filter(|(_, why)| why.is_none()).map(|&(name, _)| name).collect()
    }

    /// Those that cannot, and why.
    pub fn hindrances(&self, pid: u32) -> impl Iterator<Item = (&'static str, &str)> {
        self.of(pid).iter().filter_map(|(name, why)| Some((*name, why.as_deref()?)))
    }

    fn of(&self, pid: u32) -> &[(&'static str, Option<String>)] {
        self.0.get(&pid).map(Vec::as_slice).unwrap_or_default()
    }
}

/// The line says which process, and so does what it stands beside.
fn without_pid(why: &str, pid: u32) -> String {
    why.strip_prefix(&format!("process {pid}: ")).unwrap_or(why).to_owned()
}
