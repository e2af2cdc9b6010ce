//! Comparisons that take a real model: both stacks at the same work, through files that either could have written.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use safetensors::SafeTensors;
use serde_json::Value;

use super::report::{Claim, Report, Row};
use crate::{python::Python, workspace::shown};

/// Rows of text, and tokens of each, that losses are measured on.
const ROWS: usize = 100;
const LENGTH: usize = 128;
/// Steps of a training, of four rows of so many tokens.
const STEPS: usize = 100;
const TRAIN_LENGTH: usize = 64;
/// Prompts that are continued by so many tokens.
const PROMPTS: usize = 20;
const NEW_TOKENS: usize = 64;

pub(super) struct Stack {
    pub(super) halfbyte: PathBuf,
    pub(super) python: Python,
    pub(super) model: PathBuf,
    pub(super) train: PathBuf,
    pub(super) test: PathBuf,
    pub(super) fixtures: PathBuf,
    pub(super) scratch: PathBuf,
}

impl Stack {
    pub(super) fn run(&self, report: &mut Report) -> Result<()> {
        self.checkpoints(report)?;
        self.adapters(report)?;
        self.greedy(report)?;
        self.trainings(report)?;
        self.perplexities(report)?;
        self.merges(report)
    }

    /// A real model quantised by both, byte against byte, and ours read by transformers.
    fn checkpoints(&self, report: &mut Report) -> Result<()> {
        // bitsandbytes' CPU code has thresholds of its own, some ulp from the CUDA kernel's: a few parts in ten million for NF4; for FP4, whose
        // CUDA thresholds are written with six digits, bf16 weights meet them more often. 8 bits have none.
        let kinds = [
            ("nf4-double", "--quant nf4", 1e-4),
            ("fp4", "--quant fp4 --double-quant off", 1e-3),
            ("int8", "--quant int8", 0.0),
        ];
        for (quant, flags, share) in kinds {
            let (ours, theirs) = (self.path(&format!("ours-{quant}")), self.path(&format!("theirs-{quant}")));
            let dtype = "--dtype bf16";
            self.python(&format!("quantize --quant {quant} {dtype}"), &[("--model", &self.model), ("--out", &theirs)])?;
            self.halfbyte(&format!("quantize {flags}"), &[("--model", &self.model), ("--output", &ours)])?;
            let (different, all) = different_bytes(&ours, &theirs)?;
            report.push(
                Claim::Formats,
                Row::seen(
                    &format!("SmolLM2-135M as {quant}: bytes that differ from bitsandbytes' CPU code"),
                    &format!("{share} of all"),
                    format!("{different} of {all}"),
                    different as f64 <= share * all as f64,
                    &format!("halfbyte quantize {flags}; parity.py quantize --quant {quant}"),
                ),
            );
            let int8 = if quant == "int8" { " --int8" } else { "" };
            let text = [("--model", &theirs), ("--data", &self.test)];
            let read_by_us = self.eval(&theirs, None, "f32", "")?;
            let read_by_them = self.python(&format!("loss --quant stored --dtype f32 --rows {ROWS}{int8}"), &text)?;
            let name = if quant == "int8" { "stored, LLM.int8()" } else { "stored" };
            let allowed = if quant == "int8" { 2e-3 } else { 1e-4 };
            let command = format!("halfbyte eval; parity.py loss --quant stored ({quant})");
            let error = read_by_us / number(&read_by_them, "loss")? - 1.0;
            report.push(
                Claim::Checkpoints,
                Row::relative(
                    &format!("loss of SmolLM2-135M as transformers wrote it, {name} {quant}"),
                    error.abs(),
                    allowed,
                    &command,
                ),
            );
            let text = [("--model", &ours), ("--data", &self.test)];
            let by_them = self.python(&format!("loss --quant stored --dtype f32 --rows {ROWS}{int8}"), &text)?;
            let error = self.eval(&ours, None, "f32", "")? / number(&by_them, "loss")? - 1.0;
            report.push(
                Claim::Checkpoints,
                Row::relative(
                    &format!("the same as Halfbyte wrote it, read by transformers, {quant}"),
                    error.abs(),
                    allowed,
                    &command,
                ),
            );
            for dir in [ours, theirs] {
                fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
            }
        }
        Ok(())
    }

