//! A step of the run over tensors without contents: the real model, adapters, tape and optimizer, and their books.

use super::{Plan, weights::DryWeights};
use crate::finetune::ADAPTER;
use halfbyte_autograd::{Tape, Var};
use halfbyte_cuda::Gpu;
use halfbyte_data::Batch;
use halfbyte_frozen::Format;
use halfbyte_lora::{Adapter, Base, Context, LoraConfig, Routing, attach_dry, refuse_unmatched};
use halfbyte_models::{Model, ModelFolder, build};
use halfbyte_tensor::{Device, Ledger};
use halfbyte_train::{
    Alone, How, LossScale, Micro, Objective, Optim, OptimConfig, Step, StepConfig, objective::CausalLm, parameters,
};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// What decides the memory of a run.
#[derive(Clone)]
pub(crate) struct Rehearsal<'a> {
    /// The base model; only the headers of its files are read.
    pub(crate) folder: &'a ModelFolder,
    /// How dense matrices are frozen; none where everything trains.
    pub(crate) format: Option<Format>,
    /// The adapter; none where everything trains.
    pub(crate) lora: Option<&'a LoraConfig>,
    /// Whether it is described by flags, each name in which has to mean something, and not by a file.
    pub(crate) from_flags: bool,
    pub(crate) step: StepConfig,
    pub(crate) optim: OptimConfig,
    /// Tokens of each sequence of the largest micro-batch.
    pub(crate) lengths: Vec<usize>,
    /// Whether a step has several micro-batches.
    pub(crate) accumulates: bool,
}

/// From this step on each is like the one before.
pub(super) const SETTLED: usize = 3;

/// Where a rehearsal takes place.
#[derive(Clone, Debug)]
pub(crate) enum Stage {
    /// In the books of host memory.
    Host(Arc<Ledger>),
    /// On a GPU that is not there.
    Card(Arc<Gpu>),
}

impl Stage {
    /// One for the device on which the run will be.
    pub(crate) fn like(device: &Device) -> Stage {
        match device {
            Device::Cuda(gpu) => Stage::Card(Gpu::dry(gpu.info().clone(), gpu.shared_memory_limit())),
            Device::Cpu | Device::Dry(_) => Stage::Host(Ledger::new()),
        }
    }

    pub(crate) fn device(&self) -> Device {
        match self {
            Stage::Host(ledger) => Device::Dry(ledger.clone()),
            Stage::Card(gpu) => Device::Cuda(gpu.clone()),
        }
    }

    /// Starts a new measurement of the peak, where that can be: a GPU keeps what it had.
    pub(super) fn begin_again(&self) {
        if let Stage::Host(ledger) = self {
            ledger.reset_peak();
        }
    }

    pub(super) fn live(&self) -> usize {
        match self {
            Stage::Host(ledger) => ledger.live(),
            Stage::Card(gpu) => gpu.stats().live,
        }
    }

    /// Page-locked host memory.
    fn page_locked(&self) -> usize {
        match self {
            Stage::Host(_) => 0,
            Stage::Card(gpu) => gpu.stowable(),
        }
    }

    /// The most that was taken, on a GPU from the driver.
    pub(super) fn peak(&self) -> usize {
        match self {
            Stage::Host(ledger) => ledger.peak(),
            Stage::Card(gpu) => gpu.stats().peak_reserved,
        }
    }
}

/// A model with its adapter, as large as the real ones and empty.
pub(crate) struct Cast {
    pub(crate) model: Box<dyn Model>,
    pub(crate) adapter: Option<Arc<Adapter>>,
}

