//! `cargo xtask roofline`: `halfbyte inspect --roofline` on headers of a real model's shape.

use std::process::Command;

use anyhow::Result;

use crate::{
    flags, generator,
    workspace::{self, check},
};

/// Makes the headers where they are not made yet, and asks.
pub(crate) fn run(asked: &flags::Roofline) -> Result<()> {
    let root = workspace::root();
    let exe = workspace::build_halfbyte(&root)?;
    let model = workspace::target_dir(&root)?.join("roofline").join(&asked.like);
    // Written last, so that a folder without it was not finished.
    if !model.join("config.json").exists() {
        if model.exists() {
            std::fs::remove_dir_all(&model)?;
        }
        generator::synth(&asked.like, &["--headers"], &model)?;
    }
    let (batch, length) = (asked.batch.unwrap_or(4).to_string(), asked.length.unwrap_or(2048).to_string());
    let mut cmd = Command::new(exe);
    cmd.arg("inspect").arg("--model").arg(&model).args(["--device", "cpu", "--quant", "nf4"]);
    cmd.args(["--target-modules", "all-linear", "--rank", "16"]);
    cmd.args(["--per-device-train-batch-size", &batch, "--max-length", &length]);
    cmd.args(["--roofline", asked.card.as_deref().unwrap_or("h100")]);
    cmd.args(asked.recomputed.then_some("--gradient-checkpointing"));
    cmd.args(asked.offloaded.then_some("--offload-activations"));
    if let Some(mib) = asked.resident {
        cmd.args(["--optim-resident-mib", &mib.to_string()]);
    }
    check(&mut cmd)
}
