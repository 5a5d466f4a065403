//! The options of `socktrace list`.

use std::ffi::OsString;

use clap::Args;

use super::ScopeArgs;

pub const LIST_EXAMPLES: &str = "\
Examples:
  socktrace list
  socktrace list -l                             who listens, and where
  socktrace list --path '*docker.sock'          who talks to it
  socktrace list --name redis-server --json | jq .

As root it sees the sockets of all users and of all network namespaces.

A line is a socket, or both ends of a connection: the client on the left of →, ends that are equals on both sides of ⇄. \
Names in brackets are process ids. ×N stands for N lines that are the same.";

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub scope: ScopeArgs,
    /// Sockets of processes with this name, as ps and /proc/PID/comm show it. Repeatable
    #[arg(long, help_heading = "Filters")]
    pub name: Vec<OsString>,
    /// Sockets of processes in this systemd unit, container or cgroup. Repeatable
    #[arg(long, help_heading = "Filters")]
    pub unit: Vec<OsString>,
    /// Sockets that listen
    #[arg(short, long, help_heading = "Filters")]
    pub listening: bool,
    /// Write a JSON object for each socket, a line each
    #[arg(long)]
    pub json: bool,
}
