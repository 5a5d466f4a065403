//! Writes agent.js to the file named, for the Makefile.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(file) = std::env::args_os().nth(1) else {
        eprintln!("usage: socktrace-agent FILE");
        return ExitCode::from(2);
    };
    match std::fs::write(&file, socktrace_agent::agent_js()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("socktrace-agent: {}: {error}", file.display());
            ExitCode::FAILURE
        }
    }
}
