//! A forked child begins.

use gttr::FrameType;

use super::exec;
use crate::observe::notices;
use crate::table::descriptors;
use crate::{process, transport};

/// What is to be done before the first thing that the child reports.
pub(crate) fn child() {
    exec::after_fork();
    let announcement = transport::after_fork();
    process::set_apart(transport::number_apart());
    if descriptors::is_tracing() {
        notices::introduce(FrameType::Fork, announcement);
    }
}
