//! The training loop: steps, evaluation, checkpoints, and an end that is never silent.

use crate::{
    Alone, Best, BoxError, Checkpoints, EarlyStopping, Error, Event, How, LossScale, Micro, Objective, Observer, Optim,
    Ranks, Result, RunState, Step, StepConfig, StepReport, evaluate,
    learned::{Chance, Learned},
    objective::CausalLm,
};
use halfbyte_autograd::Tape;
use halfbyte_data::{Batch, BatchConfig, Dataset, Examples, Feed, Packing, Position};
use halfbyte_lora::{Adapter, Context, Routing};
use halfbyte_models::Model;
use halfbyte_paged_optim::{LrSchedule, Schedule};
use serde_json::{Map, Value};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Length {
    /// Micro-batches a step, on each rank.
    pub accumulation: usize,
    /// Passes over the data.
    pub epochs: f64,
    /// Steps, whatever the number of passes.
    pub max_steps: Option<usize>,
}

impl Length {
    /// Steps of a pass that has so many batches, and of the run, on `world` ranks. A step does not reach into the next pass.
    pub fn steps(self, batches_per_epoch: usize, world: usize) -> (usize, usize) {
        let per_epoch = batches_per_epoch.div_ceil(self.accumulation * world);
        (per_epoch, self.max_steps.unwrap_or_else(|| (self.epochs * per_epoch as f64).ceil() as usize))
    }
}

/// How long a run is, and what happens when.
#[derive(Clone, Copy, Debug)]
pub struct RunConfig {
    /// How the data is cut into micro-batches.
    pub batches: BatchConfig,
    /// How long it is.
    pub length: Length,
    /// How the learning rate falls.
    pub schedule: Schedule,
    /// Its largest value.
    pub learning_rate: f64,
    /// Steps over which it rises first.
    pub warmup_steps: usize,
    /// The held-out loss is measured every so many steps; 0: never.
    pub eval_steps: usize,
    /// When it ends for want of a better held-out loss; never, unless given.
    pub early_stopping: Option<EarlyStopping>,
    /// How a step is computed.
    pub step: StepConfig,
}

impl Default for RunConfig {
    /// One pass in batches of four rows, the learning rate falling from 2e-4 to zero.
    fn default() -> Self {
        RunConfig {
            batches: BatchConfig { batch_size: 4, shuffle: Some(42), drop_last: false, packing: Packing::Off },
            length: Length { accumulation: 1, epochs: 1.0, max_steps: None },
            schedule: Schedule::Linear,
            learning_rate: 2e-4,
            warmup_steps: 0,
            eval_steps: 0,
            early_stopping: None,
            step: StepConfig::default(),
        }
    }
}

/// Everything the loop works on. [`Run::new`] has what there must be; the rest are fields to be set.
pub struct Run<'a> {
    /// How long it is, and what happens when.
    pub config: RunConfig,
    /// The model.
    pub model: &'a dyn Model,
    /// The adapter that trains, if the model does not.
    pub routing: Routing,
    /// The optimizer of what trains.
    pub optim: &'a mut Optim,
    /// The rows to train on.
    pub data: Examples<'a>,
    /// What is minimised; causal language modelling, unless changed.
    pub objective: &'a dyn Objective,
    /// The rows of `eval_steps`.
    pub eval: Option<&'a Dataset>,
    /// Who else trains the same model; nobody, unless changed.
    pub ranks: &'a dyn Ranks,
    /// Where checkpoints go; nowhere, unless changed.
    pub saving: Option<Saving<'a>>,
    /// Once this is true, the run saves and ends after the present step.
    pub interrupt: &'a AtomicBool,
    /// When it saves and ends, too, after the step at hand.
    pub deadline: Option<Instant>,
    /// Who is told what happens, one after the other.
    pub observers: Vec<&'a mut dyn Observer>,
    /// When the work began, for the time in a checkpoint.
    pub begun: Instant,
}

/// Where, when and with what checkpoints are written.
pub struct Saving<'a> {
    /// Where.
    pub checkpoints: &'a Checkpoints,
    /// Every so many steps; 0: only when the run is interrupted.
    pub every: usize,
    /// How many are kept; older ones go.
    pub keep: usize,
    /// Whether the state with the lowest held-out loss is saved, kept beside the newest, and restored at the end; the last step is
    /// measured, too.
    pub best: bool,
    /// What is kept in the state for the run's owner.
    pub notes: Map<String, Value>,
    /// Writes what else belongs into a checkpoint's folder, such as the adapter.
    pub beside: &'a mut dyn FnMut(&Path) -> Result<(), BoxError>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// All steps were taken, or as many as early stopping let it.
    Finished {
        /// How many.
        steps: usize,
    },
    /// It was interrupted.
    Interrupted {
        /// Steps taken.
        step: usize,
        /// Steps that the whole run would have.
        total: usize,
        /// Where everything is, if checkpoints are written.
        checkpoint: Option<PathBuf>,
    },
}

