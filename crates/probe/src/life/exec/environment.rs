//! Environments (environ(7)), with the probe in LD_PRELOAD or without it.

use core::ffi::{CStr, c_char};

/// The variable, with its equals sign.
pub(crate) const LD_PRELOAD: &[u8] = b"LD_PRELOAD=";

/// Where an environment has LD_PRELOAD, and how large it is.
#[derive(Clone, Copy, Default)]
pub(super) struct Survey<'a> {
    /// Its variables.
    pub(super) count: usize,
    /// The place and value of LD_PRELOAD. Of several the dynamic linker goes by the last.
    pub(super) preload: Option<(usize, &'a [u8])>,
}

/// The variables of an environment.
///
/// # Safety
///
/// It is null, or an array of strings with a null behind it.
pub(crate) unsafe fn entries<'a>(envp: *const *const c_char) -> impl Iterator<Item = &'a CStr> {
    // SAFETY: the caller's promise: null, or an array of strings with a null behind it.
    let entry = move |index| unsafe { *envp.add(index) };
    let strings = (0..).take_while(move |_| !envp.is_null()).map(entry).take_while(|entry| !entry.is_null());
    // SAFETY: not null, and so a string.
    strings.map(|entry| unsafe { CStr::from_ptr(entry) })
}

pub(super) unsafe fn survey<'a>(envp: *const *const c_char) -> Survey<'a> {
    let mut survey = Survey::default();
    // SAFETY: the caller's promise.
    for (index, entry) in unsafe { entries(envp) }.enumerate() {
        survey.count = index + 1;
        if let Some(value) = entry.to_bytes().strip_prefix(LD_PRELOAD) {
            survey.preload = Some((index, value));
        }
    }
    survey
}

/// The libraries of a value of LD_PRELOAD.
pub(crate) fn libraries(value: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    value.split(|&b| b == b':' || b == b' ').filter(|library| !library.is_empty())
}

impl Survey<'_> {
    pub(super) fn names(&self, probe: &CStr) -> bool {
        self.preload.is_some_and(|(_, value)| libraries(value).any(|library| library == probe.to_bytes()))
    }
}

/// A pointer that cannot lead anywhere: execve(2) answers it with EFAULT, and it is not to be followed before that.
pub(super) fn leads_nowhere<T>(pointer: *const T) -> bool {
    const PAGE_LEN: usize = 4096;
    !pointer.is_null() && (pointer.addr() < PAGE_LEN || isize::try_from(pointer.addr()).is_err())
}

/// Writes the variable as it is to be: with the probe behind the others, or without it. Empty: there is to be none.
pub(super) fn write_value<'a>(to: &'a mut [u8], survey: &Survey<'_>, probe: &CStr, is_wanted: bool) -> &'a [u8] {
    let before = survey.preload.map_or(&[][..], |(_, value)| value);
    let mut len = 0;
    let mut push = |text: &[u8]| {
        to[len..len + text.len()].copy_from_slice(text);
        len += text.len();
    };
    if is_wanted {
        push(LD_PRELOAD);
        push(before);
        if !before.is_empty() {
            push(b":");
        }
        push(probe.to_bytes());
    } else {
        for (index, library) in libraries(before).filter(|library| *library != probe.to_bytes()).enumerate() {
            push(if index == 0 { LD_PRELOAD } else { b":" });
            push(library);
        }
    }
    if len == 0 {
        return &[];
    }
    to[len] = 0;
    &to[..=len]
}

