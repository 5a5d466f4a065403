//! Where in its stream a message lies.

use socktrace_event::{Data, ProcessId};

/// Calls of which more frames are to come: as many threads may be sending on one connection.
const MAX_SPLIT_CALLS: usize = 16;

/// Where a data event's bytes lie in the stream of their connection and direction, counted from where recording began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The first byte.
    pub at: u64,
    /// Behind the last byte that is known to have moved by now: further than the event's own bytes where the call moved
    /// more than was captured.
    pub until: u64,
}

/// One direction of a connection.
///
/// A process counts the bytes it has moved (`offset` of its events), captured or not, so a jump is a gap. Processes that
/// share a connection (fork(2)) count on from the same number, each for itself; what they move is one behind the other.
#[derive(Debug, Default)]
pub struct Track {
    /// Behind the last byte that has moved.
    end: u64,
    movers: Movers,
    calls: Vec<Split>,
}

#[derive(Debug, Default)]
enum Movers {
    #[default]
    Nobody,
    /// One process, and which of its offsets is the beginning of the stream.
    One { process: Option<ProcessId>, origin: u64 },
    /// Each process, and the offset that its next event should have.
    Many(Vec<(Option<ProcessId>, u64)>),
}

/// A call whose capture was split into several frames.
#[derive(Debug)]
struct Split {
    process: Option<ProcessId>,
    offset: Option<u64>,
    at: u64,
    /// Bytes of the parts so far.
    done: u64,
    next: u32,
    /// Length of a part that is not the last.
    part_len: u64,
}

impl Track {
    /// The place of a data event's bytes. `from_start` says that the connection has been recorded since its first byte,
    /// so that the process's count is the stream's.
    pub fn place(&mut self, process: Option<ProcessId>, data: &Data<'_>, from_start: bool) -> Place {
        let (size, total, offset) = (data.size, data.moved().max(data.size), data.offset);
        let (part, parts) = (data.part.unwrap_or(0), data.parts.unwrap_or(1));
        if parts <= 1 {
            let at = self.begin(process, offset, total, from_start);
            return Place { at, until: at.saturating_add(total) };
        }
        let known = self.calls.iter().position(|call| (call.process, call.offset) == (process, offset));
        let index = known.unwrap_or_else(|| {
            let at = self.begin(process, offset, total, from_start);
            if self.calls.len() >= MAX_SPLIT_CALLS {
                self.calls.remove(0);
            }
            self.calls.push(Split { process, offset, at, done: 0, next: 0, part_len: 0 });
            self.calls.len() - 1
        });
        let call = &mut self.calls[index];
        let is_last = part + 1 >= parts;
        if part != call.next {
            // Parts were lost before this one. All but the last are of one length, and the last ends where the capture does.
            let len = if is_last { call.part_len } else { size };
            let before = if len > 0 { len.saturating_mul(part.into()) } else { total.saturating_sub(size) };
            call.done = before.min(total.saturating_sub(size));
        }
        let at = call.at.saturating_add(call.done);
        call.done = call.done.saturating_add(size);
        call.next = part + 1;
        call.part_len = call.part_len.max(size);
        if !is_last {
            return Place { at, until: at.saturating_add(size) };
        }
        let until = call.at.saturating_add(total);
        self.calls.remove(index);
        Place { at, until }
    }

    /// Where a call's bytes begin.
    fn begin(&mut self, process: Option<ProcessId>, offset: Option<u64>, total: u64, from_start: bool) -> u64 {
        // An agent that does not count is taken at its word.
        let at = offset.map_or(self.end, |offset| self.find(process, offset, total, from_start));
        self.end = self.end.max(at.saturating_add(total));
        at
    }

