//! `socktrace run`: a program of the user's, traced from its first instruction to its end.

use std::io;
use std::path::Path;
use std::process::{Child, ExitCode, ExitStatus};

use anyhow::{Context, Result, bail};
use socktrace_collect::raise_descriptor_limit;
use socktrace_event::{errno, notice};
use socktrace_params::OnFull;

use crate::args::{EngineArg, RunArgs};
use crate::engine::child::{self, Signals, Start, Streams};
use crate::engine::frida::Frida;
use crate::engine::gate::{self, NotHeld};
use crate::engine::{Parameters, Place, gadget, preload};
use crate::live::{Live, exit_code};
use crate::nest;
use crate::packets::Keep;
use crate::program::{self, Refusal};

/// Our own failures', as env(1) and timeout(1) have it: not to be taken for the program's.
pub const OWN_FAILURE: u8 = 125;
/// As shells have it.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

const NEVER_LOADED: &str = "the probe never loaded: the program ended before its libraries were loaded, its dynamic \
                            loader ignores LD_PRELOAD, or the program may not read the probe";
const NEVER_LOADED_AS_SAID: &str = "the probe never loaded, for the reason given above";
const NEVER_LOADED_BY_FRIDA: &str = "the probe never loaded into the program";

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
    let path = match program::find(name) {
        Ok(path) => path,
        Err(Refusal::NotFound(why)) => {
            notice(&why);
            return Ok(ExitCode::from(NOT_FOUND));
        }
        Err(Refusal::NotExecutable(why)) => {
            notice(&why);
            return Ok(ExitCode::from(NOT_EXECUTABLE));
        }
    };
    let by_frida = args.engine == EngineArg::Frida;
    let frida = by_frida.then(|| Frida::find(args.frida.as_deref())).transpose()?;
    let hindrance = program::hindrance(&path, &args.program[1..]);
    if let Some(hindrance) = &hindrance {
        notice(hindrance);
    }
    let place = Place::new()?;
    let mut bound = place.bind()?;
    // The program may change its user, and execute others then.
    bound.admit_family(&[std::process::id()])?;
    let parameters = Parameters::new(&place, &bound, &args.capture, OnFull::Block, !args.no_children);
    let library = match (&args.gadget, by_frida) {
        (Some(gadget), _) => Some(gadget::prepare(&place, gadget, &parameters)?),
        (None, true) if parameters.follow_children => {
            preload::prepare(&place, &parameters)?;
            None
        }
        (None, true) => None,
        (None, false) => Some(preload::prepare(&place, &parameters)?),
    };
    // While Ctrl-C still works: a FIFO is opened when its reader comes.
    let kept = keep.open()?;
    let signals = Signals::catch().context("catching signals")?;
    let live = Live::start(bound, &args.filter, kept, &args.view, outer.and_then(|outer| outer.connect()))?;
    let start = Start {
        path: &path,
        arguments: &args.program,
        preload: library.as_ref().map(preload::list_with),
        streams,
        traced: by_frida,
    };
    let never_loaded = match (hindrance, by_frida) {
        (Some(_), _) => NEVER_LOADED_AS_SAID,
        (None, true) => NEVER_LOADED_BY_FRIDA,
        (None, false) => NEVER_LOADED,
    };
    let child = match child::start(&start, &signals) {
        Ok(child) => child,
        Err(error) => {
            drop(place);
            let (why, code) = refusal(&path, &error);
            live.finish("stop", &why, false);
            return Ok(ExitCode::from(code));
        }
    };
    // Not before: the program's limit is its own.
    raise_descriptor_limit();
    let held = frida.map(|frida| load(&frida, &child, &place, &parameters));
    let status = match held {
        Some(Err(NotHeld::Ended(status))) => status,
        Some(Err(NotHeld::Failed(error))) => {
            notice(&format!("the program goes on untraced: {}", errno::explain(&error)));
            wait(child, signals)?
        }
        _ => wait(child, signals)?,
    };
    // Processes left behind need not find the collector's socket any more, and nothing of ours stays if we are killed
    // while somebody reads the end.
    let removal = place.remove();
    removal.finish(live.finish("the program has ended", never_loaded, true).processes_go_on);
    Ok(exit_code(status))
}

fn wait(child: Child, signals: Signals) -> Result<ExitStatus> {
    child::wait(child, signals).context("waiting for the program")
}

/// Holds the program until Frida has loaded the probe; lets it go in any case.
fn load(frida: &Frida, child: &Child, place: &Place, parameters: &Parameters) -> Result<(), NotHeld> {
    let held = gate::hold(child.id())?;
    if let Err(error) = frida.inject_and_leave(child.id(), place, parameters) {
        notice(&format!("the program goes on untraced: {}", errno::explain(error.as_ref())));
    }
    held.release()
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
