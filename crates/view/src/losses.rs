//! What was not recorded, told or noticed.

use std::collections::{BTreeMap, HashMap};

use socktrace_event::{Event, ProcessId, What, printable};

/// Event numbers of one process, which leave no gaps but where events are lost.
#[derive(Debug, Default)]
pub struct Numbers {
    first: u64,
    last: u64,
    seen: u64,
    /// Gaps that the process has reported itself.
    told: u64,
}

impl Numbers {
    fn untold(&self) -> u64 {
        (self.last - self.first).saturating_add(1).saturating_sub(self.seen).saturating_sub(self.told)
    }
}

/// So many reasons and processes are told apart. An agent has some ten reasons; more are somebody's who wants the end to be
/// long, and all of these fit on a screen or two.
const MAX_REASONS: usize = 24;
const MAX_PROCESSES: usize = 1 << 20;
/// More of a reason is not shown, in bytes.
const MAX_REASON_LEN: usize = 400;

/// The account.
#[derive(Debug, Default)]
pub struct Losses {
    /// Events and bytes by reason.
    told: BTreeMap<String, (u64, u64)>,
    numbers: HashMap<ProcessId, Numbers>,
    /// Gaps of processes that have started over (execve(2)).
    former_gaps: u64,
    bad_frames: u64,
}

impl Losses {
    /// Learns from an event.
    pub fn note(&mut self, event: &Event<'_>) {
        match &event.what {
            What::BadFrame(_) => self.bad_frames += 1,
            What::Lost(lost) => {
                let reason = lost.reason.as_deref().unwrap_or("for a reason not given");
                let reason = printable::beginning(reason, MAX_REASON_LEN);
                let is_known = self.told.len() < MAX_REASONS || self.told.contains_key(reason);
                let reason = if is_known { reason } else { "for other reasons" };
                let (events, bytes) = self.told.entry(reason.to_owned()).or_default();
                *events = events.saturating_add(lost.events.unwrap_or(0));
                *bytes = bytes.saturating_add(lost.bytes.unwrap_or(0));
            }
            _ => {}
        }
        let Some(process) = event.process() else { return };
        // The first that a vforked child says may arrive later than what the program says that it has executed.
        let is_exec = matches!(event.what, What::Exec(_));
        if is_exec && event.seq == Some(1) && self.numbers.contains_key(&process) {
            return;
        }
        let Some(numbers) = self.note_number(process, event.seq) else { return };
        if let What::Lost(lost) = &event.what {
            numbers.told = numbers.told.saturating_add(lost.events.unwrap_or(0));
        }
    }

    /// Notes the number of a process's event.
    pub fn note_number(&mut self, process: ProcessId, seq: Option<u64>) -> Option<&mut Numbers> {
        let seq = seq?;
        if self.numbers.len() >= MAX_PROCESSES && !self.numbers.contains_key(&process) {
            return None;
        }
        let numbers = self.numbers.entry(process).or_default();
        if seq == 1 && numbers.seen > 0 {
            self.former_gaps = self.former_gaps.saturating_add(numbers.untold());
            *numbers = Numbers::default();
        }
        if numbers.seen == 0 {
            (numbers.first, numbers.last) = (seq, seq);
        }
        numbers.first = numbers.first.min(seq);
        numbers.last = numbers.last.max(seq);
        numbers.seen += 1;
        Some(numbers)
    }

    /// A sentence per kind of loss; none if nothing is known to be lost.
    pub fn sentences(&self) -> Vec<String> {
        let mut all = Vec::new();
        for (reason, (events, bytes)) in &self.told {
            let what = match (events, bytes) {
                (0, 0) => "something, nobody knows how much".to_owned(),
                (0, bytes) => format!("{bytes} payload bytes"),
                (events, bytes) => format!("{events} events with {bytes} payload bytes"),
            };
            all.push(format!("LOST: {what}: {reason}"));
        }
        let untold = self.numbers.values().map(Numbers::untold);
        let gaps = untold.fold(self.former_gaps, u64::saturating_add);
        if gaps > 0 {
            all.push(format!("LOST: {gaps} events never arrived; their processes ended before they could say why"));
        }
        if self.bad_frames > 0 {
            all.push(format!("LOST: {} times bytes arrived that were no frame", self.bad_frames));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use socktrace_event::{Data, Exec, Lost};

    use super::*;

    fn event(seq: u64, what: What<'static>) -> Event<'static> {
        Event { pid: Some(1), seq: Some(seq), what, ..Event::default() }
    }

    fn numbered(seq: u64) -> Event<'static> {
        event(seq, What::Data(Data::default()))
    }

    fn lost(seq: u64, events: u64, bytes: u64) -> Event<'static> {
        let reason = Some("the server did not read".into());
        event(seq, What::Lost(Lost { events: Some(events), bytes: Some(bytes), reason, ..Lost::default() }))
    }

    #[test]
    fn a_vforked_child_s_exec_may_come_late() {
        let exec = event(1, What::Exec(Exec::default()));
        assert!(after(&[numbered(1), numbered(2), exec.clone(), numbered(3)]).is_empty());
        assert!(after(&[exec, numbered(1), numbered(2), numbered(3)]).is_empty());
    }

    fn after(events: &[Event<'_>]) -> Vec<String> {
        let mut losses = Losses::default();
        events.iter().for_each(|event| losses.note(event));
        losses.sentences()
    }

    #[test]
    fn gaps_that_are_told_and_that_are_not() {
        assert!(after(&[numbered(1), numbered(3), numbered(2)]).is_empty());
        let told = after(&[numbered(1), lost(4, 2, 10), numbered(5)]);
        assert_eq!(told, ["LOST: 2 events with 10 payload bytes: the server did not read"]);
        assert!(after(&[numbered(1), numbered(4)])[0].starts_with("LOST: 2 events never arrived"));
        assert!(after(&[numbered(1), numbered(3), numbered(1), numbered(2)])[0].starts_with("LOST: 1 events"));
        assert!(after(&[numbered(7), numbered(8)]).is_empty());
    }
}
