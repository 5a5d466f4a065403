//! File names for connection ids.

use std::borrow::Cow;
use std::fmt::Write;

use sha2::{Digest, Sha256};

/// Bytes of the hash that go into a name: 128 bits, so that nobody finds two ids with one name.
const HASH_LEN: usize = 16;
/// Stands before the hash. It is outside the connection ids' alphabet, so no valid id looks like a hashed name.
const HASH_MARK: char = '%';
/// Bytes of the id kept before the mark, so that one can still tell what the file is.
const KEPT_LEN: usize = gttr::MAX_CONN_ID_LEN - 1 - 2 * HASH_LEN;

/// Whether a connection's payload files are named by its `conn_id` as it is.
pub fn names_its_files(conn_id: &[u8]) -> bool {
    gttr::is_conn_id(conn_id) && conn_id[0] != b'.'
}

/// The base name, without `.in.bin` or `.out.bin`, of the payload files of a connection.
///
/// A valid connection id (docs/gttr.md, "Names") that does not begin with a dot names its files itself. Any other
/// bytes become `<sanitised beginning>%<hash>`: at most 200 bytes of `[A-Za-z0-9_.:@=+-%]`, never beginning with a
/// dot, and different for different ids.
pub fn safe_filename(conn_id: &[u8]) -> Cow<'_, str> {
    if names_its_files(conn_id) {
        return String::from_utf8_lossy(conn_id);
    }
    let mut kept = [0; KEPT_LEN];
    let len = gttr::sanitize(conn_id, &mut kept);
    let kept = String::from_utf8_lossy(&kept[..len]);
    // A leading dot would hide the file, and `..` would leave the folder.
    let mut name = match kept.strip_prefix('.') {
        Some(rest) => format!("_{rest}"),
        None => kept.into_owned(),
    };
    name.push(HASH_MARK);
    for byte in &Sha256::digest(conn_id)[..HASH_LEN] {
        write!(name, "{byte:02x}").expect("writing to a String does not fail");
    }
    name.into()
}
