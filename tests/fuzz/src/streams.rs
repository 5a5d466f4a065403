//! Bytes of a stream, cut anywhere: what they say does not depend on where, and every one of them is accounted for.
//!
//! An input is four lengths, of which each read in turn has one, and the stream.

use std::convert::Infallible;

use gttr::FrameType;
use socktrace_collect::decode::Stream;
use socktrace_event::{Event, EventType, Sink, Taken, What};

use crate::input::Input;

#[derive(Default)]
struct Heard {
    /// Lines of events, with their bytes.
    events: Vec<(String, Vec<u8>)>,
    /// Bytes that they account for.
    len: usize,
}

impl Sink for Heard {
    type Error = Infallible;

    fn event(&mut self, event: &Event<'_>, payload: &[u8]) -> Taken<Infallible> {
        if let What::BadFrame(bad) = &event.what {
            self.len += usize::try_from(bad.size).expect("no more than was read");
        }
        // When the server heard of it is not what it says.
        let event = Event { ts_ms: 0, ..event.clone() };
        self.events.push((serde_json::to_string(&event).expect("events are JSON"), payload.to_vec()));
        Ok(())
    }

    fn frame(&mut self, frame: &gttr::Frame<'_>, _: Option<&Event<'_>>) -> Taken<Infallible> {
        assert_ne!(frame.kind, FrameType::Ring, "what is about a ring is not an event");
        let event = Event::from_frame(frame);
        let is_named = event.kind() != EventType::BadFrame;
        assert_eq!(is_named, !matches!(frame.kind, FrameType::Other(_)), "{:?}", frame.kind);
        // Of one whose type has no name, the event says the length itself.
        self.len += if event.kind() == EventType::BadFrame { 0 } else { frame.encoded_len() };
        self.event(&event, frame.payload)
    }
}

fn hear<'s>(chunks: impl Iterator<Item = &'s [u8]>) -> Heard {
    let (mut stream, mut heard) = (Stream::default(), Heard::default());
    for chunk in chunks {
        stream.feed(chunk, &mut heard).expect("it takes everything");
    }
    stream.finish(&mut heard).expect("it takes everything");
    assert_eq!(stream.held(), 0);
    heard
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let lens: [u8; 4] = std::array::from_fn(|_| input.u8());
    let stream = input.0;
    let whole = hear(std::iter::once(stream).filter(|stream| !stream.is_empty()));
    let mut lens = lens.iter().cycle();
    let cut = hear(std::iter::from_fn(|| {
        let len = usize::from(*lens.next()?) + 1;
        Some(input.bytes(len)).filter(|chunk| !chunk.is_empty())
    }));
    assert_eq!(whole.events, cut.events);
    assert_eq!(whole.len + rings_len(stream), stream.len(), "{:#?}", whole.events);
}

/// Bytes of the frames that are about rings.
fn rings_len(stream: &[u8]) -> usize {
    let (mut decoder, mut at, mut len) = (gttr::StreamDecoder::new(), 0, 0);
    while at < stream.len() {
        at += match decoder.step(&stream[at..]) {
            gttr::StreamStep::Frame { frame, len: frame_len } => {
                len += if frame.kind == FrameType::Ring { frame_len } else { 0 };
                frame_len
            }
            gttr::StreamStep::Garbage { skip } => skip,
            gttr::StreamStep::Incomplete { .. } => break,
        };
    }
    len
}
