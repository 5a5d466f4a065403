//! The command `socktrace`: run a program, attach to one, read a recording.
//!
//! ```text
//! run ─┬ engine (preload, frida, gadget): the program with the probe in it
//!      └ live: collector thread ─► Scope ─┬► Recorder (-w DIR), Packets (-w -)
//! attach ─ engine (frida) ─► live         └► View ─► Output
//!      └ nest: live of a socktrace that this one runs under gets the same frames
//! show ─ Recording: events.jsonl and payload files ─► View ─► Output
//! export ─ socktrace-export ─► a file
//! extcap ─ run or attach, for Wireshark
//! ```

mod args;
mod attach;
mod documents;
mod engine;
mod export;
mod extcap;
mod filter;
mod live;
mod nest;
mod output;
mod packets;
mod program;
mod run;
mod show;
mod summary;
mod view;

use std::process::ExitCode;

use clap::Parser;
use socktrace_server::notice;

use args::{Cli, Command};

fn main() -> ExitCode {
    let (result, failure) = match Cli::parse().command {
        Command::Run(args) => (run::run(&args), run::OWN_FAILURE),
        Command::Attach(args) => (attach::attach(&args), 1),
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
            notice(&format!("{error:#}"));
            ExitCode::from(failure)
        }
    }
}