/// What may be due after a step.
#[derive(Clone, Copy, Debug)]
struct Due {
    /// Whether it is the last.
    last: bool,
    /// Whether the run is to stop, for whatever reason.
    stop: bool,
    best: Option<Best>,
}

static NEVER: AtomicBool = AtomicBool::new(false);

impl<'a> Run<'a> {
    /// Causal language modelling of an adapter, or the whole model, on one device, without held-out rows, checkpoints or listeners.
    pub fn new(
        config: RunConfig,
        (model, adapter): (&'a dyn Model, Option<Arc<Adapter>>),
        optim: &'a mut Optim,
        data: impl Into<Examples<'a>>,
    ) -> Run<'a> {
        Run {
            config,
            model,
            routing: adapter.into(),
            optim,
            data: data.into(),
            objective: &CausalLm,
            eval: None,
            ranks: &Alone,
            saving: None,
            interrupt: &NEVER,
            deadline: None,
            observers: Vec::new(),
            begun: Instant::now(),
        }
    }

    /// Trains to the end, from the beginning or from the state of a checkpoint, whose tensors were restored. Of one that stands
    /// at the end nothing is left to do.
    ///
    /// # Errors
    /// A step that fails or leaves what is no number ([`Error::Step`]), a state that is not one of this run, a run that taught
    /// nothing, or what evaluation, saving and observers return.
    pub fn train(&mut self, state: Option<RunState>) -> Result<End> {
        let position = state.as_ref().map_or_else(Position::default, RunState::position);
        let mut batches = self.data.batches(&self.config.batches, position)?;
        let first = state.as_ref().map_or(0, |it| it.step);
        let schedule = self.schedule(batches.per_pass(), first)?;
        let total = schedule.total_steps as usize;
        if let Some(state) = &state {
            self.check(state, &batches)?;
        }
        let mut scale = state.as_ref().and_then(|it| it.loss_scale).unwrap_or(LossScale::new(self.config.step.compute));
        let mut best = self.known_best(state.as_ref());
        let goes_on = state.is_some();
        let still = (0..first).filter(|it| schedule.lr(*it as u64) == 0.0).count();
        let mut chance = Chance::after(state.as_ref().map_or(0, RunState::taken).saturating_sub(still));
        let mut learned = Learned::new(self.optim.params(), state.map(|it| it.reached))?;
        self.tell(&Event::Started { first, total })?;
        if goes_on {
            // A run that was killed between a checkpoint and the removal of those before has left them.
            self.prune(best)?;
        }
        let mut n = first;
        while n < total && !self.gives_up(best) {
            n += 1;
            self.tell(&Event::Begins { step: n })?;
            let group = batches.next_group(self.config.length.accumulation * self.ranks.world());
            let group = group.map_err(|error| Error::Step { step: n, source: Box::new(error.into()) })?;
            let (mut report, nonzero) = self.step(n, &group, schedule.lr(n as u64 - 1), &mut scale)?;
            // Of a step that was skipped the gradients are no numbers, and have reached nothing.
            learned.step(if report.grad_norm.is_finite() { &nonzero } else { &[] });
            chance.step(report.grad_norm, report.learning_rate);
            let at = batches.position();
            report.epoch = batches.passes();
            report.evaluates = self.evaluates(n, total);
            self.tell(&Event::Step(&report))?;
            if report.evaluates {
                best = self.evaluate(n, best)?;
            }
            let given_up = self.gives_up(best);
            let due = Due { last: n == total, stop: given_up || self.must_stop(), best };
            if due.last || self.saves(n, due) {
                let sound = self.confirm(&group);
                sound.map_err(|source| Error::Step { step: n, source: Box::new(source) })?;
            }
            let checkpoint = self.save((n, at), (learned.reached(), scale), due)?;
            if due.stop && !due.last && !given_up {
                self.tell(&Event::Interrupted { step: n })?;
                return Ok(End::Interrupted { step: n, total, checkpoint });
            }
        }
        if let Some(best) = best.filter(|_| n < total) {
            self.tell(&Event::GaveUp { step: n, total, best })?;
        }
        let taught = learned.check(self.optim.params(), self.config.learning_rate, chance.came());
        taught.map_err(|error| diverged(n, error))?;
        self.restore(n, best)?;
        self.tell(&Event::Ended { steps: n, best })?;
        Ok(End::Finished { steps: n })
    }

