//! What `-w` keeps: a directory, or packets for Wireshark, as they come.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use socktrace_event::{Captured, End, Event, PathError, Sink, Taken, notice};
use socktrace_export::{Exporter, Pcapng, Ports, Survey};
use socktrace_recording::{Contents, private};

use crate::args::{CaptureArgs, RecordFormat};
use crate::output::{Destination, Named, Output, STDOUT};

/// Packets are handed on when they take so much, in bytes, if they are not flushed before.
const HAND_ON_LEN: usize = 256 << 10;

/// Where `-w` leads, checked and not yet opened.
#[derive(Debug)]
pub enum Keep {
    Nothing,
    Folder(PathBuf, Contents),
    /// None: standard output.
    Packets {
        file: Option<PathBuf>,
        ports: Ports,
        are_shown_elsewhere: bool,
    },
}

/// The same, open.
pub enum Kept {
    Nothing,
    Folder(PathBuf, Contents),
    /// `are_shown_elsewhere`: lines would only be in the way, unless they are asked for.
    Packets {
        packets: Box<Packets>,
        are_shown_elsewhere: bool,
    },
}

impl Keep {
    /// # Errors
    ///
    /// One line that says what does not go together.
    pub fn new(args: &CaptureArgs) -> Result<Self> {
        let ports = Ports::new(args.decode.iter().map(String::as_str))?;
        let Some(path) = &args.record else { return Ok(Self::Nothing) };
        let is_stdout = path.as_os_str() == "-";
        match args.format.unwrap_or_else(|| format_of(path)) {
            RecordFormat::Dir if is_stdout => bail!("-w - --format dir: a directory cannot be standard output"),
            RecordFormat::Dir => {
                Ok(Self::Folder(path.clone(), Contents::without(args.no_payload_files, args.no_events)))
            }
            RecordFormat::Pcapng if args.no_payload_files || args.no_events => {
                bail!("--no-payload-files and --no-events are for directories: --max-bytes cuts packets")
            }
            RecordFormat::Pcapng => {
                let file = (!is_stdout).then(|| path.clone());
                Ok(Self::Packets { file, ports, are_shown_elsewhere: is_stdout })
            }
        }
    }

    /// Packets to a file or FIFO, and nothing else to be seen.
    pub fn packets_to(file: PathBuf, ports: Ports) -> Self {
        Self::Packets { file: Some(file), ports, are_shown_elsewhere: true }
    }

    /// Whether standard output is taken.
    pub fn is_stdout(&self) -> bool {
        matches!(self, Self::Packets { file: None, .. })
    }

    /// Opens it. A FIFO waits for its reader.
    ///
    /// # Errors
    ///
    /// One line that names what cannot be opened.
    pub fn open(self) -> Result<Kept> {
        Ok(match self {
            Self::Nothing => Kept::Nothing,
            Self::Folder(folder, contents) => Kept::Folder(folder, contents),
            Self::Packets { file, ports, are_shown_elsewhere } => {
                let packets = Box::new(Packets::to(open_binary(file.as_deref())?, ports)?);
                Kept::Packets { packets, are_shown_elsewhere }
            }
        })
    }
}

fn format_of(path: &Path) -> RecordFormat {
    let is_pcapng = path.extension().is_some_and(|extension| extension == "pcapng") && !path.is_dir();
    if is_pcapng || path.as_os_str() == "-" { RecordFormat::Pcapng } else { RecordFormat::Dir }
}

/// A file, or standard output, which must not be a terminal.
///
/// # Errors
///
/// One line that names it.
pub fn open_binary(file: Option<&Path>) -> Result<Box<dyn Write + Send>> {
    let Some(path) = file else {
        if io::stdout().is_terminal() {
            bail!("standard output is a terminal, and this is nothing to be read there: pipe it, or name a file");
        }
        // Not io::stdout(), which looks for lines.
        let stdout = io::stdout().as_fd().try_clone_to_owned().context(STDOUT)?;
        return Ok(Box::new(Named::new(File::from(stdout), STDOUT)));
    };
    Ok(Box::new(Named::new(private::create(path)?, path.display())))
}

/// Packets on their way.
pub struct Packets {
    exporter: Pcapng<Vec<u8>>,
    /// Empty: what is live cannot be surveyed.
    survey: Survey,
    output: Output,
    handed_on: u64,
    dropped: u64,
}

impl Packets {
    fn to(writer: Box<dyn Write + Send>, ports: Ports) -> Result<Self> {
        // What reads packets as they come is Wireshark.
        let exporter = Pcapng::new(Vec::new(), ports).context("pcapng")?.with_dbus();
        let output = Destination::to(writer).in_background(Duration::ZERO);
        let mut packets = Self { exporter, survey: Survey::default(), output, handed_on: 0, dropped: 0 };
        // At once, for a reader that waits for the beginning.
        packets.hand_on();
        Ok(packets)
    }

    fn hand_on(&mut self) {
        let packets = self.exporter.packets() - self.handed_on;
        self.handed_on = self.exporter.packets();
        let bytes = self.exporter.get_mut();
        if !bytes.is_empty() && !self.output.write_whole(bytes) {
            self.dropped += packets;
            self.exporter.count_lost(packets);
        }
        self.exporter.get_mut().clear();
    }
}

impl Sink for Packets {
    type Error = PathError;

    fn event(&mut self, event: &Event<'_>, payload: &[u8]) -> Taken<PathError> {
        let captured = Captured { bytes: payload, missing: None };
        // Memory takes everything.
        let _ = self.exporter.event(event, captured, &self.survey);
        if self.exporter.get_mut().len() >= HAND_ON_LEN {
            self.hand_on();
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<bool, End<PathError>> {
        self.hand_on();
        Ok(true)
    }

    /// Writes the end and waits until the reader has it.
    fn finish(&mut self, _: &str) -> Result<(), PathError> {
        let _ = self.exporter.finish();
        self.hand_on();
        self.output.close();
        if self.dropped > 0 {
            notice(&format!("LOST: {} packets were not written: their reader did not take them", self.dropped));
        }
        Ok(())
    }
}
