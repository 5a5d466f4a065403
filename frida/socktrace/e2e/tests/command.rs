//! The command `socktrace`: the same workload gives the same recording by each of its ways in.

use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use socktrace_e2e::{Needs, Process, Recording, Stage, Workload, assert_same, until};

/// One case of every subject; the calls one by one are in tests/calls.rs and tests/preload.rs.
const CASES: [&str; 8] = ["calls", "seqpacket", "scattered", "large", "datagrams", "relative_path", "dups", "threads"];

fn socktrace(stage: &Stage, subcommand: &str) -> Command {
    let mut command = Command::new(Needs::Socktrace.path());
    command.args([subcommand, "-o"]).arg(stage.path("view.txt")).arg("-w").arg(stage.path("recording"));
    command
}

fn recording(stage: &Stage) -> Recording {
    Recording::read(&stage.path("recording"))
}

fn run(engine: &str) {
    let stage = Stage::new();
    let mut command = socktrace(&stage, "run");
    command.args(["--engine", engine]);
    if engine == "frida" {
        command.arg("--frida").arg(Needs::Frida.path());
    }
    command.arg("--");
    let account = Workload::start_by(&mut command, &stage, &CASES).finish();
    assert_same(&account, &recording(&stage));
}

#[test]
fn run_by_preload() {
    run("preload");
}

#[test]
fn run_by_frida() {
    run("frida");
}

fn attach(stage: &Stage, frida: &Path, pid: u32) -> Process {
    let mut command = socktrace(stage, "attach");
    command.arg("--frida").arg(frida).arg(pid.to_string());
    let attached = Process::start_command(&mut command, Stdio::null(), &stage.path("attach.txt"));
    until("socktrace has attached", || recording(stage).of_type("ready").next().map(|_| ()));
    attached
}

#[test]
fn attach_and_leave() {
    let stage = Stage::new();
    let frida = Needs::Frida.path();
    let (workload, mut attached) = Workload::start_after(&stage, &CASES, |pid| attach(&stage, &frida, pid));
    let account = workload.finish();
    attached.signal(Signal::INT);
    attached.wait();
    assert_same(&account, &recording(&stage));
}
