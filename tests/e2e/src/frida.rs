//! Frida's command line, as the quick start uses it.

use std::io::{PipeWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;

use crate::needs::Needs;
use crate::process::{Ending, Process, adopt_orphans};
use crate::stage::Stage;

/// A Frida to load the agent with.
#[derive(Debug)]
pub struct Frida {
    command: PathBuf,
    agent: PathBuf,
}

/// What Frida printed, and with a new program what that printed.
#[derive(Debug)]
pub struct Injected {
    /// Where it goes to; a new program's output goes on after Frida has ended.
    pub output: PathBuf,
}

impl Frida {
    /// The current Frida.
    pub fn new() -> Self {
        Self { command: Needs::Frida.path(), agent: Needs::Agent.path() }
    }

    /// The last Frida 16.
    pub fn of_version_16() -> Self {
        Self { command: Needs::Frida16.path(), agent: Needs::Agent.path() }
    }

    /// The current Frida with a script of the test's own instead of the agent.
    pub fn with_script(script: &Path) -> Self {
        Self { command: Needs::Frida.path(), agent: script.into() }
    }

    fn run(
        &self,
        stage: &Stage,
        name: &str,
        target: &[&str],
        parameters: &Value,
        args: &[&str],
        input: Stdio,
    ) -> Injected {
        adopt_orphans();
        let output = stage.path(&format!("{name}.txt"));
        let parameters = parameters.to_string();
        let agent = self.agent.to_str().expect("agent.js has a UTF-8 path");
        let mut all = target.to_vec();
        all.extend(["-l", agent, "-P", &parameters, "-q", "--eternalize"]);
        if !args.is_empty() {
            all.push("--");
            all.extend(args);
        }
        let mut frida = Process::start(&self.command, &all, input, &output);
        let ending = frida.wait();
        assert_eq!(ending, Ending::Exited(0), "{}: {}", self.command.display(), read(&output));
        Injected { output }
    }

    /// Starts a program with the agent in it. `name` is for the file of its output.
    pub fn spawn(&self, stage: &Stage, name: &str, parameters: &Value, program: &Path, args: &[&str]) -> Injected {
        let target = ["-f", program.to_str().expect("a UTF-8 path")];
        self.run(stage, name, &target, parameters, args, Stdio::null())
    }

    /// The same for a program that waits for its input, which is given here, once Frida has left it (and ends there,
    /// for what Frida does with a program that ends sooner see workload/main.c).
    pub fn spawn_with_input(
        &self,
        stage: &Stage,
        name: &str,
        parameters: &Value,
        program: &Path,
        args: &[&str],
        input: &[u8],
    ) -> Injected {
        let (injected, mut writer) = self.spawn_waiting(stage, name, parameters, program, args);
        writer.write_all(input).unwrap_or_else(|error| panic!("{}'s input: {error}", program.display()));
        injected
    }

    /// The same, with the input still to be written by the caller.
    pub fn spawn_waiting(
        &self,
        stage: &Stage,
        name: &str,
        parameters: &Value,
        program: &Path,
        args: &[&str],
    ) -> (Injected, PipeWriter) {
        let target = ["-f", program.to_str().expect("a UTF-8 path")];
        let (reader, writer) = std::io::pipe().expect("a pipe");
        (self.run(stage, name, &target, parameters, args, reader.into()), writer)
    }

    /// Loads the agent into a running process.
    pub fn attach(&self, stage: &Stage, name: &str, parameters: &Value, pid: u32) -> Injected {
        self.run(stage, name, &["-p", &pid.to_string()], parameters, &[], Stdio::null())
    }
}

impl Default for Frida {
    fn default() -> Self {
        Self::new()
    }
}

impl Injected {
    /// The output up to now.
    pub fn text(&self) -> String {
        read(&self.output)
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
