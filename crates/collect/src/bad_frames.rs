//! Bytes that are no frames: said, but not for each of them.
//!
//! What costs an agent a byte must not cost a line of `events.jsonl` for ever: of each kind some are reported as they
//! come, and then their number and their bytes together, ten times a second at most.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use gttr::{Frame, FrameType};
use socktrace_event::{BadFrame, End, Event, Layer, Sink, Taken, Text, What};

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

/// In front of a sink.
#[derive(Debug, Default)]
pub(crate) struct BadFrames {
    kinds: Vec<Kind>,
    are_waiting: bool,
}

impl BadFrames {
    /// Whether one is to be reported now; else it is counted.
    fn is_due(&mut self, bad: &BadFrame<'_>) -> bool {
        let error = &*bad.error;
        let text: String = error.chars().filter(|c| !c.is_ascii_digit()).collect();
        let at = self.kinds.iter().position(|kind| kind.text == text).unwrap_or(self.kinds.len());
        if at == self.kinds.len() && at < MAX_KINDS {
            self.kinds.push(Kind { text, allowance: BURST, since: Instant::now(), waiting: None });
        }
        let kind = &mut self.kinds[at.min(MAX_KINDS - 1)];
        if kind.waiting.is_none() && kind.is_allowed() {
            return true;
        }
        let new = || Waiting { error: error.to_owned(), events: 0, size: 0 };
        let waiting = kind.waiting.get_or_insert_with(new);
        waiting.events += 1;
        waiting.size = waiting.size.saturating_add(bad.size);
        self.are_waiting = true;
        false
    }

    /// Reports those that wait; all of them at the end, and before that as many as is allowed.
    pub(crate) fn report<S: Sink + ?Sized>(&mut self, is_end: bool, to: &mut S) -> Taken<S::Error> {
        self.are_waiting = false;
        for kind in &mut self.kinds {
            if kind.waiting.is_none() {
                continue;
            }
            if !kind.is_allowed() && !is_end {
                self.are_waiting = true;
            } else if let Some(Waiting { error, events, size }) = kind.waiting.take() {
                let (error, events) = (Text(Cow::Owned(error)), (events > 1).then_some(events));
                to.event(&Event::now(What::BadFrame(BadFrame { error, events, size })), b"")?;
            }
        }
        Ok(())
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

impl Layer for BadFrames {
    fn event<S: Sink + ?Sized>(&mut self, event: &Event<'_>, payload: &[u8], to: &mut S) -> Taken<S::Error> {
        match &event.what {
            What::BadFrame(bad) if !self.is_due(bad) => Ok(()),
            _ => to.event(event, payload),
        }
    }

    fn frame<S: Sink + ?Sized>(&mut self, frame: &Frame<'_>, event: Option<&Event<'_>>, to: &mut S) -> Taken<S::Error> {
        match frame.kind {
            FrameType::Other(_) => self.event(&Event::from_frame(frame), frame.payload, to),
            _ => to.frame(frame, event),
        }
    }

    fn flush<S: Sink + ?Sized>(&mut self, to: &mut S) -> Result<bool, End<S::Error>> {
        if self.are_waiting {
            self.report(false, to)?;
        }
        to.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[derive(Default)]
    struct Reported(Vec<(u64, u64)>);

    impl Sink for Reported {
        type Error = Infallible;

        fn event(&mut self, event: &Event<'_>, _: &[u8]) -> Taken<Infallible> {
            let What::BadFrame(bad) = &event.what else { return Ok(()) };
            self.0.push((bad.events.unwrap_or(1), bad.size));
            Ok(())
        }
    }

    #[test]
    fn all_are_counted_and_few_have_a_line() {
        let mut bad_frames = BadFrames::default().before(Reported::default());
        let (count, size) = (10_000, 3);
        for n in 0..count {
            bad_frames.event(&Event::bad_frame(&format!("a payload of {n} bytes"), size), b"").unwrap();
            bad_frames.flush().unwrap();
        }
        // Another kind is not affected.
        bad_frames.event(&Event::bad_frame("the frame does not begin with GTTR", 1), b"").unwrap();
        bad_frames.layer.report(true, &mut bad_frames.sink).unwrap();
        let reported = bad_frames.sink;
        assert!(reported.0.len() < 2 * BURST as usize + 2, "{}", reported.0.len());
        let total = reported.0.iter().fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
        assert_eq!(total, (count + 1, count * size as u64 + 1));
    }
}
