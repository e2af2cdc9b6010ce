//! One optimizer step: forward and backward over the micro-batches, clipping, AdamW.

use super::optimizer::Optimizer;
use anyhow::bail;
use halfbyte_autograd::{
    Grads, Param, Tape,
    profile::{self, Phase},
};
use halfbyte_data::Batch;
use halfbyte_lora::{Context, Routing};
use halfbyte_models::{Input, Model};
use halfbyte_ops::{Ids, Layout, Targets, cross_entropy::cross_entropy};
use halfbyte_tensor::{DType, Tensor, philox};
use serde::{Deserialize, Serialize};

/// The factor on the loss that keeps small gradients within f16's range: raised while all goes well, halved where a gradient
/// overflows, and then the step is not taken. 1 and constant for other dtypes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LossScale {
    pub(crate) value: f32,
    good_steps: u32,
    dynamic: bool,
}

/// As torch.amp has them.
const FIRST_SCALE: f32 = 65536.0;
const GROWTH_STEPS: u32 = 2000;

impl LossScale {
    pub(crate) fn new(compute: DType) -> LossScale {
        let dynamic = compute == DType::F16;
        LossScale { value: if dynamic { FIRST_SCALE } else { 1.0 }, good_steps: 0, dynamic }
    }

    /// Takes in the norm of a step's gradient, scaling taken out.
    fn after(&mut self, norm: f32) -> anyhow::Result<()> {
        if norm.is_finite() {
            self.good_steps += 1;
            if self.dynamic && self.good_steps.is_multiple_of(GROWTH_STEPS) {
                self.value *= 2.0;
            }
            return Ok(());
        }
        if !self.dynamic || self.value < 2.0 {
            bail!("the norm of the gradient is {norm}");
        }
        (self.value, self.good_steps) = (self.value / 2.0, 0);
        Ok(())
    }
}

/// How a step is computed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepConfig {
    pub(crate) compute: DType,
    pub(crate) checkpointing: bool,
    pub(crate) max_grad_norm: f32,
    pub(crate) seed: u64,
}

/// What a step showed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepResult {
    /// Mean loss over the tokens that count, of all micro-batches.
    pub(crate) loss: f32,
    /// Global norm of the gradient before clipping.
    pub(crate) grad_norm: f32,
    /// Tokens of all micro-batches.
    pub(crate) tokens: usize,
}

/// Loss and gradients of the micro-batches of one step. The loss is a mean over all their trained tokens, so that
/// accumulation equals one large batch whatever the rows' lengths. The gradients are `loss_scale` times those of the loss.
pub(crate) fn gradients(
    (model, routing): (&dyn Model, &Routing),
    batches: &[Batch],
    config: &StepConfig,
    step: usize,
    loss_scale: f32,
) -> anyhow::Result<(f32, Grads)> {
    let trained: usize = batches.iter().map(|it| it.trained).sum();
    let (mut loss, mut grads) = (0.0, Grads::default());
    for (micro, batch) in batches.iter().enumerate().filter(|it| it.1.trained > 0) {
        let tape = Tape::recording();
        let (ids, targets, layout) = flat(batch)?;
        let input = Input { ids: &ids, layout: &layout, compute: config.compute, checkpointing: config.checkpointing };
        let ctx = Context::training(routing.clone(), dropout_seed(config.seed, step, micro));
        let hidden = model.hidden(&tape, &input, &ctx)?;
        let y = cross_entropy(&tape, &hidden, model.head(&tape, &ctx).as_head(), &targets, trained as f32)?;
        drop(hidden);
        loss += y.value().to_f32_vec()[0];
        if !loss.is_finite() {
            bail!("the loss is {loss}");
        }
        grads.merge(tape.backward_scaled(y, loss_scale)?);
    }
    Ok((loss, grads))
}

/// A batch as the model takes it.
pub(crate) fn flat(batch: &Batch) -> anyhow::Result<(Ids, Targets, Layout)> {
    Ok((Ids::new(batch.ids.clone()), Targets::new(batch.targets.clone()), Layout::new(&batch.lengths)?))
}

/// Takes one step; `params` are in the order of the optimizer's specs. `reached` learns which of them had a gradient
/// other than zero.
pub(crate) fn step(
    what: (&dyn Model, &Routing),
    params: &[Param],
    optimizer: &mut Optimizer,
    batches: &[Batch],
    config: &StepConfig,
    lr: f64,
    (reached, scaling): (&mut [bool], &mut LossScale),
) -> anyhow::Result<StepResult> {
    let at = optimizer.steps() as usize;
    let (loss, mut grads) = gradients(what, batches, config, at, scaling.value)?;
    let mut taken: Vec<Tensor> = Vec::with_capacity(params.len());
    for param in params {
        let Some(g) = grads.take(param) else { bail!("{} got no gradient: it would never be trained", param.name()) };
        taken.push(g.to_dtype(DType::F32).into_unique());
    }
    let limit = if config.max_grad_norm > 0.0 { config.max_grad_norm } else { f32::INFINITY };
    let clipped = optimizer.step(lr, limit, params, (taken, 1.0 / scaling.value))?;
    scaling.after(clipped.norm)?;
    reached.iter_mut().zip(&clipped.nonzero).for_each(|(reached, nonzero)| *reached |= nonzero);
    profile::charge("optimizer", Phase::Other);
    let grad_norm = clipped.norm;
    Ok(StepResult { loss, grad_norm, tokens: batches.iter().map(|it| it.tokens).sum() })
}

/// A different mask for every step and micro-batch, the same when a step is replayed or a run resumed.
fn dropout_seed(seed: u64, step: usize, micro: usize) -> u64 {
    let [a, b, ..] = philox::quad(seed, 0xd409_0075, ((step as u64) << 20) | micro as u64);
    u64::from(a) << 32 | u64::from(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_halves_where_gradients_overflow_and_doubles_after_many_good_steps() {
        let mut scale = LossScale::new(DType::F16);
        scale.after(f32::INFINITY).unwrap();
        scale.after(f32::NAN).unwrap();
        assert_eq!(scale.value, FIRST_SCALE / 4.0);
        for _ in 0..GROWTH_STEPS {
            scale.after(1.0).unwrap();
        }
        assert_eq!(scale.value, FIRST_SCALE / 2.0);
        while scale.value >= 2.0 {
            scale.after(f32::NAN).unwrap();
        }
        assert!(scale.after(f32::NAN).is_err(), "nothing is left to halve");
    }

    #[test]
    fn other_dtypes_have_no_scale_and_no_excuse() {
        let mut scale = LossScale::new(DType::Bf16);
        scale.after(1.0).unwrap();
        assert_eq!(scale.value, 1.0);
        assert!(scale.after(f32::NAN).is_err());
    }
}
