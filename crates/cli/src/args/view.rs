//! The options that say what is shown, and how.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, ColorChoice};
use socktrace_event::Direction;
use socktrace_view::{Filter, Form, Scope, Selection, Style, Time, is_utf8_locale};

/// Of which sockets and processes.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Filters")]
pub struct ScopeArgs {
    /// Sockets whose path matches; !GLOB: all but those. `*` matches slashes, too. Repeatable
    #[arg(long, value_name = "GLOB")]
    pub path: Vec<OsString>,
    /// Processes with this id. Repeatable
    #[arg(long)]
    pub pid: Vec<u32>,
}

/// Which messages.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Filters")]
pub struct FilterArgs {
    #[command(flatten)]
    pub scope: ScopeArgs,
    /// Messages in this direction, seen from the traced process
    #[arg(long, value_parser = direction())]
    pub direction: Option<Direction>,
    /// Messages whose bytes match
    #[arg(long, value_name = "REGEX")]
    pub grep: Option<OsString>,
}

fn direction() -> impl TypedValueParser<Value = Direction> {
    described([("in", "Received"), ("out", "Sent")])
        .map(|name| if name == "in" { Direction::In } else { Direction::Out })
}

/// One of these, each with what it means.
fn described<const N: usize>(values: [(&'static str, &'static str); N]) -> PossibleValuesParser {
    PossibleValuesParser::new(values.map(|(name, help)| PossibleValue::new(name).help(help)))
}

impl ScopeArgs {
    /// # Errors
    ///
    /// One line that names the option and what is no pattern.
    pub fn scope(&self) -> Result<Scope> {
        Scope::new(&self.filter()).map_err(|error| anyhow!("--path {error}"))
    }

    fn filter(&self) -> Filter {
        Filter { paths: self.path.clone(), pids: self.pid.clone(), ..Filter::default() }
    }
}

impl FilterArgs {
    /// # Errors
    ///
    /// One line that names the option and what is no pattern or no expression.
    pub fn both(&self) -> Result<(Scope, Selection)> {
        let direction = self.direction.unwrap_or_default();
        let filter = Filter { direction, grep: self.grep.clone(), ..self.scope.filter() };
        let selection = Selection::new(&filter).map_err(|error| anyhow!("--grep {error}"));
        Ok((self.scope.scope()?, selection?))
    }
}

/// How it is shown.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Output")]
pub struct ViewArgs {
    /// Write to FILE [default: standard error; show and --json: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Show payloads as text
    #[arg(short = 'A', conflicts_with_all = ["hex", "full"])]
    pub text: bool,
    /// Show payloads in hex and text
    #[arg(short = 'x')]
    pub hex: bool,
    /// Show payloads in hex and text, however long they are
    #[arg(short = 'X')]
    pub full: bool,
    /// Write events as JSON lines, as in events.jsonl, with their payload
    #[arg(long, conflicts_with_all = ["text", "hex", "full"])]
    pub json: bool,
    /// How times are shown
    #[arg(long, default_value = "local", value_parser = time())]
    pub time: Time,
    /// Use colour; auto: on a terminal, unless NO_COLOR is set
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    pub color: ColorChoice,
}

impl ViewArgs {
    pub fn style(&self, colour: bool) -> Style {
        let form = match self {
            Self { json: true, .. } => Form::Json,
            Self { full: true, .. } => Form::Full,
            Self { hex: true, .. } => Form::Hex,
            Self { text: true, .. } => Form::Text,
            _ => Form::Preview,
        };
        Style { form, time: self.time, colour, utf8: is_utf8_locale() }
    }
}

fn time() -> impl TypedValueParser<Value = Time> {
    let values = [
        ("local", "Local time of day"),
        ("relative", "Seconds since the first event"),
        ("epoch", "Seconds since the Unix epoch"),
    ];
    described(values).map(|name| match &*name {
        "relative" => Time::Relative,
        "epoch" => Time::Epoch,
        _ => Time::Local,
    })
}
