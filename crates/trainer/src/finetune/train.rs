//! The training loop: steps, log lines, checkpoints, and an end that is never silent.

use super::{
    checkpoint::{self, Contents, RunState},
    optimizer::Optimizer,
    output::RunFolder,
    profile,
    record::{Metrics, MetricsLog, median},
    settings::Settings,
    step::{self, LossScale, StepConfig, StepResult},
};
use crate::{
    console, evaluate,
    failure::{Interrupted, user_error},
};
use anyhow::bail;
use halfbyte_autograd::Param;
use halfbyte_data::{Batch, Batches, Dataset, Position};
use halfbyte_lora::{Adapter, Context};
use halfbyte_models::Model;
use halfbyte_paged_optim::LrSchedule;
use std::{
    path::PathBuf,
    sync::{
        Arc, Once,
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
    pub(super) model: &'a dyn Model,
    /// What trains beside the model; none where the model trains.
    pub(super) adapter: Option<Arc<Adapter>>,
    pub(super) params: &'a [Param],
    pub(super) optimizer: &'a mut Optimizer,
    pub(super) step: StepConfig,
    pub(super) begun: Instant,
    pub(super) eval_loss_before: Option<f64>,
}

/// What the loop came to.
pub(super) struct Totals {
    pub(super) steps: usize,
    pub(super) last_loss: f32,
    pub(super) seconds_to_first_step: f64,
    speeds: Vec<f64>,
}

impl Totals {
    fn new(first: usize) -> Totals {
        Totals { steps: first, last_loss: 0.0, seconds_to_first_step: 0.0, speeds: Vec::new() }
    }

    fn add(&mut self, step: usize, loss: f32, tokens_per_second: f64, seconds: f64) {
        if self.speeds.is_empty() {
            self.seconds_to_first_step = seconds;
        }
        (self.steps, self.last_loss) = (step, loss);
        self.speeds.push(tokens_per_second);
    }

    /// The median over the steps after the second, which are free of first touches.
    pub(super) fn tokens_per_second(&self) -> f64 {
        median(self.speeds.get(2..).filter(|it| !it.is_empty()).unwrap_or(&self.speeds))
    }
}

impl Run<'_> {
    /// Trains to the end, from the beginning or from a state.
    pub(super) fn train(&mut self, state: Option<RunState>, log: &mut MetricsLog) -> anyhow::Result<Totals> {
        let settings = self.settings;
        let position = state.as_ref().map_or_else(Position::default, RunState::position);
        let mut batches = self.data.batches(&settings.batch_config(), position)?;
        let first = state.as_ref().map_or(0, |it| it.step);
        let schedule = self.schedule(settings.steps(batches.per_epoch()).1, first)?;
        let total = schedule.total_steps as usize;
        let mut scale = state.as_ref().and_then(|it| it.loss_scale).unwrap_or(LossScale::new(self.step.compute));
        let mut reached = state.map_or_else(|| vec![false; self.params.len()], |it| it.reached);
        let start: Vec<u64> = self.params.iter().map(fingerprint).collect();
        let mut totals = Totals::new(first);
        let bar = console::step_bar(total as u64, "");
        bar.set_position(first as u64);
        watch_interrupt();
        for n in first + 1..=total {
            // The first two steps touch their memory for the first time.
            if settings.args.profile && n == total.min(first + 3) {
                profile::begin();
            }
            let group = next_group(&mut batches, settings.accumulation);
            let (began, learning_rate) = (Instant::now(), schedule.lr(n as u64 - 1));
            let result = step::step(
                (self.model, &self.adapter.clone().into()),
                self.params,
                self.optimizer,
                &group,
                &self.step,
                learning_rate,
                (&mut reached, &mut scale),
            )
            .map_err(|error| self.stopped(n, error))?;
            let tokens_per_second = result.tokens as f64 / began.elapsed().as_secs_f64();
            let seconds = self.begun.elapsed().as_secs_f64();
            totals.add(n, result.loss, tokens_per_second, seconds);
            bar.inc(1);
            bar.set_message(format!("loss {:.4}, {:.0} tokens/s", result.loss, totals.tokens_per_second()));
            let (at, StepResult { loss, grad_norm, .. }) = (batches.next_position(), result);
            let epoch = at.epoch as f64 + at.batch as f64 / batches.per_epoch() as f64;
            let eval_loss = self.evaluate(n)?;
            if n.is_multiple_of(settings.logging_steps) || n == total || eval_loss.is_some() {
                log.write(&Metrics {
                    step: n,
                    epoch,
                    loss,
                    learning_rate,
                    grad_norm,
                    tokens_per_second,
                    seconds,
                    eval_loss,
                })?;
            }
            let interrupted = INTERRUPTED.load(Ordering::SeqCst);
            if interrupted || (settings.save_steps > 0 && n.is_multiple_of(settings.save_steps)) {
                let path = self.save(n, at, (&reached, scale))?;
                if interrupted && n < total {
                    bar.abandon();
                    return Err(Interrupted(format!("stopped after step {n} of {total}; everything is in {}: the same command with --resume (instead of --overwrite) goes on", path.display())).into());
                }
            }
        }
        bar.finish_and_clear();
        let b_moved_before_the_end = (first..total - 1).any(|it| schedule.lr(it as u64) > 0.0);
        self.check_learned(&reached, &start, b_moved_before_the_end)?;
        Ok(totals)
    }

    /// The learning rates of the run of `total` steps; `first` are behind it already.
    fn schedule(&self, total: usize, first: usize) -> anyhow::Result<LrSchedule> {
        let settings = self.settings;
        if first >= total {
            return Err(user_error(format!(
                "the run of {total} steps has ended already (checkpoint at step {first}); raise --max-steps or --num-train-epochs to go on"
            )));
        }
        Ok(LrSchedule {
            kind: settings.schedule,
            base_lr: settings.learning_rate,
            warmup_steps: settings.warmup_steps as u64,
            total_steps: total as u64,
        })
    }

    /// The held-out loss, if it is due after step `n`.
    fn evaluate(&self, n: usize) -> anyhow::Result<Option<f64>> {
        let every = self.settings.eval_steps;
        let Some(rows) = self.eval.filter(|_| every > 0 && n.is_multiple_of(every)) else { return Ok(None) };
        let found = evaluate::loss(
            (self.model, &Context::new(self.adapter.clone())),
            rows,
            self.settings.batch_size,
            self.step.compute,
            "held-out loss",
        )?;
        console::say(&format!("step {n}: held-out loss {:.4}", found.loss));
        Ok(Some(found.loss))
    }

    fn save(&mut self, step: usize, at: Position, (reached, scale): (&[bool], LossScale)) -> anyhow::Result<PathBuf> {
        let state = RunState {
            step,
            epoch: at.epoch,
            batch: at.batch,
            examples: self.data.len(),
            eval_loss_before: self.eval_loss_before,
            seconds: self.begun.elapsed().as_secs_f64(),
            reached: reached.to_vec(),
            loss_scale: Some(scale),
            settings: self.settings.args.clone(),
        };
        let adapter = self.adapter.as_deref().map(|it| (it, self.settings.base));
        let mut contents = Contents { params: self.params, optimizer: self.optimizer, adapter };
        checkpoint::save(self.folder, &state, &mut contents, self.settings.save_total_limit)
    }

    /// What to say when a step failed.
    fn stopped(&self, step: usize, error: anyhow::Error) -> anyhow::Error {
        let last = self.folder.checkpoints().ok().and_then(|mut it| it.pop());
        let rescue = last.map_or_else(
            || "there is no checkpoint yet".to_owned(),
            |it| format!("the checkpoint {} is intact", it.1.display()),
        );
        let advice = match gpu_error(&error) {
            Some(halfbyte_cuda::Error::OutOfMemory { .. }) => {
                "activations grow with the batch: a smaller --per-device-train-batch-size or --max-length, --gradient-checkpointing on or a smaller --optim-resident-mib need less"
            }
            Some(_) => "`halfbyte doctor` tries the GPU alone; --resume goes on from a checkpoint",
            None => "a lower --learning-rate, --warmup-steps or --compute-dtype f32 help against a diverging loss",
        };
        error.context(format!("training stopped at step {step}: {rescue}; {advice}"))
    }

    /// An adapter that did not move, or a tensor that no gradient ever reached, must not look like a result.
    ///
    /// While B is zero, A's gradient is exactly zero, so A proves nothing unless B moved before the last step.
    fn check_learned(&self, reached: &[bool], start: &[u64], b_moved_before_the_end: bool) -> anyhow::Result<()> {
        if self.params.iter().zip(start).all(|(param, before)| fingerprint(param) == *before) {
            bail!(
                "no trainable tensor changed: nothing was saved, since the result would be the start; is --learning-rate {} what you want?",
                self.settings.learning_rate
            );
        }
        let name = |at: usize| self.params[at].name();
        let excused = |at: usize| !b_moved_before_the_end && name(at).ends_with("lora_A.weight");
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
    let mut group = Vec::new();
    while group.len() < accumulation {
        if !group.is_empty() && batches.next_position().batch == 0 {
            break;
        }
        group.extend(batches.next());
    }
    group
}

/// What a GPU said, behind the errors of models, ops and optimizer, which pass it on as their own.
fn gpu_error(error: &anyhow::Error) -> Option<&halfbyte_cuda::Error> {
    use halfbyte_tensor::Error::Cuda;
    type Op = halfbyte_autograd::Error;
    type Model = halfbyte_models::Error;
    let of_model = || match error.downcast_ref::<Model>()? {
        Model::Autograd(Op::Tensor(Cuda(found))) | Model::Tensor(Cuda(found)) => Some(found),
        _ => None,
    };
    let of_op = || match error.downcast_ref::<Op>()? {
        Op::Tensor(Cuda(found)) => Some(found),
        _ => None,
    };
    let of_tensor = || match error.downcast_ref::<halfbyte_tensor::Error>()? {
        Cuda(found) => Some(found),
        _ => None,
    };
    let of_optimizer = || match error.downcast_ref::<halfbyte_paged_optim::Error>()? {
        halfbyte_paged_optim::Error::Cuda(found) => Some(found),
        _ => None,
    };
    error.downcast_ref().or_else(of_model).or_else(of_op).or_else(of_tensor).or_else(of_optimizer)
}

/// A hash of a parameter's bits (FNV-1a).
fn fingerprint(param: &Param) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for value in param.value().to_f32_vec() {
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
