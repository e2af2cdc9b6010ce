//! `inspect --roofline`: what each op of a step costs on a card, by its operations, its bytes and its launches.

use super::{
    Card, Plan, Rehearsal,
    card::LAUNCH_SECONDS,
    rehearsal::{SETTLED, Stage},
};
use halfbyte_autograd::profile::{self, Cost, Phase};
use halfbyte_cuda::Counters;
use halfbyte_tensor::clock;
use halfbyte_train::{Optim, StepConfig, objective::CausalLm, parameters};
use serde::Serialize;

/// One op in one phase of a step.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) op: &'static str,
    pub(crate) phase: &'static str,
    pub(crate) calls: u64,
    /// Kernels and products.
    pub(crate) launches: u64,
    pub(crate) operations: u64,
    pub(crate) bytes: u64,
    /// The longest of what products, memory and launches take at the card's rates, in seconds.
    pub(crate) seconds: f64,
    /// What it is expected to take, one launch after the other, at the rates that an H100 reached.
    pub(crate) expected_seconds: f64,
    /// Which of the three that is.
    pub(crate) bound: &'static str,
}

/// A step on a card.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Roofline {
    pub(crate) card: &'static str,
    /// What the run holds there.
    pub(crate) plan: Plan,
    pub(crate) tokens: usize,
    pub(crate) synchronisations: u64,
    /// Bytes that go to host memory and come back.
    pub(crate) copied: u64,
    /// How long their copies take at the rate of the card's bus, in seconds.
    pub(crate) copy_seconds: f64,
    /// How long kernels wait for them, which is within what the ops are expected to take.
    pub(crate) waited_seconds: f64,
    /// Dearest first.
    pub(crate) lines: Vec<Line>,
}

impl Roofline {
    /// Of a step as it is rehearsed on a card: as a run there would choose, with the outputs of cheap ops kept if there is memory for that.
    pub(crate) fn of(rehearsal: &Rehearsal<'_>, card: Card) -> anyhow::Result<Roofline> {
        let gpu = card.dry();
        let stage = Stage::Card(gpu.clone());
        let step = StepConfig { keeps_cheap: true, ..rehearsal.step };
        let roomy = Rehearsal { step, ..rehearsal.clone() };
        let planned = roomy.plan(&Stage::Card(card.dry()))?;
        let fits = planned.total() as u64 <= gpu.info().memory_bytes / 10 * 9;
        let rehearsal = if fits { &roomy } else { rehearsal };
        let plan = if fits { planned } else { rehearsal.plan(&Stage::Card(card.dry()))? };
        let cast = rehearsal.cast(&stage)?;
        let trained = parameters(cast.model.as_ref(), cast.adapter.as_deref());
        let mut optim = Optim::new(&stage.device(), &trained, &rehearsal.optim)?;
        // The first steps make what later ones find.
        for _ in 1..SETTLED {
            rehearsal.step(&cast, &mut optim, &CausalLm)?;
        }
        profile::start(clock(&stage.device(), || 0))?;
        let before = gpu.counters();
        rehearsal.step(&cast, &mut optim, &CausalLm)?;
        let seen = gpu.counters().since(&before);
        let Counters { synchronisations, copied, .. } = seen;
        let (copy_seconds, waited_seconds) = (copied as f64 / (card.host_gbps * 1e9), seen.waited as f64 * 1e-12);
        let costs = profile::stop()?.map(|it| it.0).unwrap_or_default();
        let mut lines: Vec<Line> =
            costs.iter().map(|((op, phase), cost)| Line::of((op, *phase), cost, &card)).collect();
        lines.sort_by(|a, b| b.expected_seconds.total_cmp(&a.expected_seconds).then(a.op.cmp(b.op)));
        let (card, tokens) = (card.name, rehearsal.lengths.iter().sum());
        Ok(Roofline { card, plan, tokens, synchronisations, copied, copy_seconds, waited_seconds, lines })
    }

    /// The sum of all lines, in seconds.
    pub(crate) fn seconds(&self) -> f64 {
        self.lines.iter().map(|it| it.seconds).sum()
    }

    /// What all lines are expected to take, in seconds.
    pub(crate) fn expected_seconds(&self) -> f64 {
        self.lines.iter().map(|it| it.expected_seconds).sum()
    }

    /// A table for people.
    pub(crate) fn table(&self) -> Vec<String> {
        let head = ["op", "phase", "calls", "launches", "GFLOP", "MB", "expected", "at least", "bound by"];
        let mut rows = vec![format!(
            "{:<16} {:<9} {:>6} {:>9} {:>11} {:>11} {:>12} {:>12}  {}",
            head[0], head[1], head[2], head[3], head[4], head[5], head[6], head[7], head[8]
        )];
        for it in &self.lines {
            rows.push(format!(
                "{:<16} {:<9} {:>6} {:>9} {:>11.1} {:>11.1} {:>9.3} ms {:>9.3} ms  {}",
                it.op,
                it.phase,
                it.calls,
                it.launches,
                it.operations as f64 * 1e-9,
                it.bytes as f64 * 1e-6,
                it.expected_seconds * 1e3,
                it.seconds * 1e3,
                it.bound
            ));
        }
        let launches: u64 = self.lines.iter().map(|it| it.launches).sum();
        rows.push(format!(
            "a step of {} tokens on {}: {:.1} ms expected, {:.0} tokens/s; {:.1} ms at the least; {launches} launches, {} synchronisations",
            self.tokens,
            self.card,
            self.expected_seconds() * 1e3,
            self.tokens as f64 / self.expected_seconds(),
            self.seconds() * 1e3,
            self.synchronisations
        ));
        if self.copied > 0 {
            rows.push(format!(
                "{:.1} MB to host memory and back beside it: {:.1} ms at {:.0} GB/s, for {:.1} ms of which kernels wait",
                self.copied as f64 * 1e-6,
                self.copy_seconds * 1e3,
                self.copied as f64 * 1e-9 / self.copy_seconds,
                self.waited_seconds * 1e3
            ));
        }
        rows
    }
}

impl Line {
    fn of((op, phase): (&'static str, Phase), cost: &Cost, card: &Card) -> Line {
        let terms = [
            (cost.operations as f64 / (card.tflops * 1e12), "products"),
            (cost.bytes as f64 / (card.memory_tbps * 1e12), "memory"),
            (cost.launches as f64 * LAUNCH_SECONDS, "launches"),
        ];
        let (seconds, bound) = terms.into_iter().fold((0.0, ""), |most, it| if it.0 > most.0 { it } else { most });
        let phase = match phase {
            Phase::Forward => "forward",
            Phase::Backward => "backward",
            Phase::Other => "",
        };
        let &Cost { calls, launches, operations, bytes, .. } = cost;
        Line { op, phase, calls, launches, operations, bytes, seconds, expected_seconds: cost.seconds, bound }
    }
}
