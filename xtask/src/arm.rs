//! `cargo xtask arm`: the crates that have code of their own for ARM, cross-built and tested under an emulator, on a machine that is none.
//!
//! Three things must be there: the standard library for the target (`rustup target add`, or a compiler named by `RUSTC`), a linker, and
//! `qemu-aarch64`. An emulator says nothing about speed.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::workspace;

const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";
const EMULATOR: &str = "qemu-aarch64";
/// Where Debian and Ubuntu put the libraries that go with the linker.
const LIBRARIES: &str = "/usr/aarch64-linux-gnu";
/// Those whose inner loops have a part for ARM, or stand on one that does.
const PACKAGES: [&str; 3] = ["halfbyte-matmul", "halfbyte-nf4", "halfbyte-ops"];

/// Tests all, or names what is missing.
pub(crate) fn run() -> Result<()> {
    let missing = missing();
    if !missing.is_empty() {
        bail!("ARM cannot be tried here: {}", missing.join("; "));
    }
    // With everything that the emulator knows, and with what the first 64-bit ARM had.
    for (cpu, packages) in [("max", &PACKAGES[..]), ("cortex-a72", &PACKAGES[..1])] {
        println!("\n==> {TARGET}, as {cpu}");
        let mut cmd = workspace::cargo();
        cmd.args(["test", "--locked", "--lib", "--target", TARGET]).current_dir(workspace::root());
        packages.iter().for_each(|it| {
            cmd.args(["--package", it]);
        });
        let name = TARGET.to_uppercase().replace('-', "_");
        cmd.env(format!("CARGO_TARGET_{name}_LINKER"), LINKER);
        cmd.env(format!("CARGO_TARGET_{name}_RUNNER"), format!("{EMULATOR} -cpu {cpu} -L {LIBRARIES}"));
        // The GPU's stand-in is built by this machine's compiler, for this machine.
        cmd.args(["--", "--skip", "cuda"]);
        workspace::check(&mut cmd)?;
    }
    Ok(())
}

/// What has to be installed first, and how.
fn missing() -> Vec<String> {
    let mut found = Vec::new();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let asked = Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]).output();
    let there = asked.is_ok_and(|it| Path::new(String::from_utf8_lossy(&it.stdout).trim()).is_dir());
    if !there {
        found.push(format!("no standard library for {TARGET} (rustup target add {TARGET})"));
    }
    for (program, package) in [(LINKER, "gcc-aarch64-linux-gnu"), (EMULATOR, "qemu-user")] {
        let starts = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if starts.is_err() {
            found.push(format!("no {program} (Debian's package {package})"));
        }
    }
    found
}
