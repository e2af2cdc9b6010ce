//! The training loop as the command runs it: Ctrl-C, and what to say when it stops.

use super::{
    fits::Kept,
    listener::Listener,
    output::RunFolder,
    record::{MetricsLog, Totals},
    resume,
    rhythm::Rhythm,
    settings::Settings,
};
use crate::{
    console,
    failure::{Failure, Interrupted},
};
use anyhow::anyhow;
use halfbyte_data::{Dataset, Examples};
use halfbyte_lora::{Adapter, save_adapter};
use halfbyte_models::Model;
use halfbyte_tensor::Device;
use halfbyte_train::{BoxError, End, Error, Optim, RunConfig, RunState, Saving};
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
    pub(super) data: Examples<'a>,
    pub(super) eval: Option<&'a Dataset>,
    pub(super) model: &'a dyn Model,
    /// What trains beside the model; none where the model trains.
    pub(super) adapter: Option<Arc<Adapter>>,
    pub(super) optim: &'a mut Optim,
    pub(super) kept: Kept,
    pub(super) begun: Instant,
    pub(super) eval_loss_before: Option<f64>,
}

impl Run<'_> {
    /// Trains to the end, from the beginning or from a state. Of steps that earlier processes took the log tells.
    pub(super) fn train(self, state: Option<RunState>, log: &mut MetricsLog) -> anyhow::Result<Totals> {
        let (settings, folder) = (self.settings, self.folder);
        let checkpoints = folder.checkpoints();
        let adapter = self.adapter.clone();
        let logged = log.handle()?;
        let mut beside = |dir: &Path| -> Result<(), BoxError> {
            // A run that goes on from this checkpoint does not log its steps again.
            logged.sync_data()?;
            if let Some(adapter) = &adapter {
                save_adapter(dir, adapter)?;
                settings.base.write(dir)?;
            }
            Ok(())
        };
        let device = self.optim.params().first().map_or(Device::Cpu, |it| it.value().device());
        let rhythm = Rhythm::of(settings, self.data)?;
        let mut listener = Listener::new((settings, rhythm, device), log, self.begun);
        let config = config(settings, rhythm, self.kept);
        let limit = settings.args.max_minutes.map(|it| Duration::from_secs_f64(60.0 * it));
        let mut run = halfbyte_train::Run::new(config, (self.model, self.adapter), self.optim, self.data);
        run.eval = self.eval;
        run.begun = self.begun;
        run.interrupt = &INTERRUPTED;
        run.deadline = limit.and_then(|it| self.begun.checked_add(it));
        run.saving = Some(Saving {
            checkpoints: &checkpoints,
            every: rhythm.save_steps,
            keep: settings.save_total_limit,
            best: settings.wants_best(),
            notes: resume::notes(settings, self.data, self.eval_loss_before)?,
            beside: &mut beside,
        });
        run.observers.push(&mut listener);
        watch_interrupt();
        let end = run.train(state).map_err(|error| explained(error, folder, settings))?;
        TRAINED.store(true, Ordering::SeqCst);
        match end {
            End::Finished { .. } => Ok(listener.into_totals()),
            End::Interrupted { step, total, checkpoint } => {
                let path = checkpoint.unwrap_or_else(|| folder.path().to_owned());
                let why = match settings.args.max_minutes {
                    Some(minutes) if !INTERRUPTED.load(Ordering::SeqCst) => {
                        format!("--max-minutes {minutes} are over: ")
                    }
                    _ => String::new(),
                };
                Err(Interrupted(format!("{why}stopped after step {step} of {total}; everything is in {}: the same command with --resume (instead of --overwrite) goes on", path.display())).into())
            }
        }
    }
}

fn config(settings: &Settings, rhythm: Rhythm, kept: Kept) -> RunConfig {
    RunConfig {
        batches: settings.batch_config(),
        length: settings.length(),
        schedule: settings.schedule,
        learning_rate: settings.learning_rate,
        warmup_steps: rhythm.warmup_steps,
        eval_steps: rhythm.eval_steps,
        early_stopping: settings.early_stopping,
        step: kept.step(settings),
    }
}

/// What went wrong, in terms of the flags that put it right.
fn explained(error: Error, folder: &RunFolder, settings: &Settings) -> anyhow::Error {
    match error {
        Error::Step { step, source } => {
            let context = format!("training stopped at step {step}: {}; {}", rescue(folder), advice(&source));
            match *source {
                // So that it is known for the user's mistake that it is.
                Error::Data(error) => anyhow::Error::from(error).context(context),
                other => anyhow::Error::from(other).context(context),
            }
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
        Some(halfbyte_cuda::Error::HostMemory { .. }) => {
            "--offload-activations off, a smaller --per-device-train-batch-size or a shorter --max-length need less of it"
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
