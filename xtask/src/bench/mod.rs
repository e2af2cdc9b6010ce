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

/// What is asked of a kind of processor.
struct Goals {
    /// Times the Python stack's speed: NF4, LoRA on bf16 and on f32.
    training: [f64; 3],
    /// Tokens a second of SmolLM2-135M, NF4 and bf16.
    generation: [f64; 2],
    /// Times the Python stack's speed: a prompt of 512 tokens, and short rows packed beside short rows padded.
    prefill: f64,
    packed: f64,
    /// Tokens a second of a 7B in steps of 1 x 512.
    large: f64,
}

const VECTORS: Goals =
    Goals { training: [3.0, 2.4, 2.0], generation: [200.0, 95.0], prefill: 3.0, packed: 7.0, large: 12.0 };
const MATRIX_UNIT: Goals = Goals { training: [5.0, 4.0, 2.0], prefill: 6.0, packed: 12.0, large: 40.0, ..VECTORS };

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
    let goals = if machine.has_matrix_unit() { &MATRIX_UNIT } else { &VECTORS };
    training(&work, (&kernels, goals), &mut report)?;
    kernels.report(work.peer_nf4()?, &mut report);
    generation(&work, goals, &mut report)?;
    short_rows(&work, goals.packed, &mut report)?;
    checkpointing(&work, &mut report)?;
    if let Some(dir) = &options.large {
        for (like, limit) in [("llama-7b", Some((4.5, goals.large))), ("gpt-neo-1.3b", None)] {
            large(&work, (like, limit), dir, &mut report)?;
        }
    }
    report.write(&path)?;
    println!("\n{}\nwritten to {}", report.table(), path.display());
    Ok(())
}

fn training(work: &Work, (kernels, goals): (&Kernels, &Goals), report: &mut Report) -> Result<()> {
    let nf4 = Training::default();
    let all = [
        ("training, NF4 + double quantisation, bf16", nf4),
        ("training, LoRA on the bf16 model", Training { quant: "none", ..nf4 }),
        ("training, LoRA on the model in f32", Training { quant: "none", dtype: "f32", ..nf4 }),
    ];
    for ((name, training), goal) in all.into_iter().zip(goals.training) {
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
            report.push(Row::less("command to the end of the first step", "s", (first(&ours), first(&peer)), 8.0));
        }
    }
    Ok(())
}

fn generation(work: &Work, goals: &Goals, report: &mut Report) -> Result<()> {
    let all = [("generation of 64 tokens, NF4", "nf4"), ("the same, bf16", "none")];
    for ((name, quant), goal) in all.into_iter().zip(goals.generation) {
        let (ours, peer) = work.generate(quant)?;
        report.push(Row::at_least(name, "tokens/s", (median(ours), median(peer)), goal));
    }
    let (ours, peer) = work.prefill("nf4")?;
    let figures = (median(ours), median(peer));
    report.push(Row::faster("prompt of 512 tokens until the first new one, NF4", "tokens/s", figures, goals.prefill));
    Ok(())
}

/// Rows of 16 to 240 tokens, a quarter of `max_length` on average: a step is one packed row here, four padded ones there.
fn short_rows(work: &Work, goal: f64, report: &mut Report) -> Result<()> {
    const WORDS: [&str; 8] = ["time", "people", "way", "water", "day", "man", "work", "world"];
    let data = work.scratch.join("short.jsonl");
    let row = |i: usize| {
        let words: Vec<&str> = (0..16 + i * 97 % 225).map(|j| WORDS[(i * 31 + j * 7 + j * j) % WORDS.len()]).collect();
        format!("{{\"text\": \"{}\"}}\n", words.join(" "))
    };
    std::fs::create_dir_all(&work.scratch).with_context(|| work.scratch.display().to_string())?;
    std::fs::write(&data, (0..200).map(row).collect::<String>()).with_context(|| data.display().to_string())?;
    let work = Work { data, ..work.clone() };
    let packed = Training { batch: 1, max_length: 512, short: true, ..Training::default() };
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for _ in 0..work.rounds {
        ours.push(work.train_ours(packed)?.tokens_per_second);
        peer.extend(work.train_peer(Training { batch: 4, ..packed })?.map(|it| it.tokens_per_second));
    }
    let name = "training on rows of 128 tokens on average, 512 at most: packed beside padded, NF4";
    let row = Row::faster(name, "tokens/s", (median(ours), median(peer)), goal);
    report.push(row.note("four rows a step, padded to the longest".into()));
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
///
/// The goals are the most GiB and the least tokens a second.
fn large(work: &Work, (like, goals): (&str, Option<(f64, f64)>), dir: &Path, report: &mut Report) -> Result<()> {
    let model = dir.join(like);
    if !model.exists() {
        generator::synth(like, &[], &model)?;
    }
    let training =
        Training { quant: "nf4", checkpointing: true, batch: 1, max_length: 512, steps: 3, ..Training::default() };
    let ours = Work { model: model.clone(), ..work.clone() }.train_ours(training);
    std::fs::remove_dir_all(&model).with_context(|| model.display().to_string())?;
    let ours = ours?;
    let name = format!("{like}, random weights, steps of 1 x 512");
    let (gib, rate) = (ours.peak_mib / 1024.0, ours.tokens_per_second);
    let note = format!("first step ended {:.0} s after the start", ours.first_step);
    let (memory, speed) = (format!("{name}: peak memory"), format!("{name}: speed"));
    let (memory, speed) = match goals {
        Some((most, least)) => {
            (Row::at_most(&memory, "GiB", gib, most), Row::at_least(&speed, "tokens/s", (Some(rate), None), least))
        }
        None => (Row::seen(&memory, "GiB", gib), Row::seen(&speed, "tokens/s", rate)),
    };
    report.push(memory);
    report.push(speed.note(note));
    Ok(())
}

/// The middle value, of an even number the lower of the two.
fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}
