//! The training loop as the command runs it: what is shown and logged, Ctrl-C, and what to say when it stops.

use super::{
    output::RunFolder,
    profile,
    record::{Metrics, MetricsLog, Totals},
    resume,
    settings::Settings,
};
use crate::{
    console::{self, say},
    failure::{Failure, Interrupted},
};
use anyhow::anyhow;
use halfbyte_data::Dataset;
use halfbyte_lora::{Adapter, save_adapter};
use halfbyte_models::Model;
use halfbyte_tensor::Device;
use halfbyte_train::{BoxError, End, Error, Event, Observer, Optim, RunConfig, RunState, Saving, StepConfig};
use indicatif::ProgressBar;
use std::{
    path::Path,
    sync::{
        Arc, Once, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
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
    pub(super) optim: &'a mut Optim,
    /// Whether blocks are recomputed in the backward pass.
    pub(super) checkpointing: bool,
    pub(super) begun: Instant,
    pub(super) eval_loss_before: Option<f64>,
}

impl Run<'_> {
    /// Trains to the end, from the beginning or from a state. Of steps that earlier processes took the log tells.
    pub(super) fn train(self, state: Option<RunState>, log: &mut MetricsLog) -> anyhow::Result<Totals> {
        let (settings, folder) = (self.settings, self.folder);
        let checkpoints = folder.checkpoints();
        let adapter = self.adapter.clone();
        let mut beside = |dir: &Path| -> Result<(), BoxError> {
            if let Some(adapter) = &adapter {
                save_adapter(dir, adapter)?;
                settings.base.write(dir)?;
            }
            Ok(())
        };
        let device = self.optim.params().first().map_or(Device::Cpu, |it| it.value().device());
        let mut listener = Listener::new((settings, device), log, self.begun);
        let config = config(settings, self.checkpointing);
        let mut run = halfbyte_train::Run::new(config, (self.model, self.adapter), self.optim, self.data);
        run.eval = self.eval;
        run.begun = self.begun;
        run.interrupt = &INTERRUPTED;
        run.saving = Some(Saving {
            checkpoints: &checkpoints,
            every: settings.save_steps,
            keep: settings.save_total_limit,
            best: false,
            notes: resume::notes(&settings.args, self.eval_loss_before)?,
            beside: &mut beside,
        });
        run.observers.push(&mut listener);
        watch_interrupt();
        let end = run.train(state).map_err(|error| explained(error, folder, settings))?;
        TRAINED.store(true, Ordering::SeqCst);
        match end {
            End::Finished { .. } if listener.last == listener.first => Ok(std::mem::take(&mut log.so_far)),
            End::Finished { .. } => Ok(listener.totals),
            End::Interrupted { step, total, checkpoint } => {
                let path = checkpoint.unwrap_or_else(|| folder.path().to_owned());
                Err(Interrupted(format!("stopped after step {step} of {total}; everything is in {}: the same command with --resume (instead of --overwrite) goes on", path.display())).into())
            }
        }
    }
}

fn config(settings: &Settings, checkpointing: bool) -> RunConfig {
    RunConfig {
        batches: settings.batch_config(),
        length: settings.length(),
        schedule: settings.schedule,
        learning_rate: settings.learning_rate,
        warmup_steps: settings.warmup_steps,
        eval_steps: settings.eval_steps,
        early_stopping: None,
        step: StepConfig {
            compute: settings.compute.dtype(),
            checkpointing,
            max_grad_norm: settings.max_grad_norm,
            seed: settings.seed,
        },
    }
}

/// Shows a bar, writes the log, and sums up.
struct Listener<'a> {
    settings: &'a Settings,
    device: Device,
    log: &'a mut MetricsLog,
    begun: Instant,
    totals: Totals,
    steps: ProgressBar,
    evaluation: Option<ProgressBar>,
    /// A step whose line waits for its held-out loss.
    pending: Option<Metrics>,
    /// The first step whose time `--profile` takes. The two before it touch their memory for the first time.
    profiled: usize,
    /// Steps taken before.
    first: usize,
    last: usize,
}

impl<'a> Listener<'a> {
    fn new((settings, device): (&'a Settings, Device), log: &'a mut MetricsLog, begun: Instant) -> Listener<'a> {
        let (steps, totals) = (ProgressBar::hidden(), Totals::default());
        let (evaluation, pending) = (None, None);
        Listener { settings, device, log, begun, totals, steps, evaluation, pending, profiled: 0, first: 0, last: 0 }
    }

