//! A directory to record in, and a watch over what is around it.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// What is not to be written to.
const CANARY: &[u8] = b"not the server's";

/// A directory some levels deep in others that hold nothing else, but for a file that is not to be touched.
#[derive(Debug)]
pub(crate) struct Sandbox {
    dir: TempDir,
    out: PathBuf,
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        // In memory: an input takes a moment, and makes and removes some files.
        let shared_memory = Path::new("/dev/shm");
        let at = if shared_memory.is_dir() { shared_memory.to_owned() } else { std::env::temp_dir() };
        let dir = TempDir::with_prefix_in("socktrace-fuzz-", at).expect("a temporary directory");
        let out = dir.path().join("a/out");
        fs::create_dir_all(&out).expect("in a new directory");
        fs::write(dir.path().join("canary"), CANARY).expect("in a new directory");
        Self { dir, out }
    }

    /// Where to record.
    pub(crate) fn out(&self) -> &Path {
        &self.out
    }

    /// A file that is not the server's.
    pub(crate) fn canary(&self) -> PathBuf {
        self.dir.path().join("canary")
    }

    /// Nothing is there that was not, and nothing in the directory that does not belong there.
    pub(crate) fn check(&self) {
        assert_eq!(names(self.dir.path()), ["a", "canary"]);
        assert_eq!(names(&self.dir.path().join("a")), ["out"]);
        assert_eq!(fs::read(self.canary()).expect("it was there"), CANARY);
        for name in names(&self.out) {
            let is_payload = name.ends_with(".in.bin") || name.ends_with(".out.bin");
            let is_ours = is_payload && !name.starts_with('.') || name == "events.jsonl" || name == "events.journal";
            assert!(is_ours, "{name}");
        }
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("it was there");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("it was there").file_name();
    let mut names: Vec<_> = entries.map(|entry| name(entry).to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
