//! The training loop: steps, log lines, checkpoints, and an end that is never silent.

use super::{
    args::Method,
    checkpoint::{self, Contents, RunState},
    output::RunFolder,
    record::{Metrics, MetricsLog, median},
    settings::Settings,
    step::{self, StepConfig, StepResult},
};
use crate::{
    console, evaluate,
    failure::{Interrupted, user_error},
};
use anyhow::{Context, bail};
use halfbyte_autograd::Param;
use halfbyte_data::{Batch, BatchConfig, Batches, Dataset, Position};
use halfbyte_models::Model;
use halfbyte_paged_optim::{AdamW, LrSchedule};
use std::{
    path::PathBuf,
    sync::{
        Once,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

/// Everything the loop works on.
pub(super) struct Run<'a> {
    pub(super) settings: &'a Settings,
    pub(super) folder: &'a RunFolder,
    pub(super) data: &'a Dataset,
    pub(super) eval: Option<&'a Dataset>,
    pub(super) model: &'a mut dyn Model,
    pub(super) params: &'a [Param],
    pub(super) optimizer: &'a mut AdamW,
    pub(super) step: StepConfig,
    pub(super) begun: Instant,
    pub(super) eval_loss_before: Option<f64>,
}

/// What the loop came to.
pub(super) struct Totals {
    pub(super) steps: usize,
    pub(super) last_loss: f32,
    pub(super) tokens_per_second: f64,
    pub(super) seconds_to_first_step: f64,
}

impl Run<'_> {
    /// Trains to the end, from the beginning or from a state.
    pub(super) fn train(&mut self, state: Option<RunState>, log: &mut MetricsLog) -> anyhow::Result<Totals> {
        let settings = self.settings;
        let config = BatchConfig {
            batch_size: settings.batch_size,
            shuffle: (!settings.args.no_shuffle).then_some(settings.seed),
            drop_last: settings.args.drop_last,
        };
        let position = state.as_ref().map_or_else(Position::default, RunState::position);
        let mut batches = self.data.batches(&config, position)?;
        let per_epoch = batches.per_epoch().div_ceil(settings.accumulation);
        let total = settings.args.max_steps.unwrap_or_else(|| (settings.epochs * per_epoch as f64).ceil() as usize);
        let first = state.as_ref().map_or(0, |it| it.step);
        if first >= total {
            return Err(user_error(format!(
                "the run of {total} steps has ended already (checkpoint at step {first}); raise --max-steps or --num-train-epochs to go on"
            )));
        }
        let schedule = LrSchedule {
            kind: settings.schedule,
            base_lr: settings.learning_rate,
            warmup_steps: settings.warmup_steps as u64,
            total_steps: total as u64,
        };
        let mut reached = state.map_or_else(|| vec![false; self.params.len()], |it| it.reached);
        let start: Vec<u64> = self.params.iter().map(fingerprint).collect();
        let (mut speeds, mut totals) =
            (Vec::new(), Totals { steps: first, last_loss: 0.0, tokens_per_second: 0.0, seconds_to_first_step: 0.0 });
        let bar = console::step_bar(total as u64, "");
        bar.set_position(first as u64);
        watch_interrupt();
        for n in first + 1..=total {
            let group = next_group(&mut batches, settings.accumulation);
            let (began, lr) = (Instant::now(), schedule.lr(n as u64 - 1));
            let result = step::step(self.model, self.params, self.optimizer, &group, &self.step, lr, &mut reached)
                .with_context(|| self.stopped(n))?;
            let speed = result.tokens as f64 / began.elapsed().as_secs_f64();
            speeds.push(speed);
            (totals.steps, totals.last_loss) = (n, result.loss);
            if n == first + 1 {
                totals.seconds_to_first_step = self.begun.elapsed().as_secs_f64();
            }
            totals.tokens_per_second = median(speeds.get(2..).filter(|it| !it.is_empty()).unwrap_or(&speeds));
            bar.inc(1);
            bar.set_message(format!("loss {:.4}, {:.0} tokens/s", result.loss, totals.tokens_per_second));
            let epoch = batches.next_position().epoch as f64
                + batches.next_position().batch as f64 / batches.per_epoch() as f64;
            self.log(n, total, epoch, lr, speed, result, log)?;
            let interrupted = INTERRUPTED.load(Ordering::SeqCst);
            let due = settings.save_steps > 0 && n % settings.save_steps == 0;
            if due || interrupted {
                let path = self.save(n, batches.next_position(), &reached)?;
                if interrupted && n < total {
                    bar.abandon();
                    return Err(Interrupted(format!("stopped after step {n} of {total}; everything is in {}: the same command with --resume (instead of --overwrite) goes on", path.display())).into());
                }
            }
        }
        bar.finish_and_clear();
        self.check_learned(&reached, &start, total - first)?;
        Ok(totals)
    }

    #[allow(clippy::too_many_arguments, reason = "the columns of a log line")]
    fn log(
        &self,
        n: usize,
        total: usize,
        epoch: f64,
        lr: f64,
        speed: f64,
        result: StepResult,
        log: &mut MetricsLog,
    ) -> anyhow::Result<()> {
        let settings = self.settings;
        let mut eval_loss = None;
        if let Some(rows) = self.eval.filter(|_| settings.eval_steps > 0 && n % settings.eval_steps == 0) {
            let found = evaluate::loss(self.model, rows, settings.batch_size, self.step.compute, "held-out loss")?;
            console::say(&format!("step {n}: held-out loss {:.4}", found.loss));
            eval_loss = Some(found.loss);
        }
        if n % settings.logging_steps == 0 || n == total || eval_loss.is_some() {
            log.write(&Metrics {
                step: n,
                epoch,
                loss: result.loss,
                learning_rate: lr,
                grad_norm: result.grad_norm,
                tokens_per_second: speed,
                seconds: self.begun.elapsed().as_secs_f64(),
                eval_loss,
            })?;
        }
        Ok(())
    }

    fn save(&mut self, step: usize, at: Position, reached: &[bool]) -> anyhow::Result<PathBuf> {
        let state = RunState {
            step,
            epoch: at.epoch,
            batch: at.batch,
            examples: self.data.len(),
            eval_loss_before: self.eval_loss_before,
            seconds: self.begun.elapsed().as_secs_f64(),
            reached: reached.to_vec(),
            settings: self.settings.args.clone(),
        };
        let adapter = (self.settings.method != Method::Full).then_some((&self.settings.lora, self.settings.base));
        let mut contents = Contents { model: self.model, params: self.params, optimizer: self.optimizer, adapter };
        checkpoint::save(self.folder, &state, &mut contents, self.settings.save_total_limit)
    }

    /// What to say when a step failed.
    fn stopped(&self, step: usize) -> String {
        let last = self.folder.checkpoints().ok().and_then(|mut it| it.pop());
        let rescue = last.map_or_else(
            || "there is no checkpoint yet".to_owned(),
            |it| format!("the checkpoint {} is intact", it.1.display()),
        );
        format!(
            "training stopped at step {step}: {rescue}; a lower --learning-rate, --warmup-steps or --compute-dtype f32 help against a diverging loss"
        )
    }

    /// An adapter that did not move, or a tensor that no gradient ever reached, must not look like a result.
    fn check_learned(&self, reached: &[bool], start: &[u64], steps: usize) -> anyhow::Result<()> {
        if self.params.iter().zip(start).all(|(param, before)| fingerprint(param) == *before) {
            bail!(
                "no trainable tensor changed in {steps} steps: nothing was saved, since the result would be the start; is --learning-rate {} what you want?",
                self.settings.learning_rate
            );
        }
        let name = |at: usize| self.params[at].name();
        // While B is zero, A's gradient is exactly zero: one step tells nothing about A.
        let excused = |at: usize| steps == 1 && name(at).ends_with("lora_A.weight");
        let never: Vec<&str> = (0..reached.len()).filter(|it| !reached[*it] && !excused(*it)).map(name).collect();
        if let Some(first) = never.first() {
            bail!(
                "{} of {} trainable tensors never had a gradient other than zero, {first} among them: nothing was saved, since they would be untrained",
                never.len(),
                reached.len()
            );
        }
        Ok(())
    }
}

/// The micro-batches of a step; the last group of an epoch may be smaller.
fn next_group(batches: &mut Batches<'_>, accumulation: usize) -> Vec<Batch> {
    let mut group = Vec::with_capacity(accumulation);
    while group.len() < accumulation {
        if !group.is_empty() && batches.next_position().batch == 0 {
            break;
        }
        group.extend(batches.next());
    }
    group
}

/// A hash of a parameter's bits (FNV-1a).
fn fingerprint(param: &Param) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for value in param.value().data::<f32>() {
        hash = (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The first Ctrl-C ends the run after the current step, the second at once.
fn watch_interrupt() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let set = ctrlc::set_handler(|| {
            if INTERRUPTED.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
            console::say("\nstopping after this step, then saving (press Ctrl-C again to stop at once)");
        });
        if set.is_err() {
            console::warn("Ctrl-C cannot be watched here; it will end the run without saving");
        }
    });
}