    fn take(&mut self, event: &Event<'_>) -> anyhow::Result<()> {
        match *event {
            Event::Started { first, total } => {
                (self.profiled, self.first, self.last) = (total.min(first + 3), first, total);
                self.steps = console::step_bar(total as u64, "");
                self.steps.set_position(first as u64);
            }
            Event::Begins { step } if self.settings.args.profile && step == self.profiled => {
                profile::begin(&self.device)?
            }
            Event::Step(report) => {
                let tokens_per_second = report.tokens as f64 / report.took.as_secs_f64();
                let metrics = Metrics::new(report, tokens_per_second, self.begun.elapsed().as_secs_f64());
                self.totals.add(&metrics);
                self.steps.inc(1);
                let speed = self.totals.tokens_per_second();
                self.steps.set_message(format!("loss {:.4}, {speed:.0} tokens/s", report.loss));
                if report.evaluates {
                    self.pending = Some(metrics);
                } else if report.step.is_multiple_of(self.settings.logging_steps) || report.step == self.last {
                    self.log.write(&metrics)?;
                }
            }
            Event::Evaluating { done, of } => {
                let bar = self.evaluation.get_or_insert_with(|| console::step_bar(of as u64, "held-out loss"));
                bar.set_position(done as u64);
            }
            Event::Evaluated { step, loss } => {
                self.evaluation.take().inspect(ProgressBar::finish_and_clear);
                say(&format!("step {step}: held-out loss {:.4}", loss.loss));
                if let Some(metrics) = self.pending.take() {
                    self.log.write(&Metrics { eval_loss: Some(loss.loss), ..metrics })?;
                }
            }
            Event::NotRemoved { error } => console::warn(&format!("an older checkpoint could not be removed: {error}")),
            Event::Interrupted { .. } => self.steps.abandon(),
            Event::Ended { .. } => self.steps.finish_and_clear(),
            _ => {}
        }
        Ok(())
    }
}

impl Observer for Listener<'_> {
    fn event(&mut self, event: &Event<'_>) -> Result<(), BoxError> {
        Ok(self.take(event)?)
    }
}

/// What went wrong, in terms of the flags that put it right.
fn explained(error: Error, folder: &RunFolder, settings: &Settings) -> anyhow::Error {
    match error {
        Error::Step { step, source } => {
            let context = format!("training stopped at step {step}: {}; {}", rescue(folder), advice(&source));
            anyhow::Error::from(*source).context(context)
        }
        Error::NothingChanged { .. } => anyhow!(
            "no trainable tensor changed: nothing was saved, since the result would be the start; is --learning-rate {} what you want?",
            settings.learning_rate
        ),
        Error::Untrained { count, of, first } => anyhow!(
            "{count} of {of} trainable tensors never had a gradient other than zero, {first} among them: nothing was saved, since they would be untrained"
        ),
        Error::Files(halfbyte_files::Error::Io { .. }) | Error::Caller(_) => {
            anyhow::Error::from(error).context(Failure("the run stopped, since something could not be written"))
        }
        other => other.into(),
    }
}

fn rescue(folder: &RunFolder) -> String {
    match folder.checkpoints().all().ok().and_then(|mut it| it.pop()) {
        None => "there is no checkpoint yet".to_owned(),
        Some((_, path)) => format!("the checkpoint {} is intact", path.display()),
    }
}

fn advice(error: &Error) -> &'static str {
    match error.gpu() {
        Some(halfbyte_cuda::Error::OutOfMemory { .. }) => {
            "activations grow with the batch: a smaller --per-device-train-batch-size or --max-length, --gradient-checkpointing on or a smaller --optim-resident-mib need less"
        }
        Some(_) => "`halfbyte doctor` tries the GPU alone; --resume goes on from a checkpoint",
        None => match error {
            Error::Loss(_)
            | Error::GradientNorm(_)
            | Error::Diverged(_)
            | Error::NotFinite { .. }
            | Error::Evaluation { .. } => {
                "a lower --learning-rate, --warmup-steps or --compute-dtype f32 help against a diverging loss"
            }
            _ => "--resume goes on from a checkpoint once the cause is put right",
        },
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// Whether all steps were taken.
static TRAINED: AtomicBool = AtomicBool::new(false);

/// A closing terminal sends its signal by several ways at a time; what comes so soon after the first is no second wish.
const AGAIN: Duration = Duration::from_secs(1);

/// The first Ctrl-C ends the run after the current step, a later one at once; and so do the signals by which schedulers and
/// closing terminals end a process.
fn watch_interrupt() {
    static ONCE: Once = Once::new();
    static FIRST: OnceLock<Instant> = OnceLock::new();
    ONCE.call_once(|| {
        let set = ctrlc::set_handler(|| {
            if INTERRUPTED.swap(true, Ordering::SeqCst) {
                if FIRST.get_or_init(Instant::now).elapsed() > AGAIN {
                    std::process::exit(130);
                }
                return;
            }
            let _ = FIRST.set(Instant::now());
            console::say(match TRAINED.load(Ordering::SeqCst) {
                false => "\nstopping after this step, then saving (press Ctrl-C again to stop at once)",
                true => "\nall steps are taken: measuring and saving first (press Ctrl-C again to stop at once)",
            });
        });
        if set.is_err() {
            console::warn("Ctrl-C cannot be watched here; it will end the run without saving");
        }
    });
}
