//! How many file descriptors there are to spend, and on what.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The most payload files kept open: writing to an open one costs a fifth of opening it again. The kernel takes about a
/// KiB for each.
const MAX_OPEN_PAYLOADS: u64 = 32 << 10;
/// The fewest, however low the limit is: below that every event would open a file.
const MIN_OPEN_PAYLOADS: u64 = 16;

/// Raises the soft limit on descriptors to the hard one, which takes no privilege: every stream agent needs one.
///
/// The soft limit is low by default for the sake of select(2), which is not used here. Failure changes nothing.
/// Children inherit the limit: a program that starts others of the user's must not call this before.
pub fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// How many payload files may be open at once: at most half of the soft limit, the rest is for agents.
pub(crate) fn payload_share() -> usize {
    let soft = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from((soft / 2).clamp(MIN_OPEN_PAYLOADS, MAX_OPEN_PAYLOADS)).expect("at most 32768")
}

/// The most agents that are connected at once: each costs the kernel some KiB, and us some hundred bytes.
const MAX_AGENTS: u64 = 16 << 10;
/// The fewest, however low the limit is.
const MIN_AGENTS: u64 = 4;
/// Descriptors for all else: the recording's own files, what comes with messages, what `run` and `attach` have open.
const MIN_OTHERS: u64 = 12;
const MAX_OTHERS: u64 = 64;

/// How many agents may be connected: what the soft limit of now leaves beside payload files and all else.
pub(crate) fn agent_share() -> usize {
    let soft = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let others = (soft / 8).clamp(MIN_OTHERS, MAX_OTHERS);
    let left = soft.saturating_sub(payload_share() as u64).saturating_sub(others);
    usize::try_from(left.clamp(MIN_AGENTS, MAX_AGENTS)).expect("at most 16384")
}
