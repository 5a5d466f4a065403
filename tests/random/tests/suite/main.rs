//! Random operations, traced: the recording says what the program's account says, and the program's results are those
//! that it has untraced.
//!
//! A failure prints the seeds, and the command that repeats it. `SOCKTRACE_SEED=N` has the tests do this seed alone
//! and shorten what fails to the fewest operations; `SOCKTRACE_SOAK=SECONDS` has `soak` go on with new seeds.

mod compare;
mod coverage;
mod runs;
mod transparency;
