//! The command line of `export` and `extcap`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use socktrace_params::EVERYTHING;

use super::ScopeArgs;

pub const EXPORT_EXAMPLES: &str = "\
Examples:
  socktrace export /tmp/rec -o trace.pcapng && wireshark trace.pcapng
  socktrace export /tmp/rec -o - --format pcapng | tcpdump -nr -
  socktrace export /tmp/rec -o trace.pcapng --decode '/run/my.sock=http'
  socktrace export /tmp/rec -o trace.pftrace                for https://ui.perfetto.dev";

pub const EXTCAP_EXAMPLES: &str = "\
Examples:
  socktrace extcap --install
  tshark -i socktrace -o 'extcap.socktrace.command:busctl list'

Wireshark calls it with the options of its extcap interface (extcap(4)).";

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The recorded directory
    pub dir: PathBuf,
    /// Write to FILE; `-`: standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// What is written [default: by FILE's extension]
    #[arg(long, value_enum)]
    pub format: Option<ExportFormat>,
    /// For Wireshark: sockets whose path matches speak PROTOCOL (http, redis, …, or a port). Repeatable
    #[arg(long, value_name = "PATH=PROTOCOL")]
    pub decode: Vec<String>,
    /// For Wireshark: messages of D-Bus as packets of their own, too. tcpdump and others built on libpcap cannot read such a
    /// file, for it has two link types
    #[arg(long)]
    pub dbus: bool,
    #[command(flatten)]
    pub scope: ScopeArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// For Wireshark (.pcapng)
    Pcapng,
    /// For Perfetto (.pftrace)
    Pftrace,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("task").required(true).multiple(true)
    .args(["install", "extcap_interfaces", "extcap_dlts", "extcap_config", "capture"])))]
pub struct ExtcapArgs {
    /// Put socktrace among the capture interfaces of this user's Wireshark
    #[arg(long, exclusive = true)]
    pub install: bool,
    /// Name the interfaces
    #[arg(long, help_heading = "Asked by Wireshark")]
    pub extcap_interfaces: bool,
    /// Name the interface's link types
    #[arg(long, help_heading = "Asked by Wireshark")]
    pub extcap_dlts: bool,
    /// Name the interface's options
    #[arg(long, help_heading = "Asked by Wireshark")]
    pub extcap_config: bool,
    /// Capture
    #[arg(long, requires = "fifo", help_heading = "Asked by Wireshark")]
    pub capture: bool,
    /// Which interface
    #[arg(long, value_name = "NAME", help_heading = "Asked by Wireshark")]
    pub extcap_interface: Option<String>,
    /// Wireshark's version
    #[arg(long, value_name = "VERSION", num_args = 0..=1, help_heading = "Asked by Wireshark")]
    pub extcap_version: Option<Option<String>>,
    /// Where to write packets
    #[arg(long, value_name = "FIFO", help_heading = "Asked by Wireshark")]
    pub fifo: Option<PathBuf>,
    /// A capture filter; there are none for sockets
    #[arg(long, value_name = "FILTER", help_heading = "Asked by Wireshark")]
    pub extcap_capture_filter: Option<String>,
    /// Trace this command line of the shell's
    #[arg(long, conflicts_with_all = ["pid", "name"], help_heading = "Options of the interface")]
    pub command: Option<String>,
    /// Trace these processes, through Frida
    #[arg(long, value_name = "PIDS", value_delimiter = ',', help_heading = "Options of the interface")]
    pub pid: Vec<u32>,
    /// Trace every process of yours with this name, through Frida
    #[arg(long, help_heading = "Options of the interface")]
    pub name: Option<OsString>,
    /// Patterns of socket paths, as run has them, with spaces between
    #[arg(long, value_name = "GLOBS", help_heading = "Options of the interface")]
    pub path: Option<String>,
    /// Protocols of socket paths, PATH=PROTOCOL, with spaces between
    #[arg(long, value_name = "RULES", help_heading = "Options of the interface")]
    pub decode: Option<String>,
    /// Capture at most N bytes of each call
    #[arg(long, value_name = "N", default_value_t = EVERYTHING, hide_default_value = true,
          value_parser = clap::value_parser!(u64).range(..=EVERYTHING), help_heading = "Options of the interface")]
    pub max_bytes: u64,
}
