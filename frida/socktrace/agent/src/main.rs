//! Writes agent.js, or the probe alone, to the file named, for the Makefile.

#![forbid(unsafe_code)]

use std::fs;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let (file, written) = match &args[..] {
        [file] => (file, fs::write(file, socktrace_agent::agent_js())),
        [option, file] if option == "--probe" => (file, fs::write(file, socktrace_agent::PROBE)),
        _ => {
            eprintln!("usage: socktrace-agent [--probe] FILE");
            return ExitCode::from(2);
        }
    };
    if let Err(error) = written {
        eprintln!("socktrace-agent: {}: {error}", file.display());
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
