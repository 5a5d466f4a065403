//! Bytes that are no frames: said, but not for each of them.
//!
//! What costs an agent a byte must not cost a line of `events.jsonl` for ever: of each kind some are reported as they
//! come, and then their number and their bytes together, ten times a second at most.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use gttr::Frame;

use crate::event::{Event, EventType, Text};
use crate::sender::Sender;
use crate::sink::Sink;

/// So many of a kind are reported one by one at first, and again when there were none for long.
const BURST: u32 = 100;
/// After that, one report in so much time.
const INTERVAL: Duration = Duration::from_millis(100);
/// What can be wrong, numbers apart; more than there are messages for it.
const MAX_KINDS: usize = 64;

/// A message without the numbers in it, and those that wait to be reported.
#[derive(Debug)]
struct Kind {
    text: String,
    /// How many may be reported at once.
    allowance: u32,
    since: Instant,
    waiting: Option<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    /// Of the first.
    error: String,
    events: u64,
    size: u64,
}

/// A [`Sink`] in front of another.
pub(crate) struct BadFrames<'s> {
    sink: &'s mut dyn Sink,
    kinds: Vec<Kind>,
    are_waiting: bool,
}

impl<'s> BadFrames<'s> {
    pub(crate) fn new(sink: &'s mut dyn Sink) -> Self {
        Self { sink, kinds: Vec::new(), are_waiting: false }
    }

    fn bad_frame(&mut self, event: &Event<'_>, payload: &[u8]) {
        let error = event.error.as_deref().unwrap_or_default();
        let text: String = error.chars().filter(|c| !c.is_ascii_digit()).collect();
        let at = self.kinds.iter().position(|kind| kind.text == text).unwrap_or(self.kinds.len());
        if at == self.kinds.len() && at < MAX_KINDS {
            self.kinds.push(Kind { text, allowance: BURST, since: Instant::now(), waiting: None });
        }
        let kind = &mut self.kinds[at.min(MAX_KINDS - 1)];
        if kind.waiting.is_none() && kind.is_allowed() {
            return self.sink.event(event, payload);
        }
        let new = || Waiting { error: error.to_owned(), events: 0, size: 0 };
        let waiting = kind.waiting.get_or_insert_with(new);
        waiting.events += 1;
        waiting.size = waiting.size.saturating_add(event.size.unwrap_or(0));
        self.are_waiting = true;
    }

    /// Reports those that wait; all of them at the end, and before that as many as is allowed.
    pub(crate) fn report(&mut self, is_end: bool) {
        self.are_waiting = false;
        for kind in &mut self.kinds {
            if kind.waiting.is_none() {
                continue;
            }
            if !kind.is_allowed() && !is_end {
                self.are_waiting = true;
            } else if let Some(Waiting { error, events, size }) = kind.waiting.take() {
                let error = Some(Text(Cow::Owned(error)));
                let events = (events > 1).then_some(events);
                let event = Event { error, events, size: Some(size), ..Event::now(EventType::BadFrame) };
                self.sink.event(&event, b"");
            }
        }
    }
}

impl Kind {
    fn is_allowed(&mut self) -> bool {
        let earned = self.since.elapsed().as_millis() / INTERVAL.as_millis();
        if earned > 0 {
            self.since = Instant::now();
            self.allowance = self.allowance.saturating_add(u32::try_from(earned).unwrap_or(BURST)).min(BURST);
        }
        let is_allowed = self.allowance > 0;
        self.allowance = self.allowance.saturating_sub(1);
        is_allowed
    }
}

impl Sink for BadFrames<'_> {
    fn sender(&mut self, sender: Sender, channel: u64) {
        self.sink.sender(sender, channel);
    }

    fn event(&mut self, event: &Event<'_>, payload: &[u8]) {
        if event.kind == EventType::BadFrame { self.bad_frame(event, payload) } else { self.sink.event(event, payload) }
    }

    fn frame(&mut self, frame: &Frame<'_>) {
        if matches!(frame.kind, gttr::FrameType::Other(_)) {
            self.event(&Event::from_frame(frame), frame.payload);
        } else {
            self.sink.frame(frame);
        }
    }

    fn is_recorded(&self, frame: &Frame<'_>) -> bool {
        self.sink.is_recorded(frame)
    }

    fn flush(&mut self) -> bool {
        if self.are_waiting {
            self.report(false);
        }
        self.sink.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Reported(Vec<(u64, u64)>);

    impl Sink for Reported {
        fn event(&mut self, event: &Event<'_>, _: &[u8]) {
            self.0.push((event.events.unwrap_or(1), event.size.unwrap_or(0)));
        }

        fn flush(&mut self) -> bool {
            true
        }
    }

    #[test]
    fn all_are_counted_and_few_have_a_line() {
        let mut reported = Reported::default();
        let mut bad_frames = BadFrames::new(&mut reported);
        let (count, size) = (10_000, 3);
        for n in 0..count {
            bad_frames.event(&Event::bad_frame(&format!("a payload of {n} bytes"), size), b"");
            bad_frames.flush();
        }
        // Another kind is not affected.
        bad_frames.event(&Event::bad_frame("the frame does not begin with GTTR", 1), b"");
        bad_frames.report(true);
        assert!(reported.0.len() < 2 * BURST as usize + 2, "{}", reported.0.len());
        let total = reported.0.iter().fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
        assert_eq!(total, (count + 1, count * size as u64 + 1));
    }
}
