//! The probe through Frida's command line: `frida`, or `frida-inject`, which loads agent.js.

use std::collections::HashMap;
use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::Mode;
use rustix::process::umask;
use serde_json::{Value, json};
use socktrace_event::PathError;
use socktrace_params::Params;

use crate::collector::Collector;
use crate::gate::{self, NotHeld};
use crate::place::{Place, Removal};
use crate::start::{Program, Signals, Start, With};
use crate::target::{self, Probe};
use crate::{Attached, Engine, Error, Events, Options, Running, Target, agent, preload, program};

const HOW_TO_GET_IT: &str = "install it with `pip install frida-tools`, or name it with --frida or $SOCKTRACE_FRIDA";
/// What nobody else may do with the files that Frida makes.
const OTHERS_WRITE: Mode = Mode::WGRP.union(Mode::WOTH);

const NEVER_LOADED: &str = "the probe never loaded into the program";
const NEVER_HEARD: &str = "the probe was loaded and could not reach the collector: is the process in a sandbox?";

/// The command as the user names it; None: as it is found.
#[derive(Debug)]
struct Frida(Option<PathBuf>);

pub(crate) fn make(options: &Options) -> Box<dyn Engine> {
    Box::new(Frida(options.frida.clone()))
}

impl Engine for Frida {
    fn hindrance(&self, target: Target<'_>) -> Option<String> {
        match target {
            Target::Program { path, arguments } => program::hindrance(path, arguments),
            Target::Process(pid) => target::refusal(pid),
        }
    }

    fn lack(&self) -> Option<String> {
        find(self.0.as_deref()).err().map(|error| error.to_string())
    }

    fn to_run(self: Box<Self>, params: &Params<'_>) -> Result<(Events, Box<dyn Running>), Error> {
        let command = find(self.0.as_deref())?;
        let (events, loader) = Loader::new(command, Collector::for_program()?, params)?;
        Ok((events, Box::new(loader)))
    }

    fn to_attach(self: Box<Self>, pids: &[u32], params: &Params<'_>) -> Result<(Events, Box<dyn Attached>), Error> {
        let command = find(self.0.as_deref())?;
        let (collector, unreached) = Collector::for_processes(pids)?;
        let (events, loader) = Loader::new(command, collector, params)?;
        Ok((events, Box::new(Loader { unreached, ..loader })))
    }
}

/// Finds the command: as given, by $SOCKTRACE_FRIDA, or in PATH.
fn find(given: Option<&Path>) -> Result<PathBuf, Error> {
    let named = env::var_os("SOCKTRACE_FRIDA").filter(|value| !value.is_empty());
    let (names, by): (Vec<&OsStr>, _) = match (given, &named) {
        (Some(path), _) => (vec![path.as_os_str()], "--frida "),
        (None, Some(path)) => (vec![path], "$SOCKTRACE_FRIDA "),
        (None, None) => (vec![OsStr::new("frida"), OsStr::new("frida-inject")], ""),
    };
    names.iter().find_map(|name| program::find(name).ok()).ok_or_else(|| {
        Error::Missing(match by.is_empty() {
            true => format!("Frida is not found in PATH: {HOW_TO_GET_IT}"),
            false => format!("{by}{}: not a program that can be executed: {HOW_TO_GET_IT}", names[0].display()),
        })
    })
}

/// A Frida to load agent.js with, and all that this takes.
struct Loader {
    command: PathBuf,
    place: Place,
    agent: PathBuf,
    /// As agent.js takes them.
    parameters: Value,
    /// Processes that would not reach the socket, and why.
    unreached: HashMap<u32, Error>,
}

impl Loader {
    fn new(command: PathBuf, collector: Collector, params: &Params<'_>) -> Result<(Events, Self), Error> {
        let told = collector.tell(params);
        let library = told.follow_children.then(|| preload::prepare(&collector.place, &told)).transpose()?;
        let preload = library.as_ref().map_or(&b""[..], |library| library.as_os_str().as_encoded_bytes());
        let parameters = agent::parameters(&Params { preload, ..told });
        let agent = agent::write(&collector.place)?;
        let (events, place) = collector.split();
        Ok((events, Self { command, place, agent, parameters, unreached: HashMap::new() }))
    }

