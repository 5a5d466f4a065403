//! The functions that a preloaded probe has for the dynamic linker: one for each hook, under libc's name.
//!
//! They come before those of the program's own libraries, which may have a function of that name that is not libc's and
//! takes and gives whatever it likes. So each only jumps, with every register and the stack as they are: to the
//! hook, if what the program would have got without us is libc's function, and else to that function.

#[cfg(feature = "standalone")]
pub(super) use resolving::resolve;
#[cfg(feature = "standalone")]
pub(crate) use resolving::settle;

/// The functions, a module `export` with them, and a module `slots` with where each leads.
macro_rules! export {
    ($($name:ident)+) => {
        #[cfg(feature = "standalone")]
        mod slots {
            #![allow(non_upper_case_globals, reason = "named like the functions")]
            use core::sync::atomic::AtomicPtr;
            use core::ffi::c_void;
            use $crate::patch::hook::Slot;
            $(pub(super) static $name: Slot = Slot {
                to: AtomicPtr::new(super::unresolved::$name as *const c_void as *mut c_void),
                table: &super::TABLE,
            };)+
        }

        #[cfg(feature = "standalone")]
        mod exported {
            $(#[unsafe(naked)]
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name() {
                $crate::arch::entry::jump_through!(super::slots::$name)
            })+
        }

        /// Where they lead at first.
        #[cfg(feature = "standalone")]
        mod unresolved {
            $(#[unsafe(naked)]
            pub(super) unsafe extern "C" fn $name() {
                $crate::arch::entry::resolve!(super::slots::$name, $crate::hooks::export::resolve)
            })+
        }
    };
}
pub(super) use export;

/// Where a function of the macro's leads; `None` in tests, which have libc's own.
macro_rules! slot {
    ($name:ident) => {{
        #[cfg(feature = "standalone")]
        let slot = Some(&slots::$name);
        #[cfg(not(feature = "standalone"))]
        let slot = None;
        slot
    }};
}
pub(super) use slot;

#[cfg(feature = "standalone")]
mod resolving {
    use core::ffi::c_void;
    use core::sync::atomic::Ordering;

    use crate::patch::hook::{Hook, Slot};
    use crate::sys::{libc, library};

    /// Goes to what a slot is to lead to.
    #[unsafe(naked)]
    pub(in crate::hooks) unsafe extern "C" fn resolve() {
        crate::arch::entry::go_where!(destination)
    }

    /// For a call that comes before the probe's constructor, or of a function that there was none of then.
    unsafe extern "C" fn destination(slot: &'static Slot, caller: usize) -> *const c_void {
        let is_its = |hook: &&Hook| hook.slot.is_some_and(|of_hook| core::ptr::eq(of_hook, slot));
        let Some(hook) = slot.table.iter().find(is_its) else { return libc::missing() };
        settle(hook).unwrap_or_else(|| of_a_later_library(hook, caller))
    }

    /// Decides for good where the exported function of a hook's leads, if there is a function of that name behind it.
    pub(crate) fn settle(hook: &Hook) -> Option<*const c_void> {
        let next = libc::next_symbol(hook.name);
        if next.is_null() {
            return None;
        }
        let destination = if library::is_libcs(next as usize) { hook.replacements[0] } else { next.cast_const() };
        if let Some(slot) = hook.slot {
            slot.to.store(destination.cast_mut(), Ordering::Relaxed);
        }
        Some(destination)
    }

    /// A function that this libc does not have, called all the same: by a library that was loaded later and has one
    /// itself, or is loaded with one that has. Not ours, which has every name.
    fn of_a_later_library(hook: &Hook, caller: usize) -> *const c_void {
        let of =
            |library: &library::Library| library.function(hook.name).map(|function| function.address as *const c_void);
        let mut found = library::with_code_at(caller).as_ref().and_then(of);
        let ours = resolve as *const () as usize;
        library::each(|library| {
            if found.is_none() && !library.text.contains(ours) {
                found = of(library);
            }
            found.is_some()
        });
        found.unwrap_or_else(libc::missing)
    }
}
