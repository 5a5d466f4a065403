//! What calls say of AF_UNIX sockets: which there are, and what each thread sent and received on them.

use std::collections::{BTreeMap, BTreeSet};

use super::calls::Call;
use super::syntax::Value;
use crate::account::Direction;

/// Bytes that one call moved, or one message of sendmmsg(2) or recvmmsg(2).
#[derive(Clone, Debug)]
pub struct Transfer {
    /// The thread.
    pub tid: u32,
    /// The system call.
    pub call: String,
    /// Which way.
    pub direction: Direction,
    /// How many; of a datagram that was cut, what was received of it.
    pub len: usize,
    /// Which; none where strace does not see them (`sendfile`, `splice`).
    pub bytes: Option<Vec<u8>>,
    /// The address it was sent to or came from, where the call says it.
    pub address: Option<Vec<u8>>,
}

/// A socket of the traced processes.
#[derive(Clone, Debug, Default)]
pub struct Socket {
    /// The inode number of the other end.
    pub peer: Option<u64>,
    /// Whether messages have boundaries (SOCK_DGRAM, SOCK_SEQPACKET); none where it was made out of strace's sight.
    pub has_boundaries: Option<bool>,
    /// `connect`, `accept` or `accept4`, if one of them made it a connection.
    pub opened_by: Option<String>,
    /// The address that it was connected to.
    pub connected_to: Option<Vec<u8>>,
    /// What moved, in the order in which calls returned.
    pub transfers: Vec<Transfer>,
}

/// Everything that strace saw of AF_UNIX sockets.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// By inode number.
    pub sockets: BTreeMap<u64, Socket>,
    /// System calls that move bytes between descriptors that nobody can name, io_uring_enter(2) above all.
    pub unaccountable: BTreeSet<String>,
}

/// A UNIX socket as strace names it, `7<UNIX-STREAM:[30->31,"\x2f…"]>`: its inode number and its peer's.
fn unix_socket(descriptor: &str) -> Result<Option<(u64, Option<u64>)>, String> {
    let Some((_, names)) = descriptor.split_once('<') else { return Ok(None) };
    if names.starts_with("socket:[") {
        return Err(format!("strace does not know of what family {descriptor} is"));
    }
    let Some((_, numbers)) = names.strip_prefix("UNIX").and_then(|rest| rest.split_once(":[")) else {
        return Ok(None);
    };
    let end = numbers.find([',', ']']).unwrap_or(numbers.len());
    let (own, peer) = numbers[..end].split_once("->").map_or((&numbers[..end], None), |(own, peer)| (own, Some(peer)));
    let number = |text: &str| text.parse::<u64>().map_err(|_| format!("no inode number in {descriptor}"));
    Ok(Some((number(own)?, peer.map(number).transpose()?)))
}

/// The bytes of a `sockaddr_un`'s path; none of an address without a name, or of another family.
fn address(value: &Value) -> Option<Vec<u8>> {
    match value.member("sun_path") {
        Some(Value::Text(path, false)) => Some(path.clone()),
        _ => None,
    }
}

/// What was moved from or to one piece of memory, or several.
fn memory(value: &Value, len: usize) -> Result<Option<Vec<u8>>, String> {
    let mut bytes = Vec::new();
    let pieces = match value.after() {
        Value::Array(pieces) => pieces.iter().filter_map(|piece| piece.member("iov_base")).collect(),
        value => vec![value],
    };
    for piece in pieces {
        match piece.after() {
            Value::Text(text, false) => bytes.extend(text),
            Value::Text(_, true) => return Err("strace has cut a string short".into()),
            // Of an empty piece the address, or of memory that a call did not get to.
            _ => {}
        }
    }
    if bytes.len() < len {
        return Err(format!("{} bytes are shown of {len}", bytes.len()));
    }
    bytes.truncate(len);
    Ok(Some(bytes))
}