    fn find(&mut self, mover: Option<ProcessId>, offset: u64, total: u64, from_start: bool) -> u64 {
        match &mut self.movers {
            Movers::Nobody => {
                let origin = if from_start { 0 } else { offset };
                self.movers = Movers::One { process: mover, origin };
                offset - origin
            }
            // Also of an event that arrives late: another thread's has overtaken it.
            Movers::One { process, origin } if *process == mover => offset.saturating_sub(*origin),
            Movers::One { process, origin } => {
                let first = (*process, self.end.saturating_add(*origin));
                self.movers = Movers::Many(vec![first, (mover, offset.saturating_add(total))]);
                self.end
            }
            Movers::Many(expected) => {
                let known = expected.iter_mut().find(|(process, _)| *process == mover);
                let gap = known.as_ref().map_or(0, |(_, expected)| offset.saturating_sub(*expected));
                let next = offset.saturating_add(total);
                match known {
                    Some((_, expected)) => *expected = next.max(*expected),
                    None => expected.push((mover, next)),
                }
                self.end.saturating_add(gap)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Moved = (Option<ProcessId>, Data<'static>);

    fn data(pid: u32, offset: u64, total: u64) -> Moved {
        let data = Data { offset: Some(offset), total: Some(total), size: total, ..Data::default() };
        (Some(ProcessId::Here(pid)), data)
    }

    fn part(part: u32, size: u64, total: u64) -> Moved {
        let (process, whole) = data(1, 0, total);
        (process, Data { size, part: Some(part), parts: Some(4), ..whole })
    }

    fn ats(events: &[Moved], from_start: bool) -> Vec<u64> {
        let mut track = Track::default();
        events.iter().map(|(process, data)| track.place(*process, data, from_start).at).collect()
    }

    #[test]
    fn lost_events_are_gaps() {
        assert_eq!(ats(&[data(1, 0, 5), data(1, 5, 5), data(1, 30, 1)], true), [0, 5, 30]);
        assert_eq!(ats(&[data(1, 7, 5)], true), [7]);
        assert_eq!(ats(&[data(1, 7, 5), data(1, 13, 1)], false), [0, 6]);
    }

    #[test]
    fn late_events_keep_their_place() {
        assert_eq!(ats(&[data(1, 5, 5), data(1, 0, 5), data(1, 10, 5)], true), [5, 0, 10]);
    }

    #[test]
    fn events_without_offsets_follow_each_other() {
        let plain = |size| (None, Data { size, ..Data::default() });
        assert_eq!(ats(&[plain(3), plain(4), plain(1)], true), [0, 3, 7]);
    }

    #[test]
    fn processes_that_share_a_connection() {
        // 2 was forked when 1 had moved 10 bytes; 1 then loses 4 bytes.
        let events = [data(1, 0, 10), data(2, 10, 5), data(1, 10, 5), data(2, 15, 1), data(1, 19, 1)];
        assert_eq!(ats(&events, true), [0, 10, 15, 20, 25]);
    }

    #[test]
    fn cut_captures_end_where_the_call_did() {
        let mut track = Track::default();
        let (process, whole) = data(1, 0, 100);
        let cut = Data { size: 3, ..whole };
        assert_eq!(track.place(process, &cut, true), Place { at: 0, until: 100 });
        assert_eq!(track.place(process, &data(1, 100, 1).1, true), Place { at: 100, until: 101 });
    }

    #[test]
    fn parts_of_a_call() {
        let mut track = Track::default();
        let mut place = |(process, data): &Moved| {
            let place = track.place(*process, data, true);
            (place.at, place.until)
        };
        assert_eq!(place(&part(0, 10, 35)), (0, 10));
        assert_eq!(place(&part(1, 10, 35)), (10, 20));
        // A call of another thread in between.
        assert_eq!(place(&data(1, 35, 5)), (35, 40));
        assert_eq!(place(&part(2, 10, 35)), (20, 30));
        assert_eq!(place(&part(3, 5, 35)), (30, 35));
    }

    #[test]
    fn lost_parts_are_gaps() {
        assert_eq!(ats(&[part(0, 10, 35), part(2, 10, 35), part(3, 5, 35)], true), [0, 20, 30]);
        assert_eq!(ats(&[part(3, 5, 35)], true), [30]);
        assert_eq!(ats(&[part(1, 10, 35), part(3, 5, 35)], true), [10, 30]);
    }
}
