//! Compiles the programs that are traced, in C, because what is to be seen is libc's functions as C programs call them.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Folders, what tests find the program by, and more for the compiler. Those that are about small stacks have their
/// functions found before they begin, because that takes the dynamic linker much room.
const PROGRAMS: [(&str, &str, &str); 3] = [
    ("workload", "SOCKTRACE_WORKLOAD", ""),
    ("matrix", "SOCKTRACE_MATRIX", "-Wl,-z,now"),
    ("stack", "SOCKTRACE_STACK", "-Wl,-z,now"),
];

fn main() {
    println!("cargo:rerun-if-env-changed=CC");
    for (name, variable, more) in PROGRAMS {
        println!("cargo:rerun-if-changed={name}");
        println!("cargo:rustc-env={variable}={}", compile(name, more).display());
    }
}

/// Compiles the C files in a folder to a program of its name.
fn compile(name: &str, more: &str) -> PathBuf {
    let sources = Path::new(name);
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    // Cargo sets OUT_DIR for every build script.
    let program = PathBuf::from(std::env::var_os("OUT_DIR").unwrap()).join(name);
    let mut files: Vec<PathBuf> = std::fs::read_dir(sources)
        .unwrap_or_else(|error| panic!("{}: {error}", sources.display()))
        .map(|entry| entry.unwrap_or_else(|error| panic!("{}: {error}", sources.display())).path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "c"))
        .collect();
    files.sort();
    let status = Command::new(&compiler)
        .args(["-O2", "-pthread", "-Wall", "-Wextra", "-Werror"])
        .args((!more.is_empty()).then_some(more))
        .arg("-o")
        .arg(&program)
        .args(&files)
        .status()
        .unwrap_or_else(|error| panic!("the C compiler {compiler} does not start: {error}"));
    assert!(status.success(), "{compiler}: {status}");
    program
}
