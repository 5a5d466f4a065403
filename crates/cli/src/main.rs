//! The command `socktrace`: run a program, attach to one, read a recording.
//!
//! ```text
//! run ─┬ an engine: the program is started and traced; its events
//!      └► live: collecting thread ─► Scope ─┬► Recorder (-w DIR), Packets (-w -)
//! attach ─ an engine ─► live               └► Shown ─► Output
//!      └ a socktrace that this one runs under gets the same frames
//! list ─ socktrace-sockets ─► lines or JSON; attach finds processes by the same
//! show ─ Follow: events.jsonl and payload files ─► Shown ─► Destination
//! export ─ socktrace-export ─► a file
//! extcap ─ run or attach, for Wireshark
//! ```

#![forbid(unsafe_code)]

mod args;
mod attach;
mod documents;
mod export;
mod extcap;
mod list;
mod live;
mod manual;
mod output;
mod packets;
mod run;
mod select;
mod show;
#[cfg(test)]
mod toy;

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use clap::error::ErrorKind;
use signal_hook::consts::SIGXFSZ;
use socktrace_engine::start::is_ignored;
use socktrace_event::{errno, notice, printable};

use args::{Cli, Command};

fn main() -> ExitCode {
    keep_file_size_limit_harmless();
    let (result, failure) = match parse().command {
        Command::Run(args) => (run::run(&args), run::OWN_FAILURE),
        Command::Attach(args) => (attach::attach(&args), 1),
        Command::List(args) => (list::list(&args), 1),
        Command::Show(args) => (show::show(&args), 1),
        Command::Export(args) => (export::export(&args), 1),
        Command::Extcap(args) => (extcap::extcap(&args), 1),
        Command::Agent(args) => (documents::agent(&args), 1),
        Command::Server(args) => (documents::server(&args), 1),
        Command::Completions(args) => (documents::completions(&args), 1),
        Command::Man(args) => (documents::man(&args), 1),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            notice(&errno::explain(error.as_ref()));
            ExitCode::from(failure)
        }
    }
}

/// The command line. What is wrong with it is said with what it has in it, which may be anything: made printable, it is
/// wrong in the same way.
fn parse() -> Cli {
    let error = match Cli::try_parse() {
        Ok(cli) => return cli,
        Err(error) if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            error.exit()
        }
        Err(error) => error,
    };
    let printable = std::env::args_os().map(|argument| {
        let mut text = String::new();
        printable::push(&mut text, argument.as_bytes(), true);
        OsString::from_vec(text.into_bytes())
    });
    match Cli::try_parse_from(printable) {
        Err(error) => error.exit(),
        Ok(_) => {
            notice(error.to_string().lines().next().unwrap_or_default());
            std::process::exit(error.exit_code())
        }
    }
}

/// A write beyond the file size limit (RLIMIT_FSIZE, getrlimit(2)) then fails with EFBIG, and the file is named. A handler
/// and not SIG_IGN, which the traced program would inherit.
fn keep_file_size_limit_harmless() {
    // One that is ignored does no harm, and the program inherits that.
    if !is_ignored(SIGXFSZ) {
        // Without it, the limit ends us as it ends others.
        let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
    }
}
