//! One optimizer step: forward and backward over the micro-batches, clipping, AdamW.

use crate::{Error, How, LossScale, Micro, Objective, Optim, Ranks, Result, Update};
use halfbyte_autograd::{
    Grads, Param, Tape,
    profile::{self, Phase},
};
use halfbyte_data::Batch;
use halfbyte_lora::{Context, Routing};
use halfbyte_models::Model;
use halfbyte_ops::{repeated, settle};
use halfbyte_tensor::{DType, Device, Tensor, philox};

/// How a step is computed.
#[derive(Clone, Copy, Debug)]
pub struct StepConfig {
    /// Dtype of the activations: f32, bf16 or f16.
    pub compute: DType,
    /// Whether blocks are recomputed in the backward pass instead of being kept.
    pub checkpointing: bool,
    /// Whether the inputs of recomputed blocks wait in page-locked host memory, where a GPU computes.
    pub offloading: bool,
    /// Whether the backward pass finds the outputs of cheap ops (norms, activation functions), too, rather than computing them again.
    pub keeps_cheap: bool,
    /// Gradients are scaled down to this norm; 0 leaves them.
    pub max_grad_norm: f32,
    /// Seed of dropout.
    pub seed: u64,
    /// Whether steps that ask for the same as one before are started on a GPU as a whole. Nobody else may use that GPU meanwhile.
    pub repeating: bool,
}

impl Default for StepConfig {
    fn default() -> Self {
        StepConfig {
            compute: DType::Bf16,
            checkpointing: false,
            offloading: false,
            keeps_cheap: false,
            max_grad_norm: 1.0,
            seed: 42,
            repeating: false,
        }
    }
}

/// What a step works on.
#[derive(Clone, Copy)]
pub struct Step<'m> {
    /// The model.
    pub model: &'m dyn Model,
    /// The adapter that trains, if the model does not.
    pub routing: &'m Routing,
    /// What is minimised.
    pub objective: &'m dyn Objective,
    /// Who else takes part.
    pub ranks: &'m dyn Ranks,
    /// How it is computed.
    pub config: StepConfig,
}

/// What a step showed.
#[derive(Clone, Debug, PartialEq)]
pub struct StepResult {
    /// The objective over all micro-batches of all ranks.
    pub loss: f32,
    /// Global norm of the gradient before clipping. If it is not finite, the step was not taken, and the loss scale halved.
    pub grad_norm: f32,
    /// Tokens of all micro-batches of all ranks.
    pub tokens: usize,
    /// For each parameter, whether any element of its gradient was other than zero.
    pub nonzero: Vec<bool>,
}

