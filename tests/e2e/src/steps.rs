//! The workload's case `steps`, which does one thing after the other as the test says (workload/steps.c).

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::account::Account;
use crate::stage::until;

/// The way to tell the workload what to do. Dropping it ends the case.
#[derive(Debug)]
pub struct Steps {
    commands: File,
    account: PathBuf,
    done: usize,
}

impl Steps {
    pub(crate) fn new(fifo: PathBuf, account: PathBuf) -> Self {
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .unwrap_or_else(|error| panic!("{}: {error}", fifo.display()));
        // Open both ways, so that neither side waits for the other to open it (fifo(7)).
        let commands = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&fifo)
            .unwrap_or_else(|error| panic!("{}: {error}", fifo.display()));
        Self { commands, account, done: 0 }
    }

    /// Has the workload begin a step, without waiting for its end.
    pub fn begin(&mut self, step: &str) {
        writeln!(self.commands, "{step}").expect("the FIFO takes a line");
        self.done += 1;
    }

    /// Waits for the end of the last step; how long its calls took.
    #[track_caller]
    pub fn end(&self) -> Duration {
        until("the workload has done its step", || {
            let account = Account::read(&self.account);
            account.assert_undisturbed();
            (account.notes("did").len() >= self.done).then(|| {
                let took = account.notes("took")[self.done - 1];
                Duration::from_nanos(took.unsigned_abs())
            })
        })
    }

    /// Has the workload do a step; how long its calls took.
    #[track_caller]
    pub fn step(&mut self, step: &str) -> Duration {
        self.begin(step);
        self.end()
    }
}
