//! libFuzzer around a target, which the variable `FUZZ_TARGET` names; `make fuzz` runs it.
#![no_main]

use std::sync::LazyLock;

use socktrace_fuzz::Target;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    Target::named(&name).unwrap_or_else(|error| {
        eprintln!("FUZZ_TARGET: {error}");
        std::process::exit(1)
    })
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    (TARGET.run)(input);
});