impl Observed {
    /// Goes through calls in the order in which they returned.
    pub fn of(calls: &[Call]) -> Result<Self, String> {
        let mut observed = Self::default();
        for call in calls.iter().filter(|call| call.result >= 0) {
            observed.take(call).map_err(|what| format!("{what}: {call:?}"))?;
        }
        Ok(observed)
    }

    /// What several straces saw, each of programs of its own.
    pub fn join(all: impl IntoIterator<Item = Self>) -> Self {
        let mut joined = Self::default();
        for observed in all {
            joined.unaccountable.extend(observed.unaccountable);
            for (inode, socket) in observed.sockets {
                let into = joined.sockets.entry(inode).or_default();
                into.peer = into.peer.or(socket.peer);
                into.has_boundaries = into.has_boundaries.or(socket.has_boundaries);
                into.opened_by = into.opened_by.take().or(socket.opened_by);
                into.connected_to = into.connected_to.take().or(socket.connected_to);
                into.transfers.extend(socket.transfers);
            }
        }
        let itself = joined.clone();
        joined.fill_in_from(&itself);
        joined
    }

    fn socket(&mut self, descriptor: &str) -> Result<Option<&mut Socket>, String> {
        let Some((inode, peer)) = unix_socket(descriptor)? else { return Ok(None) };
        let socket = self.sockets.entry(inode).or_default();
        socket.peer = peer.or(socket.peer);
        Ok(Some(socket))
    }

    fn take(&mut self, call: &Call) -> Result<(), String> {
        use Direction::{In, Out};
        match &*call.name {
            "socket" => self.made(&call.result_names, call.word(1))?,
            "socketpair" => {
                for end in call.arguments.get(3).map_or(&[][..], Value::elements) {
                    self.made(end.word(), call.word(1))?;
                }
            }
            "connect" => {
                let to = call.arguments.get(1).and_then(address);
                if let Some(socket) = self.socket(call.word(0))? {
                    (socket.opened_by, socket.connected_to) = (Some(call.name.clone()), to);
                }
            }
            "accept" | "accept4" => {
                let listener = self.socket(call.word(0))?.and_then(|listener| listener.has_boundaries);
                if let Some(socket) = self.socket(&call.result_names)? {
                    (socket.opened_by, socket.has_boundaries) = (Some(call.name.clone()), listener);
                }
            }
            "read" | "readv" | "preadv2" => self.moved(call, In, 1, None)?,
            "write" | "writev" | "pwritev2" => self.moved(call, Out, 1, None)?,
            "recvfrom" if !call.word(3).contains("MSG_PEEK") => self.moved(call, In, 1, Some(4))?,
            "sendto" => self.moved(call, Out, 1, Some(4))?,
            "recvmsg" if !call.word(2).contains("MSG_PEEK") => {
                self.message(call, In, &call.arguments[1], call.result)?
            }
            "sendmsg" => self.message(call, Out, &call.arguments[1], call.result)?,
            "recvmmsg" if !call.word(3).contains("MSG_PEEK") => self.messages(call, In)?,
            "sendmmsg" => self.messages(call, Out)?,
            "sendfile" => self.unseen(call, Out, 0)?,
            "splice" => {
                self.unseen(call, In, 0)?;
                self.unseen(call, Out, 2)?;
            }
            "io_uring_enter" => drop(self.unaccountable.insert(call.name.clone())),
            _ => {}
        }
        Ok(())
    }

    fn made(&mut self, descriptor: &str, socket_type: &str) -> Result<(), String> {
        if let Some(socket) = self.socket(descriptor)? {
            socket.has_boundaries = Some(!socket_type.contains("SOCK_STREAM"));
        }
        Ok(())
    }

    fn moved(&mut self, call: &Call, direction: Direction, from: usize, at: Option<usize>) -> Result<(), String> {
        let Some(socket) = self.socket(call.word(0))? else { return Ok(()) };
        let shown = shown(&call.arguments[from]);
        let len = moved_len(call.result, direction, shown, call.word(3));
        let bytes = memory(&call.arguments[from], len)?;
        let address = at.and_then(|at| address(&call.arguments[at]));
        socket.transfers.push(Transfer { tid: call.tid, call: call.name.clone(), direction, len, bytes, address });
        Ok(())
    }

