//! syscall(2), by which a program makes any call by its number.

use core::ffi::{c_int, c_long, c_ulong, c_void};

use super::entry::{Registers, Syscall, libc_function};
use super::export::{export, slot};
use super::{bytes, descriptors, messages, programs, sockets};
use crate::arch::number;
use crate::life::{exec, strict};
use crate::observe::{calls, notices};
use crate::patch::hook::{Functions, Hook};
use crate::process::guest;
use crate::sys::confined::set_confined;
use crate::transport;

static FUNCTIONS: Functions = Functions::new();

export! { syscall }

pub(super) static TABLE: &[Hook] = &[Hook {
    name: c"syscall",
    number: None,
    replacements: [
        syscall::<0> as *const c_void,
        syscall::<1> as *const c_void,
        syscall::<2> as *const c_void,
        syscall::<3> as *const c_void,
    ],
    functions: &FUNCTIONS,
    slot: slot!(syscall),
}];

/// Variadic: every register is passed through, and read where the number says that it counts.
unsafe extern "C-unwind" fn syscall<const N: usize>(
    number: c_long,
    a: c_ulong,
    b: c_ulong,
    c: c_ulong,
    d: c_ulong,
    e: c_ulong,
    f: c_ulong,
) -> c_long {
    // SAFETY: the address is libc's function of this name, called as the program called it.
    unsafe {
        let libc = core::mem::transmute::<*mut c_void, Syscall>(libc_function(&FUNCTIONS.call[N], c"syscall"));
        if let Some(result) = dispatch(libc, number, &[a, b, c, d, e, f]) {
            return result;
        }
        other(libc, number, a, b, c, d, e, f)
    }
}

/// Makes the system call that has a hook as the hook of that call would; `None` for one that has none.
unsafe fn dispatch(libc: Syscall, number: c_long, registers: &Registers) -> Option<c_long> {
    let tables = [sockets::dispatch, messages::dispatch, bytes::dispatch, descriptors::dispatch, programs::dispatch];
    // SAFETY: the caller's promise: registers as the program gave them for this number.
    tables.into_iter().find_map(|dispatch| unsafe { dispatch(libc, number, registers) })
}

/// A call that no hook is for. Apart, because what it may have to do would widen the frame of all calls.
#[inline(never)]
#[expect(clippy::too_many_arguments, reason = "those of syscall(2)")]
unsafe fn other(
    libc: Syscall,
    number: c_long,
    a: c_ulong,
    b: c_ulong,
    c: c_ulong,
    d: c_ulong,
    e: c_ulong,
    f: c_ulong,
) -> c_long {
    // SAFETY: called as the program called it.
    unsafe {
        if number == number::EXIT_GROUP {
            notices::say_exit(a as c_int);
            transport::leave();
        }
        // Whatever it makes may share our memory.
        if matches!(number, number::CLONE | number::VFORK | number::CLONE3) {
            guest::be_wary();
        }
        if number == number::PIVOT_ROOT {
            calls::before_another_root();
        }
        const SECCOMP_SET_MODE_STRICT: c_ulong = 0;
        if number == number::SECCOMP {
            calls::before_filter();
            exec::before_filter();
            if a == SECCOMP_SET_MODE_STRICT {
                return strict::around(|| libc(number, a, b, c, d, e, f));
            }
        }
        let result = libc(number, a, b, c, d, e, f);
        if result == 0 && number == number::PIVOT_ROOT {
            exec::root_changed();
        }
        // seccomp(2) has no function of its own in libc.
        if result >= 0 && number == number::SECCOMP {
            set_confined();
        }
        result
    }
}
