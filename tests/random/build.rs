//! Compiles what returns twice, which Rust cannot call (src/twice.c).

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=src/twice.c");
    println!("cargo:rerun-if-env-changed=CC");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    // Cargo sets OUT_DIR for every build script.
    let object = PathBuf::from(std::env::var_os("OUT_DIR").unwrap()).join("twice.o");
    let status = Command::new(&compiler)
        .args(["-O2", "-fPIC", "-fexceptions", "-Wall", "-Wextra", "-Werror", "-c", "src/twice.c", "-o"])
        .arg(&object)
        .status()
        .unwrap_or_else(|error| panic!("the C compiler {compiler} does not start: {error}"));
    assert!(status.success(), "{compiler}: {status}");
    println!("cargo:rustc-link-arg-bins={}", object.display());
}