    /// Adapters that Halfbyte trains, read by peft.
    fn adapters(&self, report: &mut Report) -> Result<()> {
        let stack = self.fixtures.join("stack");
        let rows = stack.join("rows.jsonl");
        let kinds = [
            ("llama", "--target-modules all-linear --use-rslora"),
            ("llama", "--target-modules all-linear --use-dora"),
            ("llama", "--target-modules q_proj,v_proj --rank-pattern v_proj=3 --modules-to-save lm_head"),
            ("gpt-neo", "--target-modules q_proj,c_fc --bias all"),
            ("gpt-neo", "--target-modules all-linear --bias lora_only"),
            ("gpt-neo", "--target-modules wte,q_proj"),
            ("mistral", "--target-modules all-linear"),
            ("qwen2", "--target-modules all-linear --bias all"),
            ("qwen3", "--target-modules all-linear --modules-to-save q_norm"),
            ("mixtral", "--target-modules all-linear"),
            ("qwen3-moe", "--target-modules all-linear"),
        ];
        for (base, flags) in kinds {
            let (model, output) = (stack.join(base), self.path("adapter"));
            self.halfbyte(
                &format!(
                    "finetune --overwrite --method lora --rank 2 --max-steps 10 --num-train-epochs 9 --learning-rate 1e-2 \
                     --batch-size 2 --max-length 16 --compute-dtype f32 --no-eval-before {flags}"
                ),
                &[("--model", &model), ("--data", &rows), ("--output", &output)],
            )?;
            let paths = [("--model", &model), ("--adapter", &output), ("--data", &rows)];
            let ours = number(&self.halfbyte("eval --json --compute-dtype f32", &paths)?, "loss")?;
            let theirs = number(&self.python("loss", &paths)?, "loss")?;
            let what = format!("loss of {base} with an adapter that Halfbyte trained, read by peft: {flags}");
            let command = "halfbyte finetune; halfbyte eval; parity.py loss --adapter";
            report.push(Claim::Adapters, Row::relative(&what, (ours / theirs - 1.0).abs(), 1e-5, command));
        }
        Ok(())
    }

    /// Most probable continuations, token for token those of the other stack.
    fn greedy(&self, report: &mut Report) -> Result<()> {
        let prompts: Vec<String> = (0..PROMPTS).map(prompt).collect();
        let path = self.path("prompts.json");
        fs::write(&path, serde_json::to_string(&prompts)?).with_context(|| path.display().to_string())?;
        let found =
            self.python(&format!("greedy --tokens {NEW_TOKENS}"), &[("--model", &self.model), ("--prompts", &path)])?;
        let theirs = found["texts"].as_array().context("parity.py greedy prints texts")?;
        let mut same = 0;
        for (prompt, theirs) in prompts.iter().zip(theirs) {
            let mut cmd = Command::new(&self.halfbyte);
            cmd.args([
                "generate",
                "--temperature",
                "0",
                "--compute-dtype",
                "f32",
                "--quant",
                "none",
                "--max-new-tokens",
            ]);
            cmd.arg(NEW_TOKENS.to_string()).arg("--model").arg(&self.model).arg("--prompt").arg(prompt);
            let ours = output(&mut cmd)?;
            same += usize::from(theirs.as_str().map(str::trim_end) == Some(ours.trim_end()));
        }
        report.push(
            Claim::Models,
            Row::seen(
                &format!("SmolLM2-135M, greedy, {NEW_TOKENS} tokens after each of {PROMPTS} prompts: the same text"),
                "all",
                format!("{same} of {PROMPTS}"),
                same == PROMPTS,
                "halfbyte generate --compute-dtype f32; parity.py greedy",
            ),
        );
        Ok(())
    }

