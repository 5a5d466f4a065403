//! What is scarce is shared: between users first, and between the processes of each.
//!
//! As long as there is enough, everybody gets what they ask for. When there is not, whoever has most gives way to
//! whoever has less, so that no user and no process can shut the others out.

use std::collections::HashMap;
use std::hash::Hash;

use crate::sender::Sender;

/// Who has how much of something.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    users: HashMap<u32, u64>,
    processes: HashMap<Sender, u64>,
}

/// What becomes of somebody who wants some where there is none left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// This process has more than it would have, and gives way.
    Displaces(Sender),
    /// Nobody has more than it would have, and it has some.
    HasEnough,
    /// Nobody has more than it would have, but it has none.
    Waits,
}

impl Shares {
    pub(crate) fn add(&mut self, of: Sender, amount: u64) {
        if amount == 0 {
            return;
        }
        *self.users.entry(of.uid).or_default() += amount;
        *self.processes.entry(of).or_default() += amount;
    }

    pub(crate) fn take(&mut self, of: Sender, amount: u64) {
        take(&mut self.users, of.uid, amount);
        take(&mut self.processes, of, amount);
    }

    pub(crate) fn total(&self) -> u64 {
        self.users.values().sum()
    }

    pub(crate) fn of(&self, process: Sender) -> u64 {
        self.processes.get(&process).copied().unwrap_or(0)
    }

    /// The process that has most, of the user who has most.
    pub(crate) fn greediest(&self) -> Option<Sender> {
        let (&uid, _) = self.users.iter().max_by_key(|&(uid, amount)| (*amount, *uid))?;
        self.greediest_of(uid)
    }

    fn greediest_of(&self, uid: u32) -> Option<Sender> {
        let of_user = self.processes.iter().filter(|(process, _)| process.uid == uid);
        of_user.max_by_key(|(process, amount)| (**amount, process.pid)).map(|(&process, _)| process)
    }

    /// Who is to give way to somebody who wants so much more.
    pub(crate) fn judge(&self, newcomer: Sender, amount: u64) -> Verdict {
        let of_user = |uid| self.users.get(&uid).copied().unwrap_or(0);
        if let Some(greediest) = self.greediest()
            && greediest.uid != newcomer.uid
            && of_user(greediest.uid) > of_user(newcomer.uid) + amount
        {
            return Verdict::Displaces(greediest);
        }
        match self.greediest_of(newcomer.uid) {
            Some(greediest) if self.of(greediest) > self.of(newcomer) + amount => Verdict::Displaces(greediest),
            _ if self.of(newcomer) > 0 => Verdict::HasEnough,
            // A user who has as much as any other, in many processes: that others wait for one of them is not fair.
            _ if self.users.len() > 1 && of_user(newcomer.uid) > 0 => Verdict::HasEnough,
            _ => Verdict::Waits,
        }
    }
}

fn take<K: Eq + Hash>(from: &mut HashMap<K, u64>, key: K, amount: u64) {
    if let Some(left) = from.get_mut(&key) {
        *left = left.saturating_sub(amount);
        if *left == 0 {
            from.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(uid: u32, pid: u32) -> Sender {
        Sender { pid, uid }
    }

    fn shares(all: &[(u32, u32, u64)]) -> Shares {
        let mut shares = Shares::default();
        all.iter().for_each(|&(uid, pid, amount)| shares.add(process(uid, pid), amount));
        shares
    }

    #[test]
    fn who_has_most_gives_way() {
        let greedy = shares(&[(0, 1, 1), (0, 2, 97), (1000, 3, 2)]);
        assert_eq!(greedy.judge(process(1000, 4), 1), Verdict::Displaces(process(0, 2)));
        assert_eq!(greedy.judge(process(0, 5), 1), Verdict::Displaces(process(0, 2)));
        assert_eq!(greedy.judge(process(0, 2), 1), Verdict::HasEnough);
    }

    #[test]
    fn many_processes_are_one_user() {
        let mut all: Vec<_> = (0..90).map(|pid| (1000, pid, 1)).collect();
        all.push((0, 100, 1));
        let crowd = shares(&all);
        assert!(matches!(crowd.judge(process(0, 101), 1), Verdict::Displaces(Sender { uid: 1000, .. })));
        assert_eq!(crowd.judge(process(1000, 102), 1), Verdict::HasEnough);
    }

    #[test]
    fn equals_wait_for_each_other() {
        let equal = shares(&[(0, 1, 1), (0, 2, 1), (0, 3, 1)]);
        assert_eq!(equal.judge(process(0, 4), 1), Verdict::Waits);
        assert_eq!(equal.judge(process(0, 3), 1), Verdict::HasEnough);
        assert_eq!(equal.judge(process(1000, 4), 1), Verdict::Displaces(process(0, 3)));
        assert_eq!(shares(&[]).judge(process(0, 4), 1), Verdict::Waits);
    }

    #[test]
    fn what_is_given_back_is_gone() {
        let mut shares = shares(&[(0, 1, 5)]);
        shares.take(process(0, 1), 5);
        shares.take(process(7, 7), 1);
        assert_eq!((shares.total(), shares.of(process(0, 1)), shares.greediest()), (0, 0, None));
    }
}