    fn message(&mut self, call: &Call, direction: Direction, header: &Value, result: i64) -> Result<(), String> {
        let Some(socket) = self.socket(call.word(0))? else { return Ok(()) };
        let iov = header.member("msg_iov").ok_or("a message without msg_iov")?;
        let flags = header.member("msg_flags").map_or("", Value::word);
        let len = moved_len(result, direction, shown(iov), flags);
        let (bytes, address) = (memory(iov, len)?, header.member("msg_name").and_then(address));
        socket.transfers.push(Transfer { tid: call.tid, call: call.name.clone(), direction, len, bytes, address });
        Ok(())
    }

    fn messages(&mut self, call: &Call, direction: Direction) -> Result<(), String> {
        let done = usize::try_from(call.result).map_err(|_| "a negative count")?;
        for message in call.arguments[1].elements().iter().take(done) {
            let len = message.member("msg_len").and_then(|len| len.word().parse().ok()).ok_or("no msg_len")?;
            self.message(call, direction, message.member("msg_hdr").ok_or("no msg_hdr")?, len)?;
        }
        Ok(())
    }

    fn unseen(&mut self, call: &Call, direction: Direction, descriptor: usize) -> Result<(), String> {
        let Some(socket) = self.socket(call.word(descriptor))? else { return Ok(()) };
        let len = usize::try_from(call.result).map_err(|_| "a negative count")?;
        let (call, tid) = (call.name.clone(), call.tid);
        socket.transfers.push(Transfer { tid, call, direction, len, bytes: None, address: None });
        Ok(())
    }

    /// Bytes that `sendfile` sent arrive somewhere; if strace saw it, it is known which they are.
    pub fn fill_in_from(&mut self, others: &Self) {
        for socket in self.sockets.values_mut().filter(|socket| socket.has_boundaries != Some(true)) {
            let Some(other_end) = socket.peer.and_then(|peer| others.sockets.get(&peer)) else { continue };
            let received = other_end.received();
            let mut at = 0;
            for sent in socket.transfers.iter_mut().filter(|transfer| transfer.direction == Direction::Out) {
                let part = received.get(at..at + sent.len);
                sent.bytes = sent.bytes.take().or_else(|| part.map(<[u8]>::to_vec));
                at += sent.len;
            }
        }
    }
}

impl Socket {
    fn received(&self) -> Vec<u8> {
        let transfers = self.transfers.iter().filter(|transfer| transfer.direction == Direction::In);
        transfers.filter_map(|transfer| transfer.bytes.as_deref()).flatten().copied().collect()
    }

    /// What a thread moved one way.
    pub fn of(&self, tid: u32, direction: Direction) -> Vec<&Transfer> {
        self.transfers.iter().filter(|transfer| transfer.tid == tid && transfer.direction == direction).collect()
    }
}

fn shown(value: &Value) -> usize {
    match value.after() {
        Value::Array(pieces) => pieces.iter().filter_map(|piece| piece.member("iov_base")).map(shown).sum(),
        Value::Text(text, _) => text.len(),
        _ => 0,
    }
}