    /// A hundred steps from the same adapter, over the same rows in the same order.
    fn trainings(&self, report: &mut Report) -> Result<()> {
        let neo = self.path("random-neo");
        self.python("random-neo", &[("--tokenizer", &self.model), ("--out", &neo)])?;
        for (name, model) in [("SmolLM2-135M", &self.model), ("a random GPT-Neo of 8 M", &neo)] {
            let start = self.path("start");
            self.python("start", &[("--model", model), ("--out", &start)])?;
            for (quant, dtype) in [("none", "f32"), ("nf4-double", "bf16")] {
                let found = self.python(
                    &format!("train --quant {quant} --dtype {dtype} --steps {STEPS} --max-length {TRAIN_LENGTH}"),
                    &[("--model", model), ("--adapter", &start), ("--data", &self.train)],
                )?;
                let theirs: Vec<f64> =
                    found["losses"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
                let run = self.path("run");
                let (method, base) = if quant == "none" { ("lora", "none") } else { ("qlora", "nf4") };
                let flags = format!(
                    "finetune --overwrite --method {method} --quant {base} --compute-dtype {dtype} --no-shuffle --batch-size 4 \
                     --max-length {TRAIN_LENGTH} --max-steps {STEPS} --learning-rate 2e-4 --lr-scheduler-type constant \
                     --logging-steps 1 --no-eval-before --rows 0..{}",
                    4 * STEPS
                );
                let paths =
                    [("--model", model), ("--init-adapter", &start), ("--data", &self.train), ("--output", &run)];
                self.halfbyte(&flags, &paths)?;
                let ours = losses(&run)?;
                if ours.len() != STEPS || theirs.len() != STEPS {
                    bail!("{} and {} losses of {STEPS} steps", ours.len(), theirs.len());
                }
                let worst = ours.iter().zip(&theirs).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max);
                let tail = |all: &[f64]| all[STEPS - 20..].iter().sum::<f64>();
                let mean = (tail(&ours) / tail(&theirs) - 1.0).abs();
                let command =
                    format!("halfbyte finetune --init-adapter; parity.py train --quant {quant} --dtype {dtype}");
                let (step_allowed, mean_allowed) = if quant == "none" { (1e-3, 1e-3) } else { (2e-2, 5e-3) };
                let what = format!("{name}, {quant}, {dtype}, {STEPS} steps: the worst step's loss");
                report.push(Claim::Training, Row::relative(&what, worst, step_allowed, &command));
                let what = format!("{name}, {quant}, {dtype}: the mean loss of the last 20 steps");
                report.push(Claim::Training, Row::relative(&what, mean, mean_allowed, &command));
            }
            fs::remove_dir_all(&start).with_context(|| start.display().to_string())?;
        }
        Ok(())
    }

