//! The generator in `datasets/`, which knows the models and the text that this program leaves alone.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::workspace::{self, cargo, check};

/// Runs it in the project's folder.
pub(crate) fn run(root: &Path, args: &[&str]) -> Result<()> {
    let run = ["run", "--release", "--locked", "--package", "halfbyte-datasets", "--"];
    check(cargo().args(run).args(args).current_dir(root))
}

/// `cargo xtask synth`: a model folder of a real model's shape with random weights, which `stored` may say to be `--quantized`, or `--headers` alone.
pub(crate) fn synth(like: &str, stored: &[&str], output: &Path) -> Result<()> {
    let output = std::path::absolute(output)?.display().to_string();
    let mut args = vec!["synth", "--like", like, "--output", &output];
    args.extend(stored);
    run(&workspace::root(), &args)
}

/// Builds it in release, and says where.
pub(crate) fn build(root: &Path) -> Result<PathBuf> {
    let mut cmd = cargo();
    cmd.args(["build", "--release", "--locked", "--package", "halfbyte-datasets"]).current_dir(root);
    check(&mut cmd)?;
    let exe = format!("halfbyte-datasets{}", std::env::consts::EXE_SUFFIX);
    Ok(workspace::target_dir(root)?.join("release").join(exe))
}
