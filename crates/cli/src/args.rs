//! The command line.

mod engine;
mod export;
mod list;
mod view;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use socktrace_collect::SockType;
use socktrace_engine::Entry;
use socktrace_params::{EVERYTHING, MAX_FDS, MAX_WAIT_MS, Number, OnFull, Params, RING_BYTES, Transport};

pub use engine::first;
pub use export::{ExportArgs, ExportFormat, ExtcapArgs};
pub use list::ListArgs;
pub use view::{FilterArgs, ScopeArgs, ViewArgs};

/// Shows what programs say over AF_UNIX sockets, as strace shows system calls and tcpdump packets.
#[derive(Debug, Parser)]
#[command(name = "socktrace", version, arg_required_else_help = true, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  socktrace run -- redis-cli -s /tmp/redis.sock ping
  socktrace run --path '*docker.sock' -A -- curl --unix-socket /run/docker.sock http://d/version
  socktrace run -w rec -- make -j8              keep the recording
  socktrace show rec -x                         and read it
  socktrace export rec -o trace.pcapng          or have Wireshark read it
  socktrace list                                which sockets there are, and whose
  socktrace attach --name dbus-daemon --for 10s";

const RUN_EXAMPLES: &str = "\
Examples:
  socktrace run -- redis-cli -s /tmp/redis.sock ping
  socktrace run -X --path '*/bus' -- busctl --user list        every byte, one socket
  socktrace run --grep 'POST|PUT' -- curl --unix-socket /tmp/s http://x/
  socktrace run --json -o trace.jsonl -- make -j8
  socktrace run -w - -- busctl list | wireshark -k -i -        live in Wireshark

The exit status is the program's, 128+n if signal n ended it; 127 if it is not found, 126 if it cannot be executed,
125 if socktrace itself fails.";

const ATTACH_EXAMPLES: &str = "\
Examples:
  socktrace attach 4242
  socktrace attach --name dbus-daemon --for 10s -w /tmp/rec
  socktrace attach --path /run/docker.sock      whoever has it open, both ends
  socktrace attach --unit redis-server

Takes what the kernel asks of a debugger: your own process, or root.

--path without a process id, --name or --unit finds the processes that have such a socket open, at either end.";

const SHOW_EXAMPLES: &str = "\
Examples:
  socktrace show /tmp/rec
  socktrace show /tmp/rec --path '!*systemd*' --direction out -A
  socktrace show /tmp/rec --follow --json | jq .";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a program and show its traffic
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunArgs),
    /// Show the traffic of running processes
    #[command(after_help = ATTACH_EXAMPLES)]
    Attach(AttachArgs),
    /// List the sockets there are, who has them, and how they can be traced
    #[command(after_help = list::LIST_EXAMPLES)]
    List(ListArgs),
    /// Print a recorded directory
    #[command(after_help = SHOW_EXAMPLES)]
    Show(ShowArgs),
    /// Write a recorded directory for Wireshark or Perfetto
    #[command(after_help = export::EXPORT_EXAMPLES)]
    Export(ExportArgs),
    /// Be one of Wireshark's capture interfaces
    #[command(after_help = export::EXTCAP_EXAMPLES)]
    Extcap(ExtcapArgs),
    /// Write agent.js, for Frida and Frida Gadget
    Agent(AgentArgs),
    /// Record what agents send, as socktrace-server does
    Server(ServerArgs),
    /// Write shell completions
    Completions(CompletionsArgs),
    /// Write manual pages
    Man(ManArgs),
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// How the program is observed
    #[arg(long, default_value = first(|engine| engine.runs).name, value_parser = engine::one(|engine| engine.runs))]
    pub engine: Entry,
    /// Use this Frida Gadget (frida-gadget.so)
    #[arg(long, value_name = "FILE", conflicts_with = "engine")]
    pub gadget: Option<PathBuf>,
    /// The frida or frida-inject command [default: $SOCKTRACE_FRIDA, then as found in PATH]
    #[arg(long, value_name = "PATH")]
    pub frida: Option<PathBuf>,
    /// Trace the program only, not the processes it starts
    #[arg(long)]
    pub no_children: bool,
    #[command(flatten)]
    pub filter: FilterArgs,
    #[command(flatten)]
    pub capture: CaptureArgs,
    #[command(flatten)]
    pub view: ViewArgs,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM", num_args = 1..)]
    pub program: Vec<OsString>,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("target").required(true).multiple(true).args(["target_pids", "name", "unit", "path"])))]
