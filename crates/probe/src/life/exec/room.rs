//! Memory to put an environment together in.
//!
//! The stack is the program's, and may be a small one. Memory that is claimed between vfork and exec is the parent's too,
//! and the child that claimed it becomes another program and never gives it back: so it is noted who claimed it, by its
//! thread pointer, which the child shares with the thread that made it, and its process id; that thread gives it back when
//! it goes on. Signal handlers and other threads claim places of their own.

use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::arch::register::thread_pointer;
use crate::process;
use crate::sys::confined::is_confined;
use crate::sys::params;

/// Threads that may execute programs at one time without memory being mapped for each anew.
const MAX_PLACES: usize = 64;
/// Bytes of a place at the least: what most environments take. Only what is written to becomes memory.
const LEAST_LEN: usize = 32 << 10;

struct Place {
    /// The thread pointer of who has claimed it; 0: free.
    thread: AtomicUsize,
    /// And the process id.
    pid: AtomicU32,
    /// The memory and its length in bytes; they belong to whoever has claimed the place.
    at: AtomicPtr<u8>,
    len: AtomicUsize,
}

impl Place {
    fn free(&self) {
        self.pid.store(0, Ordering::Relaxed);
        self.thread.store(0, Ordering::Release);
    }
}

static PLACES: [Place; MAX_PLACES] = [const {
    Place {
        thread: AtomicUsize::new(0),
        pid: AtomicU32::new(0),
        at: AtomicPtr::new(core::ptr::null_mut()),
        len: AtomicUsize::new(0),
    }
}; MAX_PLACES];

/// Maps the first place, for a program that puts itself under a filter that forbids mapping memory.
pub(super) fn keep_one() {
    let first = &PLACES[0];
    if first.at.load(Ordering::Relaxed).is_null()
        && let Ok(at) = params::map(LEAST_LEN)
    {
        first.at.store(at, Ordering::Relaxed);
        first.len.store(LEAST_LEN, Ordering::Release);
    }
}

/// Claimed memory, with whatever is in it, given back when it is dropped.
pub(super) struct Room {
    at: *mut u8,
    len: usize,
    /// None: mapped for this one call.
    place: Option<&'static Place>,
}

impl Room {
    /// At least `len` bytes, aligned to a page; `None` where there is no memory.
    pub(super) fn claim(len: usize) -> Option<Self> {
        let len = len.checked_next_multiple_of(LEAST_LEN)?;
        let claimed = PLACES.iter().find(|place| {
            place.thread.compare_exchange(0, thread_pointer(), Ordering::AcqRel, Ordering::Relaxed).is_ok()
        });
        let Some(place) = claimed else {
            return map(len).map(|at| Self { at, len, place: None });
        };
        place.pid.store(process::who().pid, Ordering::Relaxed);
        let (at, has) = (place.at.load(Ordering::Relaxed), place.len.load(Ordering::Relaxed));
        if has >= len {
            return Some(Self { at, len: has, place: Some(place) });
        }
        let Some(larger) = map(len) else {
            place.free();
            return None;
        };
        place.at.store(larger, Ordering::Relaxed);
        place.len.store(len, Ordering::Relaxed);
        unmap(at, has);
        Some(Self { at: larger, len, place: Some(place) })
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped with this length, never unmapped while it is claimed, and claimed by this alone.
        unsafe { core::slice::from_raw_parts_mut(self.at, self.len) }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        match self.place {
            Some(place) => place.free(),
            None => unmap(self.at, self.len),
        }
    }
}

/// Not where a filter might forbid it.
fn map(len: usize) -> Option<*mut u8> {
    if is_confined() {
        return None;
    }
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
    // SAFETY: a new mapping at an address of the kernel's choice touches nobody's memory.
    unsafe { mmap_anonymous(core::ptr::null_mut(), len, protection, flags) }.ok().map(|at| at.cast())
}

fn unmap(at: *mut u8, len: usize) {
    if !at.is_null() && !is_confined() {
        // SAFETY: a mapping of ours that nobody else knows of any more.
        let _ = unsafe { munmap(at.cast(), len) };
    }
}

/// The thread goes on whose child has executed a program, or has ended: what that child had claimed is free.
pub(crate) fn give_back() {
    let thread = thread_pointer();
    // The process's own: it may be on its way into a program, and this a signal handler that made a child meanwhile.
    let own = process::who().pid;
    for place in PLACES.iter().filter(|place| place.thread.load(Ordering::Relaxed) == thread) {
        // 0: it is being claimed at this moment, by the call that a signal handler has interrupted.
        if !matches!(place.pid.load(Ordering::Relaxed), pid if pid == 0 || pid == own) {
            place.free();
        }
    }
}

/// In a forked child: what other threads of the parent had claimed is free. What this one had, it may be using.
pub(crate) fn after_fork() {
    let thread = thread_pointer();
    for place in PLACES.iter().filter(|place| place.thread.load(Ordering::Relaxed) != thread) {
        place.free();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_claim_has_memory_of_its_own() {
        process::init().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for turn in 1..200_usize {
                        let mut one = Room::claim(turn * 1000).unwrap();
                        let mut other = Room::claim(10).unwrap();
                        assert!(one.bytes().len() >= turn * 1000);
                        one.bytes().fill(1);
                        other.bytes().fill(2);
                        assert!(one.bytes().iter().all(|&byte| byte == 1));
                    }
                });
            }
        });
    }

    #[test]
    fn more_claims_than_places() {
        process::init().unwrap();
        let mut rooms: Vec<_> = (0..MAX_PLACES * 2).map(|_| Room::claim(1).unwrap()).collect();
        for (number, room) in rooms.iter_mut().enumerate() {
            room.bytes().fill(number as u8);
        }
        assert!(rooms.iter_mut().enumerate().all(|(number, room)| room.bytes()[9] == number as u8));
    }
}
