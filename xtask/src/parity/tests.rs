//! Claims that tests prove: they print a line `parity | what | largest error | allowed` for each comparison.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::report::{Claim, Report, Row};
use crate::workspace;

struct Suite {
    claim: Claim,
    /// Arguments of `cargo test`.
    args: &'static str,
    /// What a suite proves that prints no lines of its own.
    proves: Option<&'static str>,
}

const SUITES: [Suite; 8] = [
    Suite {
        claim: Claim::Formats,
        args: "--package halfbyte-nf4 --test golden",
        proves: Some(
            "NF4, FP4, INT8, blockwise 8-bit, double quantisation, and their edge cases: bytes of bitsandbytes' results",
        ),
    },
    Suite {
        claim: Claim::Formats,
        args: "--package halfbyte-nf4 --test properties",
        proves: Some("properties of the formats on generated input"),
    },
    Suite {
        claim: Claim::Formats,
        args: "--package halfbyte-frozen --test llm_int8",
        proves: Some("LLM.int8(): forward with and without outliers within f16's rounding, gradient within 1e-5"),
    },
    Suite {
        claim: Claim::Adapters,
        args: "--package halfbyte-lora --test peft_numbers",
        proves: Some("one layer of LoRA, rsLoRA, DoRA: output, gradients, merged matrix within 1e-5"),
    },
    Suite { claim: Claim::Models, args: "--release --package halfbyte-models --test transformers", proves: None },
    Suite { claim: Claim::Training, args: "--package e2e --test halfbyte -- python_stack", proves: None },
    Suite {
        claim: Claim::Training,
        args: "--package halfbyte-paged-optim --test suite -- golden",
        proves: Some("AdamW's formula against torch, three steps"),
    },
    Suite {
        claim: Claim::Training,
        args: "--package halfbyte-paged-optim --test suite -- blockwise8::three",
        proves: Some("8-bit AdamW against bitsandbytes' rule on a GPU, three steps: every code"),
    },
];

pub(super) fn run(root: &Path, fixtures: &Path, report: &mut Report) -> Result<()> {
    for Suite { claim, args, proves } in &SUITES {
        println!("cargo test {args}");
        let mut cmd = workspace::cargo();
        cmd.arg("test").args(args.split(' ')).current_dir(root).env("HALFBYTE_FIXTURES", fixtures);
        cmd.args(if args.contains(" -- ") { &["--nocapture"][..] } else { &["--", "--nocapture"] });
        let out = cmd.output().context("cargo test does not start")?;
        let said = String::from_utf8_lossy(&out.stdout);
        let lines: Vec<&str> = said.lines().filter_map(|it| it.split_once("parity | ").map(|it| it.1)).collect();
        let passed = said.lines().filter(|it| it.starts_with("test ") && it.ends_with("ok")).count();
        let command = format!("cargo test {args}");
        for line in &lines {
            let parts: Vec<&str> = line.split(" | ").collect();
            let [what, error, allowed] = parts[..] else { bail!("a test printed `{line}`") };
            let (error, allowed): (f64, f64) = (error.parse()?, allowed.parse()?);
            // Losses of checkpoints and adapters are printed by the suite of trainings.
            let claim = match what {
                it if it.contains("steps of") => Claim::Training,
                it if it.contains("with the adapter") => Claim::Adapters,
                it if it.starts_with("loss of llama-") => Claim::Checkpoints,
                _ => *claim,
            };
            report.push(claim, Row::relative(what, error, allowed, &command));
        }
        if let Some(what) = proves {
            report.push(*claim, Row::proved(what, passed, out.status.success(), &command));
        } else if lines.is_empty() || !out.status.success() {
            report.push(*claim, Row::proved("every comparison of the suite", passed, false, &command));
        }
    }
    Ok(())
}
