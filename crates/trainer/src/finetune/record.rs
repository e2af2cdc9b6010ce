//! `metrics.jsonl` while a run goes on, `summary.json` when it has ended.

use anyhow::Context;
use halfbyte_train::{Best, StepReport};
use serde::Serialize;
use serde_json::Value;
use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

/// A logged step.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Metrics {
    pub(crate) step: usize,
    pub(crate) epoch: f64,
    pub(crate) loss: f32,
    pub(crate) learning_rate: f64,
    pub(crate) grad_norm: f32,
    pub(crate) tokens_per_second: f64,
    /// Since the command began.
    pub(crate) seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) eval_loss: Option<f64>,
}

impl Metrics {
    /// Those of a step without a held-out loss, `seconds` after the command began.
    pub(crate) fn new(it: &StepReport, tokens_per_second: f64, seconds: f64) -> Metrics {
        let &StepReport { step, epoch, loss, learning_rate, grad_norm, .. } = it;
        Metrics { step, epoch, loss, learning_rate, grad_norm, tokens_per_second, seconds, eval_loss: None }
    }
}

/// What the steps came to.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) steps: usize,
    /// Of the last step, if it is known.
    pub(crate) last_loss: Option<f32>,
    pub(crate) seconds_to_first_step: f64,
    /// The state with the lowest held-out loss of those that were measured.
    pub(crate) best: Option<Best>,
    speeds: Vec<f64>,
}

impl Totals {
    pub(crate) fn add(&mut self, it: &Metrics) {
        if self.speeds.is_empty() {
            self.seconds_to_first_step = it.seconds;
        }
        (self.steps, self.last_loss) = (it.step, Some(it.loss));
        self.speeds.push(it.tokens_per_second);
    }

    /// What an earlier process logged of a run of `steps`.
    fn logged(steps: usize, lines: &[Value]) -> Totals {
        let mut totals = Totals { steps, ..Totals::default() };
        let numbers = |key: &'static str| lines.iter().filter_map(move |it| it.get(key)?.as_f64());
        totals.speeds = numbers("tokens_per_second").collect();
        totals.seconds_to_first_step = numbers("seconds").next().unwrap_or(0.0);
        let last = lines.last().filter(|it| it.get("step").and_then(Value::as_u64) == Some(steps as u64));
        totals.last_loss = last.and_then(|it| it.get("loss")?.as_f64()).map(|it| it as f32);
        totals
    }

    /// The median over the steps after the second, which are free of first touches.
    pub(crate) fn tokens_per_second(&self) -> f64 {
        median(self.speeds.get(2..).filter(|it| !it.is_empty()).unwrap_or(&self.speeds))
    }
}

/// What a run came to.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) steps: usize,
    /// The step with the lowest held-out loss of those that were measured on the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) best: Option<Best>,
    pub(crate) eval_loss_before: Option<f64>,
    pub(crate) eval_loss_after: Option<f64>,
    pub(crate) eval_accuracy_before: Option<f64>,
    pub(crate) eval_accuracy_after: Option<f64>,
    pub(crate) train_loss_last: Option<f32>,
    /// Median over the steps after the second.
    pub(crate) tokens_per_second: f64,
    pub(crate) peak_rss_mib: Option<f64>,
    /// On the GPU, if one computed.
    pub(crate) peak_gpu_mib: Option<f64>,
    /// Steps that were started on it as one CUDA graph.
    pub(crate) gpu_graphs: Option<u64>,
    /// What tensors held during training, with what their pool kept for reuse.
    pub(crate) peak_tensors_mib: f64,
    pub(crate) planned_bytes: usize,
    pub(crate) plan: crate::plan::Plan,
    pub(crate) optimizer_pages: halfbyte_paged_optim::PageStats,
    pub(crate) trainable_parameters: usize,
    pub(crate) total_parameters: usize,
    pub(crate) seconds_to_first_step: f64,
    pub(crate) wall_seconds: f64,
    pub(crate) data: halfbyte_data::Report,
    /// What was taken from the files.
    pub(crate) used: super::used::Used,
}

/// The growing log.
#[derive(Debug)]
pub(crate) struct MetricsLog {
    path: PathBuf,
    file: File,
    /// What it held of the steps behind.
    pub(crate) so_far: Totals,
}

impl MetricsLog {
    /// Opens the log; lines after step `keep` are dropped, since a continued run will write them again.
    pub(crate) fn open(path: &Path, keep: usize) -> anyhow::Result<MetricsLog> {
        let mut logged = Vec::new();
        if path.exists() {
            // A line that was cut off by a loss of power is no line.
            let text =
                String::from_utf8_lossy(&std::fs::read(path).with_context(|| path.display().to_string())?).into_owned();
            let mut kept = String::new();
            for line in text.lines() {
                let Ok(found) = serde_json::from_str::<Value>(line) else { continue };
                if found.get("step").and_then(Value::as_u64).is_some_and(|n| n as usize <= keep) {
                    kept = kept + line + "\n";
                    logged.push(found);
                }
            }
            halfbyte_files::write_atomic(path, kept.as_bytes())?;
        }
        let so_far = Totals::logged(keep, &logged);
        let file =
            OpenOptions::new().create(true).append(true).open(path).with_context(|| path.display().to_string())?;
        Ok(MetricsLog { path: path.to_owned(), file, so_far })
    }

    /// A second handle, by which what was written is made to last while somebody else writes.
    pub(crate) fn handle(&self) -> anyhow::Result<File> {
        self.file.try_clone().with_context(|| self.path.display().to_string())
    }

    /// Makes what was written last.
    pub(crate) fn sync(&self) -> anyhow::Result<()> {
        self.file.sync_data().with_context(|| self.path.display().to_string())
    }

    /// Appends a line.
    pub(crate) fn write(&mut self, metrics: &Metrics) -> anyhow::Result<()> {
        let line = serde_json::to_string(metrics)? + "\n";
        self.file.write_all(line.as_bytes()).with_context(|| self.path.display().to_string())
    }
}

/// The middle value; the mean of the two middle ones of an even number.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}
