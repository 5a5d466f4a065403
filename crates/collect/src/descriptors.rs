//! How many file descriptors there are to spend on agents.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit on descriptors to the hard one, which takes no privilege: every stream agent needs one.
///
/// The soft limit is low by default for the sake of select(2), which is not used here. Failure changes nothing.
/// Children inherit the limit: a program that starts others of the user's must not call this before.
pub fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// The most agents that are connected at once: each costs the kernel some KiB, and us some hundred bytes.
const MAX_AGENTS: u64 = 16 << 10;
/// The fewest, however low the limit is.
const MIN_AGENTS: u64 = 4;
/// Descriptors for all else: the recording's own files, what comes with messages, what `run` and `attach` have open.
const MIN_OTHERS: u64 = 12;
const MAX_OTHERS: u64 = 64;

/// How many agents may be connected: half of the soft limit of now, less all else. The other half is the recorder's, for
/// payload files.
pub(crate) fn agent_share() -> usize {
    let soft = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let others = (soft / 8).clamp(MIN_OTHERS, MAX_OTHERS);
    let left = (soft / 2).saturating_sub(others);
    usize::try_from(left.clamp(MIN_AGENTS, MAX_AGENTS)).expect("at most 16384")
}
