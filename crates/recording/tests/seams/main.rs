//! A source and a sink, each in a file of its own, are put together with all that is there.

mod replay;
mod tally;

#[path = "../../examples/read.rs"]
#[allow(dead_code, reason = "its main is not called")]
mod read;

use std::convert::Infallible;

use gttr::{Frame, FrameType};
use replay::Replay;
use socktrace_event::{Event, Failed, Layer, PathError, Sink, Source, Stop, Taken, What};
use socktrace_recording::{Contents, Ordered, Recorder, Recording};
use tally::Tally;

const GOLDEN: &str = include_str!("../../../gttr/tests/golden/gttr-v1-frames.hex");
/// Of their payloads, in bytes.
const GOLDEN_LEN: u64 = 37 + 40 + 4096 + 2;

fn golden() -> Replay {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    Replay(GOLDEN.lines().map(|line| line.as_bytes().chunks(2).map(byte).collect()).collect())
}

/// Lets nothing through but messages.
struct Messages;

impl Layer for Messages {
    fn event<S: Sink + ?Sized>(&mut self, event: &Event<'_>, payload: &[u8], to: &mut S) -> Taken<S::Error> {
        if let What::Data(_) = event.what {
            return to.event(event, payload);
        }
        to.left_out(event);
        Ok(())
    }

    fn frame<S: Sink + ?Sized>(&mut self, frame: &Frame<'_>, _: Option<&Event<'_>>, to: &mut S) -> Taken<S::Error> {
        self.event(&Event::from_frame(frame), frame.payload, to)
    }
}

#[test]
fn what_is_replayed_is_recorded_read_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (out, stop) = (dir.path().join("out"), Stop::new().unwrap());
    let mut recorder = Recorder::open(&out, Contents::All).unwrap();
    recorder.begin(&golden().origin()).unwrap();
    let reason = golden().run(&stop, &mut recorder).unwrap();
    recorder.finish(reason).unwrap();

    let events: Vec<_> = Recording::open(&out).unwrap().events().map(Result::unwrap).collect();
    assert_eq!(events.len(), 12 + 2);
    assert!(matches!(&events[0].event().what, What::HostInit(it) if &*it.sock == "kept.hex"));
    assert!(matches!(&events[13].event().what, What::HostShutdown(it) if it.bytes == GOLDEN_LEN));

    let (recorded, mut tally) = (Ordered::open(&out).unwrap(), Tally::default());
    assert_eq!(recorded.origin().path, out);
    let reason = recorded.run(&stop, &mut tally).unwrap();
    tally.finish(reason).unwrap();
    assert_eq!((tally.events, tally.bytes, tally.finished.as_deref()), (14, GOLDEN_LEN, Some("end of the recording")));

    let read = read::read(&out).unwrap();
    assert_eq!(read.lines().count(), 4);
    assert!(read.contains("@demo-abstract:fd=9:t=1795407956377 <- "), "{read}");
}

#[test]
fn several_sinks_behind_one_filter() {
    let stop = Stop::new().unwrap();
    let (mut all, mut some) = (Tally::default(), Tally::default());
    let sinks: Vec<Box<dyn Sink<Error = Infallible> + '_>> = vec![Box::new(&mut all), Box::new(&mut some)];
    golden().run(&stop, &mut Messages.before(sinks)).unwrap();
    assert_eq!((all.events, all.left_out, all.bytes), (4, 8, GOLDEN_LEN));
    assert_eq!(all, some);
}

#[test]
fn a_sink_that_has_enough_ends_it() {
    let (stop, mut few) = (Stop::new().unwrap(), Tally { most: Some(3), ..Tally::default() });
    assert_eq!(golden().run(&stop, &mut few).unwrap(), "the sink has enough");
    assert_eq!(few.events, 3);
}

#[test]
fn who_asks_for_a_stop_gets_it() {
    let (stop, mut tally) = (Stop::new().unwrap(), Tally::default());
    stop.handle().stop();
    assert_eq!(golden().run(&stop, &mut tally).unwrap(), "stop");
    assert_eq!(tally.events, 0);
}

/// A disk that has gone.
struct Broken;

impl Sink for Broken {
    type Error = PathError;

    fn event(&mut self, event: &Event<'_>, _: &[u8]) -> Taken<PathError> {
        match event.what {
            What::Open(_) => Err(PathError::refused("/dev/gone".as_ref(), "there is no such disk any more"))?,
            _ => Ok(()),
        }
    }
}

#[test]
fn whoever_fails_is_named() {
    let stop = Stop::new().unwrap();
    match golden().run(&stop, &mut Broken) {
        Err(Failed::Sink(error)) => assert_eq!(error.to_string(), "/dev/gone: there is no such disk any more"),
        other => panic!("{other:?}"),
    }
    let mut frame = vec![0; 64];
    let len = Frame::new(FrameType::Ready, 1).encode(&mut frame).unwrap();
    let cut_off = Replay(vec![frame[..len - 1].to_vec()]);
    let failed = cut_off.run(&stop, &mut Tally::default()).unwrap_err();
    assert!(matches!(failed, Failed::Source(gttr::Error::Truncated { .. })), "{failed}");
}
