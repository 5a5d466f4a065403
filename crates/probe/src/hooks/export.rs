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
                core::arch::naked_asm!("jmp qword ptr [rip + {slot}]", slot = sym super::slots::$name)
            })+
        }

        /// Where they lead at first. The register is one that the dynamic linker's own stubs use.
        #[cfg(feature = "standalone")]
        mod unresolved {
            $(#[unsafe(naked)]
            pub(super) unsafe extern "C" fn $name() {
                core::arch::naked_asm!(
                    "lea r11, [rip + {slot}]",
                    "jmp {resolve}",
                    slot = sym super::slots::$name,
                    resolve = sym $crate::hooks::export::resolve,
                )
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
    use core::arch::naked_asm;
    use core::ffi::c_void;
    use core::sync::atomic::Ordering;

    use crate::patch::hook::{Hook, Slot};
    use crate::sys::{libc, library};

    /// Goes to what a slot is to lead to. r11 is the slot; whatever else may hold an argument is kept.
    #[unsafe(naked)]
    pub(in crate::hooks) unsafe extern "C" fn resolve() {
        naked_asm!(
            ".cfi_startproc",
            "push rbp",
            ".cfi_def_cfa_offset 16",
            ".cfi_offset rbp, -16",
            "mov rbp, rsp",
            ".cfi_def_cfa_register rbp",
            "push rdi",
            "push rsi",
            "push rdx",
            "push rcx",
            "push r8",
            "push r9",
            "push rax",
            "push r10",
            "sub rsp, 128",
            "movups [rsp], xmm0",
            "movups [rsp + 16], xmm1",
            "movups [rsp + 32], xmm2",
            "movups [rsp + 48], xmm3",
            "movups [rsp + 64], xmm4",
            "movups [rsp + 80], xmm5",
            "movups [rsp + 96], xmm6",
            "movups [rsp + 112], xmm7",
            "mov rdi, r11",
            "mov rsi, [rbp + 8]",
            "call {destination}",
            "mov r11, rax",
            "movups xmm0, [rsp]",
            "movups xmm1, [rsp + 16]",
            "movups xmm2, [rsp + 32]",
            "movups xmm3, [rsp + 48]",
            "movups xmm4, [rsp + 64]",
            "movups xmm5, [rsp + 80]",
            "movups xmm6, [rsp + 96]",
            "movups xmm7, [rsp + 112]",
            "add rsp, 128",
            "pop r10",
            "pop rax",
            "pop r9",
            "pop r8",
            "pop rcx",
            "pop rdx",
            "pop rsi",
            "pop rdi",
            "pop rbp",
            ".cfi_def_cfa rsp, 8",
            "jmp r11",
            ".cfi_endproc",
            destination = sym destination,
        )
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
