//! `socktrace export`: a recorded directory for Wireshark or Perfetto.

use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use socktrace_event::notice;
use socktrace_export::{Exporter, LeftOut, Pcapng, Perfetto, Ports, Progress};
use socktrace_recording::Recording;

use crate::args::{ExportArgs, ExportFormat};
use crate::packets::open_binary;

const BUFFER_LEN: usize = 256 << 10;
/// Before that, nobody has begun to wonder.
const SILENCE: Duration = Duration::from_millis(500);

/// `socktrace export`
pub fn export(args: &ExportArgs) -> Result<ExitCode> {
    let ports = Ports::new(args.decode.iter().map(String::as_str))?;
    let format = match args.format {
        Some(format) => format,
        None => format_of(&args.output)?,
    };
    // Before the file is touched.
    let scope = args.scope.scope()?;
    Recording::open(&args.dir)?;
    let output = (args.output.as_os_str() != "-").then_some(&*args.output);
    let writer = BufWriter::with_capacity(BUFFER_LEN, open_binary(output)?);
    let mut exporter = match exporter(format, writer, &ports, args.dbus) {
        Ok(exporter) => exporter,
        Err(error) => return gone_or(error.into()),
    };
    let mut bar = Bar::new();
    let result = socktrace_export::export(&args.dir, &mut *exporter, &ports, scope, &mut |progress| bar.show(progress));
    bar.clear();
    match result {
        Ok(report) => {
            if exporter.left_out() == Some(LeftOut::DbusMessages) {
                notice(
                    "messages of D-Bus are in their streams only: with --dbus each is a packet, too, as Wireshark dissects them",
                );
            }
            report.sentences(&args.dir).iter().for_each(|sentence| notice(sentence));
        }
        Err(error) => return gone_or(error.into()),
    }
    Ok(ExitCode::SUCCESS)
}

fn exporter(
    format: ExportFormat,
    writer: impl Write + 'static,
    ports: &Ports,
    is_with_dbus: bool,
) -> io::Result<Box<dyn Exporter>> {
    Ok(match format {
        ExportFormat::Pcapng if is_with_dbus => Box::new(Pcapng::new(writer, ports.clone())?.with_dbus()),
        ExportFormat::Pcapng => Box::new(Pcapng::new(writer, ports.clone())?),
        ExportFormat::Pftrace => Box::new(Perfetto::new(writer)),
    })
}

/// A reader that has gone (`| head`) wanted no more.
fn gone_or(error: anyhow::Error) -> Result<ExitCode> {
    let gone = error
        .chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe));
    if gone { Ok(ExitCode::SUCCESS) } else { Err(error) }
}

fn format_of(path: &Path) -> Result<ExportFormat> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("pcapng") => Ok(ExportFormat::Pcapng),
        Some("pftrace" | "perfetto-trace") => Ok(ExportFormat::Pftrace),
        _ if path.as_os_str() == "-" => bail!("-o -: what is to be written? --format pcapng or pftrace says"),
        _ => bail!(
            "{}: the name does not say what is to be written: end it in .pcapng or .pftrace, or use --format",
            path.display()
        ),
    }
}

/// A bar on standard error, if that is a terminal.
struct Bar {
    begun: Instant,
    bar: Option<ProgressBar>,
}

impl Bar {
    fn new() -> Self {
        Self { begun: Instant::now(), bar: None }
    }

    fn show(&mut self, progress: Progress) {
        if self.begun.elapsed() < SILENCE {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{wide_bar} {percent}% {eta}");
            ProgressBar::new(progress.total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_by_name() {
        assert_eq!(format_of(Path::new("/tmp/x.pcapng")).unwrap(), ExportFormat::Pcapng);
        assert_eq!(format_of(Path::new("x.pftrace")).unwrap(), ExportFormat::Pftrace);
        assert_eq!(format_of(Path::new("x.perfetto-trace")).unwrap(), ExportFormat::Pftrace);
        for name in ["x", "x.pcap", "-", "pcapng"] {
            assert!(format_of(Path::new(name)).unwrap_err().to_string().contains("--format"), "{name}");
        }
    }
}
