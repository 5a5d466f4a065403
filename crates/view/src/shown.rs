//! A sink that shows events as they come.

use gttr::{Frame, FrameType};
use socktrace_event::{Captured, End, Event, Sink, Taken};
use socktrace_recording::Recorded;

use crate::filter::Scope;
use crate::lines::Lines;
use crate::view::View;

/// Lines are handed on when they take so much, in bytes, if they are not flushed before.
const HAND_ON_LEN: usize = 64 << 10;

/// Where lines go: a terminal, a file, a queue.
pub trait Printer {
    /// What can go wrong.
    type Error;

    /// Takes whole lines.
    fn print(&mut self, lines: &Lines) -> Taken<Self::Error>;

    /// Those were all.
    ///
    /// # Errors
    ///
    /// Some of them could not be written.
    fn finish(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// Shows events as they come.
#[derive(Debug)]
pub struct Shown<P> {
    view: View,
    lines: Lines,
    printer: P,
    /// Whether messages are all recorded and none is shown: there is no need to look at them.
    is_unseen: bool,
}

impl<P: Printer> Shown<P> {
    /// What a view makes of events goes to a printer. `is_unseen`: nobody reads it, and every event is recorded.
    pub fn new(view: View, printer: P, is_unseen: bool) -> Self {
        Self { view, lines: Lines::default(), printer, is_unseen }
    }

    /// What is shown, and what is known.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Takes an event of a recording, as far as it is asked for: the view knows best how many of its bytes are to be read.
    ///
    /// # Errors
    ///
    /// The printer takes no more.
    pub fn recorded(&mut self, recorded: &Recorded, scope: &mut Scope) -> Taken<P::Error> {
        let event = recorded.event();
        if !scope.lets_through(&event) {
            self.left_out(&event);
            return Ok(());
        }
        let payload = recorded.payload(self.view.needed_bytes());
        self.view.show(&event, payload.captured(), Some(recorded.line()), &mut self.lines);
        self.hand_on(HAND_ON_LEN)
    }

    /// Shows the end: no more events come.
    ///
    /// # Errors
    ///
    /// The printer takes no more.
    pub fn end(&mut self) -> Taken<P::Error> {
        self.view.finish(&mut self.lines);
        self.hand_on(1)
    }

    /// Hands lines on that take as much as `len`.
    fn hand_on(&mut self, len: usize) -> Taken<P::Error> {
        if self.lines.bytes.len() < len {
            return Ok(());
        }
        let taken = self.printer.print(&self.lines);
        self.lines.clear();
        taken
    }
}

impl<P: Printer> Sink for Shown<P> {
    type Error = P::Error;

    fn event(&mut self, event: &Event<'_>, payload: &[u8]) -> Taken<P::Error> {
        self.view.show(event, Captured { bytes: payload, missing: None }, None, &mut self.lines);
        self.hand_on(HAND_ON_LEN)
    }

    fn frame(&mut self, frame: &Frame<'_>, event: Option<&Event<'_>>) -> Taken<P::Error> {
        match event {
            _ if self.is_unseen && frame.kind == FrameType::Data => {
                self.view.traffic.count(frame);
                Ok(())
            }
            Some(event) => self.event(event, frame.payload),
            None => self.event(&Event::from_frame(frame), frame.payload),
        }
    }

    fn left_out(&mut self, event: &Event<'_>) {
        self.view.traffic.hide(event);
    }

    fn flush(&mut self) -> Result<bool, End<P::Error>> {
        self.hand_on(1).map(|()| true)
    }

    fn finish(&mut self, _: &str) -> Result<(), P::Error> {
        match self.end() {
            Err(End::Failed(error)) => Err(error),
            _ => self.printer.finish(),
        }
    }
}
