//! Compiles the workload, a C program, because what is to be seen is libc's functions as C programs call them.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let sources = Path::new("workload");
    println!("cargo:rerun-if-changed=workload");
    println!("cargo:rerun-if-env-changed=CC");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    // Cargo sets OUT_DIR for every build script.
    let program = PathBuf::from(std::env::var_os("OUT_DIR").unwrap()).join("workload");
    let mut files: Vec<PathBuf> = std::fs::read_dir(sources)
        .unwrap_or_else(|error| panic!("{}: {error}", sources.display()))
        .map(|entry| entry.unwrap_or_else(|error| panic!("{}: {error}", sources.display())).path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "c"))
        .collect();
    files.sort();
    let status = Command::new(&compiler)
        .args(["-O2", "-pthread", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&program)
        .args(&files)
        .status()
        .unwrap_or_else(|error| panic!("the C compiler {compiler} does not start: {error}"));
    assert!(status.success(), "{compiler}: {status}");
    println!("cargo:rustc-env=SOCKTRACE_WORKLOAD={}", program.display());
}
