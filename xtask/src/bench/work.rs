//! The runs that are measured, ours and the Python stack's.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::python::Python;
use crate::workspace::shown;

/// A training run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Training {
    pub(super) quant: &'static str,
    pub(super) dtype: &'static str,
    pub(super) batch: usize,
    pub(super) max_length: usize,
    pub(super) steps: usize,
    pub(super) checkpointing: bool,
    /// Rows shorter than `max_length`: packed into rows of that length by ours, padded to the longest of a batch by the peer.
    pub(super) short: bool,
}

impl Default for Training {
    fn default() -> Self {
        Self { quant: "nf4", dtype: "bf16", batch: 4, max_length: 128, steps: 10, checkpointing: false, short: false }
    }
}

/// What a training run came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trained {
    pub(super) tokens_per_second: f64,
    pub(super) peak_mib: f64,
    /// Seconds from the start of the command to the end of the first step.
    pub(super) first_step: f64,
}

/// Everything that a run needs to know.
#[derive(Clone)]
pub(super) struct Work {
    pub(super) halfbyte: PathBuf,
    pub(super) model: PathBuf,
    pub(super) data: PathBuf,
    pub(super) peer: Option<Python>,
    pub(super) scratch: PathBuf,
    pub(super) rounds: usize,
}

/// What a page of figures is about.
pub(super) struct Machine {
    name: String,
    /// What tells generations apart that go by one name, as in a cloud: family and model.
    generation: Option<(String, String)>,
    kernel: String,
    threads: usize,
}

impl Machine {
    /// Whether the processor multiplies tiles of bf16, for which more is asked.
    pub(super) fn has_matrix_unit(&self) -> bool {
        self.kernel == "amx"
    }

    /// The page's name: one a processor and kernel, so that a run leaves those of other machines as they are.
    pub(super) fn page(&self) -> String {
        let generation = self.generation.as_ref().map_or(String::new(), |(family, model)| format!("{family} {model}"));
        let lower = format!("cpu {} {generation} {}", self.name, self.kernel).to_lowercase();
        let words: Vec<&str> = lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|it| !it.is_empty()).collect();
        format!("{}.md", words.join("-"))
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.name)?;
        if let Some((family, model)) = &self.generation {
            write!(f, " (family {family}, model {model})")?;
        }
        write!(f, ", {} threads, products in bf16 by {}", self.threads, self.kernel)
    }
}

impl Work {
    /// The processor's name, its kernel for products in bf16, and how many threads it runs.
    pub(super) fn machine(&self) -> Machine {
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let told = |key: &str| {
            let mut lines = cpu.lines().filter_map(|it| it.split_once(": "));
            lines.find(|it| it.0.trim() == key).map(|it| it.1.trim().to_owned())
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let name = told("model name").unwrap_or_else(|| "unknown processor".into());
        let name = name.replace("(R)", "").replace("(TM)", "");
        let kernel = self.kernel().unwrap_or_default();
        Machine { name, generation: told("cpu family").zip(told("model")), kernel, threads }
    }

    /// What `halfbyte devices` says of products in bf16.
    fn kernel(&self) -> Option<String> {
        let said = Command::new(&self.halfbyte).arg("devices").output().ok()?;
        let said = String::from_utf8(said.stdout).ok()?;
        let (_, rest) = said.split_once("products in bf16 by ")?;
        Some(rest.split([',', '\n']).next()?.to_owned())
    }

    /// Rounds of ours and the peer's, one after the other, so that both meet the same moods of the machine.
    pub(super) fn train(&self, training: Training) -> Result<(Vec<Trained>, Vec<Trained>)> {
        let (mut ours, mut peer) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            ours.push(self.train_ours(training)?);
            peer.extend(self.train_peer(training)?);
        }
        Ok((ours, peer))
    }

    pub(super) fn train_ours(&self, t: Training) -> Result<Trained> {
        let output = self.scratch.join("adapter");
        let mut cmd = Command::new(&self.halfbyte);
        cmd.arg("finetune").arg("--model").arg(&self.model).arg("--data").arg(&self.data).arg("--output").arg(&output);
        let rest = format!(
            "--overwrite --no-eval-before --quant {} --method {} --rank 16 --lora-alpha 16 --target-modules all-linear \
             --compute-dtype {} --batch-size {} --max-length {} --max-steps {} --gradient-checkpointing {}",
            t.quant,
            if t.quant == "none" { "lora" } else { "qlora" },
            t.dtype,
            t.batch,
            t.max_length,
            t.steps,
            if t.checkpointing { "on" } else { "off" },
        );
        cmd.args(rest.split_whitespace());
        if t.short {
            cmd.args(["--packing", "on"]);
        } else {
            cmd.args(["--rows", &format!("0..{}", 2 * t.batch * t.steps)]);
        }
        quietly(&mut cmd)?;
        let path = output.join("summary.json");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let summary: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        let trained = Trained {
            tokens_per_second: number(&summary, "tokens_per_second")?,
            peak_mib: number(&summary, "peak_rss_mib")?,
            first_step: number(&summary, "seconds_to_first_step")?,
        };
        println!("  halfbyte {t:?}: {trained:?}");
        Ok(trained)
    }