pub struct AttachArgs {
    /// How to get into the processes [with --frida: frida]
    #[arg(long, default_value = first(|engine| engine.attaches).name, value_parser = engine::one(|engine| engine.attaches),
          default_value_if("frida", clap::builder::ArgPredicate::IsPresent, "frida"))]
    pub engine: Entry,
    /// Processes to attach to
    #[arg(value_name = "PID", id = "target_pids", value_parser = clap::value_parser!(u32).range(1..))]
    pub target_pids: Vec<u32>,
    /// Attach to every process of yours with this name, as ps and /proc/PID/comm show it
    #[arg(long)]
    pub name: Option<OsString>,
    /// Attach to every process of this systemd unit (redis or redis.service), container or cgroup (its path)
    #[arg(long)]
    pub unit: Option<OsString>,
    /// Trace the processes that they start, too
    #[arg(long)]
    pub children: bool,
    /// Leave after this time, such as 10s, 500ms or 2m [default: on Ctrl-C]
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    pub for_time: Option<Duration>,
    /// The frida or frida-inject command [default: $SOCKTRACE_FRIDA, then as found in PATH]
    #[arg(long, value_name = "PATH")]
    pub frida: Option<PathBuf>,
    #[command(flatten)]
    pub filter: FilterArgs,
    #[command(flatten)]
    pub capture: CaptureArgs,
    #[command(flatten)]
    pub view: ViewArgs,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The recorded directory
    pub dir: PathBuf,
    /// Go on while the directory grows, until its server ends
    #[arg(short, long)]
    pub follow: bool,
    #[command(flatten)]
    pub filter: FilterArgs,
    #[command(flatten)]
    pub view: ViewArgs,
}

/// What is captured and kept.
#[derive(Debug, Args)]
#[command(next_help_heading = "Recording")]
pub struct CaptureArgs {
    /// Keep a recording in DIR: everything that --path and --pid let through. `-`, or FILE.pcapng: packets for Wireshark
    #[arg(short = 'w', long = "record", value_name = "DIR")]
    pub record: Option<PathBuf>,
    /// With -w: record events only
    #[arg(long, requires = "record", conflicts_with = "no_events")]
    pub no_payload_files: bool,
    /// With -w: record payload files only; events.jsonl then says no more than who recorded and what is missing
    #[arg(long, requires = "record")]
    pub no_events: bool,
    /// What -w writes [default: pcapng for `-` and names that end so, else dir]
    #[arg(long, value_enum, requires = "record")]
    pub format: Option<RecordFormat>,
    /// For Wireshark: sockets whose path matches speak PROTOCOL (http, redis, …, or a port). Repeatable
    #[arg(long, value_name = "PATH=PROTOCOL")]
    pub decode: Vec<String>,
    /// Capture at most N bytes of each call [default: everything]
    #[arg(long, value_name = "N", default_value_t = EVERYTHING, hide_default_value = true,
          value_parser = clap::value_parser!(u64).range(..=EVERYTHING))]
    pub max_bytes: u64,
    /// Look at descriptors below N for sockets that are open already; later ones are traced whatever their numbers
    #[arg(long, value_name = "N", default_value_t = MAX_FDS.default as u32, value_parser = within(MAX_FDS))]
    pub max_fds: u32,
    /// How events come here: shm, a ring in shared memory, or stream, a socket
    #[arg(long, default_value = Transport::Shm.name(), value_parser = transport())]
    pub transport: Transport,
    /// What a traced program does when the ring is full: wait for room, --max-wait at the most, or go on without recording
    /// and count what is not recorded [default: run: block, attach: drop]
    #[arg(long, value_parser = on_full())]
    pub on_full: Option<OnFull>,
    /// With --on-full block: how long a program waits before it goes on without recording, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = MAX_WAIT_MS.default as u32, value_parser = within(MAX_WAIT_MS))]
    pub max_wait: u32,
    /// Bytes of the ring, a power of two
    #[arg(long, value_name = "N", default_value_t = RING_BYTES.default as u32, value_parser = ring_size())]
    pub ring_size: u32,
}

