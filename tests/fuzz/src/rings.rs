//! The server's consumer of rings, which two hostile writers change whenever it hands something on.
//!
//! An input is two rings' images with their lengths before them, and a script.

use std::convert::Infallible;

use socktrace_collect::Sender;
use socktrace_collect::owners::Owners;
use socktrace_collect::receive::rings::Rings;
use socktrace_collect::receive::writers::Announcer;
use socktrace_event::{Event, Sink, Taken};
use socktrace_ring::{HEADER_LEN, MIN_RING_LEN};

use crate::input::Input;
use crate::memory::Hostile;

/// The most that one call takes: of each ring, its turn, in records of the shortest length.
const MAX_EVENTS: usize = 2 * (1 << 20) / HEADER_LEN;

/// The other side: it changes the rings whenever it hears of an event.
struct Writers<'i> {
    hostile: [Hostile; 2],
    input: Input<'i>,
    /// Of a call.
    events: usize,
}

impl Writers<'_> {
    fn scribble(&mut self) {
        let which = usize::from(self.input.u8() % 2);
        self.hostile[which].scribble(&mut self.input);
    }

    fn heard(&mut self) {
        self.events += 1;
        assert!(self.events <= MAX_EVENTS, "it does not end");
        if !self.input.is_empty() {
            self.scribble();
        }
    }
}

impl Sink for Writers<'_> {
    type Error = Infallible;

    fn event(&mut self, _: &Event<'_>, payload: &[u8]) -> Taken<Infallible> {
        assert!(payload.len() <= MIN_RING_LEN);
        self.heard();
        Ok(())
    }
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let hostile = std::array::from_fn(|_| Hostile::new(&mut input));
    let mut writers = Writers { hostile, input, events: 0 };
    let (mut rings, mut owners) = (Rings::default(), Owners::default());
    for (agent, which) in [(1, 0), (2, 1)] {
        announce(&mut rings, &mut writers, agent, which);
    }
    while !writers.input.is_empty() {
        writers.events = 0;
        match writers.input.u8() % 8 {
            0 => {
                rings.take(&mut owners, &mut writers).expect("it takes everything");
            }
            1 => rings.free(),
            2 => rings.agent_gone(u64::from(writers.input.u8() % 4)),
            3 => {
                let (agent, which) = (writers.input.u8() % 4, usize::from(writers.input.u8() % 2));
                announce(&mut rings, &mut writers, agent.into(), which);
            }
            4 => {
                rings.look_in();
                rings.is_pressing();
            }
            _ => writers.scribble(),
        }
    }
    writers.events = 0;
    rings.take(&mut owners, &mut writers).expect("it takes everything");
    rings.free();
    rings.finish(&mut writers).expect("it takes everything");
}

fn announce(rings: &mut Rings, writers: &mut Writers<'_>, agent: u64, which: usize) {
    let fd = writers.hostile[which].fd().try_clone().expect("a descriptor");
    // Several users, each with several processes, between whom what there is of rings is shared.
    let sender = Sender { pid: agent as u32, uid: 70_000 + (agent % 2) as u32 };
    rings.add(&fd, agent, sender, &Announcer::default(), writers).expect("it takes everything");
}