impl Rehearsal<'_> {
    /// The model and its adapter.
    pub(crate) fn cast(&self, stage: &Stage) -> anyhow::Result<Cast> {
        let device = stage.device();
        let mut weights = DryWeights::new(self.folder, self.format, &device);
        let mut model = build(self.folder.config(), &mut weights)?;
        let adapter = match self.lora {
            Some(config) => {
                let modules = model.modules();
                let adapter = attach_dry(&modules, config, ADAPTER, &device)?.0;
                if self.from_flags {
                    refuse_unmatched(&modules, config)?;
                }
                Some(Arc::new(adapter))
            }
            None => None,
        };
        Ok(Cast { model, adapter })
    }

    /// What the run holds at its peak. `data` and `runtime` are left to the caller, who knows them.
    pub(crate) fn plan(&self, stage: &Stage) -> anyhow::Result<Plan> {
        let cast = self.cast(stage)?;
        // What loading held is behind when training begins.
        let loaded = stage.peak();
        stage.begin_again();
        let trained = parameters(cast.model.as_ref(), cast.adapter.as_deref());
        let trainable: usize = trained.iter().map(|it| it.param.value().bytes()).sum();
        let weights = stage.live() - trainable;
        let matrices = frozen_matrices(cast.model.as_ref());
        let mut optim = Optim::new(&stage.device(), &trained, &self.optim)?;
        let before = stage.live();
        let forward = Watched { inner: CausalLm, stage, most: AtomicUsize::new(0) };
        // The first steps make what later ones find: tables of positions, the workspace of the library of products, and the order of
        // matrices, which are decoded ahead from then on.
        for _ in 0..SETTLED {
            forward.most.store(0, Ordering::Relaxed);
            let settled = stage.live();
            self.step(&cast, &mut optim, &forward)?;
            forward.most.fetch_max(settled, Ordering::Relaxed);
            forward.most.fetch_sub(settled, Ordering::Relaxed);
        }
        let activations = forward.most.into_inner();
        let mut plan = Plan {
            frozen_matrices: matrices,
            dense_weights: weights - matrices,
            trainable,
            gradients: trainable,
            optimizer: before - weights - trainable,
            activations,
            page_locked: stage.page_locked(),
            ..Plan::default()
        };
        // Gradients fill up as activations are let go of, so that the peak is less than the sum of both.
        let known = plan.total();
        let peak = stage.peak();
        plan.workspace = peak.saturating_sub(known);
        plan.activations -= known.saturating_sub(peak).min(plan.activations);
        plan.workspace += loaded.saturating_sub(plan.total());
        Ok(plan)
    }

    /// One step of the run.
    pub(crate) fn step(&self, cast: &Cast, optim: &mut Optim, objective: &dyn Objective) -> anyhow::Result<()> {
        let batches = vec![batch(&self.lengths); if self.accumulates { 2 } else { 1 }];
        if optim.params().is_empty() {
            // A base that nobody trains is evaluated.
            let how = How {
                denominator: batches[0].trained as f32,
                compute: self.step.compute,
                checkpointing: false,
                ctx: Context::default(),
            };
            let (model, tape) = (cast.model.as_ref(), Tape::disabled());
            objective.loss(&tape, model, &Micro::new(&batches[0], how)?)?;
            return Ok(());
        }
        let routing = cast.adapter.clone().map_or(Routing::Base, Routing::One);
        let step = Step { model: cast.model.as_ref(), routing: &routing, objective, ranks: &Alone, config: self.step };
        step.take(optim, &mut LossScale::new(self.step.compute), &batches, 1e-4)?;
        Ok(())
    }
}

/// Every token trains, but for the last of each sequence.
pub(super) fn batch(lengths: &[usize]) -> Batch {
    let tokens: usize = lengths.iter().sum();
    let target = |length: usize| (0..length).map(move |t| if t + 1 < length { 0 } else { halfbyte_data::IGNORE });
    Batch {
        ids: vec![0; tokens],
        targets: lengths.iter().flat_map(|it| target(*it)).collect(),
        lengths: lengths.to_vec(),
        tokens,
        trained: tokens - lengths.len(),
        rows: (0..lengths.len()).collect(),
    }
}

/// Bytes of the matrices that are frozen.
pub(super) fn frozen_matrices(model: &dyn Model) -> usize {
    let bytes = |base: &Base| if let Base::Frozen(matrix) = base { matrix.bytes() } else { 0 };
    model.parts().0.iter().map(|it| bytes(it.base())).sum()
}

/// An objective whose caller learns what was held when a forward pass had ended.
struct Watched<'a> {
    inner: CausalLm,
    stage: &'a Stage,
    most: AtomicUsize,
}

impl Objective for Watched<'_> {
    fn counts(&self, batch: &Batch) -> usize {
        self.inner.counts(batch)
    }

    fn loss<'m>(&self, tape: &Tape<'m>, model: &'m dyn Model, micro: &Micro<'_>) -> halfbyte_train::Result<Var> {
        let loss = self.inner.loss(tape, model, micro)?;
        self.most.fetch_max(self.stage.live(), Ordering::Relaxed);
        Ok(loss)
    }
}