impl CaptureArgs {
    /// What is captured. `on_full` is what is done unless the command line says otherwise.
    pub fn params(&self, on_full: OnFull, follow_children: bool) -> Params<'static> {
        Params {
            transport: self.transport,
            max_fds: self.max_fds,
            max_bytes: self.max_bytes,
            on_full: self.on_full.unwrap_or(on_full),
            max_wait_ms: self.max_wait.into(),
            ring_bytes: self.ring_size.into(),
            follow_children,
            ..Params::DEFAULT
        }
    }
}

/// A number that a parameter may have. All of them fit.
fn within(Number { from, to, .. }: Number) -> impl TypedValueParser<Value = u32> {
    clap::value_parser!(u32).range(from as i64..=to as i64)
}

fn ring_size() -> impl TypedValueParser<Value = u32> {
    clap::value_parser!(u32).try_map(|n| {
        let is_one = n.is_power_of_two() && RING_BYTES.has(n.into());
        is_one.then_some(n).ok_or_else(|| format!("takes a power of two from {} to {}", RING_BYTES.from, RING_BYTES.to))
    })
}

/// Of what the collector listens to: a stream.
fn transport() -> impl TypedValueParser<Value = Transport> {
    let names = [Transport::Shm, Transport::Stream].map(Transport::name);
    PossibleValuesParser::new(names).try_map(|name| Transport::named(name.as_bytes()).ok_or("no such transport"))
}

fn on_full() -> impl TypedValueParser<Value = OnFull> {
    PossibleValuesParser::new(OnFull::NAMES).try_map(|name| OnFull::named(name.as_bytes()).ok_or("no such choice"))
}

/// What `-w` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RecordFormat {
    /// A directory: events.jsonl and payload files
    Dir,
    /// Packets for Wireshark: to a file, a FIFO or, with `-`, standard output
    Pcapng,
}

#[derive(Debug, Args)]
pub struct AgentArgs {
    /// Write to FILE [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ServerArgs {
    /// Where to make the socket that agents send to (their out_socket_path)
    pub sock_path: PathBuf,
    /// Where to write; made if it does not exist, added to if it does
    pub out_dir: PathBuf,
    /// Type of the socket (the agents' out_sock_type)
    #[arg(long, value_name = "TYPE", default_value = SockType::Dgram.name(), value_parser = sock_type())]
    pub sock_type: SockType,
    /// Write events only
    #[arg(long, conflicts_with = "no_events")]
    pub no_payload_files: bool,
    /// Write payload files only; events.jsonl then says no more than who recorded and what is missing
    #[arg(long)]
    pub no_events: bool,
}

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// For which shell
    pub shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write a page per command into DIR [default: socktrace(1) to standard output]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

fn sock_type() -> impl TypedValueParser<Value = SockType> {
    PossibleValuesParser::new(["dgram", "stream"]).try_map(|name| name.parse::<SockType>())
}

/// A number and a unit; without one, seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let takes = "takes a whole number and ms, s, m or h, such as 10s";
    let number: u64 = number.parse().map_err(|_| takes.to_owned())?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" | "" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(takes.to_owned()),
    };
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(|| takes.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn durations() {
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "s", "-1s", "1d", "1.5s", "99999999999999999999s", "18446744073709551615h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