impl Step<'_> {
    /// Loss and gradients over the micro-batches of step `at`, of which this rank computes its own, summed over all ranks: the
    /// loss `[1]` and, for each parameter, `scale` times its gradient, f32 and nobody else's. Nothing is waited for.
    ///
    /// # Errors
    /// If nothing counts, the model or an op fails, or a parameter gets no gradient.
    pub fn gradients(
        &self,
        params: &[Param],
        batches: &[Batch],
        (at, scale): (u64, f32),
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let counts: usize = batches.iter().map(|it| self.objective.counts(it)).sum();
        if counts == 0 {
            return Err(Error::NothingCounts);
        }
        let device = params.first().map_or(Device::Cpu, |it| it.value().device());
        let repeating = self.config.repeating && self.ranks.world() == 1;
        if repeating {
            settle(&device)?;
        }
        let mine = batches.iter().enumerate().skip(self.ranks.rank()).step_by(self.ranks.world());
        let micros = mine.filter(|it| self.objective.counts(it.1) > 0).map(|(micro, batch)| {
            let ctx = Context::training(self.routing.clone(), dropout_seed(self.config.seed, at, micro));
            let StepConfig { compute, checkpointing, .. } = self.config;
            let micro = Micro::new(batch, How { denominator: counts as f32, compute, checkpointing, ctx })?;
            micro.send(&device)?;
            Ok(micro)
        });
        let micros = micros.collect::<Result<Vec<Micro<'_>>>>()?;
        let mut pass = || self.pass(params, &micros, scale);
        // What decides which kernels a pass takes.
        let shape = |it: &Micro<'_>| (it.batch.lengths.clone(), it.targets.rows().len());
        let StepConfig { compute, checkpointing, .. } = self.config;
        let kind = || (micros.iter().map(shape).collect::<Vec<_>>(), counts, compute, checkpointing, scale.to_bits());
        let mut all = match repeating {
            true => repeated(&device, kind(), &mut pass)?,
            false => pass()?,
        };
        self.ranks.all_reduce(&mut all)?;
        let loss = all.pop().unwrap_or_else(|| unreachable!("the loss was put last"));
        Ok((loss, all))
    }

    /// The gradients of this rank's micro-batches, in the order of the parameters, and the loss.
    fn pass(&self, params: &[Param], micros: &[Micro<'_>], scale: f32) -> Result<Vec<Tensor>> {
        let (mut loss, mut grads) = (None::<Tensor>, Grads::default());
        for micro in micros {
            let StepConfig { offloading, keeps_cheap, .. } = self.config;
            let tape = Tape::recording().keeping_cheap(keeps_cheap).offloading(offloading);
            let y = self.objective.loss(&tape, self.model, micro)?;
            match &mut loss {
                Some(sum) => sum.add_assign(y.value()),
                sum => *sum = Some(y.value().clone()),
            }
            grads.merge(tape.backward_scaled(y, scale)?);
        }
        let mut all = match &loss {
            Some(_) => in_order(params, grads)?,
            // More ranks than micro-batches are left in the epoch.
            None => params.iter().map(|it| zeros(it, it.value().shape())).collect(),
        };
        let nothing = || params.first().map_or_else(|| Tensor::scalar(0.0), |it| zeros(it, &[1]));
        all.push(loss.unwrap_or_else(nothing));
        Ok(all)
    }

    /// Takes one step.
    ///
    /// # Errors
    /// What [`Step::gradients`] finds, a loss or (without a loss scale) a gradient that is not finite, or a failing device.
    /// Parameters and state are then as they were, unless the device failed halfway.
    pub fn take(&self, optim: &mut Optim, scale: &mut LossScale, batches: &[Batch], lr: f64) -> Result<StepResult> {
        let (loss, grads) = self.gradients(optim.params(), batches, (optim.steps(), scale.value()))?;
        let max_norm = if self.config.max_grad_norm > 0.0 { self.config.max_grad_norm } else { f32::INFINITY };
        let update = Update { lr, max_norm, unscale: 1.0 / scale.value() };
        let seen = optim.step(update, grads, &loss)?;
        if !seen.loss.is_finite() {
            return Err(Error::Loss(seen.loss));
        }
        scale.after(seen.norm)?;
        profile::charge("optimizer", Phase::Other);
        let tokens = batches.iter().map(|it| it.tokens).sum();
        Ok(StepResult { loss: seen.loss, grad_norm: seen.norm, tokens, nonzero: seen.nonzero })
    }
}

fn in_order(params: &[Param], mut grads: Grads) -> Result<Vec<Tensor>> {
    let take = |param: &Param| {
        let found = grads.take(param).ok_or_else(|| Error::NoGradient(param.name().to_owned()))?;
        Ok(found.into_dtype(DType::F32).into_unique())
    };
    params.iter().map(take).collect()
}

fn zeros(like: &Param, shape: &[usize]) -> Tensor {
    Tensor::zeros_on(&like.value().device(), shape, DType::F32)
}

/// A different mask for every step and micro-batch, the same when a step is replayed or a run resumed, and on whichever rank.
fn dropout_seed(seed: u64, step: u64, micro: usize) -> u64 {
    let [a, b, ..] = philox::quad(seed, 0xd409_0075, (step << 20) | micro as u64);
    u64::from(a) << 32 | u64::from(b)
}
