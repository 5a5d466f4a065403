//! Bytes to events, without a socket in sight.

use std::collections::HashMap;

use gttr::{FrameType, HEADER_LEN, StreamDecoder, StreamStep};

use crate::event::Event;
use crate::sink::Sink;

/// Room that an agent's buffer keeps when it is empty again, in bytes: most frames fit, and thousands of agents
/// stay cheap.
const KEPT_CAPACITY: usize = 16 << 10;
/// The most that incomplete frames of all agents may take together, in bytes.
const MAX_HELD: usize = 256 << 20;
/// An agent whose incomplete frame takes less is not cut off when all together take too much, in bytes.
const FAIR_HELD: usize = 1 << 20;

/// Decodes one datagram and hands its frame on; bytes that are no frame become a `bad_frame` event.
///
/// `sent_len` is the datagram's length as sent, which is more than `bytes` when the buffer was too small for it.
pub fn datagram(bytes: &[u8], sent_len: usize, sink: &mut dyn Sink) {
    match gttr::decode_datagram(bytes) {
        // What comes with it counts, and was taken.
        Ok(frame) if frame.kind == FrameType::Ring => {}
        Ok(frame) => sink.frame(&frame),
        Err(error) if sent_len > bytes.len() => {
            let error = format!("a datagram of {sent_len} bytes, the limit is {} bytes ({error})", bytes.len());
            sink.event(&Event::bad_frame(&error, sent_len), b"");
        }
        Err(error) => sink.event(&Event::bad_frame(&error.to_string(), sent_len), b""),
    }
}

/// One agent's stream: what has arrived and is not yet a whole frame.
#[derive(Debug, Default)]
pub struct Stream {
    decoder: StreamDecoder,
    partial: Vec<u8>,
    needed: usize,
    /// Bytes of a stream that is cut off.
    discarded: Option<usize>,
}

impl Stream {
    /// Takes the next bytes and hands on the events they complete.
    ///
    /// At most one incomplete frame is kept, which takes up to [`gttr::MAX_PAYLOAD_LEN`] and some 200 KiB.
    pub fn feed(&mut self, chunk: &[u8], sink: &mut dyn Sink) {
        if let Some(discarded) = &mut self.discarded {
            *discarded += chunk.len();
            return;
        }
        if self.partial.is_empty() {
            let used = self.decode(chunk, sink);
            self.partial.extend_from_slice(&chunk[used..]);
            return;
        }
        self.partial.extend_from_slice(chunk);
        if self.partial.len() < self.needed {
            return;
        }
        let mut partial = std::mem::take(&mut self.partial);
        let used = self.decode(&partial, sink);
        partial.drain(..used);
        partial.shrink_to(KEPT_CAPACITY);
        self.partial = partial;
    }

    /// Hands on what the front of `bytes` holds, and returns how many bytes that took.
    fn decode(&mut self, bytes: &[u8], sink: &mut dyn Sink) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            match self.decoder.step(&bytes[at..]) {
                StreamStep::Frame { frame, len } => {
                    if let Some((size, error)) = self.decoder.take_garbage() {
                        sink.event(&Event::bad_frame(&error.to_string(), size), b"");
                    }
                    if frame.kind != FrameType::Ring {
                        sink.frame(&frame);
                    }
                    at += len;
                }
                StreamStep::Garbage { skip } => at += skip,
                StreamStep::Incomplete { needed } => {
                    self.needed = needed;
                    break;
                }
            }
        }
        at
    }

    /// The stream has ended: reports what is left of it.
    pub fn finish(&mut self, sink: &mut dyn Sink) {
        let partial = std::mem::take(&mut self.partial);
        // Nobody looked at what came after the first bytes of something: it may be garbage by now.
        let mut rest = partial.len() - self.decode(&partial, sink);
        if let Some((mut size, error)) = self.decoder.take_garbage() {
            // Less than a header behind garbage is more of the garbage, not a frame of its own.
            if rest < HEADER_LEN {
                size += std::mem::take(&mut rest);
            }
            sink.event(&Event::bad_frame(&error.to_string(), size), b"");
        }
        if rest > 0 {
            sink.event(&Event::bad_frame("the stream ended inside a frame, which is cut off", rest), b"");
        }
        if let Some(size) = self.discarded.take() {
            let error = "incomplete frames took too much memory, so this agent was cut off";
            sink.event(&Event::bad_frame(error, size), b"");
        }
    }

    /// From here on the stream's bytes are counted and no more; [`Stream::finish`] says how many.
    fn cut_off(&mut self) {
        self.discarded = Some(std::mem::take(&mut self.partial).len());
    }

    /// Bytes held of a frame that is not all there yet.
    pub fn held(&self) -> usize {
        self.partial.len()
    }
}

/// Every agent's stream, and a bound on what they take together: 256 MiB.
#[derive(Debug, Default)]
pub struct Streams {
    streams: HashMap<u64, Stream>,
    held: usize,
}

impl Streams {
    /// Takes the next bytes of an agent, under any number that is its own until its stream ends.
    pub fn feed(&mut self, agent: u64, chunk: &[u8], sink: &mut dyn Sink) {
        let stream = self.streams.entry(agent).or_default();
        self.held -= stream.held();
        stream.feed(chunk, sink);
        if stream.held() > FAIR_HELD && self.held + stream.held() > MAX_HELD {
            stream.cut_off();
        }
        self.held += stream.held();
    }

    /// An agent's stream has ended.
    pub fn end(&mut self, agent: u64, sink: &mut dyn Sink) {
        if let Some(mut stream) = self.streams.remove(&agent) {
            self.held -= stream.held();
            stream.finish(sink);
        }
    }

    /// All streams have ended.
    pub fn finish(&mut self, sink: &mut dyn Sink) {
        self.held = 0;
        for (_, mut stream) in self.streams.drain() {
            stream.finish(sink);
        }
    }
}
