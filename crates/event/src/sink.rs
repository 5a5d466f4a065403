//! Where events go: a recorder, a view, an exporter, or several of them behind one filter.

use gttr::Frame;

use crate::event::Event;
use crate::source::{Failed, Origin};

/// Why a sink takes no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End<E> {
    /// It has what it wants: whoever hands events on stops, and nothing has failed.
    Enough,
    /// It has failed.
    Failed(E),
}

impl<E> From<E> for End<E> {
    fn from(error: E) -> Self {
        Self::Failed(error)
    }
}

impl<E> End<E> {
    /// What a source returns that hands events on: why it has ended, or whose failure it was.
    ///
    /// # Errors
    ///
    /// The sink's, if it has failed.
    pub fn reason<A>(self) -> Result<&'static str, Failed<A, E>> {
        match self {
            Self::Enough => Ok("the sink has enough"),
            Self::Failed(error) => Err(Failed::Sink(error)),
        }
    }
}

/// Whether a sink has taken something, and takes more.
pub type Taken<E> = Result<(), End<E>>;

/// Takes events in the order in which they come. What need not be said differently has a default.
///
/// Errors are the sink's own type, and [`End::Enough`] asks whoever hands events on to stop.
pub trait Sink {
    /// What can go wrong.
    type Error;

    /// Hears where events will come from, before the first.
    fn begin(&mut self, origin: &Origin<'_>) -> Taken<Self::Error> {
        let _ = origin;
        Ok(())
    }

    /// Takes one event and the bytes that came with it; a data event's are those that moved.
    fn event(&mut self, event: &Event<'_>, payload: &[u8]) -> Taken<Self::Error>;

    /// Takes one frame, by default as its event. `event` is that, where somebody has made it already and perhaps added to
    /// it. A sink that can do without an event of a frame saves making it, and must do the same as with it.
    fn frame(&mut self, frame: &Frame<'_>, event: Option<&Event<'_>>) -> Taken<Self::Error> {
        match event {
            Some(event) => self.event(event, frame.payload),
            None => self.event(&Event::from_frame(frame), frame.payload),
        }
    }

    /// Hears of an event that a filter before the sink has kept back.
    fn left_out(&mut self, event: &Event<'_>) {
        let _ = event;
    }

    /// Whether the frame's event is on record already, by a server that was killed before it could say so.
    fn is_recorded(&self, frame: &Frame<'_>) -> bool {
        let _ = frame;
        false
    }

    /// Passes on what has been held back. Called when no more has come for a moment, and at least every 100 ms.
    ///
    /// False: something could not be passed on, and `flush` is to be called again although no event comes.
    fn flush(&mut self) -> Result<bool, End<Self::Error>> {
        Ok(true)
    }

    /// Nothing more comes, and why.
    ///
    /// # Errors
    ///
    /// The end could not be passed on.
    fn finish(&mut self, reason: &str) -> Result<(), Self::Error> {
        let _ = reason;
        Ok(())
    }
}

/// Whatever leads to a sink is one.
macro_rules! leads_to_a_sink {
    ($($to:ty),+) => {$(
        impl<S: Sink + ?Sized> Sink for $to {
            type Error = S::Error;

            fn begin(&mut self, origin: &Origin<'_>) -> Taken<S::Error> {
                (**self).begin(origin)
            }

            fn event(&mut self, event: &Event<'_>, payload: &[u8]) -> Taken<S::Error> {
                (**self).event(event, payload)
            }

            fn frame(&mut self, frame: &Frame<'_>, event: Option<&Event<'_>>) -> Taken<S::Error> {
                (**self).frame(frame, event)
            }

            fn left_out(&mut self, event: &Event<'_>) {
                (**self).left_out(event);
            }

            fn is_recorded(&self, frame: &Frame<'_>) -> bool {
                (**self).is_recorded(frame)
            }

            fn flush(&mut self) -> Result<bool, End<S::Error>> {
                (**self).flush()
            }

            fn finish(&mut self, reason: &str) -> Result<(), S::Error> {
                (**self).finish(reason)
            }
        }
    )+};
}

leads_to_a_sink!(&mut S, Box<S>);

/// A list of sinks: each takes everything, in turn. The first that takes no more ends it for all.
impl<S: Sink> Sink for Vec<S> {
    type Error = S::Error;

