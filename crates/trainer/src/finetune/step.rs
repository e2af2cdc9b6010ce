//! One optimizer step: forward and backward over the micro-batches, clipping, AdamW.

use anyhow::bail;
use halfbyte_autograd::{
    Grads, Param, Tape,
    profile::{self, Phase},
};
use halfbyte_data::Batch;
use halfbyte_lora::Context;
use halfbyte_models::{Input, Model};
use halfbyte_ops::cross_entropy::cross_entropy;
use halfbyte_paged_optim::{AdamW, ParamStep, clip_by_global_norm};
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
    optimizer: &mut AdamW,
    batches: &[Batch],
    config: &StepConfig,
    lr: f64,
    reached: &mut [bool],
) -> anyhow::Result<StepResult> {
    let at = optimizer.steps() as usize;
    let (loss, mut grads) = gradients(model, batches, config, at)?;
    let mut taken: Vec<Tensor> = Vec::with_capacity(params.len());
    for (param, reached) in params.iter().zip(reached) {
        let Some(g) = grads.take(param) else { bail!("{} got no gradient: it would never be trained", param.name()) };
        let g = g.to_dtype(DType::F32).into_unique();
        *reached = *reached || g.data::<f32>().iter().any(|it| *it != 0.0);
        taken.push(g);
    }
    let grad_norm = {
        let mut slices: Vec<&mut [f32]> = taken.iter_mut().map(|it| it.data_mut::<f32>()).collect();
        let limit = if config.max_grad_norm > 0.0 { config.max_grad_norm } else { f32::INFINITY };
        clip_by_global_norm(&mut slices, limit)
    };
    if !grad_norm.is_finite() {
        bail!("the norm of the gradient is {grad_norm}");
    }
    profile::charge("clip", Phase::Other);
    let mut values: Vec<Tensor> = params.iter().map(|it| it.take().into_unique()).collect();
    let mut steps: Vec<ParamStep<'_>> = values
        .iter_mut()
        .zip(&taken)
        .map(|(value, grad)| ParamStep { value: value.data_mut::<f32>(), grad: grad.data::<f32>() })
        .collect();
    let done = optimizer.step(lr, &mut steps);
    for (param, value) in params.iter().zip(values) {
        param.put(value);
    }
    done?;
    profile::charge("optimizer", Phase::Other);
    Ok(StepResult { loss, grad_norm, tokens: batches.iter().map(|it| it.tokens).sum() })
}

/// A different mask for every step and micro-batch, the same when a step is replayed or a run resumed.
fn dropout_seed(seed: u64, step: usize, micro: usize) -> u64 {
    let [a, b, ..] = philox::quad(seed, 0xd409_0075, ((step as u64) << 20) | micro as u64);
    u64::from(a) << 32 | u64::from(b)
}
