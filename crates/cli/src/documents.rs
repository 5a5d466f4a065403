//! The commands that write something down for others: agent.js, completions, manual pages; and the bare server.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::CommandFactory;
use socktrace_recording::{Contents, private};
use socktrace_server::serve;

use crate::args::{AgentArgs, Cli, CompletionsArgs, ManArgs, ServerArgs};
use crate::manual;

/// Everybody may read them, nobody else write.
const TEXT_MODE: u32 = 0o644;

/// `socktrace agent`
pub fn agent(args: &AgentArgs) -> Result<ExitCode> {
    let text = socktrace_agent::agent_js();
    match &args.output {
        Some(file) => private::write_readable(file, text.as_bytes(), TEXT_MODE)?,
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
    private::make_readable_folder(dir)?;
    for (name, text) in manual::pages(Cli::command()).context("rendering a manual page")? {
        private::write_readable(&dir.join(name), &text, TEXT_MODE)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A reader that has gone (`| head`) wanted no more.
fn to_stdout(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("standard output"),
        _ => Ok(()),
    }
}
