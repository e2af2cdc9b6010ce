//! `cargo xtask bundle`: everything that a machine with a GPU and without cargo needs to run the tests and the benchmark there.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::{
    generator,
    workspace::{self, cargo},
};

/// Test programs whose CUDA tests run on a real device: package and target.
const TESTS: [(&str, &str); 5] = [
    ("halfbyte-testkit", "cuda"),
    ("halfbyte-ops", "halfbyte_ops"),
    ("halfbyte-tensor", "cuda"),
    ("halfbyte-frozen", "cuda"),
    ("halfbyte-paged-optim", "suite"),
];

/// Writes the folder, which must be new.
pub(crate) fn run(output: &Path) -> Result<()> {
    if output.exists() {
        bail!("{} exists; name a new folder", output.display());
    }
    let root = workspace::root();
    let tests = output.join("tests");
    fs::create_dir_all(&tests).with_context(|| tests.display().to_string())?;
    copy(&workspace::build_halfbyte(&root)?, &output.join("halfbyte"))?;
    // It writes the models of the benchmark.
    copy(&generator::build(&root)?, &output.join("halfbyte-datasets"))?;
    for (package, target) in TESTS {
        copy(&test_program(&root, package, target)?, &tests.join(package))?;
    }
    copy(&root.join("tests/gpu/run.sh"), &output.join("run.sh"))?;
    let reference = output.join("reference");
    fs::create_dir_all(&reference)?;
    for file in ["peer.py", "requirements.txt"] {
        copy(&root.join("tests/reference").join(file), &reference.join(file))?;
    }
    println!("written to {}; there: ./run.sh tests, and ./run.sh bench llama-7b VENV", output.display());
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("{} to {}", from.display(), to.display()))?;
    // Nine tenths of a program are for debuggers; where there is no `strip`, it travels whole.
    if to.extension().is_none() {
        let _ = std::process::Command::new("strip").arg("--strip-debug").arg(to).status();
    }
    Ok(())
}

/// Builds a package's tests in release and gives the program of one target.
fn test_program(root: &Path, package: &str, target: &str) -> Result<std::path::PathBuf> {
    let mut tests = cargo();
    tests.args(["test", "--release", "--package", package]);
    let all = workspace::test_programs(root, tests)?;
    let found = all.into_iter().find(|it| it.target == target).map(|it| it.path);
    found.with_context(|| format!("cargo named no test program {target} of {package}"))
}
