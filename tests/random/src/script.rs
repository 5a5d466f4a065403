//! What a thread does: one operation after the other, each chosen by the seed, the thread's key and its number.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::actor::Actor;
use crate::{ancillary, failures, files, processes, receiving, sending, sockets, waiting};

/// An operation.
struct Operation {
    /// How often, in comparison with the others.
    weight: usize,
    name: &'static str,
    run: fn(&mut Actor),
    /// Whether it copies the process, with descriptors of all its threads, which must then be idle.
    copies_process: bool,
}

macro_rules! operations {
    ($($weight:literal $name:ident: $run:path $(, $copies:ident)?;)+) => {
        const OPERATIONS: &[Operation] = &[$(Operation {
            weight: $weight,
            name: stringify!($name),
            run: $run,
            copies_process: !<[&str]>::is_empty(&[$(stringify!($copies))?]),
        },)+];
    };
}

operations! {
    8 pair: sockets::pair;
    6 listener: sockets::listener;
    8 datagram: sockets::datagram;
    2 reconnect: sockets::reconnect;
    12 connect: sockets::connect;
    5 accept: sockets::accept;
    70 send: sending::send;
    90 receive: receiving::receive;
    8 ask: sockets::ask;
    4 ask_for_credentials: ancillary::ask_for_credentials;
    4 shutdown: sockets::shutdown;
    10 duplicate: sockets::duplicate;
    8 close: sockets::close;
    2 close_unseen: sockets::close_unseen;
    3 close_many: sockets::close_many;
    5 bad_descriptor: failures::bad_descriptor;
    6 bad_memory: failures::bad_memory;
    5 wrong_state: failures::wrong_state;
    3 nobody_there: failures::nobody_there;
    5 send_file: files::send_file;
    5 splice_out: files::splice_out;
    4 splice_in: files::splice_in;
    4 buffered: files::buffered;
    3 take_by_pidfd: files::take_by_pidfd;
    2 for_data: waiting::for_data;
    1 for_room: waiting::for_room;
    1 interrupted: waiting::interrupted;
    1 jumped_out: waiting::jumped_out;
    1 cancelled: waiting::cancelled;
    1 among_signals: waiting::among_signals;
    2 raised: waiting::raised;
    1 contended: waiting::contended;
    2 forked: processes::forked, copies_process;
    1 beside: processes::beside, copies_process;
    1 vforked: processes::vforked, copies_process;
    1 spawned: processes::spawned, copies_process;
}

/// The operations that are to be done, `KEY:NUMBER`; all, if there is no list.
static KEPT: OnceLock<BTreeSet<String>> = OnceLock::new();
/// Threads read-lock it for an operation, and write-lock it for one that copies the process.
static IDLE: RwLock<()> = RwLock::new(());
/// In a copy of the process there is one thread, and the lock is as it was.
static IS_COPY: AtomicBool = AtomicBool::new(false);

/// Has only these operations done.
pub fn keep(list: &str) {
    // Set once, when the program begins.
    let _ = KEPT.set(list.split(',').map(str::to_owned).collect());
}

/// The list, for a program that is executed.
pub fn kept() -> Option<String> {
    KEPT.get().map(|kept| kept.iter().cloned().collect::<Vec<_>>().join(","))
}

/// Says that this process is a copy.
pub fn set_copy() {
    IS_COPY.store(true, Relaxed);
}

/// Does operations from 1 to `count`.
pub fn run(actor: &mut Actor, count: usize) {
    let sum: usize = OPERATIONS.iter().map(|operation| operation.weight).sum();
    for number in 1..=count {
        actor.seed_op(number);
        let mut at = actor.rng.below(sum);
        let operation = OPERATIONS.iter().find(|operation| match at.checked_sub(operation.weight) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        });
        // The weights add up to `sum`.
        let operation = operation.unwrap_or(&OPERATIONS[0]);
        if KEPT.get().is_some_and(|kept| !kept.contains(&format!("{}:{number}", actor.key))) {
            continue;
        }
        actor.result(format_args!("- {}", operation.name));
        if IS_COPY.load(Relaxed) {
            (operation.run)(actor);
        } else if operation.copies_process {
            let _idle = IDLE.write().expect("nobody panics with it");
            (operation.run)(actor);
        } else {
            let _busy = IDLE.read().expect("nobody panics with it");
            (operation.run)(actor);
        }
        actor.make_room();
    }
    processes::wait_for_children(actor);
}
