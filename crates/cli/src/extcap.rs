//! `socktrace extcap`: one of Wireshark's capture interfaces (extcap(4)).

use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Args, FromArgMatches};
use socktrace_engine::start::Streams;
use socktrace_export::Ports;
use socktrace_recording::private;

use crate::args::{AttachArgs, CaptureArgs, ExtcapArgs, FilterArgs, RunArgs, ScopeArgs, ViewArgs, first};
use crate::attach::attach_into;
use crate::packets::Keep;
use crate::run::run_into;

/// The interface, and the name of what is installed.
const NAME: &str = "socktrace";
const INTERFACES: &str = concat!(
    "extcap {version=",
    env!("CARGO_PKG_VERSION"),
    "}{help=",
    env!("CARGO_PKG_REPOSITORY"),
    "}\ninterface {value=socktrace}{display=AF_UNIX sockets of a program}\n"
);
/// Of the script that is installed: everybody may run it, nobody else write to it.
const SCRIPT_MODE: u32 = 0o755;
/// LINKTYPE_RAW, as in the packets' file.
const DLTS: &str = "dlt {number=101}{name=RAW}{display=Raw IP}\n";
const CONFIG: &str = "\
arg {number=0}{call=--command}{display=Command line}{tooltip=A command line of the shell's; its program and those that it starts are traced}{type=string}{placeholder=busctl list}
arg {number=1}{call=--pid}{display=Process ids}{tooltip=Running processes instead, with commas between; takes Frida}{type=string}{placeholder=4242}
arg {number=2}{call=--name}{display=Process name}{tooltip=Every running process of yours with this name; takes Frida}{type=string}{placeholder=dbus-daemon}
arg {number=3}{call=--path}{display=Sockets}{tooltip=Patterns of socket paths, with spaces between; !PATTERN leaves out}{type=string}{placeholder=/run/* !*bus*}{group=Filters}
arg {number=4}{call=--max-bytes}{display=Bytes of each call}{tooltip=Capture at most so many bytes of each call; empty for everything}{type=string}{group=Filters}
arg {number=5}{call=--decode}{display=Protocols}{tooltip=Which protocol a socket speaks, PATH=PROTOCOL, with spaces between}{type=string}{placeholder=/run/my.sock=http}{group=Filters}
";

/// `socktrace extcap`
pub fn extcap(args: &ExtcapArgs) -> Result<ExitCode> {
    if args.install {
        return install();
    }
    if let Some(other) = args.extcap_interface.as_deref().filter(|&name| name != NAME) {
        bail!("{other}: no such interface: there is {NAME}");
    }
    if args.extcap_interfaces {
        print(INTERFACES)
    } else if args.extcap_dlts {
        print(DLTS)
    } else if args.extcap_config {
        print(CONFIG)
    } else {
        capture(args)
    }
}

fn print(text: &str) -> Result<ExitCode> {
    io::stdout().write_all(text.as_bytes()).context("standard output")?;
    Ok(ExitCode::SUCCESS)
}

fn capture(args: &ExtcapArgs) -> Result<ExitCode> {
    let fifo = args.fifo.clone().context("--capture takes --fifo")?;
    if args.extcap_capture_filter.as_deref().is_some_and(|filter| !filter.trim().is_empty()) {
        bail!("capture filters are for networks: use the field Sockets, or a display filter");
    }
    let words = |text: &Option<String>| -> Vec<String> {
        text.iter().flat_map(|text| text.split_whitespace()).map(str::to_owned).collect()
    };
    let decode = words(&args.decode);
    let keep = Keep::packets_to(fifo, Ports::new(decode.iter().map(String::as_str))?);
    let path = words(&args.path).into_iter().map(Into::into).collect();
    let filter = FilterArgs { scope: ScopeArgs { path, pid: Vec::new() }, ..FilterArgs::default() };
    let capture = CaptureArgs { max_bytes: args.max_bytes, ..defaults()? };
    if let Some(command) = args.command.as_deref().filter(|command| !command.trim().is_empty()) {
        let run = RunArgs {
            engine: first(|engine| engine.runs),
            gadget: None,
            frida: None,
            no_children: false,
            filter,
            capture,
            view: ViewArgs::default(),
            program: ["sh", "-c", command].map(Into::into).to_vec(),
        };
        return run_into(&run, keep, Streams::None);
    }
    if args.pid.is_empty() && args.name.is_none() {
        bail!("nothing to trace: give the interface {NAME} a command line or a process id");
    }
    let attach = AttachArgs {
        engine: first(|engine| engine.attaches),
        target_pids: args.pid.clone(),
        name: args.name.clone(),
        unit: None,
        children: false,
        for_time: None,
        frida: None,
        filter,
        capture,
        view: ViewArgs::default(),
    };
    attach_into(&attach, keep)
}

/// What is captured unless more is asked for.
fn defaults() -> Result<CaptureArgs> {
    let command = CaptureArgs::augment_args(clap::Command::new(NAME).no_binary_name(true));
    let matches = command.try_get_matches_from(std::iter::empty::<&str>())?;
    Ok(CaptureArgs::from_arg_matches(&matches)?)
}

/// Puts a script that calls this very executable into the user's extcap folder.
fn install() -> Result<ExitCode> {
    let folder = folder()?;
    private::make_readable_folder(&folder)?;
    let executable = env::current_exe().context("where this executable lies")?;
    let script = format!("#!/bin/sh\nexec {} extcap \"$@\"\n", quoted(&executable)?);
    let path = folder.join(NAME);
    private::write_readable(&path, script.as_bytes(), SCRIPT_MODE)?;
    print(&format!("{}\n", path.display()))
}

/// For sh(1).
fn quoted(path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| format!("{}: a path that is no UTF-8", path.display()))?;
    Ok(format!("'{}'", text.replace('\'', r"'\''")))
}

/// Where Wireshark looks for extcaps of the user's: it says so itself, or did so up to version 4.0 in the folder of its
/// settings.
fn folder() -> Result<PathBuf> {
    for program in ["tshark", "wireshark"] {
        let Ok(output) = Command::new(program).args(["-G", "folders"]).output() else { continue };
        if let Some(folder) = folder_from(&String::from_utf8_lossy(&output.stdout)) {
            return Ok(folder);
        }
    }
    bail!("Wireshark is not there to say where its extcap folder is: install wireshark or tshark")
}

/// From what `-G folders` prints: lines of a name, a colon, a tab and a path.
fn folder_from(text: &str) -> Option<PathBuf> {
    let of = |name: &str| {
        let path = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?.trim();
        (!path.is_empty()).then(|| PathBuf::from(path))
    };
    // Version 4.2 names both; before, the user's is not named.
    of("Personal Extcap path").or_else(|| Some(of("Personal configuration")?.join("extcap")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_captured_unless_less_is_asked_for() {
        assert_eq!(defaults().unwrap().max_bytes, socktrace_params::EVERYTHING);
    }

    #[test]
    fn where_wireshark_looks() {
        let of_4_0 = "Temp:\t/tmp\nPersonal configuration:\t/home/u/.config/wireshark\nExtcap path:\t/usr/lib/extcap\n";
        assert_eq!(folder_from(of_4_0), Some("/home/u/.config/wireshark/extcap".into()));
        let of_4_2 = format!("{of_4_0}Personal Extcap path:\t/home/u/.local/lib/wireshark/extcap\n");
        assert_eq!(folder_from(&of_4_2), Some("/home/u/.local/lib/wireshark/extcap".into()));
        assert_eq!(folder_from("tshark: what?\n"), None);
    }

    #[test]
    fn paths_in_scripts() {
        assert_eq!(quoted(Path::new("/a b/it's")).unwrap(), r"'/a b/it'\''s'");
    }
}
