//! By which engines processes can be traced.

use std::collections::BTreeMap;

use socktrace_engine::{ENGINES, Engine, Options, Target};

/// What keeps each engine out that attaches.
pub struct Ways {
    engines: Vec<Way>,
    /// Of each process, by engine; None: nothing is known to.
    hindrances: BTreeMap<u32, Vec<Option<String>>>,
}

struct Way {
    name: &'static str,
    /// What it lacks, whatever the process.
    lack: Option<String>,
}

impl Ways {
    pub fn into(pids: impl Iterator<Item = u32>) -> Self {
        let entries = ENGINES.iter().filter(|engine| engine.attaches);
        let made: Vec<_> = entries.map(|engine| (engine.name, (engine.make)(&Options::default()))).collect();
        let mut hindrances = BTreeMap::new();
        for pid in pids {
            hindrances.entry(pid).or_insert_with(|| {
                let why =
                    |engine: &dyn Engine| engine.hindrance(Target::Process(pid)).map(|why| without_pid(&why, pid));
                made.iter().map(|(_, engine)| why(engine.as_ref())).collect()
            });
        }
        let of_engine = |name: &'static str, why: String| {
            why.strip_prefix(&format!("engine {name}: ")).map(str::to_owned).unwrap_or(why)
        };
        let way = |(name, engine): &(&'static str, Box<dyn Engine>)| Way {
            name,
            lack: engine.lack().map(|why| of_engine(name, why)),
        };
        Self { engines: made.iter().map(way).collect(), hindrances }
    }

    /// The engines that can trace nothing from here, and why.
    pub fn lacking(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.engines.iter().filter_map(|way| Some((way.name, way.lack.as_deref()?)))
    }

    /// The engines that can trace it.
    pub fn engines(&self, pid: u32) -> Vec<&'static str> {
        let can = |(way, why): (&Way, Option<&str>)| (way.lack.is_none() && why.is_none()).then_some(way.name);
        self.of(pid).filter_map(can).collect()
    }

    /// Those that cannot, and why it is this process that they cannot trace.
    pub fn hindrances(&self, pid: u32) -> impl Iterator<Item = (&'static str, &str)> {
        self.of(pid).filter(|(way, _)| way.lack.is_none()).filter_map(|(way, why)| Some((way.name, why?)))
    }

    fn of(&self, pid: u32) -> impl Iterator<Item = (&Way, Option<&str>)> {
        let hindrances = self.hindrances.get(&pid).into_iter().flatten();
        self.engines.iter().zip(hindrances.map(Option::as_deref))
    }
}

/// The line says which process, and so does what it stands beside.
fn without_pid(why: &str, pid: u32) -> String {
    why.strip_prefix(&format!("process {pid}: ")).unwrap_or(why).to_owned()
}
