//! The table of hooks: one entry a call.
//!
//! An entry is the call's signature, its number for syscall(2) if it has one, and what happens around it; `libc` in an
//! entry is the function that the hook stands in for. `|libc, fd|`: nothing happens around it where `fd` is known to be
//! something else than a socket of ours, which is found out first. To add a call, add its entry to the module of its subject: the
//! engines and the dynamic linker find it by its name.
//!
//! Hooks are `extern "C-unwind"`: pthread_cancel(3) ends a thread that is blocked in a call by unwinding through the
//! hook's frame, so nothing that needs to be undone may be held across `libc(…)`.

mod bytes;
mod descriptors;
pub(crate) mod export;
mod messages;
mod number;
mod programs;
mod sockets;
mod syscall;
#[cfg(feature = "standalone")]
mod vfork;

use core::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use crate::start::control;

/// Functions of one name that a process may have and that are hooked: libc's, the one that programs get that were built
/// long ago, another library's (libpthread before glibc 2.34), those of a libc in a namespace of its own (dlmopen(3)).
/// Each has a hook of its own, which goes on to it.
pub(crate) const DEFINITIONS: usize = 4;

/// The functions of one name.
#[derive(Debug)]
pub(crate) struct Functions {
    /// How each is called: the function, or what does the same where it was patched; null until it is looked for.
    pub(crate) call: [AtomicPtr<c_void>; DEFINITIONS],
    /// Where it is; 0: there is none.
    pub(crate) at: [AtomicUsize; DEFINITIONS],
}

impl Functions {
    /// None is known yet.
    pub(crate) const fn new() -> Self {
        Self {
            call: [const { AtomicPtr::new(core::ptr::null_mut()) }; DEFINITIONS],
            at: [const { AtomicUsize::new(0) }; DEFINITIONS],
        }
    }
}

/// One hook.
#[derive(Debug)]
pub(crate) struct Hook {
    /// The function's name in libc.
    pub(crate) name: &'static CStr,
    /// The number of the system call that it makes, if it is one that is hooked.
    pub(crate) number: Option<c_long>,
    /// What stands in for each of the functions of this name.
    pub(crate) replacements: [*const c_void; DEFINITIONS],
    /// The functions.
    pub(crate) functions: &'static Functions,
    /// Where the exported function of this name leads (`export.rs`); none in tests.
    #[cfg_attr(not(feature = "standalone"), expect(dead_code, reason = "tests have libc's own functions"))]
    pub(crate) slot: Option<&'static AtomicPtr<c_void>>,
}

// SAFETY: its pointers lead to statics and functions.
unsafe impl Sync for Hook {}

#[cfg(feature = "standalone")]
const VFORK: [&[Hook]; 1] = [vfork::TABLE];
#[cfg(not(feature = "standalone"))]
const VFORK: [&[Hook]; 0] = [];

/// Every hook.
pub(crate) fn all() -> impl Iterator<Item = &'static Hook> + Clone {
    let tables = [sockets::TABLE, messages::TABLE, bytes::TABLE, descriptors::TABLE, programs::TABLE, syscall::TABLE];
    tables.into_iter().chain(VFORK).flatten()
}

/// libc's syscall(2).
type Syscall = unsafe extern "C-unwind" fn(c_long, c_ulong, c_ulong, c_ulong, c_ulong, c_ulong, c_ulong) -> c_long;

/// What a system call takes, as syscall(2) has it.
type Registers = [c_ulong; 6];

/// Makes the system call that has a hook as the hook of that call would; `None` for one that has none.
unsafe fn dispatch(libc: Syscall, number: c_long, registers: &Registers) -> Option<c_long> {
    let tables = [sockets::dispatch, messages::dispatch, bytes::dispatch, descriptors::dispatch, programs::dispatch];
    // SAFETY: the caller's promise: registers as the program gave them for this number.
    tables.into_iter().find_map(|dispatch| unsafe { dispatch(libc, number, registers) })
}