    /// Perplexities of every format, ours and theirs.
    fn perplexities(&self, report: &mut Report) -> Result<()> {
        let formats = [
            ("bf16", "--quant none", Some("none")),
            ("INT8", "--quant int8", Some("int8")),
            ("NF4", "--quant nf4 --double-quant off", Some("nf4")),
            ("NF4 + double quantisation", "--quant nf4", Some("nf4-double")),
            ("FP4", "--quant fp4 --double-quant off", Some("fp4")),
            ("INT4", "--quant int4 --double-quant off", None),
        ];
        let mut found = Vec::new();
        for (name, flags, peer) in formats {
            let ours = self.eval(&self.model, None, "bf16", flags)?.exp();
            let paths = [("--model", &self.model), ("--data", &self.test)];
            let theirs = match peer {
                None => None,
                Some(quant) => {
                    let loss = self.python(&format!("loss --quant {quant} --dtype bf16 --rows {ROWS}"), &paths)?;
                    Some(number(&loss, "loss")?.exp())
                }
            };
            let beside = theirs.map_or("no peer".to_owned(), |it| format!("{it:.3} in Python"));
            let near = theirs.is_none_or(|it| (ours / it - 1.0).abs() < 0.01);
            let command = format!("halfbyte eval {flags}; parity.py loss --dtype bf16");
            let what = format!("perplexity of SmolLM2-135M, {name}, bf16 activations, {ROWS} held-out texts");
            report.push(Claim::Quantisation, Row::seen(&what, "1 %", format!("{ours:.3}; {beside}"), near, &command));
            found.push(ours);
        }
        let [_, _, nf4, double, fp4, int4] = found[..] else { unreachable!("as many as formats") };
        let mut claim = |what: &str, tolerance: &str, measured: String, holds: bool| {
            report.push(Claim::Quantisation, Row::seen(what, tolerance, measured, holds, "the rows above"));
        };
        claim(
            "NF4 is better than FP4 and INT4",
            "lower",
            format!("{nf4:.2} < {fp4:.2}, {int4:.2}"),
            nf4 < fp4 && nf4 < int4,
        );
        let cost = 100.0 * (double / nf4 - 1.0);
        claim("what double quantisation costs", "1 %", format!("{cost:+.2} %"), cost < 1.0);
        Ok(())
    }

