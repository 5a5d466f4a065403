//! What the probe was told when it was loaded, kept for the rest of the process's life.

use core::ffi::CStr;
use core::sync::atomic::{AtomicPtr, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use socktrace_params::{Params, parse};

pub(crate) use socktrace_params::{Complaint, OnFull, Transport};

const _: () = {
    assert!(socktrace_params::RING_BYTES.from == socktrace_ring::MIN_RING_LEN as u64);
    assert!(socktrace_params::RING_BYTES.to == socktrace_ring::MAX_RING_LEN as u64);
};

static PARAMS: AtomicPtr<Params<'static>> = AtomicPtr::new(core::ptr::null_mut());

/// What the probe goes by before it is told anything: nothing is traced then.
static NOTHING: Params<'static> =
    Params { max_fds: 0, max_bytes: 0, ring_bytes: 0, follow_children: false, ..Params::DEFAULT };

/// The parameters in force.
pub(crate) fn get() -> &'static Params<'static> {
    // SAFETY: null, or set once by `set` to memory that is never unmapped.
    unsafe { PARAMS.load(Ordering::Acquire).as_ref() }.unwrap_or(&NOTHING)
}

/// The path for LD_PRELOAD of executed programs, if they are to be followed.
pub(crate) fn preload() -> Option<&'static CStr> {
    let params = get();
    if params.preload.is_empty() || !params.follow_children {
        return None;
    }
    // SAFETY: a NUL is behind every value, at the latest the one that `keep` put behind the text, and it is kept for good.
    Some(unsafe { CStr::from_ptr(params.preload.as_ptr().cast()) })
}

/// Checks the parameters and puts them in force, for good: whoever has looked them up may go by the former ones for a moment. The
/// same once more take no more memory.
pub(crate) fn set(text: &[u8]) -> Result<(), Complaint> {
    if get().text == text && !text.is_empty() {
        return Ok(());
    }
    let text: &'static [u8] = keep(text)?;
    let params = parse(text)?;
    let at = map(size_of::<Params<'_>>())?.cast::<Params<'_>>();
    // SAFETY: mapped for this, large enough, page-aligned and ours alone.
    unsafe { at.write(params) };
    PARAMS.store(at, Ordering::Release);
    Ok(())
}

fn keep(text: &[u8]) -> Result<&'static [u8], Complaint> {
    let at = map(text.len() + 1)?;
    // SAFETY: mapped with this length and zeroed, so that a NUL follows; ours alone, never unmapped.
    unsafe {
        at.copy_from_nonoverlapping(text.as_ptr(), text.len());
        Ok(core::slice::from_raw_parts(at, text.len()))
    }
}

/// Zeroed memory for the rest of the process's life.
pub(crate) fn map(len: usize) -> Result<*mut u8, Complaint> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice touches nobody's memory.
    let at = unsafe { mmap_anonymous(core::ptr::null_mut(), len, protection, flags) };
    at.map(|at| at.cast()).map_err(|_| "no memory for the probe in this process")
}

/// Gives back what [`map`] gave.
///
/// # Safety
///
/// It was mapped with this length, and nobody uses it.
pub(crate) unsafe fn unmap(at: *mut u8, len: usize) {
    // SAFETY: the caller's promise.
    let _ = unsafe { munmap(at.cast(), len) };
}
