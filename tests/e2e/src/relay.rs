//! Hears what a client and a server say, between the two: the truth about programs that keep no account.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::stage::until;

/// What went over one connection.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    /// Client to server.
    pub request: Vec<u8>,
    /// Server to client.
    pub response: Vec<u8>,
    /// Directions that have come to their end.
    ended: u8,
}

/// Listens for the client and connects to the server.
#[derive(Debug)]
pub struct Relay {
    conversations: Arc<Mutex<Vec<Conversation>>>,
}

/// One of the two directions: where to note what passes.
type Note = fn(&mut Conversation) -> &mut Vec<u8>;

impl Relay {
    /// Begins to listen at `front`, for the server at `back`.
    pub fn start(front: &Path, back: PathBuf) -> Self {
        let listener = UnixListener::bind(front).unwrap_or_else(|error| panic!("{}: {error}", front.display()));
        let conversations = Arc::<Mutex<Vec<Conversation>>>::default();
        let noted = Arc::clone(&conversations);
        // It ends with the test's process.
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = until("the server listens", || UnixStream::connect(&back).ok());
                let mut conversations = noted.lock().expect("no thread panics with it");
                conversations.push(Conversation::default());
                let number = conversations.len() - 1;
                drop(conversations);
                for (from, to, note) in
                    [(&client, &server, (|c| &mut c.request) as Note), (&server, &client, |c| &mut c.response)]
                {
                    let (from, to) = (from.try_clone().expect("a descriptor"), to.try_clone().expect("a descriptor"));
                    let noted = Arc::clone(&noted);
                    thread::spawn(move || pass(from, to, &noted, number, note));
                }
            }
        });
        Self { conversations }
    }

    /// What was said, once all connections have ended.
    #[track_caller]
    pub fn conversations(&self) -> Vec<Conversation> {
        until("the relayed connections end", || {
            let conversations = self.conversations.lock().expect("no thread panics with it");
            conversations.iter().all(|conversation| conversation.ended == 2).then(|| conversations.clone())
        })
    }
}

fn pass(mut from: UnixStream, mut to: UnixStream, noted: &Mutex<Vec<Conversation>>, number: usize, note: Note) {
    let mut buffer = vec![0; 65536];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        note(&mut noted.lock().expect("no thread panics with it")[number]).extend(&buffer[..len]);
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    // The other side may be gone already.
    let _ = to.shutdown(Shutdown::Write);
    noted.lock().expect("no thread panics with it")[number].ended += 1;
}