    fn begin(&mut self, origin: &Origin<'_>) -> Taken<S::Error> {
        self.iter_mut().try_for_each(|sink| sink.begin(origin))
    }

    fn event(&mut self, event: &Event<'_>, payload: &[u8]) -> Taken<S::Error> {
        self.iter_mut().try_for_each(|sink| sink.event(event, payload))
    }

    fn frame(&mut self, frame: &Frame<'_>, event: Option<&Event<'_>>) -> Taken<S::Error> {
        self.iter_mut().try_for_each(|sink| sink.frame(frame, event))
    }

    fn left_out(&mut self, event: &Event<'_>) {
        self.iter_mut().for_each(|sink| sink.left_out(event));
    }

    fn is_recorded(&self, frame: &Frame<'_>) -> bool {
        self.iter().any(|sink| sink.is_recorded(frame))
    }

    fn flush(&mut self) -> Result<bool, End<S::Error>> {
        self.iter_mut().try_fold(true, |all, sink| Ok(sink.flush()? && all))
    }

    fn finish(&mut self, reason: &str) -> Result<(), S::Error> {
        // Each has its end, whatever becomes of the others.
        self.iter_mut().map(|sink| sink.finish(reason)).fold(Ok(()), Result::and)
    }
}

/// What stands in front of a sink and changes what reaches it. What it does not say differently goes on as it is.
pub trait Layer {
    /// Takes an event on its way to a sink.
    fn event<S: Sink + ?Sized>(&mut self, event: &Event<'_>, payload: &[u8], to: &mut S) -> Taken<S::Error> {
        to.event(event, payload)
    }

    /// Takes a frame on its way to a sink.
    fn frame<S: Sink + ?Sized>(&mut self, frame: &Frame<'_>, event: Option<&Event<'_>>, to: &mut S) -> Taken<S::Error> {
        to.frame(frame, event)
    }

    /// Passes on what it has held back, and has the sink do the same.
    fn flush<S: Sink + ?Sized>(&mut self, to: &mut S) -> Result<bool, End<S::Error>> {
        to.flush()
    }

    /// This in front of a sink.
    fn before<S: Sink>(self, sink: S) -> Before<Self, S>
    where
        Self: Sized,
    {
        Before { layer: self, sink }
    }
}

/// A sink with a layer in front of it.
#[derive(Debug)]
pub struct Before<L, S> {
    /// What stands in front.
    pub layer: L,
    /// What is behind.
    pub sink: S,
}

impl<L: Layer, S: Sink> Sink for Before<L, S> {
    type Error = S::Error;

    fn begin(&mut self, origin: &Origin<'_>) -> Taken<S::Error> {
        self.sink.begin(origin)
    }

    fn event(&mut self, event: &Event<'_>, payload: &[u8]) -> Taken<S::Error> {
        self.layer.event(event, payload, &mut self.sink)
    }

    fn frame(&mut self, frame: &Frame<'_>, event: Option<&Event<'_>>) -> Taken<S::Error> {
        self.layer.frame(frame, event, &mut self.sink)
    }

    fn left_out(&mut self, event: &Event<'_>) {
        self.sink.left_out(event);
    }

    fn is_recorded(&self, frame: &Frame<'_>) -> bool {
        self.sink.is_recorded(frame)
    }

    fn flush(&mut self) -> Result<bool, End<S::Error>> {
        self.layer.flush(&mut self.sink)
    }

    fn finish(&mut self, reason: &str) -> Result<(), S::Error> {
        self.sink.finish(reason)
    }
}