    /// The best state so far. One that is wanted and gone leaves its place to a later one.
    fn known_best(&self, state: Option<&RunState>) -> Option<Best> {
        let best = state?.best?;
        let gone = |it: &Saving<'_>| it.best && !it.checkpoints.path(best.step).exists();
        (!self.saving.as_ref().is_some_and(gone)).then_some(best)
    }

    /// Whether early stopping ends the run.
    fn gives_up(&self, best: Option<Best>) -> bool {
        let patience = self.config.early_stopping.map(|it| it.patience);
        matches!((best, patience), (Some(best), Some(patience)) if best.since >= patience)
    }

    /// Whether the run was asked to end, or its time is up.
    fn must_stop(&self) -> bool {
        self.interrupt.load(Ordering::SeqCst) || self.deadline.is_some_and(|it| Instant::now() >= it)
    }

    /// Whether the state with the lowest held-out loss is wanted.
    fn wants_best(&self) -> bool {
        self.saving.as_ref().is_some_and(|it| it.best) && self.eval.is_some()
    }

    /// Whether the held-out loss is measured after step `n`.
    fn evaluates(&self, n: usize, total: usize) -> bool {
        let every = self.config.eval_steps;
        let due = every > 0 && n.is_multiple_of(every);
        self.eval.is_some() && (due || n == total && self.wants_best())
    }

    /// Goes back to the best state after step `n`, if that is wanted and was another step's.
    fn restore(&mut self, n: usize, best: Option<Best>) -> Result<()> {
        let Some(best) = best.filter(|it| self.wants_best() && it.step != n) else { return Ok(()) };
        if let Some(saving) = &self.saving {
            let path = saving.checkpoints.path(best.step);
            self.optim.load(&path, RunState::read(&path)?.taken())?;
        }
        self.tell(&Event::Restored { best })
    }

    /// The learning rates of the run, and with them its number of steps; `first` are behind it already.
    fn schedule(&self, batches_per_pass: Option<usize>, first: usize) -> Result<LrSchedule> {
        let config = &self.config;
        let total = match (batches_per_pass, config.length.max_steps) {
            (Some(batches), _) => config.length.steps(batches, self.ranks.world()).1,
            (None, Some(steps)) => steps,
            (None, None) => return Err(Error::Endless),
        };
        if first > total {
            return Err(Error::Ended { step: first, total });
        }
        Ok(LrSchedule {
            kind: config.schedule,
            base_lr: config.learning_rate,
            warmup_steps: config.warmup_steps as u64,
            total_steps: total as u64,
        })
    }

    /// Refuses a state that another run has left, or nobody.
    fn check(&self, state: &RunState, batches: &Feed<'_>) -> Result<()> {
        let step = state.step;
        let wrong = |message: String| Err(Error::State { step, message });
        let (params, examples) = (self.optim.params().len(), self.data.count());
        if state.reached.len() != params {
            return wrong(format!("it is of {} tensors, {params} train", state.reached.len()));
        }
        if state.examples != examples {
            return wrong(format!("its data had {} examples, there are {examples}", state.examples));
        }
        // Of a stream, only reading tells whether a place is there.
        if let Feed::Held(batches) = batches {
            let group = self.config.length.accumulation * self.ranks.world();
            let per_epoch = batches.per_epoch().div_ceil(group);
            let expected = Position { epoch: (step / per_epoch) as u64, row: 0, batch: step % per_epoch * group };
            let position = state.position();
            if position != expected {
                return wrong(format!(
                    "its place in the data is batch {} of epoch {}, but that step ends at batch {} of epoch {}",
                    position.batch, position.epoch, expected.batch, expected.epoch
                ));
            }
        }
        match state.loss_scale.filter(|it| !it.is_of(self.config.step.compute)) {
            None => Ok(()),
            Some(scale) => wrong(format!("no run in {:?} has the loss scale {scale:?}", self.config.step.compute)),
        }
    }

    /// Takes step `n`; the report lacks the position in the data, and whether an evaluation follows.
    fn step(&mut self, n: usize, group: &[Batch], lr: f64, scale: &mut LossScale) -> Result<(StepReport, Vec<bool>)> {
        let began = Instant::now();
        let step = Step {
            model: self.model,
            routing: &self.routing,
            objective: self.objective,
            ranks: self.ranks,
            config: self.config.step,
        };
        let done = step.take(self.optim, scale, group, lr);
        let done = done.map_err(|source| Error::Step { step: n, source: Box::new(source) })?;
        let report = StepReport {
            step: n,
            epoch: 0.0,
            loss: done.loss,
            learning_rate: lr,
            grad_norm: done.grad_norm,
            tokens: done.tokens,
            took: began.elapsed(),
            evaluates: false,
        };
        Ok((report, done.nonzero))
    }

