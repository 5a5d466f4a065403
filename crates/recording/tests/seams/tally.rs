//! A sink: counts events and the bytes that come with them, up to a number of events.

use std::convert::Infallible;

use socktrace_event::{End, Event, Sink, Taken};

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub most: Option<u64>,
    pub events: u64,
    pub bytes: u64,
    pub left_out: u64,
    pub finished: Option<String>,
}

impl Sink for Tally {
    type Error = Infallible;

    fn event(&mut self, _: &Event<'_>, payload: &[u8]) -> Taken<Infallible> {
        if Some(self.events) == self.most {
            return Err(End::Enough);
        }
        self.events += 1;
        self.bytes += payload.len() as u64;
        Ok(())
    }

    fn left_out(&mut self, _: &Event<'_>) {
        self.left_out += 1;
    }

    fn finish(&mut self, reason: &str) -> Result<(), Infallible> {
        self.finished = Some(reason.to_owned());
        Ok(())
    }
}
