//! What a call did: to which connection, with which bytes.

pub(crate) mod ancillary;
pub(crate) mod announce;
pub(crate) mod calls;
pub(crate) mod capture;
pub(crate) mod failures;
pub(crate) mod notices;
pub(crate) mod peer;
pub(crate) mod records;
pub(crate) mod scan;
