//! One test's own directory, and patience.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long anything may take before a test gives it up. Far beyond what is needed, even on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How often something is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(5);
/// Bytes captured of a call, unless a test is about less: more than any call of the workload moves.
const MAX_BYTES: u32 = 1 << 20;

/// Looks until there is something to see; fails the test when [`PATIENCE`] is at its end.
#[track_caller]
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_within(PATIENCE, what, look)
}

/// The same with another patience.
#[track_caller]
pub fn until_within<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(start.elapsed() < patience, "waited {} s in vain until {what}", patience.as_secs());
        std::thread::sleep(LOOK);
    }
}

/// A test's directory; kept if the test fails.
#[derive(Debug)]
pub struct Stage {
    dir: PathBuf,
}

impl Stage {
    /// Makes the directory and prints where it is.
    #[expect(clippy::new_without_default, reason = "it makes a directory")]
    pub fn new() -> Self {
        // In /tmp, whatever TMPDIR says: a socket's path has 107 bytes.
        let dir = tempfile::Builder::new().prefix("ste").tempdir_in("/tmp").expect("a directory in /tmp").keep();
        println!("test directory: {}", dir.display());
        std::fs::create_dir(dir.join("s")).expect("a directory in a new directory");
        Self { dir }
    }

    /// A file or directory of this name.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where the traced programs' sockets are.
    pub fn sockets(&self) -> PathBuf {
        self.path("s")
    }

    /// A traced program's socket.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.sockets().join(name)
    }

    /// The server's socket.
    pub fn server_socket(&self) -> PathBuf {
        self.path("server.sock")
    }

    /// Parameters for the agent, with `more` in addition or instead.
    pub fn parameters(&self, more: Value) -> Value {
        let mut parameters = json!({ "out_socket_path": text(&self.server_socket()), "max_bytes": MAX_BYTES });
        for (name, value) in more.as_object().expect("parameters are an object") {
            parameters[name] = value.clone();
        }
        parameters
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path that tempfile made is ASCII")
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // What cannot be removed is left in /tmp.
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}