/// An argument or result, and the register it is in.
trait Register: Copy + PartialEq {
    fn from_register(register: c_ulong) -> Self;
    fn into_register(self) -> c_ulong;
}

/// Puts an argument in its register, which is left as it is where it says the same: the kernel may look at more of it.
#[inline]
fn put<T: Register>(argument: T, register: Option<&mut c_ulong>) {
    if let Some(register) = register.filter(|register| T::from_register(**register) != argument) {
        *register = argument.into_register();
    }
}

macro_rules! registers {
    ($($type:ty)+) => { $(impl Register for $type {
        #[inline]
        fn from_register(register: c_ulong) -> Self {
            // The low half where that is all there is, as the kernel takes it.
            register as Self
        }

        #[inline]
        fn into_register(self) -> c_ulong {
            self as c_ulong
        }
    })+ };
}

registers! { c_int c_uint c_long c_ulong isize usize }

impl<T> Register for *const T {
    #[inline]
    fn from_register(register: c_ulong) -> Self {
        register as Self
    }

    #[inline]
    fn into_register(self) -> c_ulong {
        self as c_ulong
    }
}

impl<T> Register for *mut T {
    #[inline]
    fn from_register(register: c_ulong) -> Self {
        register as Self
    }

    #[inline]
    fn into_register(self) -> c_ulong {
        self as c_ulong
    }
}

/// The function a hook stands in for, looked up on first use: hooks of a preloaded probe run before its constructor.
#[inline]
fn libc_function(slot: &AtomicPtr<c_void>, name: &CStr) -> *mut c_void {
    let address = slot.load(Ordering::Relaxed);
    if address.is_null() { find_libc_function(slot, name) } else { address }
}

#[cold]
fn find_libc_function(slot: &AtomicPtr<c_void>, name: &CStr) -> *mut c_void {
    let address = control::next_function(name);
    slot.store(address, Ordering::Relaxed);
    address
}

/// Looks every function up, for hooks that run where dlsym(3) must not: in signal handlers, between vfork and exec.
#[cfg(feature = "standalone")]
pub(crate) fn find_all_libc_functions() {
    for hook in all() {
        libc_function(&hook.functions.call[0], hook.name);
        export::settle(hook);
    }
}

/// A NUL-terminated name.
const fn c_name(name: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(name.as_bytes()) {
        Ok(name) => name,
        Err(_) => panic!("made by concat! with a NUL at its end"),
    }
}

/// One call of `dispatch`, if it has a number. A function of its own, so that a call needs no more room on the stack than
/// its own hook.
macro_rules! by_number {
    (() $($rest:tt)*) => {};
    (($number:ident) $given:ident, $libc:ident, $registers:ident, $name:ident, ($($arg:ident: $type:ty),*), $result:ty) => {
        if $given == $crate::hooks::number::$number {
            #[inline(never)]
            unsafe fn call(libc: $crate::hooks::Syscall, number: core::ffi::c_long, registers: &$crate::hooks::Registers) -> core::ffi::c_long {
                let mut given = registers.iter().copied();
                $(let $arg = <$type as $crate::hooks::Register>::from_register(given.next().unwrap_or(0));)*
                let call = |$($arg: $type),*| {
                    let mut registers = *registers;
                    let mut changed = registers.iter_mut();
                    $($crate::hooks::put($arg, changed.next());)*
                    let [a, b, c, d, e, f] = registers;
                    // SAFETY: as the program called it.
                    let result = unsafe { libc(number, a, b, c, d, e, f) };
                    <$result as $crate::hooks::Register>::from_register(result.cast_unsigned())
                };
                // SAFETY: the caller's promise.
                let result = unsafe { around::$name(call, $($arg),*) };
                $crate::hooks::Register::into_register(result).cast_signed()
            }
            // SAFETY: the caller's promise.
            return Some(unsafe { call($libc, $given, $registers) });
        }
    };
}
use by_number;

