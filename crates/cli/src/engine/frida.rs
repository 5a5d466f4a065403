//! Frida's command line: `frida`, or `frida-inject`.

use std::env;
use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::Mode;
use rustix::process::umask;
use serde_json::{Value, json};

use super::{Parameters, Place};
use crate::program;

const HOW_TO_GET_IT: &str = "install it with `pip install frida-tools`, or name it with --frida or $SOCKTRACE_FRIDA";
const AGENT: &str = "agent.js";
/// What nobody else may do with the files that Frida makes.
const OTHERS_WRITE: Mode = Mode::WGRP.union(Mode::WOTH);

/// A Frida to load the agent with.
#[derive(Debug)]
pub struct Frida {
    command: PathBuf,
}

impl Frida {
    /// Finds it: as given, by $SOCKTRACE_FRIDA, or in PATH.
    ///
    /// # Errors
    ///
    /// It is not there, and how to get it.
    pub fn find(given: Option<&Path>) -> Result<Self> {
        let named = env::var_os("SOCKTRACE_FRIDA").filter(|value| !value.is_empty());
        let (names, by): (Vec<&OsStr>, _) = match (given, &named) {
            (Some(path), _) => (vec![path.as_os_str()], "--frida "),
            (None, Some(path)) => (vec![path], "$SOCKTRACE_FRIDA "),
            (None, None) => (vec![OsStr::new("frida"), OsStr::new("frida-inject")], ""),
        };
        match names.iter().find_map(|name| program::find(name).ok()) {
            Some(command) => Ok(Self { command }),
            None if by.is_empty() => bail!("Frida is not found in PATH: {HOW_TO_GET_IT}"),
            None => bail!("{by}{}: not a program that can be executed: {HOW_TO_GET_IT}", names[0].display()),
        }
    }

    /// Loads the probe into a process.
    ///
    /// # Errors
    ///
    /// One line that says why Frida, or the agent, could not.
    pub fn inject(&self, pid: u32, place: &Place, parameters: &Parameters) -> Result<()> {
        self.load(pid, place, &parameters.to_json(), false)
    }

    /// The same, after which Frida leaves the process, with its threads, and the hooks stay.
    ///
    /// # Errors
    ///
    /// As [`Frida::inject`].
    pub fn inject_and_leave(&self, pid: u32, place: &Place, parameters: &Parameters) -> Result<()> {
        let mut parameters = parameters.to_json();
        parameters["stay"] = true.into();
        self.load(pid, place, &parameters, true)
    }

    /// Takes the hooks out of a process again.
    ///
    /// # Errors
    ///
    /// As [`Frida::inject`].
    pub fn stop(&self, pid: u32, place: &Place) -> Result<()> {
        self.load(pid, place, &json!({ "stop": true }), false)
    }

    fn load(&self, pid: u32, place: &Place, parameters: &Value, leaves: bool) -> Result<()> {
        let agent = place.path(AGENT);
        if !agent.exists() {
            place.write(AGENT, socktrace_agent::agent_js().as_bytes(), 0o644)?;
        }
        let name = self.command.file_name().unwrap_or_default().to_string_lossy();
        let mut command = Command::new(&self.command);
        command.arg("-p").arg(pid.to_string());
        if name.contains("inject") {
            command.arg("-s").arg(&agent).arg("-P").arg(parameters.to_string()).arg("--eternalize");
        } else {
            command.arg("-l").arg(&agent).arg("-P").arg(parameters.to_string()).arg("-q");
            if !leaves {
                command.arg("--eternalize");
            }
        }
        // Frida executes files that it puts there, and has a socket there, by a name that everybody knows.
        command.env("TMPDIR", place.path(""));
        // SAFETY: umask(2) is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                umask(umask(OTHERS_WRITE) | OTHERS_WRITE);
                Ok(())
            })
        };
        // What it prints is for us; the terminal is the program's.
        let output = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).output();
        let output = output.with_context(|| format!("{}: cannot be started", self.command.display()))?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        complaint(&said, output.status.success()).map_or(Ok(()), |text| Err(anyhow!("process {pid}: {text}")))
    }
}

/// What went wrong, by what Frida printed: it ends with 0 also when the agent has failed.
fn complaint(said: &str, success: bool) -> Option<String> {
    let lines = || said.lines().map(str::trim).filter(|line| !line.is_empty());
    let agent = lines().find_map(|line| {
        let at = line.find("socktrace: ")?;
        let text = &line[at + "socktrace: ".len()..];
        (!text.starts_with("not hooked")).then_some(text)
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
        assert_eq!(complaint("socktrace: not hooked, their calls are not recorded: x", true), None);
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
        let error = Frida::find(Some(Path::new("/no/frida"))).unwrap_err().to_string();
        assert!(error.contains("--frida /no/frida") && error.contains("pip install frida-tools"));
    }
}
