//! The command `socktrace-server`.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use socktrace_collect::SockType;
use socktrace_event::{errno, notice};
use socktrace_recording::Contents;
use socktrace_server::serve;

/// Records what traced processes send: OUT_DIR/events.jsonl, and OUT_DIR/<conn_id>.in.bin and .out.bin per connection.
///
/// Ends on SIGINT and SIGTERM, after all that has arrived is written.
#[derive(Parser)]
#[command(name = "socktrace-server", version)]
struct Args {
    /// Where to make the socket that agents send to (their out_socket_path)
    sock_path: PathBuf,
    /// Where to write; made if it does not exist, added to if it does
    out_dir: PathBuf,
    /// Type of the socket (the agents' out_sock_type)
    #[arg(long, value_name = "TYPE", default_value = SockType::Dgram.name(), value_parser = sock_type())]
    sock_type: SockType,
    /// Write events only
    #[arg(long, conflicts_with = "no_events")]
    no_payload_files: bool,
    /// Write payload files only; events.jsonl then says no more than who recorded and what is missing
    #[arg(long)]
    no_events: bool,
}

fn sock_type() -> impl TypedValueParser<Value = SockType> {
    PossibleValuesParser::new(["dgram", "stream"]).try_map(|name| name.parse::<SockType>())
}

fn main() -> ExitCode {
    let args = Args::parse();
    let contents = Contents::without(args.no_payload_files, args.no_events);
    match serve(&args.sock_path, &args.out_dir, args.sock_type, contents) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            notice(&errno::explain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
