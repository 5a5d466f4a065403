//! `socktrace run`: a program of the user's, traced from its first instruction to its end.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use socktrace_collect::raise_descriptor_limit;
use socktrace_engine::nest::{self, Outer};
use socktrace_engine::program::{self, Refusal};
use socktrace_engine::start::{Signals, Start, Streams};
use socktrace_engine::{Engine, Target};
use socktrace_event::{errno, notice};
use socktrace_params::OnFull;

use crate::args::RunArgs;
use crate::live::{Live, exit_code};
use crate::packets::Keep;

/// Our own failures', as env(1) and timeout(1) have it: not to be taken for the program's.
pub const OWN_FAILURE: u8 = 125;
/// As shells have it.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

const SILENT_AS_SAID: &str = "the probe never loaded, for the reason given above";

/// `socktrace run`
pub fn run(args: &RunArgs) -> Result<ExitCode> {
    let keep = Keep::new(&args.capture)?;
    let is_json_there = args.view.json && args.view.output.is_none();
    if keep.is_stdout() && is_json_there {
        bail!("-w - and --json both write to standard output: -o FILE takes the JSON elsewhere");
    }
    let streams = if keep.is_stdout() || is_json_there { Streams::OutputToError } else { Streams::Ours };
    run_into(args, keep, streams)
}

/// The same, with what is captured going to `keep`.
pub fn run_into(args: &RunArgs, keep: Keep, streams: Streams) -> Result<ExitCode> {
    let outer = nest::leave_outer();
    let name = args.program.first().context("no program given")?;
    match program::find(name) {
        Ok(path) => trace(&path, args.engine(), args, keep, streams, outer),
        Err(Refusal::NotFound(why)) => {
            notice(&why);
            Ok(ExitCode::from(NOT_FOUND))
        }
        Err(Refusal::NotExecutable(why)) => {
            notice(&why);
            Ok(ExitCode::from(NOT_EXECUTABLE))
        }
    }
}

/// Puts a way in, what takes its events, and the program together.
///
/// # Errors
///
/// One line that says what is missing, cannot be made or cannot be opened.
pub fn trace(
    path: &Path,
    engine: Box<dyn Engine>,
    args: &RunArgs,
    keep: Keep,
    streams: Streams,
    outer: Option<Outer>,
) -> Result<ExitCode> {
    let hindrance = engine.hindrance(Target::Program { path, arguments: &args.program[1..] });
    let (events, mut running) = engine.to_run(&args.capture.params(OnFull::Block, !args.no_children))?;
    if let Some(hindrance) = &hindrance {
        notice(hindrance);
    }
    // While Ctrl-C still works: a FIFO is opened when its reader comes.
    let kept = keep.open()?;
    let signals = Signals::catch().context("catching signals")?;
    let live = Live::start(events, &args.filter, kept, &args.view, outer.and_then(|outer| outer.connect()))?;
    let silence = if hindrance.is_some() { SILENT_AS_SAID } else { running.silence() };
    let program = match running.start(&Start { path, arguments: &args.program, streams }, &signals) {
        Ok(program) => program,
        Err(error) => {
            drop(running);
            let (why, code) = refusal(path, &error);
            live.finish("stop", &why, false);
            return Ok(ExitCode::from(code));
        }
    };
    // Not before: the program's limit is its own.
    raise_descriptor_limit();
    if let Some(error) = &program.untraced {
        notice(&format!("the program goes on untraced: {}", errno::explain(error)));
    }
    let status = program.wait(signals).context("waiting for the program")?;
    // Processes left behind need not find the collector's socket any more, and nothing of ours stays if we are killed
    // while somebody reads the end.
    let removal = running.leave();
    removal.finish(live.finish("the program has ended", silence, true).processes_go_on);
    Ok(exit_code(status))
}

/// Why a program could not be executed, and the exit status that says so.
fn refusal(path: &Path, error: &io::Error) -> (String, u8) {
    let why = format!("{}: cannot be executed: {}", path.display(), errno::explain(error));
    match error.kind() {
        // It was there a moment ago.
        io::ErrorKind::NotFound => (format!("{why}: the interpreter that it names does not exist"), NOT_FOUND),
        _ => (why, NOT_EXECUTABLE),
    }
}
