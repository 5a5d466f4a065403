//! The process becomes another program, a child, or one that may no longer ask the kernel.

pub(crate) mod exec;
pub(crate) mod fork;
pub(crate) mod strict;