/// With MSG_TRUNC a call returns the length of the whole message, of which no more than the buffer was received.
fn moved_len(result: i64, direction: Direction, shown: usize, flags: &str) -> usize {
    // Only calls that succeeded come here.
    let result = usize::try_from(result).unwrap_or(0);
    if direction == Direction::In && flags.contains("MSG_TRUNC") { result.min(shown) } else { result }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strace::calls::parse;

    fn observed(trace: &str) -> Result<Observed, String> {
        Observed::of(&parse(trace)?)
    }

    #[test]
    fn a_peek_moves_nothing_and_a_partial_send_what_it_returns() {
        let trace = "\
            7  socketpair(AF_UNIX, SOCK_STREAM|SOCK_CLOEXEC, 0, [3<UNIX:[1->2]>, 4<UNIX:[2->1]>]) = 0\n\
            7  write(3<UNIX:[1->2]>, \"\\x61\\x62\\x63\", 3) = 2\n\
            7  recvfrom(4<UNIX:[2->1]>, \"\\x61\", 1, MSG_PEEK, NULL, NULL) = 1\n\
            7  readv(4<UNIX:[2->1]>, [{iov_base=\"\\x61\", iov_len=1}, {iov_base=\"\\x62\", iov_len=9}], 2) = 2\n\
            7  read(5<\\x2f>, \"\\x62\", 1) = 1\n";
        let observed = observed(trace).unwrap();
        assert_eq!(observed.sockets.keys().collect::<Vec<_>>(), [&1, &2]);
        let [sent] = &observed.sockets[&1].transfers[..] else { panic!("{observed:?}") };
        assert_eq!((sent.bytes.as_deref(), sent.direction), (Some(&b"ab"[..]), Direction::Out));
        assert_eq!(observed.sockets[&2].received(), b"ab");
        assert_eq!(observed.sockets[&2].has_boundaries, Some(false));
    }

    #[test]
    fn what_sendfile_sent_is_seen_where_it_arrives() {
        let trace = "\
            7  write(3<UNIX-STREAM:[1->2]>, \"\\x61\", 1) = 1\n\
            7  sendfile(3<UNIX-STREAM:[1->2]>, 5<\\x2f>, [0] => [2], 9) = 2\n\
            8  recvfrom(4<UNIX-STREAM:[2->1,\"\\x2f\"]>, \"\\x61\\x62\\x63\", 9, 0, NULL, NULL) = 3\n";
        assert_eq!(
            Observed::join([observed(trace).unwrap()]).sockets[&1].transfers[1].bytes.as_deref(),
            Some(&b"bc"[..])
        );
    }

    #[test]
    fn datagrams_and_their_addresses() {
        let trace = "\
            7  socket(AF_UNIX, SOCK_DGRAM, 0) = 3<UNIX:[1]>\n\
            7  sendto(3<UNIX:[1]>, \"\\x61\", 1, 0, {sa_family=AF_UNIX, sun_path=@\"\\x62\"}, 4) = 1\n\
            7  recvmsg(3<UNIX:[1]>, {msg_name={sa_family=AF_UNIX, sun_path=\"\\x63\"}, msg_namelen=110 => 4, \
            msg_iov=[{iov_base=\"\\x61\", iov_len=1}], msg_iovlen=1, msg_controllen=0, msg_flags=MSG_TRUNC}, MSG_TRUNC) = 5\n\
            7  sendmmsg(3<UNIX:[1]>, [{msg_hdr={msg_name=NULL, msg_namelen=0, msg_iov=[{iov_base=\"\\x64\", iov_len=1}], \
            msg_iovlen=1}, msg_len=1}, {msg_hdr={msg_iov=[{iov_base=\"\\x65\", iov_len=1}]}}], 2, 0) = 1\n";
        let socket = &observed(trace).unwrap().sockets[&1];
        let text = |bytes: &Option<Vec<u8>>| bytes.as_ref().map(|bytes| bytes.escape_ascii().to_string());
        let text = |t: &Transfer| format!("{} {:?} {:?}", t.len, text(&t.address), text(&t.bytes));
        let moved: Vec<String> = socket.transfers.iter().map(text).collect();
        assert_eq!(moved, [r#"1 Some("\\x00b") Some("a")"#, r#"1 Some("c") Some("a")"#, r#"1 None Some("d")"#]);
        assert_eq!(socket.has_boundaries, Some(true));
    }

    #[test]
    fn what_strace_does_not_show_whole_is_an_error() {
        assert!(observed("7  write(3<UNIX:[1->2]>, \"\\x61\"..., 9) = 9\n").is_err());
        assert!(observed("7  write(3<socket:[1]>, \"\\x61\", 1) = 1\n").is_err());
    }
}