    /// Has Frida load the agent into a process. `leaves`: Frida then leaves the process, with its threads.
    fn load(&self, pid: u32, parameters: &Value, leaves: bool) -> Result<(), Error> {
        let is_inject = self.command.file_name().is_some_and(|name| name.to_string_lossy().contains("inject"));
        let mut command = Command::new(&self.command);
        command.arg("-p").arg(pid.to_string());
        command.arg(if is_inject { "-s" } else { "-l" }).arg(&self.agent).arg("-P").arg(parameters.to_string());
        if !is_inject {
            command.arg("-q");
        }
        if is_inject || !leaves {
            command.arg("--eternalize");
        }
        // Frida executes files that it puts there, and has a socket there, by a name that everybody knows.
        command.env("TMPDIR", self.place.path(""));
        // SAFETY: umask(2) is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                umask(umask(OTHERS_WRITE) | OTHERS_WRITE);
                Ok(())
            })
        };
        // What it prints is for us; the terminal is the program's.
        let output = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).output();
        let output = output.map_err(PathError::io(&self.command, "cannot be started"))?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        complaint(&said, output.status.success()).map_or(Ok(()), |why| Err(Error::Process { pid, why }))
    }
}

impl Running for Loader {
    /// Holds the program until the probe is in it, and lets it go in any case.
    fn start(&mut self, start: &Start<'_>, signals: &Signals) -> io::Result<Program> {
        let child = start.spawn(signals, With { traced: true, ..With::default() })?;
        let pid = child.id();
        // The hooks stay when Frida leaves.
        let mut parameters = self.parameters.clone();
        parameters["stay"] = true.into();
        let mut program = Program::from(child);
        let released = gate::hold(pid).and_then(|held| {
            program.untraced = self.load(pid, &parameters, true).err();
            held.release()
        });
        match released {
            Ok(()) => {}
            Err(NotHeld::Ended(status)) => program.state = Err(status),
            Err(NotHeld::Failed(error)) => program.untraced = Some(Error::of_process(pid, &error)),
        }
        Ok(program)
    }

    fn silence(&self) -> &'static str {
        NEVER_LOADED
    }

    fn leave(self: Box<Self>) -> Removal {
        self.place.remove()
    }
}

impl Attached for Loader {
    fn attach(&mut self, pid: u32) -> Result<(), Error> {
        if let Some(error) = self.unreached.remove(&pid) {
            return Err(error);
        }
        // One that was left there, by a socktrace that was killed, is taken over.
        if target::probe_in(pid) == Probe::Idle {
            self.detach(pid)?;
        }
        self.load(pid, &self.parameters, false)
    }

    fn detach(&mut self, pid: u32) -> Result<(), Error> {
        self.load(pid, &json!({ "stop": true }), false)
    }

    fn silence(&self) -> &'static str {
        NEVER_HEARD
    }

    fn leave(self: Box<Self>) -> Removal {
        self.place.remove()
    }
}

/// What went wrong, by what Frida printed: it ends with 0 also when the agent has failed.
fn complaint(said: &str, success: bool) -> Option<String> {
    let lines = || said.lines().map(str::trim).filter(|line| !line.is_empty());
    let agent = lines().find_map(|line| {
        let at = line.find("socktrace: ")?;
        Some(&line[at + "socktrace: ".len()..])
    });
    if let Some(text) = agent {
        return Some(text.to_owned());
    }
    (!success).then(|| format!("Frida: {}", lines().next_back().unwrap_or("it failed and did not say why")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_frida_says() {
        assert_eq!(complaint("Spawned\n", true), None);
        let agent = "Error: socktrace: parameter max_fds: takes a whole number\n    at load";
        assert_eq!(complaint(agent, true).unwrap(), "parameter max_fds: takes a whole number");
        assert_eq!(
            complaint("\nFailed to attach: process not found\n", false).unwrap(),
            "Frida: Failed to attach: process not found"
        );
        assert_eq!(complaint("", false).unwrap(), "Frida: it failed and did not say why");
    }

    #[test]
    fn how_to_get_it() {
        let error = find(Some(Path::new("/no/frida"))).unwrap_err().to_string();
        assert!(error.contains("--frida /no/frida") && error.contains("pip install frida-tools"));
    }
}
