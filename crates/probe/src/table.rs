//! Which descriptor leads to which connection.

pub(crate) mod connection;
pub(crate) mod descriptors;
pub(crate) mod name;
mod uses;

// Of `uses`, which a test compiles with others.
use core::sync::atomic::{AtomicU32, AtomicU64};
