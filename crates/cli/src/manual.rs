//! The manual pages: what clap knows of each command, and the sections that it does not have (man-pages(7)).

use std::io;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

/// What is said of a command beyond its options: each section's paragraphs, a term and what is said of it.
type Section = &'static [(&'static str, &'static str)];

const FAILED: (&str, &str) = ("1", "It failed, and standard error says why.");
const MISUSED: (&str, &str) = ("2", "The command line is wrong.");
const DONE: (&str, &str) = ("0", "It did what it was asked to.");

const OF_RUN: Section = &[
    ("the program's", "The program ran, and exited with this."),
    ("128 + n", "Signal n ended the program."),
    ("127", "The program was not found."),
    ("126", "The program cannot be executed."),
    ("125", "socktrace itself failed."),
    MISUSED,
];
const OF_ATTACH: Section = &[
    ("0", "At least one process was traced."),
    ("1", "None was, or socktrace failed; standard error says why."),
    MISUSED,
];
const OF_LIST: Section = &[
    ("0", "At least one socket was listed."),
    ("1", "None matches, or the kernel does not tell of sockets; standard error says why."),
    MISUSED,
];
const OF_OTHERS: Section = &[DONE, FAILED, MISUSED];

const VIEW_VARIABLES: Section = &[
    ("NO_COLOR", "If it is set and not empty, nothing is coloured."),
    ("LC_ALL, LC_CTYPE, LANG", "Whether the terminal takes UTF-8: the first of these that is set says so."),
    ("TZ", "The time zone of the times of day that are shown."),
];
const LIST_VARIABLES: Section =
    &[("LC_ALL, LC_CTYPE, LANG", "Whether the terminal takes UTF-8: the first of these that is set says so.")];
const PLACE_VARIABLES: Section = &[
    ("TMPDIR", "Where the probe lies that programs load, if no other user may write there or to a folder above."),
    ("XDG_RUNTIME_DIR, HOME", "Where it lies otherwise, unless root traces."),
];
const FRIDA_VARIABLE: Section =
    &[("SOCKTRACE_FRIDA", "The frida or frida-inject command, if --frida does not name it.")];

const RECORDING: Section = &[
    ("DIR/events.jsonl", "The recording's events, one JSON object a line."),
    ("DIR/CONN_ID.in.bin, DIR/CONN_ID.out.bin", "The bytes that were received and sent on a connection."),
];
const PROBE_FOLDERS: Section = &[(
    "/run/socktrace, /var/cache/socktrace, $XDG_RUNTIME_DIR/socktrace, ~/.cache/socktrace, /tmp/socktrace-UID",
    "Where the probe and its parameters lie while programs are traced: the first that will do, the first two as root only. \
     The folder itself stays, so that nobody else can take its name.",
)];
const JOURNAL: Section =
    &[("DIR/events.journal", "The server's own notes while it records; after a crash, what is to be put right.")];

/// What a command's page says, by its name.
struct Facts {
    exit_status: Section,
    environment: &'static [Section],
    files: &'static [Section],
    see_also: &'static [&'static str],
}

fn facts(command: &str) -> Facts {
    let facts = |exit_status, environment, files, see_also| Facts { exit_status, environment, files, see_also };
    match command {
        "run" => facts(
            OF_RUN,
            &[VIEW_VARIABLES, PLACE_VARIABLES, FRIDA_VARIABLE],
            &[RECORDING, PROBE_FOLDERS],
            &["socktrace-attach(1)", "socktrace-show(1)", "socktrace-export(1)", "strace(1)", "ld.so(8)", "unix(7)"],
        ),
        "attach" => facts(
            OF_ATTACH,
            &[VIEW_VARIABLES, PLACE_VARIABLES, FRIDA_VARIABLE],
            &[RECORDING, PROBE_FOLDERS],
            &["socktrace-list(1)", "socktrace-run(1)", "socktrace-show(1)", "ptrace(2)", "cgroups(7)", "unix(7)"],
        ),
        "list" => facts(
            OF_LIST,
            &[LIST_VARIABLES],
            &[],
            &["socktrace-attach(1)", "ss(8)", "sock_diag(7)", "cgroups(7)", "network_namespaces(7)", "unix(7)"],
        ),
        "show" => {
            facts(OF_OTHERS, &[VIEW_VARIABLES], &[RECORDING], &["socktrace-run(1)", "socktrace-export(1)", "jq(1)"])
        }
        "export" => facts(OF_OTHERS, &[], &[RECORDING], &["socktrace-show(1)", "wireshark(1)", "tshark(1)"]),
        "extcap" => facts(OF_OTHERS, &[], &[], &["socktrace-export(1)", "extcap(4)", "wireshark(1)", "tshark(1)"]),
        "server" => {
            facts(OF_OTHERS, &[], &[RECORDING, JOURNAL], &["socktrace-agent(1)", "socktrace-show(1)", "unix(7)"])
        }
        "agent" => facts(OF_OTHERS, &[], &[], &["socktrace-server(1)", "socktrace-attach(1)"]),
        "socktrace" => {
            facts(OF_OTHERS, &[VIEW_VARIABLES], &[RECORDING], &["strace(1)", "tcpdump(8)", "wireshark(1)", "unix(7)"])
        }
        _ => facts(OF_OTHERS, &[], &[], &[]),
    }
}

