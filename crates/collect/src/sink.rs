//! The seam between receiving and whatever is done with events.

use gttr::Frame;

use crate::event::Event;
use crate::sender::Sender;

/// Takes events in the order they arrived.
pub trait Sink {
    /// Whose the frames are that come from now on, and by which ring or stream, counted from 1; 0: by datagrams.
    fn sender(&mut self, sender: Sender, channel: u64) {
        let _ = (sender, channel);
    }

    /// Takes one event and the bytes that its frame carried; a data event's are those that moved.
    fn event(&mut self, event: &Event<'_>, payload: &[u8]);

    /// Takes one frame, by default as its event. A sink that can do without an [`Event`] of a frame saves making it,
    /// and must do the same as with it.
    fn frame(&mut self, frame: &Frame<'_>) {
        self.event(&Event::from_frame(frame), frame.payload);
    }

    /// Hears of a frame as it came, before it or its event. For whoever hands frames on.
    fn came(&mut self, frame: &Frame<'_>) {
        let _ = frame;
    }

    /// Whether the frame's event is on record already, by a server that was killed before it could say so.
    fn is_recorded(&self, frame: &Frame<'_>) -> bool {
        let _ = frame;
        false
    }

    /// Passes on what has been held back. Called when no more has arrived for a moment, and at least every 100 ms.
    ///
    /// Returns false if something could not be passed on and `flush` is to be called again although no event comes.
    fn flush(&mut self) -> bool;
}