    pub(super) fn train_peer(&self, t: Training) -> Result<Option<Trained>> {
        let Some(peer) = &self.peer else { return Ok(None) };
        let mut args = vec![
            "train".to_owned(),
            format!("--model={}", self.model.display()),
            format!("--data={}", self.data.display()),
            format!("--quant={}", t.quant),
            format!("--dtype={}", t.dtype),
            format!("--batch={}", t.batch),
            format!("--max-length={}", t.max_length),
            format!("--steps={}", t.steps),
        ];
        args.extend(t.checkpointing.then(|| "--checkpointing".to_owned()));
        args.extend(t.short.then(|| "--padded".to_owned()));
        let (found, first_step) = peer.run(&args)?;
        let trained = Trained {
            tokens_per_second: number(&found, "tokens_per_second")?,
            peak_mib: number(&found, "peak_rss_mib")?,
            first_step,
        };
        println!("  python   {t:?}: {trained:?}");
        Ok(Some(trained))
    }

    /// Tokens a second of ours and the peer's.
    pub(super) fn generate(&self, quant: &str) -> Result<(Vec<f64>, Vec<f64>)> {
        // "64 tokens in 0.66 s, 96.9 tokens/s"
        let found = self.continued(("generate", quant), ("The history of the bicycle", "64"), " tokens in ")?;
        println!("  generation, {quant}: halfbyte {:?}, python {:?}", found.0, found.1);
        Ok(found)
    }

    /// Tokens of a long prompt that are read in a second, until the first new one is there.
    pub(super) fn prefill(&self, quant: &str) -> Result<(Vec<f64>, Vec<f64>)> {
        // Six tokens each.
        let prompt = "The history of the bicycle. ".repeat(85);
        // "prompt of 512 tokens read in 0.310 s, 1651.6 tokens/s"
        let found = self.continued(("prefill", quant), (&prompt, "1"), "prompt of ")?;
        println!("  prefill, {quant}: halfbyte {:?}, python {:?}", found.0, found.1);
        Ok(found)
    }

    /// The rates that our line with `mark` tells, and those of a task of the peer's.
    fn continued(
        &self,
        (task, quant): (&str, &str),
        (prompt, tokens): (&str, &str),
        mark: &str,
    ) -> Result<(Vec<f64>, Vec<f64>)> {
        let (mut ours, mut peers) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            let mut cmd = Command::new(&self.halfbyte);
            cmd.args(["generate", "--quant", quant, "--temperature", "0", "--max-new-tokens", tokens, "-v"]);
            cmd.args(["--prompt", prompt, "--model"]).arg(&self.model);
            let said = quietly(&mut cmd)?;
            let line = said.lines().find(|it| it.contains(mark));
            let before = line.and_then(|it| it.split_once(" tokens/s")).map(|it| it.0);
            let rate = before.and_then(|it| it.rsplit(' ').next()).and_then(|it| it.parse().ok());
            ours.push(rate.context("`halfbyte generate -v` no longer tells its speed")?);
            if let Some(peer) = &self.peer {
                let model = format!("--model={}", self.model.display());
                let args = [task.to_owned(), model, format!("--quant={quant}"), format!("--prompt={prompt}")];
                peers.push(number(&peer.run(&args)?.0, "tokens_per_second")?);
            }
        }
        Ok((ours, peers))
    }

    /// Parameters that bitsandbytes quantises and decodes in a second.
    pub(super) fn peer_nf4(&self) -> Result<Option<(f64, f64)>> {
        let Some(peer) = &self.peer else { return Ok(None) };
        let (found, _) = peer.run(&["nf4".to_owned()])?;
        Ok(Some((number(&found, "quantize")?, number(&found, "decode")?)))
    }
}

fn number(value: &Value, key: &str) -> Result<f64> {
    value[key].as_f64().with_context(|| format!("no number `{key}` in {value}"))
}

/// Runs a command and gives what it said on standard error, which is shown if it fails.
fn quietly(cmd: &mut Command) -> Result<String> {
    let out = cmd.output().with_context(|| format!("cannot start `{}`", shown(cmd)))?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    if !out.status.success() {
        bail!("`{}` ended with {}: {}", shown(cmd), out.status, said.trim());
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_named_after_the_processor_and_its_kernel() {
        let generation = Some(("26".to_owned(), "2".to_owned()));
        let machine = Machine { name: "AMD EPYC (Zen)".into(), generation, kernel: "avx512bf16".into(), threads: 2 };
        assert_eq!(machine.page(), "cpu-amd-epyc-zen-26-2-avx512bf16.md");
        assert_eq!(Machine { generation: None, ..machine }.page(), "cpu-amd-epyc-zen-avx512bf16.md");
    }
}
