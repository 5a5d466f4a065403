//! What the server hears of a connection before it hears of its bytes.

use gttr::{Ext, FrameType};

use crate::emit::{Event, emit_sized};
use crate::observe::peer::{EXE_EXT_LEN, Peer};
use crate::table::connection::{Connection, Description, SOCK_DGRAM};
use crate::transport;

/// Makes sure that the server has heard of a connection.
pub(crate) fn announce(connection: &Connection, ts_ns: u64) {
    let (session, before) = (transport::session(), connection.announced_in());
    if session == 0 {
        // The frame itself may be what makes a connection to the server.
        announce_as(connection, ts_ns, "");
    } else if before != session && connection.claim_announcement(before, session) {
        announce_as(connection, ts_ns, if before == 0 { "" } else { "resumed:" });
    }
}

/// Sends a connection's open frame.
fn announce_as(connection: &Connection, ts_ns: u64, prefix: &str) {
    let description = connection.description();
    let (mut how, mut len) = ([0; 64], 0);
    for part in ["|", prefix, description.how] {
        how[len..len + part.len()].copy_from_slice(part.as_bytes());
        len += part.len();
    }
    let Description { fd, inode, mate, .. } = *description;
    let peer = Peer::of(fd, inode, mate, description.how != "connect" || description.socket_type == SOCK_DGRAM);
    /// Inode, type, and five values of the peer.
    const MAX_VALUES: usize = 7;
    let mut values = [Ext::Inode(inode); MAX_VALUES];
    // Not known under a seccomp filter: left out.
    let mut count = usize::from(inode != 0);
    let mut put = |value| {
        values[count] = value;
        count += 1;
    };
    put(Ext::SocketType(description.socket_type as u8));
    if let Some(peer) = &peer {
        if peer.pid != 0 {
            put(Ext::PeerPid(peer.pid));
            put(Ext::PeerUid(peer.uid));
            put(Ext::PeerGid(peer.gid));
            put(Ext::PeerExe(peer.exe.as_bytes()));
        }
        if peer.inode != 0 {
            put(Ext::PeerInode(peer.inode));
        }
    }
    let event = Event {
        fd,
        path: description.path.as_bytes(),
        conn: [description.id.as_bytes(), &how[..len], b""],
        values: &values[..count],
        ..Event::new(FrameType::Open, ts_ns)
    };
    let is_delivered = emit_sized::<EXE_EXT_LEN>(&event, &[]);
    connection.set_announced_in(if is_delivered { transport::session() } else { 0 });
}
