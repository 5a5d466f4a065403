//! The probe begins and ends, and puts its hooks in place.

pub(crate) mod control;
pub(crate) mod install;
#[cfg(feature = "standalone")]
mod preload;
