//! The reader of a ring: it ends, and takes no more than there is.
//!
//! An input is a ring's image with its length before it, and a script of what its writer and its reader do.

use socktrace_ring::{MIN_RING_LEN, Reader, Step, unmap};

use crate::input::Input;
use crate::memory::Hostile;

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut hostile = Hostile::new(&mut input);
    let Some(memory) = hostile.map() else { return };
    let mut buffer = vec![0; MIN_RING_LEN / 2];
    let mut reader = Reader::new(memory);
    while let Some(it) = &mut reader
        && !input.is_empty()
    {
        let before = it.position();
        match input.u8() % 8 {
            0 => drain(it, &mut buffer),
            1 => {
                if let Step::Frame(len) = it.next(&mut buffer) {
                    assert!(len <= buffer.len() && it.position() > before);
                }
            }
            2 => {
                let stepped = it.step_over();
                assert_eq!(stepped, it.position() != before);
            }
            3 => it.free(),
            // Another server takes over.
            4 => reader = Reader::new(memory),
            _ => hostile.scribble(&mut input),
        }
        if let Some(it) = &reader {
            assert!(it.held() <= MIN_RING_LEN as u64);
        }
    }
    // SAFETY: the reader is not used any more.
    unsafe { unmap(memory) };
}

/// Takes all that there is, as a server does that knows every writer dead.
fn drain(reader: &mut Reader, buffer: &mut [u8]) {
    let from = reader.position();
    loop {
        match reader.next(buffer) {
            Step::Frame(_) | Step::Void => {}
            Step::Unfinished { .. } if reader.step_over() => {}
            _ => break,
        }
    }
    assert!(reader.position() - from <= MIN_RING_LEN as u64);
}
