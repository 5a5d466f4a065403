//! The workload under Frida, or without.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::account::Account;
use crate::frida::{Frida, Injected};
use crate::process::Process;
use crate::stage::{Stage, until};
use crate::steps::Steps;

/// A started workload.
#[derive(Debug)]
pub struct Workload {
    /// The program.
    pub process: Process,
    /// What Frida and the program printed.
    pub output: Option<Injected>,
    account: PathBuf,
}

impl Workload {
    /// The program's file.
    pub fn program() -> PathBuf {
        env!("SOCKTRACE_WORKLOAD").into()
    }

    fn args<'a>(stage: &Stage, cases: &[&'a str]) -> (PathBuf, Vec<std::borrow::Cow<'a, str>>) {
        let account = stage.path("account.jsonl");
        let mut args = vec![account.display().to_string().into(), stage.sockets().display().to_string().into()];
        args.extend(cases.iter().map(|&case| case.into()));
        (account, args)
    }

    /// Lets it begin, once Frida has left it (workload/main.c).
    fn let_go(stage: &Stage) {
        let go = stage.socket("go");
        std::fs::write(&go, "").unwrap_or_else(|error| panic!("{}: {error}", go.display()));
    }

    /// Starts it without Frida.
    pub fn start(stage: &Stage, cases: &[&str]) -> Self {
        Self::start_program(&Self::program(), stage, cases)
    }

    /// The same of another program that takes the same arguments.
    pub fn start_program(program: &Path, stage: &Stage, cases: &[&str]) -> Self {
        let (account, args) = Self::args(stage, cases);
        let args: Vec<&str> = args.iter().map(|arg| &**arg).collect();
        let process = Process::start(program, &args, Stdio::null(), &stage.path("workload.txt"));
        Self::let_go(stage);
        Self { process, output: None, account }
    }

    /// Starts it by a command that it is the end of: `socktrace run`, say.
    pub fn start_by(command: &mut Command, stage: &Stage, cases: &[&str]) -> Self {
        let (account, args) = Self::args(stage, cases);
        command.arg(Self::program()).args(args.iter().map(|arg| &**arg));
        let process = Process::start_command(command, Stdio::null(), &stage.path("workload.txt"));
        Self::let_go(stage);
        Self { process, output: None, account }
    }

    /// Starts it without Frida, to begin when `meanwhile`, which is given its process id, has returned.
    pub fn start_after<T>(stage: &Stage, cases: &[&str], meanwhile: impl FnOnce(u32) -> T) -> (Self, T) {
        let (account, args) = Self::args(stage, cases);
        let args: Vec<&str> = args.iter().map(|arg| &**arg).collect();
        let process = Process::start(&Self::program(), &args, Stdio::null(), &stage.path("workload.txt"));
        let result = meanwhile(process.pid());
        Self::let_go(stage);
        (Self { process, output: None, account }, result)
    }

    /// Has Frida start it with the agent in it.
    pub fn spawn(stage: &Stage, parameters: &Value, cases: &[&str]) -> Self {
        Self::spawn_by(&Frida::new(), stage, parameters, cases)
    }

    /// The same by a Frida of the caller's.
    pub fn spawn_by(frida: &Frida, stage: &Stage, parameters: &Value, cases: &[&str]) -> Self {
        Self::spawn_program(&Self::program(), frida, stage, parameters, cases)
    }

    /// The same of another program that takes the same arguments.
    pub fn spawn_program(program: &Path, frida: &Frida, stage: &Stage, parameters: &Value, cases: &[&str]) -> Self {
        let (account, args) = Self::args(stage, cases);
        let args: Vec<&str> = args.iter().map(|arg| &**arg).collect();
        let output = frida.spawn(stage, "workload", parameters, program, &args);
        Self::let_go(stage);
        let pid = until("the workload begins", || Account::read(&account).pid());
        Self { process: Process::of_pid(pid), output: Some(output), account }
    }

    /// Starts it with the probe preloaded, instead of put there by Frida.
    pub fn preload(stage: &Stage, parameters: &Value, cases: &[&str]) -> Self {
        Self::preload_program(&Self::program(), stage, parameters, cases)
    }

    /// The same of the workload as another compiler built it, or another program that takes the same arguments.
    pub fn preload_program(program: &Path, stage: &Stage, parameters: &Value, cases: &[&str]) -> Self {
        let (account, args) = Self::args(stage, cases);
        let mut command = Command::new(program);
        command.args(args.iter().map(|arg| &**arg)).env("LD_PRELOAD", preload_files(stage, parameters));
        let process = Process::start_command(&mut command, Stdio::null(), &stage.path("workload.txt"));
        Self::let_go(stage);
        Self { process, output: None, account }
    }

    /// The account so far.
    pub fn account(&self) -> Account {
        Account::read(&self.account)
    }

    /// Its end, which must be that of a program that nothing disturbed.
    #[track_caller]
    pub fn finish(mut self) -> Account {
        self.process.wait_for_success();
        let account = self.account();
        account.assert_undisturbed();
        assert!(account.has_ended(), "the workload ended before its end");
        account
    }

    /// For the case `steps`: before the workload is started.
    pub fn prepare_steps(stage: &Stage) -> Steps {
        Steps::new(stage.socket("commands"), stage.path("account.jsonl"))
    }
}

/// Writes the probe and its parameters to the test's directory; gives what LD_PRELOAD has to be.
pub fn preload_files(stage: &Stage, parameters: &Value) -> PathBuf {
    let (probe, file) = (stage.path("socktrace-probe.so"), stage.path("params"));
    let mut text = String::new();
    for (name, value) in parameters.as_object().expect("parameters are an object") {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text += &format!("{name}={value}\0");
    }
    fs::write(&probe, socktrace_agent::PROBE).unwrap_or_else(|error| panic!("{}: {error}", probe.display()));
    fs::write(&file, text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    probe
}