/// The pages, each with its file's name.
pub fn pages(command: Command) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let mut pages = vec![page(&command)?];
    for subcommand in command.get_subcommands() {
        pages.push(page(subcommand)?);
    }
    Ok(pages)
}

fn page(command: &Command) -> io::Result<(String, Vec<u8>)> {
    let facts = facts(command.get_name());
    let source = concat!("socktrace ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).source(source).manual("socktrace");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    let mut roff = Roff::new();
    section(&mut roff, "EXIT STATUS", &[facts.exit_status]);
    section(&mut roff, "ENVIRONMENT", facts.environment);
    section(&mut roff, "FILES", facts.files);
    if let Some(help) = command.get_after_help() {
        notes(&mut roff, &help.to_string());
    }
    let main = (command.get_name() != "socktrace").then_some("socktrace(1)");
    roff.control("SH", ["SEE ALSO"]);
    let others = main.into_iter().chain(facts.see_also.iter().copied());
    roff.text([roman(others.collect::<Vec<_>>().join(", "))]);
    roff.to_writer(&mut text)?;
    Ok((man.get_filename(), text))
}

fn section(roff: &mut Roff, title: &str, parts: &[Section]) {
    if !parts.is_empty() {
        roff.control("SH", [title]);
    }
    for (term, text) in parts.iter().copied().flatten() {
        roff.control("TP", []).text([roman(*term)]).text([roman(*text)]);
    }
}

/// What stands below a command's options in its help: examples, and sentences.
fn notes(roff: &mut Roff, help: &str) {
    for part in help.split("\n\n") {
        match part.strip_prefix("Examples:\n") {
            Some(examples) => {
                roff.control("SH", ["EXAMPLES"]).control("nf", []);
                roff.text(examples.lines().map(|line| roman(format!("{line}\n"))).collect::<Vec<_>>());
                roff.control("fi", []);
            }
            // Has a section of its own.
            None if part.starts_with("The exit status") => {}
            None => {
                roff.control("SH", ["NOTES"]).text([roman(part.replace('\n', " "))]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::{Command as Program, Stdio};

    use clap::CommandFactory as _;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn every_command_has_a_page_of_all_sections() {
        let pages = pages(Cli::command()).unwrap();
        assert_eq!(pages.len(), 1 + Cli::command().get_subcommands().count());
        for (name, text) in pages {
            let text = String::from_utf8(text).unwrap();
            for title in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "\"EXIT STATUS\"", "\"SEE ALSO\""] {
                assert!(text.contains(&format!(".SH {title}\n")), "{name}: {title}: {text}");
            }
        }
    }

    /// What man(1) itself would complain about.
    #[test]
    fn groff_takes_the_pages() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in pages(Cli::command()).unwrap() {
            fs::write(folder.path().join(name), text).unwrap();
        }
        for file in fs::read_dir(folder.path()).unwrap() {
            let mut groff = Program::new("groff");
            groff.args(["-man", "-Kutf8", "-Tutf8", "-ww", "-Z"]).arg(file.unwrap().path()).stdout(Stdio::null());
            let Ok(output) = groff.output() else { return };
            let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() && complaints.is_empty(), "{complaints}");
        }
    }
}
