//! The connections that have payload files, by the base name of these.

use std::collections::HashMap;
use std::sync::Arc;

use socktrace_event::{Data, Direction, Text, file_suffix};

use crate::outage::Failure;
use crate::segments::Chain;

/// One payload file, open or not.
#[derive(Debug)]
pub(crate) struct PayloadFile {
    /// What is to be written.
    pub(crate) pending: Chain,
    /// Length of the file, once it has been looked at.
    pub(crate) len: Option<u64>,
    /// The last batch whose journal names it.
    pub(crate) batch: u64,
    /// Bytes lost since the last `lost` event; while there are any, later ones are lost, too, so that the gap is one.
    pub(crate) lost: u64,
    pub(crate) failure: Option<Failure>,
    /// Whether it is among those with something to write or to report.
    pub(crate) queued: bool,
    /// Whether the user has been told what is wrong with it.
    pub(crate) told: bool,
}

impl PayloadFile {
    const fn new() -> Self {
        let pending = Chain::EMPTY;
        Self { pending, len: None, batch: 0, lost: 0, failure: None, queued: false, told: false }
    }
}

/// A connection and its two files.
#[derive(Debug)]
struct Connection {
    /// Base name of its files.
    base_name: Arc<[u8]>,
    /// The connection as its events name it, where that is not the base name.
    conn_id: Option<Box<str>>,
    files: [PayloadFile; 2],
}

/// What one costs beside its names: itself, its place in the table of names, and what allocations cost.
const CONNECTION_COST: usize = size_of::<Connection>() + 2 * size_of::<(Arc<[u8]>, u32)>() + 4 * size_of::<usize>();

/// A payload file's number: twice the connection's, one more for what was sent.
pub(crate) type FileNumber = u32;

/// All connections that are remembered.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    connections: Vec<Connection>,
    by_name: HashMap<Arc<[u8]>, u32>,
    /// What they take, about, in bytes.
    bytes: usize,
    /// The one that was found last: the next event is often of the same.
    last: usize,
}

impl Connections {
    /// How much memory they take, about, in bytes.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The connection whose `conn_id` names its files itself.
    #[inline]
    pub(crate) fn of_conn_id(&mut self, conn_id: &[u8]) -> Option<usize> {
        let is_it = |connection: &Connection| *connection.base_name == *conn_id && connection.conn_id.is_none();
        if self.connections.get(self.last).is_some_and(is_it) {
            return Some(self.last);
        }
        let found = *self.by_name.get(conn_id)? as usize;
        // A name that was made for another `conn_id` may be somebody's `conn_id`, too.
        if !is_it(&self.connections[found]) {
            return None;
        }
        self.last = found;
        Some(found)
    }

    /// The connection with this base name.
    pub(crate) fn of_name(&self, base_name: &str) -> Option<usize> {
        self.by_name.get(base_name.as_bytes()).map(|&found| found as usize)
    }

    /// Adds a connection with this base name, of which there is none.
    pub(crate) fn add(&mut self, base_name: &str, data: &Data<'_>) -> usize {
        let base_name: Arc<[u8]> = base_name.as_bytes().into();
        let index = self.connections.len();
        self.by_name.insert(Arc::clone(&base_name), index as u32);
        let conn_id: Option<Box<str>> = data.file.is_some().then(|| (*data.conn_id).into());
        self.bytes += CONNECTION_COST + base_name.len() + conn_id.as_ref().map_or(0, |conn_id| conn_id.len());
        let files = [const { PayloadFile::new() }; 2];
        self.connections.push(Connection { base_name, conn_id, files });
        index
    }

    /// Number of a connection's file.
    pub(crate) const fn number(connection: usize, direction: Direction) -> FileNumber {
        2 * connection as FileNumber + matches!(direction, Direction::Out) as FileNumber
    }

    pub(crate) fn file(&mut self, number: FileNumber) -> &mut PayloadFile {
        &mut self.connections[number as usize / 2].files[number as usize % 2]
    }

    pub(crate) fn direction(number: FileNumber) -> Direction {
        if number.is_multiple_of(2) { Direction::In } else { Direction::Out }
    }

    /// The base name of a file.
    pub(crate) fn base_name(&self, number: FileNumber) -> &[u8] {
        &self.connections[number as usize / 2].base_name
    }

    /// Name of a file.
    pub(crate) fn name(&self, number: FileNumber) -> String {
        let suffix = file_suffix(Self::direction(number)).unwrap_or_default();
        format!("{}{suffix}", String::from_utf8_lossy(self.base_name(number)))
    }

    /// `conn_id` and `file` of an event that speaks of a file.
    pub(crate) fn ids(&self, number: FileNumber) -> (Text<'_>, Option<Text<'_>>) {
        let connection = &self.connections[number as usize / 2];
        let base_name = Text(String::from_utf8_lossy(&connection.base_name));
        match &connection.conn_id {
            Some(conn_id) => ((&**conn_id).into(), Some(base_name)),
            None => (base_name, None),
        }
    }

    /// Forgets them all.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}
