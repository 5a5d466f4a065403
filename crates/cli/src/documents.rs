//! The commands that write something down for others: agent.js, completions, manual pages; and the bare server.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::CommandFactory;
use socktrace_collect::{Contents, serve};

use crate::args::{AgentArgs, Cli, CompletionsArgs, ManArgs, ServerArgs};
use crate::manual;

/// `socktrace agent`
pub fn agent(args: &AgentArgs) -> Result<ExitCode> {
    let text = socktrace_agent::agent_js();
    match &args.output {
        Some(file) => write_file(file, text.as_bytes())?,
        None => to_stdout(text.as_bytes())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// `socktrace server`
pub fn server(args: &ServerArgs) -> Result<ExitCode> {
    let contents = Contents::without(args.no_payload_files, args.no_events);
    serve(&args.sock_path, &args.out_dir, args.sock_type, contents)?;
    Ok(ExitCode::SUCCESS)
}

/// `socktrace completions`
pub fn completions(args: &CompletionsArgs) -> Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "socktrace", &mut text);
    to_stdout(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// `socktrace man`
pub fn man(args: &ManArgs) -> Result<ExitCode> {
    let Some(dir) = &args.dir else {
        let pages = manual::pages(Cli::command()).context("rendering a manual page")?;
        to_stdout(pages.first().map(|(_, text)| text.as_slice()).unwrap_or_default())?;
        return Ok(ExitCode::SUCCESS);
    };
    fs::create_dir_all(dir).with_context(|| format!("{}: cannot make the directory", dir.display()))?;
    manual::write_to(dir, Cli::command()).with_context(|| format!("{}: cannot be written to", dir.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn write_file(file: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(file, bytes).with_context(|| format!("{}: cannot be written", file.display()))
}

/// A reader that has gone (`| head`) wanted no more.
fn to_stdout(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("standard output"),
        _ => Ok(()),
    }
}
