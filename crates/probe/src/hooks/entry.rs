//! What the tables of hooks are written with.

use core::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::sys::libc;

/// libc's syscall(2).
pub(super) type Syscall =
    unsafe extern "C-unwind" fn(c_long, c_ulong, c_ulong, c_ulong, c_ulong, c_ulong, c_ulong) -> c_long;

/// What a system call takes, as syscall(2) has it.
pub(super) type Registers = [c_ulong; 6];

/// An argument or result, and the register it is in.
pub(super) trait Register: Copy + PartialEq {
    fn from_register(register: c_ulong) -> Self;
    fn into_register(self) -> c_ulong;
}

/// Puts an argument in its register, which is left as it is where it says the same: the kernel may look at more of it.
#[inline]
pub(super) fn put<T: Register>(argument: T, register: Option<&mut c_ulong>) {
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
pub(super) fn libc_function(slot: &AtomicPtr<c_void>, name: &CStr) -> *mut c_void {
    let address = slot.load(Ordering::Relaxed);
    if address.is_null() { find_libc_function(slot, name) } else { address }
}

#[cold]
fn find_libc_function(slot: &AtomicPtr<c_void>, name: &CStr) -> *mut c_void {
    let address = libc::next_function(name);
    slot.store(address, Ordering::Relaxed);
    address
}

/// A NUL-terminated name.
pub(super) const fn c_name(name: &'static str) -> &'static CStr {
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
        if $given == $crate::arch::number::$number {
            #[inline(never)]
            unsafe fn call(libc: $crate::hooks::entry::Syscall, number: core::ffi::c_long, registers: &$crate::hooks::entry::Registers) -> core::ffi::c_long {
                let mut given = registers.iter().copied();
                $(let $arg = <$type as $crate::hooks::entry::Register>::from_register(given.next().unwrap_or(0));)*
                let call = |$($arg: $type),*| {
                    let mut registers = *registers;
                    let mut changed = registers.iter_mut();
                    $($crate::hooks::entry::put($arg, changed.next());)*
                    let [a, b, c, d, e, f] = registers;
                    // SAFETY: as the program called it.
                    let result = unsafe { libc(number, a, b, c, d, e, f) };
                    <$result as $crate::hooks::entry::Register>::from_register(result.cast_unsigned())
                };
                // SAFETY: the caller's promise.
                let result = unsafe { around::$name(call, $($arg),*) };
                $crate::hooks::entry::Register::into_register(result).cast_signed()
            }
            // SAFETY: the caller's promise.
            return Some(unsafe { call($libc, $given, $registers) });
        }
    };
}
pub(super) use by_number;

macro_rules! hooks {
    ($($(#[$meta:meta])* fn $name:ident $([$number:ident])? ($($arg:ident: $type:ty),*) -> $result:ty |$libc:ident $(, $fd:ident)?| $body:block)+) => {
        mod libc_functions {
            #![allow(non_upper_case_globals, reason = "named like the functions")]
            use $crate::patch::hook::Functions;
            $(pub(super) static $name: Functions = Functions::new();)+
        }

        $crate::hooks::export::export! { $($name)+ }

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
            const NAME: &CStr = $crate::hooks::entry::c_name(concat!(stringify!($name), "\0"));
            type Function = unsafe extern "C-unwind" fn($($type),*) -> $result;
            /// Kept apart, so that the way past it needs no frame on the stack.
            $(#[inline(never)]
            #[doc = concat!("`", stringify!($fd), "` may be traced.")])?
            unsafe extern "C-unwind" fn traced<const N: usize>($($arg: $type),*) -> $result {
                let address = $crate::hooks::entry::libc_function(&libc_functions::$name.call[N], NAME);
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

        pub(super) static TABLE: &[$crate::patch::hook::Hook] = &[$($crate::patch::hook::Hook {
            name: $crate::hooks::entry::c_name(concat!(stringify!($name), "\0")),
            number: { let number: &[core::ffi::c_long] = &[$($crate::arch::number::$number)?]; number.first().copied() },
            replacements: [
                $name::<0> as *const core::ffi::c_void, $name::<1> as *const core::ffi::c_void,
                $name::<2> as *const core::ffi::c_void, $name::<3> as *const core::ffi::c_void,
            ],
            functions: &libc_functions::$name,
            slot: $crate::hooks::export::slot!($name),
        },)+];

        /// See `syscall.rs`.
        pub(super) unsafe fn dispatch(
            libc: $crate::hooks::entry::Syscall, number: core::ffi::c_long, registers: &$crate::hooks::entry::Registers,
        ) -> Option<core::ffi::c_long> {
            $($crate::hooks::entry::by_number! {
                ($($number)?) number, libc, registers, $name, ($($arg: $type),*), $result
            })+
            None
        }
    };
}
pub(super) use hooks;

/// Tells rustc that variadic functions are hooked with fixed registers: on every 64-bit psABI here, integer arguments
/// of a variadic call go where those of a fixed one do.
const _: () = assert!(size_of::<c_long>() == size_of::<*const c_char>());
