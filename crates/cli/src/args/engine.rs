//! Which engine: a list of them all is in the crate that has them.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use socktrace_engine::{ENGINES, Engine, Entry, Options};

use super::{AttachArgs, RunArgs};

impl RunArgs {
    /// The engine that is asked for.
    pub fn engine(&self) -> Box<dyn Engine> {
        (self.engine.make)(&Options { frida: self.frida.clone(), gadget: self.gadget.clone() })
    }
}

impl AttachArgs {
    /// The engine that is asked for.
    pub fn engine(&self) -> Box<dyn Engine> {
        (self.engine.make)(&Options { frida: self.frida.clone(), ..Options::default() })
    }
}

/// The engine that is taken unless another one is asked for.
pub fn first(can: fn(&Entry) -> bool) -> Entry {
    *ENGINES.iter().find(|engine| can(engine)).expect("the list has one for everything")
}

/// The name of one that can.
pub(super) fn one(can: fn(&Entry) -> bool) -> impl TypedValueParser<Value = Entry> {
    let engines = ENGINES.iter().filter(move |engine| can(engine));
    let values = engines.clone().map(|engine| PossibleValue::new(engine.name).help(engine.about));
    PossibleValuesParser::new(values)
        .try_map(move |name| engines.clone().find(|engine| engine.name == name).copied().ok_or("no such engine"))
}
