//! The command `socktrace-server`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use socktrace_server::{Recorder, SockType, Stop, listen, notice, raise_descriptor_limit, receive};

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
}

fn sock_type() -> impl TypedValueParser<Value = SockType> {
    PossibleValuesParser::new(["dgram", "stream"]).try_map(|name| name.parse::<SockType>())
}

fn main() -> ExitCode {
    match serve(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            notice(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &Args) -> Result<()> {
    raise_descriptor_limit();
    let stop = Stop::on_signals()?;
    let bound = listen::bind(&args.sock_path, args.sock_type)?;
    let mut recorder = Recorder::open(&args.out_dir)?;
    recorder.begin(&bound)?;
    let (sock, out_dir) = (args.sock_path.display(), args.out_dir.display());
    notice(&format!("listening on {sock} ({}), recording into {out_dir}", args.sock_type));
    let reason = receive::run(&bound, &stop, &mut recorder)?;
    recorder.finish(reason);
    Ok(())
}
