//! One optimizer step: forward and backward over the micro-batches, clipping, AdamW.

use super::optimizer::Optimizer;
use anyhow::bail;
use halfbyte_autograd::{
    Grads, Param, Tape,
    profile::{self, Phase},
};
use halfbyte_data::Batch;
use halfbyte_lora::Context;
use halfbyte_models::{Input, Model};
use halfbyte_ops::cross_entropy::cross_entropy;
use halfbyte_tensor::{DType, Tensor, philox};

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
    /// Tokens, padding not counted.
    pub(crate) tokens: usize,
}

/// Loss and gradients of the micro-batches of one step. The loss is a mean over all their trained tokens, so that
/// accumulation equals one large batch whatever the rows' lengths.
pub(crate) fn gradients(
    model: &dyn Model,
    batches: &[Batch],
    config: &StepConfig,
    step: usize,
) -> anyhow::Result<(f32, Grads)> {
    let trained: usize = batches.iter().map(|it| it.trained).sum();
    let (mut loss, mut grads) = (0.0, Grads::default());
    for (micro, batch) in batches.iter().enumerate().filter(|it| it.1.trained > 0) {
        let tape = Tape::recording();
        let input = Input {
            ids: &batch.ids,
            batch: batch.batch,
            time: batch.time,
            lengths: &batch.lengths,
            compute: config.compute,
            checkpointing: config.checkpointing,
        };
        let ctx = Context { training: true, dropout_seed: dropout_seed(config.seed, step, micro) };
        let hidden = model.hidden(&tape, &input, ctx)?;
        let y = cross_entropy(&tape, &hidden, model.head(&tape).as_head(), &batch.targets, trained as f32)?;
        drop(hidden);
        loss += y.value().data::<f32>()[0];
        if !loss.is_finite() {
            bail!("the loss is {loss}");
        }
        grads.merge(tape.backward(y)?);
    }
    Ok((loss, grads))
}

/// Takes one step; `params` are in the order of the optimizer's specs. `reached` learns which of them had a gradient
/// other than zero.
pub(crate) fn step(
    model: &dyn Model,
    params: &[Param],
    optimizer: &mut Optimizer,
    batches: &[Batch],
    config: &StepConfig,
    lr: f64,
    reached: &mut [bool],
) -> anyhow::Result<StepResult> {
    let at = optimizer.steps() as usize;
    let (loss, mut grads) = gradients(model, batches, config, at)?;
    let mut taken: Vec<Tensor> = Vec::with_capacity(params.len());
    for param in params {
        let Some(g) = grads.take(param) else { bail!("{} got no gradient: it would never be trained", param.name()) };
        taken.push(g.to_dtype(DType::F32).into_unique());
    }
    let limit = if config.max_grad_norm > 0.0 { config.max_grad_norm } else { f32::INFINITY };
    let clipped = optimizer.step(lr, limit, params, taken)?;
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
