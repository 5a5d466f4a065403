//! An engine in one file, which `run` and `attach` take as they take any other: its events are frames that were recorded once.

#[path = "../../recording/tests/seams/replay.rs"]
mod replay;

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;

use clap::Parser;
use socktrace_engine::start::{Program, Signals, Start, Streams, With};
use socktrace_engine::{Attached, Engine, Error, Events, Removal, Running, Target};
use socktrace_event::{Failed, Origin, Sink, Source, Stop, What};
use socktrace_params::Params;
use socktrace_recording::Recording;

use crate::args::{Cli, Command};
use crate::packets::Keep;
use crate::{attach, run};
use replay::Replay;

const GOLDEN: &str = include_str!("../../gttr/tests/golden/gttr-v1-frames.hex");
/// How many there are, and how many bytes they carry.
const GOLDEN_EVENTS: usize = 12;
const GOLDEN_BYTES: u64 = 37 + 40 + 4096 + 2;

/// Notes what it is asked for.
#[derive(Clone, Debug, Default)]
struct Toy(Rc<RefCell<Vec<String>>>);

impl Toy {
    fn note(&self, what: impl Into<String>) {
        self.0.borrow_mut().push(what.into());
    }

    fn events() -> Events {
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        let frames = GOLDEN.lines().map(|line| line.as_bytes().chunks(2).map(byte).collect()).collect();
        Events::from(ToTheEnd(Replay(frames)))
    }
}

/// As sockets are drained when a stop is asked for, all that is there is played.
struct ToTheEnd(Replay);

impl Source for ToTheEnd {
    type Error = gttr::Error;

    fn origin(&self) -> Origin<'_> {
        self.0.origin()
    }

    fn run<S: Sink + ?Sized>(self, _: &Stop, sink: &mut S) -> Result<&'static str, Failed<gttr::Error, S::Error>> {
        self.0.run(&Stop::new().expect("there are descriptors left"), sink)
    }
}

impl Engine for Toy {
    fn hindrance(&self, target: Target<'_>) -> Option<String> {
        match target {
            Target::Program { .. } => None,
            Target::Process(pid) => (pid == 1).then(|| format!("process {pid}: is no toy")),
        }
    }

    fn to_run(self: Box<Self>, params: &Params<'_>) -> Result<(Events, Box<dyn Running>), Error> {
        self.note(format!("to run, {} bytes", params.max_bytes));
        Ok((Self::events(), self))
    }

    fn to_attach(self: Box<Self>, pids: &[u32], _: &Params<'_>) -> Result<(Events, Box<dyn Attached>), Error> {
        self.note(format!("to attach to {}", pids.len()));
        Ok((Self::events(), self))
    }
}

impl Running for Toy {
    fn start(&mut self, start: &Start<'_>, signals: &Signals) -> io::Result<Program> {
        self.note(format!("start {}", start.path.display()));
        start.spawn(signals, With::default()).map(Program::from)
    }

    fn silence(&self) -> &'static str {
        "nobody wound it up"
    }

    fn leave(self: Box<Self>) -> Removal {
        self.note("leave");
        Removal::default()
    }
}

impl Attached for Toy {
    fn attach(&mut self, pid: u32) -> Result<(), Error> {
        self.note(format!("attach to {pid}"));
        Ok(())
    }

    fn detach(&mut self, pid: u32) -> Result<(), Error> {
        self.note(format!("detach from {pid}"));
        Ok(())
    }

    fn silence(&self) -> &'static str {
        Running::silence(self)
    }

    fn leave(self: Box<Self>) -> Removal {
        Running::leave(self)
    }
}

fn command(words: &[&str], record: &Path) -> Command {
    let common = ["--record", record.to_str().unwrap(), "--output", "/dev/null"];
    let words = words[..2].iter().chain(&common).chain(&words[2..]);
    Cli::try_parse_from(words).unwrap().command
}

/// What was replayed is on record, and its origin.
#[track_caller]
fn assert_recorded(record: &Path) {
    let events: Vec<_> = Recording::open(record).unwrap().events().map(Result::unwrap).collect();
    assert_eq!(events.len(), GOLDEN_EVENTS + 2);
    assert!(matches!(&events[0].event().what, What::HostInit(it) if &*it.sock == "kept.hex"));
    assert!(matches!(&events.last().unwrap().event().what, What::HostShutdown(it) if it.bytes == GOLDEN_BYTES));
}

#[test]
fn a_program_is_run() {
    let (dir, toy) = (tempfile::tempdir().unwrap(), Toy::default());
    let record = dir.path().join("rec");
    let Command::Run(args) = command(&["socktrace", "run", "--max-bytes", "9", "--", "sh", "-c", "exit 7"], &record)
    else {
        panic!("it says run")
    };
    let keep = Keep::new(&args.capture).unwrap();
    let code = run::trace(Path::new("/bin/sh"), Box::new(toy.clone()), &args, keep, Streams::Ours, None).unwrap();
    assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(7)));
    assert_eq!(*toy.0.borrow(), ["to run, 9 bytes", "start /bin/sh", "leave"]);
    assert_recorded(&record);
}

#[test]
fn a_process_is_attached_to() {
    let (dir, toy) = (tempfile::tempdir().unwrap(), Toy::default());
    let record = dir.path().join("rec");
    let own = std::process::id();
    let Command::Attach(args) = command(&["socktrace", "attach", "--for", "1ms", "1", &own.to_string()], &record)
    else {
        panic!("it says attach")
    };
    let code = attach::trace(Box::new(toy.clone()), &args, Keep::new(&args.capture).unwrap()).unwrap();
    assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::SUCCESS));
    let asked = ["to attach to 1", &format!("attach to {own}"), &format!("detach from {own}"), "leave"];
    assert_eq!(*toy.0.borrow(), asked);
    assert_recorded(&record);
}
