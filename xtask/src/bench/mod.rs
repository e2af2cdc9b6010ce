//! `cargo xtask bench`: Halfbyte's speed and memory beside those of the Python stack at the same work, as a table in
//! `docs/benchmarks`: a page a processor.

mod kernels;
mod report;
mod work;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{generator, python::Python, workspace};
use kernels::Kernels;
use report::{Report, Row};
use work::{Trained, Training, Work};

/// Operations a token of SmolLM2-135M takes: the frozen matrices forward and for the input's gradient, LoRA of rank 16,
/// attention over 128 tokens.
const FLOP_A_TOKEN: f64 = 0.59e9;
/// Cores that a run uses at most: the goals are for two.
const CORES: f64 = 2.0;

/// What the user chose.
pub(crate) struct Options {
    pub(crate) model: PathBuf,
    pub(crate) data: PathBuf,
    /// A virtual environment with `tests/reference/requirements.txt`.
    pub(crate) python: Option<PathBuf>,
    pub(crate) rounds: usize,
    /// Where models of real size may be written for a while.
    pub(crate) large: Option<PathBuf>,
}

/// Measures everything and writes the report.
pub(crate) fn run(options: &Options) -> Result<()> {
    for path in [&options.model, &options.data] {
        if !path.exists() {
            bail!("{} does not exist", path.display());
        }
    }
    let root = workspace::root();
    let work = Work {
        halfbyte: workspace::build_halfbyte(&root)?,
        model: options.model.clone(),
        data: options.data.clone(),
        peer: options.python.as_ref().map(|venv| Python::new(venv, &root, "peer.py")).transpose()?,
        scratch: workspace::target_dir(&root)?.join("bench"),
        rounds: options.rounds.max(1),
    };
    let machine = work.machine();
    let path = root.join("docs/benchmarks").join(machine.page());
    let mut report = Report::new(machine.to_string());
    println!("kernels");
    let kernels = Kernels::measure(&root)?;
    training(&work, &kernels, &mut report)?;
    kernels.report(work.peer_nf4()?, &mut report);
    generation(&work, &mut report)?;
    checkpointing(&work, &mut report)?;
    if let Some(dir) = &options.large {
        for (like, limit) in [("llama-7b", Some(5.0)), ("gpt-neo-1.3b", None)] {
            large(&work, (like, limit), dir, &mut report)?;
        }
    }
    report.write(&path)?;
    println!("\n{}\nwritten to {}", report.table(), path.display());
    Ok(())
}

fn training(work: &Work, kernels: &Kernels, report: &mut Report) -> Result<()> {
    let nf4 = Training::default();
    let all = [
        ("training, NF4 + double quantisation, bf16", nf4, 3.0),
        ("training, LoRA on the bf16 model", Training { quant: "none", ..nf4 }, 2.4),
        ("training, LoRA on the model in f32", Training { quant: "none", dtype: "f32", ..nf4 }, 2.0),
    ];
    for (name, training, goal) in all {
        let (ours, peer) = work.train(training)?;
        let rate = |all: &[Trained]| median(all.iter().map(|it| it.tokens_per_second));
        let peak = CORES * kernels.peak(training.dtype);
        let share = rate(&ours).map(|it| 100.0 * it * FLOP_A_TOKEN / peak);
        let note = share.map(|it| format!("{it:.0} % of the register peak of {CORES} cores"));
        report.push(Row::faster(name, "tokens/s", (rate(&ours), rate(&peer)), goal).note(note.unwrap_or_default()));
        if training == nf4 {
            let memory = |all: &[Trained]| median(all.iter().map(|it| it.peak_mib));
            report.push(Row::less("peak resident memory of the same", "MiB", (memory(&ours), memory(&peer)), 6.0));
            let first = |all: &[Trained]| median(all.iter().map(|it| it.first_step));
            report.push(Row::less("command to the end of the first step", "s", (first(&ours), first(&peer)), 5.0));
        }
    }
    Ok(())
}

fn generation(work: &Work, report: &mut Report) -> Result<()> {
    for (name, quant, goal) in [("generation of 64 tokens, NF4", "nf4", 200.0), ("the same, bf16", "none", 95.0)] {
        let (ours, peer) = work.generate(quant)?;
        report.push(Row::at_least(name, "tokens/s", (median(ours), median(peer)), goal));
    }
    Ok(())
}

fn checkpointing(work: &Work, report: &mut Report) -> Result<()> {
    let (mut kept, mut replayed) = (Vec::new(), Vec::new());
    for _ in 0..work.rounds {
        kept.push(work.train_ours(Training::default())?);
        replayed.push(work.train_ours(Training { checkpointing: true, ..Training::default() })?);
    }
    let rate = |all: &[Trained]| median(all.iter().map(|it| it.tokens_per_second));
    let memory = |all: &[Trained]| median(all.iter().map(|it| it.peak_mib));
    if let (Some(fast), Some(slow)) = (rate(&kept), rate(&replayed)) {
        let note = format!(
            "peak memory {:.0} instead of {:.0} MiB",
            memory(&replayed).unwrap_or(0.0),
            memory(&kept).unwrap_or(0.0)
        );
        report.push(Row::at_most("time that checkpointing adds", "%", 100.0 * (fast / slow - 1.0), 40.0).note(note));
    }
    Ok(())
}

/// Writes a model, trains on it and removes it.
fn large(work: &Work, (like, limit): (&str, Option<f64>), dir: &Path, report: &mut Report) -> Result<()> {
    let model = dir.join(like);
    if !model.exists() {
        generator::synth(like, false, &model)?;
    }
    let training =
        Training { quant: "nf4", checkpointing: true, batch: 1, max_length: 512, steps: 3, ..Training::default() };
    let ours = Work { model: model.clone(), ..work.clone() }.train_ours(training);
    std::fs::remove_dir_all(&model).with_context(|| model.display().to_string())?;
    let ours = ours?;
    let name = format!("{like}, random weights, steps of 1 x 512: peak memory");
    let note =
        format!("{:.1} tokens/s; first step ended {:.0} s after the start", ours.tokens_per_second, ours.first_step);
    let gib = ours.peak_mib / 1024.0;
    let row = limit.map_or_else(|| Row::seen(&name, "GiB", gib), |limit| Row::at_most(&name, "GiB", gib, limit));
    report.push(row.note(note));
    Ok(())
}

/// The middle value, of an even number the lower of the two.
fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}