/// Writes an environment with the variable changed to `value`, which has a NUL at its end, or left out where it is empty.
///
/// # Safety
///
/// `envp` is null or an environment of `survey.count` variables.
pub(super) unsafe fn write_array(
    to: &mut [u8],
    envp: *const *const c_char,
    survey: &Survey<'_>,
    value: &[u8],
) -> *const *const c_char {
    let array = to.as_mut_ptr().cast::<*const c_char>();
    let at = survey.preload.map_or(survey.count, |(index, _)| index);
    let mut len = 0;
    let mut push = |entry: *const c_char| {
        // SAFETY: room for one more variable than there were, and the null; aligned to a page.
        unsafe { array.add(len).write(entry) };
        len += 1;
    };
    for index in 0..survey.count.max(at + 1) {
        if index != at {
            // SAFETY: within the environment.
            push(unsafe { *envp.add(index) });
        } else if !value.is_empty() {
            push(value.as_ptr().cast());
        }
    }
    push(core::ptr::null());
    array
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;

    /// What becomes of an environment.
    fn changed(before: Option<&[&str]>, is_wanted: bool) -> Vec<String> {
        let strings: Vec<_> = before.unwrap_or_default().iter().map(|entry| CString::new(*entry).unwrap()).collect();
        let mut array: Vec<_> = strings.iter().map(|entry| entry.as_ptr()).collect();
        array.push(core::ptr::null());
        let envp = if before.is_some() { array.as_ptr() } else { core::ptr::null() };
        // SAFETY: an environment.
        let survey = unsafe { survey(envp) };
        let mut value = vec![0; 200_000];
        let mut to = vec![0_u64; survey.count + 2];
        let value = write_value(&mut value, &survey, c"/p/probe.so", is_wanted);
        // SAFETY: room for as many.
        unsafe {
            let (_, to, _) = to.align_to_mut::<u8>();
            let made = write_array(to, envp, &survey, value);
            entries(made).map(|entry| entry.to_str().unwrap().to_owned()).collect()
        }
    }

    #[test]
    fn environments_with_the_probe() {
        assert_eq!(changed(None, true), ["LD_PRELOAD=/p/probe.so"]);
        assert_eq!(changed(Some(&[]), true), ["LD_PRELOAD=/p/probe.so"]);
        assert_eq!(changed(Some(&["A=b", "C"]), true), ["A=b", "C", "LD_PRELOAD=/p/probe.so"]);
        assert_eq!(changed(Some(&["LD_PRELOAD=", "A=b"]), true), ["LD_PRELOAD=/p/probe.so", "A=b"]);
        assert_eq!(changed(Some(&["LD_PRELOAD=a b", "A=b"]), true), ["LD_PRELOAD=a b:/p/probe.so", "A=b"]);
        assert_eq!(changed(Some(&["LD_PRELOAD=a", "LD_PRELOAD=b"]), true)[1], "LD_PRELOAD=b:/p/probe.so");
        let long = format!("LD_PRELOAD={}", ":".repeat(100_000));
        assert_eq!(changed(Some(&[&long]), true), [format!("{long}:/p/probe.so")]);
    }

    #[test]
    fn environments_without_the_probe() {
        assert_eq!(changed(Some(&["LD_PRELOAD=/p/probe.so", "A=b"]), false), ["A=b"]);
        assert_eq!(changed(Some(&["LD_PRELOAD=a:/p/probe.so b", "A=b"]), false), ["LD_PRELOAD=a:b", "A=b"]);
        assert_eq!(changed(Some(&["LD_PRELOAD=/p/probe.so:/p/probe.so"]), false), [""; 0]);
    }

    #[test]
    fn any_number_of_variables() {
        for count in [0, 1, 2046, 2047, 2048, 10_000] {
            let names: Vec<_> = (0..count).map(|number| format!("V{number}=1")).collect();
            let before: Vec<_> = names.iter().map(String::as_str).collect();
            let after = changed(Some(&before), true);
            assert_eq!((after.len(), &after[..count]), (count + 1, &names[..]));
        }
    }

    #[test]
    fn pointers_that_are_none() {
        assert!(!leads_nowhere(core::ptr::null::<u8>()) && !leads_nowhere(LD_PRELOAD.as_ptr()));
        let at = core::ptr::without_provenance::<u8>;
        assert!(leads_nowhere(at(1)) && leads_nowhere(at(usize::MAX)));
    }
}
