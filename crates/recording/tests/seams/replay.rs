//! A source: frames that somebody has kept, again.

use std::path::Path;

use socktrace_event::{Failed, Origin, Sink, Source, Stop};

/// Frames, one behind the other.
pub struct Replay(pub Vec<Vec<u8>>);

impl Source for Replay {
    type Error = gttr::Error;

    fn origin(&self) -> Origin<'_> {
        Origin { path: Path::new("kept.hex"), kind: "replay" }
    }

    fn run<S: Sink + ?Sized>(self, stop: &Stop, sink: &mut S) -> Result<&'static str, Failed<gttr::Error, S::Error>> {
        for bytes in &self.0 {
            if let Some(reason) = stop.reason() {
                return Ok(reason);
            }
            let frame = gttr::decode_datagram(bytes).map_err(Failed::Source)?;
            if let Err(end) = sink.frame(&frame, None) {
                return end.reason();
            }
        }
        sink.flush().map_or_else(|end| end.reason(), |_| Ok("that was all"))
    }
}