    /// The held-out loss after step `n`, and which is the best since.
    fn evaluate(&mut self, n: usize, best: Option<Best>) -> Result<Option<Best>> {
        let Some(rows) = self.eval else { return Ok(best) };
        let how = (self.config.batches.batch_size, self.config.step.compute);
        let observers = &mut self.observers;
        let mut progress = |done, of| tell(observers, &Event::Evaluating { done, of });
        let ctx = Context::new(self.routing.clone());
        let loss = evaluate((self.model, &ctx), self.objective, rows, how, &mut progress);
        let loss = loss.map_err(|error| diverged(n, error))?;
        self.tell(&Event::Evaluated { step: n, loss })?;
        let threshold = self.config.early_stopping.map_or(0.0, |it| it.threshold);
        Ok(Some(Best::with(best, n, loss.loss, threshold)))
    }

    /// Whether a checkpoint is due after step `n`.
    fn saves(&self, n: usize, Due { stop, best, .. }: Due) -> bool {
        let best = self.wants_best() && best.is_some_and(|it| it.step == n);
        let due = |it: &Saving<'_>| stop || best || (it.every > 0 && n.is_multiple_of(it.every));
        self.ranks.rank() == 0 && self.saving.as_ref().is_some_and(due)
    }

    /// Makes sure, before anything is kept, that what a step has left still gives a loss that is a number: a step too far may
    /// leave numbers so large that their products are none.
    fn confirm(&self, group: &[Batch]) -> Result<()> {
        let Some(batch) = group.iter().find(|it| self.objective.counts(it) > 0) else { return Ok(()) };
        let ctx = Context::new(self.routing.clone());
        let (denominator, compute) = (self.objective.counts(batch) as f32, self.config.step.compute);
        let micro = Micro::new(batch, How { denominator, compute, checkpointing: false, ctx })?;
        let loss = self.objective.loss(&Tape::disabled(), self.model, &micro)?.into_value().read_f32()?[0];
        if loss.is_finite() { Ok(()) } else { Err(Error::Diverged(loss)) }
    }

    /// Saves if it is due after step `n`, and tells where.
    fn save(
        &mut self,
        (n, at): (usize, Position),
        (reached, scale): (&[bool], LossScale),
        due: Due,
    ) -> Result<Option<PathBuf>> {
        if !self.saves(n, due) {
            return Ok(None);
        }
        let Some(saving) = self.saving.as_mut() else { return Ok(None) };
        let state = RunState {
            step: n,
            optimizer_steps: Some(self.optim.steps() as usize),
            epoch: at.epoch,
            row: at.row,
            batch: at.batch,
            examples: self.data.count(),
            seconds: self.begun.elapsed().as_secs_f64(),
            reached: reached.to_vec(),
            loss_scale: Some(scale),
            best: due.best,
            notes: saving.notes.clone(),
        };
        let mut beside = |folder: &Path| (saving.beside)(folder).map_err(Error::Caller);
        let saved = saving.checkpoints.save(&state, self.optim, &mut beside);
        let path = saved.map_err(|error| diverged(n, error))?;
        self.tell(&Event::Saved { step: n, path: &path })?;
        self.prune(due.best)?;
        Ok(Some(path))
    }

    /// Removes checkpoints beyond those that are to be kept, if it can.
    fn prune(&mut self, best: Option<Best>) -> Result<()> {
        let Some(saving) = self.saving.as_ref().filter(|_| self.ranks.rank() == 0) else { return Ok(()) };
        match saving.checkpoints.prune(saving.keep, best.filter(|_| saving.best).map(|it| it.step)) {
            Ok(()) => Ok(()),
            Err(error) => self.tell(&Event::NotRemoved { error: &error }),
        }
    }

    fn tell(&mut self, event: &Event<'_>) -> Result<()> {
        tell(&mut self.observers, event).map_err(Error::Caller)
    }
}

/// What is no number after a step is that step's failure.
fn diverged(step: usize, error: Error) -> Error {
    match error {
        Error::NotFinite { .. } | Error::Evaluation { .. } => Error::Step { step, source: Box::new(error) },
        other => other,
    }
}

fn tell(observers: &mut [&mut dyn Observer], event: &Event<'_>) -> Result<(), BoxError> {
    observers.iter_mut().try_for_each(|it| it.event(event))
}
