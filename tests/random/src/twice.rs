//! What returns twice, by way of C (twice.c).

use std::ffi::{CStr, c_char, c_int, c_void};

mod c {
    use super::{c_char, c_int, c_void};

    unsafe extern "C" {
        pub fn leave_by_jump(blocked: unsafe extern "C" fn(*mut c_void), argument: *mut c_void) -> c_int;
        pub fn jump_back();
        pub fn vfork_and_execute(
            in_child: unsafe extern "C" fn(*mut c_void),
            argument: *mut c_void,
            path: *const c_char,
            argv: *const *const c_char,
        ) -> c_int;
    }
}

/// Calls `blocked` until it returns or a handler calls [`jump_back`]; whether that was so.
///
/// # Safety
///
/// `blocked` has nothing to drop.
pub unsafe fn leave_by_jump(blocked: unsafe extern "C" fn(*mut c_void), argument: *mut c_void) -> bool {
    // SAFETY: the frames that the jump leaves out are the C function's and that of `blocked`.
    unsafe { c::leave_by_jump(blocked, argument) == 1 }
}

/// For a handler: leaves what [`leave_by_jump`] has called in this thread.
pub fn jump_back() {
    // SAFETY: does nothing unless `leave_by_jump` is on this thread's stack.
    unsafe { c::jump_back() }
}

/// vfork(2) and execv(3) with `in_child` between; the child's process id.
///
/// # Safety
///
/// `in_child` runs in memory shared with this process, and may not return by unwinding.
pub unsafe fn vfork_and_execute(
    in_child: unsafe extern "C" fn(*mut c_void),
    argument: *mut c_void,
    path: &CStr,
    argv: &[&CStr],
) -> c_int {
    let mut pointers: Vec<*const c_char> = argv.iter().map(|text| text.as_ptr()).collect();
    pointers.push(std::ptr::null());
    // SAFETY: NUL-terminated texts and a null-terminated array.
    unsafe { c::vfork_and_execute(in_child, argument, path.as_ptr(), pointers.as_ptr()) }
}
