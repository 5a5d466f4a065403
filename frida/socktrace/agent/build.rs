//! Builds the probe as the shared object that agent.js carries.
//!
//! A nested cargo, because the probe needs what a dependency cannot ask for: to be a cdylib, without unwinding, linked
//! to nothing. A package of this crate carries it as built, by architecture.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the linker is told: no library, no start files; bind everything at load, for a program may be confined later;
/// and the probe's `close` is the probe's own, where libc's would come first among the program's libraries.
const LINK_ARGS: [&str; 6] =
    ["-nostdlib", "-nostartfiles", "-Wl,-Bsymbolic", "-Wl,-z,now", "-Wl,-z,relro", "-Wl,-soname,socktrace-probe.so"];

/// What cargo puts into each package.
const ORIGINAL_MANIFEST: &str = "Cargo.toml.orig";

fn main() {
    let here = PathBuf::from(var("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(var("OUT_DIR"));
    let arch = var("CARGO_CFG_TARGET_ARCH");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-env=SOCKTRACE_PROBE_ARCH={}", frida_arch(&arch));
    let probe = if here.join(ORIGINAL_MANIFEST).exists() { prebuilt(&here, &arch) } else { build(&here, &out) };
    copy(&probe, &out.join("probe.so"));
}

fn prebuilt(here: &Path, arch: &str) -> PathBuf {
    let probe = here.join(format!("prebuilt/{arch}.so"));
    assert!(probe.exists(), "this package has no probe for {arch}");
    probe
}

fn build(here: &Path, out: &Path) -> PathBuf {
    let root = here.join("../../..");
    for source in ["probe/src", "probe/Cargo.toml", "gttr/src", "params/src", "ring/src"] {
        println!("cargo::rerun-if-changed={}", root.join("crates").join(source).display());
    }
    let target = var("TARGET");
    let target_dir = out.join("probe");
    let mut cargo = Command::new(var("CARGO"));
    cargo
        .current_dir(&root)
        .args(["rustc", "--package", "socktrace-probe", "--features", "standalone", "--crate-type", "cdylib"])
        .args(["--profile", "probe", "--target", &target, "--target-dir"])
        .arg(&target_dir)
        .args(["--", "-C", "force-unwind-tables=yes", "-C", "relocation-model=pic"]);
    for arg in LINK_ARGS {
        cargo.args(["-C", &format!("link-arg={arg}")]);
    }
    // The outer build's flags and wrappers are for the outer build: clippy and coverage are not for this object.
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WORKSPACE_WRAPPER", "RUSTC_WRAPPER", "CARGO_TARGET_DIR"]
    {
        cargo.env_remove(name);
    }
    let status = cargo.status().unwrap_or_else(|error| panic!("cannot run cargo to build the probe: {error}"));
    assert!(status.success(), "the probe does not build: see cargo's messages above");
    target_dir.join(&target).join("probe").join("libsocktrace_probe.so")
}

/// An architecture as Frida's `Process.arch` names it.
fn frida_arch(rust: &str) -> &str {
    match rust {
        "x86_64" => "x64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::copy(from, to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}
