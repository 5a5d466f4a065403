//! Every target takes every input of its corpus, and a bounded number of changed ones, which are the same in every run.
//!
//! `FUZZ_ROUNDS=N` makes N times as many. An input that fails is written to a file, and the command that takes it again
//! is printed.

use std::fs;
use std::io::Write as _;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use proptest::prelude::Rng as _;
use proptest::test_runner::{RngAlgorithm, TestRng};
use socktrace_fuzz::Target;

/// No input takes this long, on a loaded machine either.
const DEADLINE: Duration = Duration::from_secs(60);
/// The longest input that changes make, in bytes.
const MAX_LEN: usize = 8192;
/// Values at which lengths and positions turn.
const TURNS: [u64; 8] = [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, u64::MAX, u64::MAX - 15];

#[test]
fn frames() {
    replay_and_change("frames", 3000);
}

#[test]
fn streams() {
    replay_and_change("streams", 4000);
}

#[test]
fn reader() {
    replay_and_change("reader", 8000);
}

#[test]
fn rings() {
    replay_and_change("rings", 2000);
}

#[test]
fn directory() {
    replay_and_change("directory", 1000);
}

fn replay_and_change(name: &'static str, changed: usize) {
    let target = Target::named(name).unwrap();
    let rounds = std::env::var("FUZZ_ROUNDS").map_or(1, |rounds| rounds.parse().expect("FUZZ_ROUNDS: takes a number"));
    let (to, heard) = channel();
    let worker =
        thread::Builder::new().name(name.into()).spawn(move || take_all(target, changed * rounds, &to)).unwrap();
    let mut last = Vec::new();
    loop {
        match heard.recv_timeout(DEADLINE) {
            Ok(input) => last = input,
            Err(RecvTimeoutError::Timeout) => {
                // Not by a panic, which would wait for the thread; past the capture of the test's output.
                let _ = std::io::stderr().write_all(told(target, &last, "does not end").as_bytes());
                std::process::exit(1)
            }
            // It has panicked where it should not, or it is done.
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    if let Err(input) = worker.join().unwrap() {
        panic!("{}", told(target, &input, "panics"));
    }
}

/// Takes inputs, each of which is told before; the first that panics is an error.
fn take_all(target: Target, changed: usize, tell: &Sender<Vec<u8>>) -> Result<(), Vec<u8>> {
    let take = |input: Vec<u8>| {
        tell.send(input.clone()).unwrap();
        catch_unwind(|| (target.run)(&input)).map_err(|_| input)
    };
    let corpus = corpus(target.name);
    corpus.iter().cloned().try_for_each(take)?;
    let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    (0..changed).try_for_each(|_| take(change(&corpus, &mut rng)))
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(!files.is_empty());
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// An input of the corpus, a few times changed.
fn change(corpus: &[Vec<u8>], rng: &mut TestRng) -> Vec<u8> {
    // usize is u64 here.
    let mut below = |end: usize| (rng.next_u64() % end.max(1) as u64) as usize;
    let mut input = corpus[below(corpus.len())].clone();
    for _ in 0..=below(4) {
        let at = below(input.len());
        match below(6) {
            0 if !input.is_empty() => input[at] ^= 1 << below(8),
            1 if !input.is_empty() => input[at] = below(256) as u8,
            2 => {
                let value = TURNS[below(TURNS.len())].to_le_bytes();
                input[at..].iter_mut().zip(&value[..1 << below(4)]).for_each(|(byte, new)| *byte = *new);
            }
            3 => {
                let end = at + below(input.len() - at);
                input.drain(at..end);
            }
            4 => {
                let end = at + below((input.len() - at).min(256));
                let again = input[at..end].to_vec();
                input.splice(at..at, again);
            }
            _ => {
                let other = &corpus[below(corpus.len())];
                let from = below(other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
    }
    input.truncate(MAX_LEN);
    input
}

/// Keeps the input, and says how to try it again.
fn told(target: Target, input: &[u8], what: &str) -> String {
    let (name, input_file) = (target.name, format!("{}-failed", target.name));
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(input_file);
    fs::write(&file, input).unwrap();
    let (bytes, file) = (input.escape_ascii(), file.display());
    format!("{name} {what}: {bytes}\nagain: cargo run -p socktrace-fuzz --bin socktrace-fuzz {name} {file}\n")
}
