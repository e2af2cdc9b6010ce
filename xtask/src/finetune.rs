//! `cargo xtask finetune`: one command from a fresh clone to an adapter.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::workspace;

/// The base model of the run without arguments, relative to the root.
const MODEL: &str = "datasets/models/tiny-llama";
/// Its training rows and the rows it never sees.
const TRAIN: &str = "datasets/reviews-train.parquet";
const TEST: &str = "datasets/reviews-test.parquet";
/// Where its adapter goes; git ignores the folder.
const OUTPUT: &str = "out/finetune";

/// What `cargo xtask finetune` says to `halfbyte` when the user says nothing.
const DEFAULT_ARGS: &[&str] = &[
    "finetune",
    "--model",
    MODEL,
    "--data",
    TRAIN,
    "--eval-data",
    TEST,
    "--eval-labels",
    "positive,negative",
    "--output",
    OUTPUT,
    "--overwrite",
    "--quant",
    "nf4",
    "--method",
    "qlora",
    "--rank",
    "16",
    "--lora-alpha",
    "32",
    "--target-modules",
    "all-linear",
    "--max-length",
    "64",
    "--per-device-train-batch-size",
    "8",
    "--learning-rate",
    "2e-3",
    "--lr-scheduler-type",
    "cosine",
    "--num-train-epochs",
    "3",
    "--samples",
    "4",
    "--seed",
    "42",
];

/// Builds `halfbyte` and becomes it: with `args` in the user's folder, without in the root on the embedded data.
pub(crate) fn run(args: &[OsString]) -> Result<()> {
    let root = workspace::root();
    if args.is_empty() {
        require_embedded(&root)?;
    }
    // What is embedded comes from nowhere.
    let exe =
        if args.is_empty() { workspace::build_halfbyte_offline(&root)? } else { workspace::build_halfbyte(&root)? };
    let mut cmd = Command::new(exe);
    if args.is_empty() {
        cmd.args(DEFAULT_ARGS).current_dir(&root);
    } else {
        cmd.arg("finetune").args(args);
    }
    println!("running {}", workspace::shown(&cmd));
    become_command(cmd)
}

fn require_embedded(root: &Path) -> Result<()> {
    for path in [MODEL, TRAIN, TEST] {
        if !root.join(path).exists() {
            bail!(
                "{path} is not in this checkout: the run without arguments needs it; make it with `cargo xtask pretrain`"
            );
        }
    }
    Ok(())
}

/// Replaces this process, so that Ctrl-C and the exit code are the trainer's own.
#[cfg(unix)]
fn become_command(mut cmd: Command) -> Result<()> {
    use std::os::unix::process::CommandExt;
    let error = cmd.exec();
    bail!("cannot start `{}`: {error}", workspace::shown(&cmd));
}

#[cfg(not(unix))]
fn become_command(mut cmd: Command) -> Result<()> {
    use anyhow::Context;
    let status = cmd.status().with_context(|| format!("cannot start `{}`", workspace::shown(&cmd)))?;
    std::process::exit(status.code().unwrap_or(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkout_without_the_embedded_files_is_told_how_to_make_them() {
        let empty = std::env::temp_dir().join("halfbyte-xtask-no-such-checkout");
        let message = require_embedded(&empty).unwrap_err().to_string();
        assert!(message.contains(MODEL) && message.contains("cargo xtask pretrain"), "{message}");
    }
}
