//! What is shown and logged of a run while it goes on.

use super::{
    profile,
    record::{Metrics, MetricsLog, Totals},
    rhythm::Rhythm,
    settings::Settings,
};
use crate::console::{self, say};
use halfbyte_tensor::Device;
use halfbyte_train::{BoxError, Event, Observer};
use indicatif::{HumanDuration, ProgressBar};
use std::time::{Duration, Instant};

/// Shows a bar, writes the log, and sums up.
pub(super) struct Listener<'a> {
    settings: &'a Settings,
    rhythm: Rhythm,
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
    /// When the last line about steps was written, where no bar is seen.
    said: Option<Instant>,
}

/// Between two lines about steps.
const PAUSE: Duration = Duration::from_secs(10);

impl<'a> Listener<'a> {
    pub(super) fn new(
        (settings, rhythm, device): (&'a Settings, Rhythm, Device),
        log: &'a mut MetricsLog,
        begun: Instant,
    ) -> Listener<'a> {
        Listener {
            settings,
            rhythm,
            device,
            log,
            begun,
            totals: Totals::default(),
            steps: ProgressBar::hidden(),
            evaluation: None,
            pending: None,
            profiled: 0,
            first: 0,
            last: 0,
            said: None,
        }
    }

    /// What the steps came to. Of those that earlier processes took the log tells, if there was nothing left to do.
    pub(super) fn into_totals(mut self) -> Totals {
        let best = self.totals.best;
        if self.last == self.first {
            self.totals = std::mem::take(&mut self.log.so_far);
        }
        self.totals.best = best;
        self.totals
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
                } else if self.logs(report.step) {
                    self.log.write(&metrics)?;
                }
                self.say_step(&metrics);
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
            Event::GaveUp { step, total, best } => say(&format!(
                "stopping after step {step} of {total}: {} evaluations brought no lower held-out loss than {:.4} after step {}",
                best.since, best.loss, best.step
            )),
            Event::Restored { best } => {
                say(&format!(
                    "the result is the state after step {}: its held-out loss, {:.4}, was the lowest",
                    best.step, best.loss
                ));
            }
            Event::Ended { steps, best } => {
                (self.last, self.totals.best) = (steps, best);
                self.steps.finish_and_clear();
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether a step has a line in the log.
    fn logs(&self, step: usize) -> bool {
        let first = step == 1 && self.settings.args.logging_first_step;
        first || step.is_multiple_of(self.rhythm.logging_steps) || step == self.last
    }

    /// Where no bar is seen, such as in the log of a job, lines tell how far the run is.
    fn say_step(&mut self, metrics: &Metrics) {
        let due = self.said.is_none_or(|it| it.elapsed() >= PAUSE);
        if !self.steps.is_hidden() || !(due || metrics.step == self.last) {
            return;
        }
        self.said = Some(Instant::now());
        let taken = (metrics.step - self.first) as u32;
        let left = self.steps.elapsed() / taken * (self.last - metrics.step) as u32;
        say(&format!(
            "step {}/{}, epoch {:.2}: loss {:.4}, learning rate {:.3e}, {:.0} tokens/s, {} left",
            metrics.step,
            self.last,
            metrics.epoch,
            metrics.loss,
            metrics.learning_rate,
            self.totals.tokens_per_second(),
            HumanDuration(left)
        ));
    }
}

impl Observer for Listener<'_> {
    fn event(&mut self, event: &Event<'_>) -> Result<(), BoxError> {
        Ok(self.take(event)?)
    }
}
