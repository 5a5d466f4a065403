//! x86-64, by the System V ABI.

pub(crate) mod call;
pub(crate) mod code;
#[cfg(feature = "standalone")]
pub(crate) mod entry;
pub(crate) mod front;
pub(crate) mod instruction;
pub(crate) mod jump;
#[cfg(feature = "standalone")]
pub(crate) mod linked;
pub(crate) mod number;
pub(crate) mod register;
pub(crate) mod stack;
pub(crate) mod valgrind;
pub(crate) mod wrapper;
