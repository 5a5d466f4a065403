//! Which descriptor leads to which connection.

pub(crate) mod connection;
pub(crate) mod descriptors;
pub(crate) mod name;