    /// The adapter of the last training merged in every dtype: Halfbyte's own check, and transformers' loss of the folder.
    fn merges(&self, report: &mut Report) -> Result<()> {
        let adapter = self.path("merge-adapter");
        let flags = "finetune --overwrite --method qlora --quant nf4 --max-steps 30 --batch-size 4 --max-length 64 --rank 16 \
                     --lora-alpha 16 --target-modules all-linear --no-eval-before --learning-rate 1e-3 --rows 0..120";
        self.halfbyte(flags, &[("--model", &self.model), ("--data", &self.train), ("--output", &adapter)])?;
        let both = self.eval(&self.model, Some(&adapter), "f32", "")?;
        for (dtype, allowed) in [("f32", 1e-5), ("f16", 1e-3), ("bf16", 5e-3)] {
            let merged = self.path("merged");
            let paths = [("--model", &self.model), ("--adapter", &adapter), ("--output", &merged)];
            let mut cmd = self.command(&format!("merge --overwrite --dtype {dtype}"), &paths);
            let said = run(&mut cmd)?.1;
            let line =
                said.lines().find(|it| it.contains("KL divergence")).context("halfbyte merge says how near it is")?;
            let seen = line.split_once("tokens: ").map_or(line, |it| it.1).to_owned();
            let command = format!("halfbyte merge --dtype {dtype}");
            let what = format!("SmolLM2-135M, NF4 + adapter against merged in {dtype}");
            report.push(Claim::Merge, Row::seen(&what, "KL 0.02, top-1 95 %", seen, true, &command));
            let text = [("--model", &merged), ("--data", &self.test)];
            let theirs = number(&self.python(&format!("loss --dtype f32 --rows {ROWS}"), &text)?, "loss")?;
            let what = format!("loss of the {dtype} folder in transformers against base + adapter in Halfbyte");
            let command = format!("{command}; parity.py loss");
            report.push(Claim::Merge, Row::relative(&what, (theirs / both - 1.0).abs(), allowed, &command));
        }
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    fn eval(&self, model: &Path, adapter: Option<&Path>, dtype: &str, flags: &str) -> Result<f64> {
        let words = format!("eval --json --compute-dtype {dtype} --rows 0..{ROWS} --max-length {LENGTH} {flags}");
        let (model, test) = (model.to_owned(), self.test.clone());
        let mut paths = vec![("--model", &model), ("--data", &test)];
        let adapter = adapter.map(Path::to_owned);
        paths.extend(adapter.as_ref().map(|it| ("--adapter", it)));
        number(&self.halfbyte(&words, &paths)?, "loss")
    }

    /// Runs Halfbyte; what it printed as JSON, if it did.
    fn halfbyte(&self, words: &str, paths: &[(&str, &PathBuf)]) -> Result<Value> {
        let out = run(&mut self.command(words, paths))?.0;
        Ok(serde_json::from_str(out.trim()).unwrap_or(Value::Null))
    }

    fn command(&self, words: &str, paths: &[(&str, &PathBuf)]) -> Command {
        let mut cmd = Command::new(&self.halfbyte);
        cmd.args(words.split_whitespace());
        for (flag, path) in paths {
            cmd.arg(flag).arg(path);
        }
        cmd
    }

    fn python(&self, words: &str, paths: &[(&str, &PathBuf)]) -> Result<Value> {
        let mut args: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        args.extend(paths.iter().map(|(flag, path)| format!("{flag}={}", path.display())));
        Ok(self.python.run(&args)?.0)
    }
}

/// The beginnings of texts of many kinds.
fn prompt(n: usize) -> String {
    const SUBJECTS: [&str; 5] =
        ["The history of the bicycle", "A good soup", "The train to the coast", "My neighbour", "The moon"];
    const VERBS: [&str; 4] = ["begins with", "is known for", "has always been", "was, on that day,"];
    format!("{} {}", SUBJECTS[n % 5], VERBS[n / 5 % 4])
}

/// Bytes of the linear layers' tensors that differ between two checkpoints, and all of them. FP4 has two codes for zero, of
/// which GPUs and CPUs choose different ones for nearly nothing; they count as one.
fn different_bytes(ours: &Path, theirs: &Path) -> Result<(usize, usize)> {
    let read = |dir: &Path| {
        let path = dir.join("model.safetensors");
        fs::read(&path).with_context(|| path.display().to_string())
    };
    let (ours, theirs) = (read(ours)?, read(theirs)?);
    let (ours, theirs) = (SafeTensors::deserialize(&ours)?, SafeTensors::deserialize(&theirs)?);
    let (mut different, mut all) = (0, 0);
    for (name, view) in theirs.tensors() {
        // JSON may be spaced in many ways, and says the same.
        if name.contains("quant_state") {
            continue;
        }
        let own = ours.tensor(&name).with_context(|| format!("{name} is in the other checkpoint alone"))?;
        if own.shape() != view.shape() || own.dtype() != view.dtype() {
            bail!("{name} is {:?} {:?} and {:?} {:?}", own.dtype(), own.shape(), view.dtype(), view.shape());
        }
        let is_fp4 = theirs.tensor(&format!("{name}.quant_state.bitsandbytes__fp4")).is_ok();
        let one_zero = |nibble: u8| if nibble == 8 { 0 } else { nibble };
        let known = |byte: &u8| if is_fp4 { one_zero(byte >> 4) << 4 | one_zero(byte & 15) } else { *byte };
        all += view.data().len();
        different += own.data().iter().zip(view.data()).filter(|(a, b)| known(a) != known(b)).count();
    }
    Ok((different, all))
}

fn losses(run: &Path) -> Result<Vec<f64>> {
    let path = run.join("metrics.jsonl");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    text.lines().map(|line| number(&serde_json::from_str(line)?, "loss")).collect()
}

fn number(value: &Value, key: &str) -> Result<f64> {
    value[key].as_f64().with_context(|| format!("no number `{key}` in {value}"))
}

fn output(cmd: &mut Command) -> Result<String> {
    Ok(run(cmd)?.0)
}

/// What a command printed on standard output and standard error.
fn run(cmd: &mut Command) -> Result<(String, String)> {
    let out = cmd.output().with_context(|| format!("cannot start `{}`", shown(cmd)))?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    if !out.status.success() {
        bail!("`{}` ended with {}: {}", shown(cmd), out.status, said.trim());
    }
    Ok((String::from_utf8_lossy(&out.stdout).into_owned(), said))
}
