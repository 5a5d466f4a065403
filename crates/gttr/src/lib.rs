//! The GTTR wire format: what a socktrace agent says to its server.
//!
//! One frame is a 32-byte little-endian header, a path, a conn field and a payload, and behind them,
//! optionally, a block of typed extension values. `docs/gttr.md` is the reference; this crate is the one
//! implementation that both sides compile, so they cannot drift apart.
//!
//! Nothing here allocates, and nothing trusts its input: any bytes decode to a frame or to an error.
//!
//! ```
//! use gttr::{Direction, Frame, FrameType};
//!
//! let frame = Frame {
//!     fd: 8,
//!     direction: Direction::In,
//!     path: b"/tmp/demo.sock",
//!     conn: b"demo:fd=8",
//!     payload: b"ping",
//!     ..Frame::new(FrameType::Data, 1_795_407_956_372)
//! };
//! let mut bytes = [0; 128];
//! let len = frame.encode(&mut bytes).unwrap();
//! assert_eq!(gttr::decode_datagram(&bytes[..len]).unwrap(), frame);
//! ```
#![warn(missing_docs)]
#![no_std]
#![forbid(unsafe_code)]

mod data_values;
mod ext;
mod frame;
mod name;
mod stream;

pub use data_values::{DATA_VALUES_LEN, DataValues};
pub use ext::{Credentials, Ext, ExtWriter, Extensions, PassedFd};
pub use frame::{
    Direction, Error, FLAG_EXTENDED, FLAG_PAYLOAD, Frame, FrameType, HEADER_LEN, Header, MAGIC, MAX_PAYLOAD_LEN,
    NoRoom, VERSION, decode_datagram,
};
pub use name::{
    MAX_CONN_ID_LEN, escape_path, escape_unprintable, is_conn_id, is_escaped_path, sanitize, unescape_path,
};
pub use stream::{StreamDecoder, StreamStep};
