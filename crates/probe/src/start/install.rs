//! Which functions there are to be hooked, and hooking them where they are: in libc, and in libraries that have functions
//! of libc's and make the system calls themselves, as glibc's libpthread did before 2.34.

use core::ffi::{c_long, c_void};
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::hooks;
use crate::observe::notices;
use crate::patch::hook::{DEFINITIONS, Functions, Hook};
use crate::patch::{self, Patch};
use crate::sys::libc;
use crate::sys::library::{self, Counts, Library, Range};

fn is_musl(libc: &Library) -> bool {
    libc.function(c"gnu_get_libc_version").is_none()
}

/// What became of the hooks.
pub(crate) enum Outcome {
    /// They are in place, but for those that `missed` heard of.
    Hooked,
    /// There is no libc, or its memory cannot be changed.
    Refused,
}

/// What is to be done with a libc whose own functions make system calls without its functions.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Musl {
    /// It is patched, for there is no other way to its functions.
    Patch,
    /// The exported functions are enough.
    LeaveAlone,
}

/// Hooks whatever can be hooked in memory. `missed` hears of the functions of libc that cannot be.
pub(crate) fn install(musl: Musl, mut missed: impl FnMut(&Hook)) -> Outcome {
    if patch::is_any() {
        patch::put_back();
        return Outcome::Hooked;
    }
    let Some(libc) = library::own_libc() else { return Outcome::Refused };
    let is_musl = is_musl(&libc);
    if is_musl && musl == Musl::LeaveAlone {
        return Outcome::Hooked;
    }
    for hook in hooks::all() {
        // Functions of musl that are calls of another hooked one: hooked too, they would be recorded twice.
        if !is_musl || hook.name != c"recv" && hook.name != c"send" {
            note_functions(hook, &libc);
        }
    }
    if !patch_noted(&libc, &mut missed) {
        return Outcome::Refused;
    }
    patch_others(&libc, 0);
    if !is_musl {
        watch_loader();
    }
    Outcome::Hooked
}

/// Notes where the functions of this name are in a libc, first the one that programs get that are built today.
fn note_functions(hook: &Hook, libc: &Library) {
    let default = libc.function(hook.name).map_or(0, |function| function.address);
    if default != 0 {
        note(hook, default);
    }
    libc.each_function(hook.name, |function, _| {
        if function.address != default {
            note(hook, function.address);
        }
    });
}

/// Takes the next place among the functions of this name; which, if there is one.
fn note(hook: &Hook, address: usize) -> Option<usize> {
    let is_free =
        |found: &AtomicUsize| found.compare_exchange(0, address, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    if hook.functions.at.iter().any(|found| found.load(Ordering::Relaxed) == address) {
        return None;
    }
    let index = hook.functions.at.iter().position(is_free)?;
    hook.functions.call[index].store(address as *mut _, Ordering::Relaxed);
    Some(index)
}

/// Patches the functions that were noted in a library's code.
fn patch_noted(library: &Library, missed: &mut impl FnMut(&Hook)) -> bool {
    let Some(mut patch) = Patch::begin(library.text, hooks::all()) else { return false };
    for hook in hooks::all() {
        for (index, found) in hook.functions.at.iter().enumerate() {
            let address = found.load(Ordering::Relaxed);
            if library.text.contains(address) && !patch.add(hook, index, address) {
                missed(hook);
            }
        }
    }
    patch.finish()
}

/// Hooks the functions of other libraries that do what libc's of the same name do: of those behind the first `known`.
fn patch_others(libc: &Library, known: usize) {
    let ours = patch_others as *const () as usize;
    let mut index = 0;
    library::each(|library| {
        index += 1;
        let is_new = index > known && library.text != libc.text && !library.text.contains(ours);
        if is_new && note_system_calls(library) {
            patch_noted(library, &mut |_| {});
        }
        false
    });
}

/// Notes the functions of a library that have the name of a system call and make it; whether there are any.
fn note_system_calls(library: &Library) -> bool {
    let mut is_any = false;
    for hook in hooks::all() {
        let Some(number) = number_of(hook) else { continue };
        let Some(function) = library.function(hook.name) else { continue };
        if patch::makes_system_call(library.text, function.address, function.len, number) {
            is_any |= note(hook, function.address).is_some();
        }
    }
    is_any
}

/// The system call that a function makes.
fn number_of(hook: &Hook) -> Option<c_long> {
    // send(2) and recv(2) are another call with fewer arguments.
    let name = match hook.name.to_bytes() {
        b"send" => c"sendto",
        b"recv" => c"recvfrom",
        _ => return hook.number,
    };
    hooks::all().find(|hook| hook.name == name)?.number
}

/// What glibc's dynamic linker calls whenever the libraries have changed, for debuggers. It does nothing.
static LOADER: Hook = Hook {
    name: c"_dl_debug_state",
    number: None,
    replacements: [libraries_changed as *const c_void; DEFINITIONS],
    functions: &LOADERS,
    slot: None,
};

static LOADERS: Functions = Functions::new();

/// The counts of libraries that were looked at.
static SEEN: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];

/// Hears of libraries that are loaded later, before any code of theirs runs: a libc in a namespace of its own (dlmopen(3)),
/// and libpthread.
fn watch_loader() {
    let mut loader = None;
    library::each(|library| {
        loader = library.function(LOADER.name).map(|function| (*library, function.address));
        loader.is_some()
    });
    let Some((loader, function)) = loader.filter(|(loader, _)| !patch::has(loader.text)) else { return };
    note_counts(library::counts());
    if let Some(mut patch) = Patch::begin(loader.text, hooks::all()) {
        patch.add(&LOADER, 0, function);
        patch.finish();
    }
}

fn note_counts(counts: Counts) -> Counts {
    let [here, loaded, unloaded] = [(0, counts.here), (1, counts.loaded), (2, counts.unloaded)]
        .map(|(at, count)| SEEN[at].swap(count, Ordering::Relaxed));
    Counts { here, loaded, unloaded }
}

extern "C" fn libraries_changed() {
    let counts = library::counts();
    let seen = note_counts(counts);
    if (seen.loaded, seen.unloaded) == (counts.loaded, counts.unloaded) {
        return;
    }
    let Some(libc) = library::own_libc() else { return };
    let are_elsewhere = |counts: Counts| counts.loaded - counts.unloaded > counts.here;
    if seen.unloaded != counts.unloaded {
        forget_unloaded(&libc, are_elsewhere(seen));
    }
    patch_others(&libc, if seen.unloaded == counts.unloaded { seen.here } else { 0 });
    if are_elsewhere(counts) {
        library::each_copy(&libc, patch_copy);
    }
}

fn forget_unloaded(libc: &Library, may_be_copies: bool) {
    let is_copy = |text: Range| {
        let mut is_copy = false;
        if may_be_copies {
            library::each_copy(libc, |copy| is_copy |= copy.text == text);
        }
        is_copy
    };
    patch::forget(|text| library::with_code_at(text.start).is_some() || is_copy(text));
    libc::forget_errno_locations(patch::has_code);
}

/// Hooks a further libc.
fn patch_copy(libc: &Library) {
    if patch::has(libc.text) {
        return;
    }
    let mut is_whole = true;
    for hook in hooks::all() {
        if let Some(function) = libc.function(hook.name) {
            is_whole &= note(hook, function.address).is_some();
        }
    }
    if let Some(function) = libc.function(c"__errno_location") {
        is_whole &= libc::note_errno_location(function.address);
    }
    is_whole &= patch_noted(libc, &mut |_| {});
    if !is_whole {
        notices::report_unhooked_copy();
    }
}