macro_rules! hooks {
    ($($(#[$meta:meta])* fn $name:ident $([$number:ident])? ($($arg:ident: $type:ty),*) -> $result:ty |$libc:ident $(, $fd:ident)?| $body:block)+) => {
        mod libc_functions {
            #![allow(non_upper_case_globals, reason = "named like the functions")]
            use $crate::hooks::Functions;
            $(pub(super) static $name: Functions = Functions::new();)+
        }

        $crate::hooks::export! { $($name)+ }

        /// What happens around each call.
        #[allow(unused_unsafe, clippy::too_many_arguments, reason = "some entries need no unsafe, some calls take many")]
        pub(super) mod around {
            use super::*;
            $($(#[$meta])*
            #[inline]
            pub(in crate::hooks) unsafe fn $name($libc: impl Fn($($type),*) -> $result, $($arg: $type),*) -> $result {
                // SAFETY: libc's function is called as the program called it; pointers are read after the kernel did.
                unsafe { $body }
            })+
        }

        $(/// `N`: for which of the functions of this name.
        pub(super) unsafe extern "C-unwind" fn $name<const N: usize>($($arg: $type),*) -> $result {
            const NAME: &CStr = $crate::hooks::c_name(concat!(stringify!($name), "\0"));
            type Function = unsafe extern "C-unwind" fn($($type),*) -> $result;
            /// Kept apart, so that the way past it needs no frame on the stack.
            $(#[inline(never)]
            #[doc = concat!("`", stringify!($fd), "` may be traced.")])?
            unsafe extern "C-unwind" fn traced<const N: usize>($($arg: $type),*) -> $result {
                let address = $crate::hooks::libc_function(&libc_functions::$name.call[N], NAME);
                // SAFETY: the address is libc's function of this name, whose signature this is.
                unsafe {
                    let function = core::mem::transmute::<*mut core::ffi::c_void, Function>(address);
                    around::$name(|$($arg: $type),*| function($($arg),*), $($arg),*)
                }
            }
            let is_other = false $(|| $crate::table::descriptors::is_other($fd))?;
            let address = libc_functions::$name.call[N].load(core::sync::atomic::Ordering::Relaxed);
            if is_other && !address.is_null() {
                // SAFETY: as above.
                return unsafe { core::mem::transmute::<*mut core::ffi::c_void, Function>(address)($($arg),*) };
            }
            // SAFETY: as the program called it.
            unsafe { traced::<N>($($arg),*) }
        })+

        pub(super) static TABLE: &[$crate::hooks::Hook] = &[$($crate::hooks::Hook {
            name: $crate::hooks::c_name(concat!(stringify!($name), "\0")),
            number: { let number: &[core::ffi::c_long] = &[$($crate::hooks::number::$number)?]; number.first().copied() },
            replacements: [
                $name::<0> as *const core::ffi::c_void, $name::<1> as *const core::ffi::c_void,
                $name::<2> as *const core::ffi::c_void, $name::<3> as *const core::ffi::c_void,
            ],
            functions: &libc_functions::$name,
            slot: $crate::hooks::slot!($name),
        },)+];

        /// See [`super::dispatch`].
        pub(super) unsafe fn dispatch(
            libc: $crate::hooks::Syscall, number: core::ffi::c_long, registers: &$crate::hooks::Registers,
        ) -> Option<core::ffi::c_long> {
            $($crate::hooks::by_number! {
                ($($number)?) number, libc, registers, $name, ($($arg: $type),*), $result
            })+
            None
        }
    };
}
use export::{export, slot};
use hooks;

/// Tells rustc that variadic functions are hooked with fixed registers: on every 64-bit psABI here, integer arguments
/// of a variadic call go where those of a fixed one do.
const _: () = assert!(size_of::<c_long>() == size_of::<*const c_char>());
