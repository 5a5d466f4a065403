//! Bytes to events, without a socket in sight.

use std::collections::HashMap;

use gttr::{FrameType, HEADER_LEN, StreamDecoder, StreamStep};
use socktrace_event::{End, Event, Sink, Taken};

use crate::sender::Sender;
use crate::shares::Shares;

/// The most that incomplete frames of all agents may take together, in bytes: four of the largest.
const MAX_HELD: u64 = 4 * gttr::MAX_PAYLOAD_LEN as u64;

/// Decodes one datagram and hands its frame on; bytes that are no frame become a `bad_frame` event.
///
/// `sent_len` is the datagram's length as sent, which is more than `bytes` when the buffer was too small for it.
pub fn datagram<S: Sink + ?Sized>(bytes: &[u8], sent_len: usize, sink: &mut S) -> Taken<S::Error> {
    match gttr::decode_datagram(bytes) {
        // What comes with it counts, and was taken.
        Ok(frame) if frame.kind == FrameType::Ring => Ok(()),
        Ok(frame) => sink.frame(&frame, None),
        Err(error) if sent_len > bytes.len() => {
            let error = format!("a datagram of {sent_len} bytes, the limit is {} bytes ({error})", bytes.len());
            sink.event(&Event::bad_frame(&error, sent_len), b"")
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
    pub fn feed<S: Sink + ?Sized>(&mut self, chunk: &[u8], sink: &mut S) -> Taken<S::Error> {
        if let Some(discarded) = &mut self.discarded {
            *discarded += chunk.len();
            return Ok(());
        }
        if self.partial.is_empty() {
            let used = self.decode(chunk, sink)?;
            self.partial.extend_from_slice(&chunk[used..]);
            return Ok(());
        }
        self.partial.extend_from_slice(chunk);
        if self.partial.len() < self.needed {
            return Ok(());
        }
        let partial = std::mem::take(&mut self.partial);
        let used = self.decode(&partial, sink)?;
        // No room is kept: thousands of agents stay cheap.
        self.partial = partial[used..].to_vec();
        Ok(())
    }

    /// Hands on what the front of `bytes` holds, and returns how many bytes that took.
    fn decode<S: Sink + ?Sized>(&mut self, bytes: &[u8], sink: &mut S) -> Result<usize, End<S::Error>> {
        let mut at = 0;
        while at < bytes.len() {
            match self.decoder.step(&bytes[at..]) {
                StreamStep::Frame { frame, len } => {
                    if let Some((size, error)) = self.decoder.take_garbage() {
                        sink.event(&Event::bad_frame(&error.to_string(), size), b"")?;
                    }
                    if frame.kind != FrameType::Ring {
                        sink.frame(&frame, None)?;
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
        Ok(at)
    }

    /// The stream has ended: reports what is left of it.
    pub fn finish<S: Sink + ?Sized>(&mut self, sink: &mut S) -> Taken<S::Error> {
        let partial = std::mem::take(&mut self.partial);
        // Nobody looked at what came after the first bytes of something: it may be garbage by now.
        let mut rest = partial.len() - self.decode(&partial, sink)?;
        if let Some((mut size, error)) = self.decoder.take_garbage() {
            // Less than a header behind garbage is more of the garbage, not a frame of its own.
            if rest < HEADER_LEN {
                size += std::mem::take(&mut rest);
            }
            sink.event(&Event::bad_frame(&error.to_string(), size), b"")?;
        }
        if rest > 0 {
            sink.event(&Event::bad_frame("the stream ended inside a frame, which is cut off", rest), b"")?;
        }
        if let Some(size) = self.discarded.take() {
            let error = "incomplete frames took too much memory, so this agent was cut off";
            sink.event(&Event::bad_frame(error, size), b"")?;
        }
        Ok(())
    }

    /// From here on the stream's bytes are counted and no more; [`Stream::finish`] says how many.
    fn cut_off(&mut self) {
        self.discarded = Some(std::mem::take(&mut self.partial).len());
    }

    /// Bytes held of a frame that is not all there yet.
    pub fn held(&self) -> usize {
        self.partial.len()
    }

    /// Bytes of memory that takes.
    fn memory(&self) -> u64 {
        self.partial.capacity() as u64
    }
}

/// Every agent's stream, and a bound on what they take together: 64 MiB. Beyond it, the longest incomplete frame is given
/// up of the process that has most, of the user who has most.
#[derive(Debug, Default)]
pub struct Streams {
    streams: HashMap<u64, (Sender, Stream)>,
    held: Shares,
}

impl Streams {
    /// Takes the next bytes of an agent, under any number that is its own until its stream ends.
    pub fn feed<S: Sink + ?Sized>(
        &mut self,
        agent: u64,
        sender: Sender,
        chunk: &[u8],
        sink: &mut S,
    ) -> Taken<S::Error> {
        let (sender, stream) = self.streams.entry(agent).or_insert_with(|| (sender, Stream::default()));
        let before = stream.memory();
        stream.feed(chunk, sink)?;
        let after = stream.memory();
        if before != after {
            self.held.take(*sender, before);
            self.held.add(*sender, after);
            while self.held.total() > MAX_HELD && self.cut_off() {}
        }
        Ok(())
    }

    /// Gives one up; whether there was one.
    fn cut_off(&mut self) -> bool {
        let Some(greediest) = self.held.greediest() else { return false };
        let of_greediest = self.streams.values_mut().filter(|(sender, _)| *sender == greediest);
        let Some((_, stream)) = of_greediest.max_by_key(|(_, stream)| stream.memory()) else { return false };
        self.held.take(greediest, stream.memory());
        stream.cut_off();
        true
    }

    /// An agent's stream has ended.
    pub fn end<S: Sink + ?Sized>(&mut self, agent: u64, sink: &mut S) -> Taken<S::Error> {
        let Some((sender, mut stream)) = self.streams.remove(&agent) else { return Ok(()) };
        self.held.take(sender, stream.memory());
        stream.finish(sink)
    }

    /// All streams have ended.
    pub fn finish<S: Sink + ?Sized>(&mut self, sink: &mut S) -> Taken<S::Error> {
        self.held = Shares::default();
        self.streams.drain().try_for_each(|(_, (_, mut stream))| stream.finish(sink))
    }
}
