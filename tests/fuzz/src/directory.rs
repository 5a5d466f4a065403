//! A recording that somebody else has made up: it can be read, exported and put right, and nothing around it is touched.
//!
//! An input is `events.jsonl`, the journal's entries, and payload files.

use std::fs;
use std::io::sink;
use std::os::unix::fs::symlink;

use sha2::{Digest, Sha256};
use socktrace_event::{Event, EventType, Sink, printable, silence_notices};
use socktrace_export::{Exporter, Pcapng, Perfetto, Ports, export};
use socktrace_recording::{Contents, Recorder, Recording};
use socktrace_view::Scope;

use crate::input::Input;
use crate::sandbox::Sandbox;

/// As `show` does by default, about.
const SHOWN_LEN: usize = 4096;
/// Names of payload files that events speak of; an input may have others.
const NAMES: [&str; 4] = ["a.in.bin", "a.out.bin", "b%c.in.bin", "p1.2-3.out.bin"];

pub(crate) fn run(bytes: &[u8]) {
    silence_notices();
    let mut input = Input(bytes);
    let sandbox = Sandbox::new();
    let out = sandbox.out();
    let flags = input.u8();
    let write = |name: &str, bytes: &[u8]| fs::write(out.join(name), bytes).expect("a new file");
    write("events.jsonl", input.text());
    let journal = match flags & 3 {
        0 => None,
        1 => Some(input.text().to_vec()),
        how => Some(journal(&mut input, how == 2)),
    };
    if let Some(journal) = journal {
        write("events.journal", &journal);
    }
    for name in NAMES {
        match input.u8() % 4 {
            0 => {}
            1 => symlink(sandbox.canary(), out.join(name)).expect("a new file"),
            _ => write(name, &vec![b'x'; usize::from(input.u16())]),
        }
    }
    read(&sandbox);
    let lens = || NAMES.map(|name| fs::symlink_metadata(out.join(name)).map_or(0, |file| file.len()));
    let before = lens();
    if let Ok(mut recorder) = Recorder::open(out, Contents::All) {
        assert!(lens().iter().zip(before).all(|(&len, before)| len <= before), "repair only cuts");
        if flags & 4 != 0 {
            // It is killed again.
            drop(recorder);
            drop(Recorder::open(out, Contents::All));
        } else {
            recorder.finish("done").expect("it never fails");
            let events = fs::read(out.join("events.jsonl")).expect("it was written");
            let last = events.trim_ascii_end().rsplit(|&byte| byte == b'\n').next().expect("a line");
            let last: Event<'_> = serde_json::from_slice(last).expect("an event");
            assert_eq!(last.kind(), EventType::HostShutdown);
            assert!(!out.join("events.journal").exists(), "nothing is left to be put right");
        }
    }
    sandbox.check();
    read(&sandbox);
}

/// A journal as docs/design.md has it, with sums that are right.
fn journal(input: &mut Input<'_>, is_of_this_boot: bool) -> Vec<u8> {
    let boot = fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let mut journal = Vec::new();
    for _ in 0..1 + input.u8() % 2 {
        let mut entries = Vec::new();
        for _ in 0..input.u8() % 6 {
            let kind = input.u8();
            let name = if kind & 1 == 0 { NAMES[usize::from(kind >> 1) % 4].as_bytes() } else { input.text() };
            let len = if kind & 128 == 0 { input.u16().into() } else { input.u64() };
            // A text has at most so many.
            entries.extend_from_slice(&(name.len() as u16).to_le_bytes());
            entries.extend_from_slice(&len.to_le_bytes());
            entries.extend_from_slice(name);
        }
        let mut head = b"STJRNL01".to_vec();
        match boot.first_chunk::<36>() {
            Some(boot) if is_of_this_boot => head.extend_from_slice(boot),
            _ => head.extend_from_slice(&[b'0'; 36]),
        }
        let numbers = [7, number(input), number(input), entries.len() as u64];
        numbers.iter().for_each(|number| head.extend_from_slice(&number.to_le_bytes()));
        head.extend_from_slice(&Sha256::digest(&entries)[..8]);
        let sum = Sha256::digest(&head);
        head.extend_from_slice(&sum[..8]);
        journal.extend_from_slice(&head);
        journal.extend_from_slice(&entries);
    }
    journal
}

/// A length of `events.jsonl`: mostly one that it can have.
fn number(input: &mut Input<'_>) -> u64 {
    match input.u16() {
        u16::MAX => input.u64(),
        len => len.into(),
    }
}

/// What `show` and `export` read.
fn read(sandbox: &Sandbox) {
    let Ok(mut recording) = Recording::open(sandbox.out()) else { return };
    let events = fs::read(sandbox.out().join("events.jsonl")).unwrap_or_default();
    for line in events.split(|&byte| byte == b'\n') {
        let shown = printable::sentence(&String::from_utf8_lossy(line)).into_owned();
        assert!(!shown.contains(char::is_control), "{shown}");
        let mut json = Vec::new();
        printable::push_json(&mut json, line);
        assert!(!String::from_utf8_lossy(&json).contains(char::is_control));
    }
    while let Some(recorded) = recording.next_event().expect("a file in memory") {
        let beginning = recording.beginning(&recorded.event(), SHOWN_LEN);
        assert!(beginning.len() <= SHOWN_LEN && recorded.payload(SHOWN_LEN).bytes.len() <= SHOWN_LEN);
    }
    let ports = Ports::new([]).expect("no rules");
    let pcapng = Pcapng::new(sink(), ports.clone()).expect("it is not written");
    let exporters: [Box<dyn Exporter>; 2] = [Box::new(pcapng), Box::new(Perfetto::new(sink()))];
    for mut exporter in exporters {
        export(sandbox.out(), &mut *exporter, &ports, Scope::default(), &mut |_| {}).expect("a recording");
    }
}
