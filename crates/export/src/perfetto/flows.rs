//! Which send a received message comes from, where both ends of a connection are recorded.

use std::collections::VecDeque;

use crate::stream::Place;

/// Sends that wait for being received, in one direction of a connection. A socket's buffer holds fewer.
const MAX_WAITING: usize = 4 << 10;

/// One direction of a connection.
#[derive(Debug, Default)]
pub(super) struct Flows {
    /// Where each send lies in the stream, and its flow's number.
    waiting: VecDeque<(Place, u64)>,
}

/// Flows that a received message belongs to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Received {
    /// Of sends of which more is to be received.
    pub(super) part: Vec<u64>,
    /// Of sends that are received with it.
    pub(super) whole: Vec<u64>,
}

impl Flows {
    /// A message was sent.
    pub(super) fn sent(&mut self, place: Place, flow: u64) {
        if self.waiting.len() >= MAX_WAITING {
            self.waiting.pop_front();
        }
        self.waiting.push_back((place, flow));
    }

    /// A message was received at a place in the stream: whatever was sent there.
    pub(super) fn received(&mut self, place: Place) -> Received {
        let mut received = Received::default();
        self.waiting.retain(|(sent, flow)| {
            let overlaps = sent.at < place.until && place.at < sent.until;
            match (overlaps, sent.until <= place.until) {
                (true, true) => received.whole.push(*flow),
                (true, false) => received.part.push(*flow),
                (false, _) => {}
            }
            // What lies before has been received, or will never be heard of.
            sent.until > place.until
        });
        received
    }

    /// A datagram was received: the one that was sent first, if it is as long as that.
    pub(super) fn datagram(&mut self, place: Place, is_truncated: bool) -> Received {
        let len = |place: Place| place.until - place.at;
        let Some((sent, flow)) = self.waiting.pop_front() else { return Received::default() };
        if len(sent) == len(place) || (is_truncated && len(sent) > len(place)) {
            return Received { part: Vec::new(), whole: vec![flow] };
        }
        // Some are not recorded, and which it is cannot be said.
        self.waiting.clear();
        Received::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(at: u64, until: u64) -> Place {
        Place { at, until }
    }

    fn flows(part: &[u64], whole: &[u64]) -> Received {
        Received { part: part.to_vec(), whole: whole.to_vec() }
    }

    #[test]
    fn bytes_find_where_they_come_from() {
        let mut stream = Flows::default();
        stream.sent(place(0, 10), 1);
        stream.sent(place(10, 20), 2);
        stream.sent(place(20, 100), 3);
        assert_eq!(stream.received(place(0, 4)), flows(&[1], &[]));
        assert_eq!(stream.received(place(4, 30)), flows(&[3], &[1, 2]));
        assert_eq!(stream.received(place(30, 100)), flows(&[], &[3]));
        assert_eq!(stream.received(place(100, 101)), flows(&[], &[]));
    }

    #[test]
    fn what_was_lost_is_not_made_up() {
        let mut stream = Flows::default();
        stream.sent(place(0, 10), 1);
        stream.sent(place(50, 60), 2);
        assert_eq!(stream.received(place(10, 50)), flows(&[], &[]));
        assert_eq!(stream.received(place(50, 60)), flows(&[], &[2]));
    }

    #[test]
    fn datagrams_in_order() {
        let mut datagrams = Flows::default();
        datagrams.sent(place(0, 10), 1);
        datagrams.sent(place(10, 11), 2);
        datagrams.sent(place(11, 20), 3);
        assert_eq!(datagrams.datagram(place(0, 4), true), flows(&[], &[1]));
        assert_eq!(datagrams.datagram(place(4, 5), false), flows(&[], &[2]));
        assert_eq!(datagrams.datagram(place(5, 6), false), flows(&[], &[]));
    }
}
