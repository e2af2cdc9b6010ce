use crate::{BoxError, Error, How, Micro, Objective, Result};
use halfbyte_autograd::Tape;
use halfbyte_data::Dataset;
use halfbyte_lora::Context;
use halfbyte_models::Model;
use halfbyte_tensor::{DType, Device};
use serde::Serialize;

/// The loss of a data set: over all that counts in it, such as its trained tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct EvalLoss {
    /// The mean.
    pub loss: f64,
    /// Its exponential: the perplexity, where the loss is a cross-entropy.
    pub perplexity: f64,
    /// What counts.
    pub tokens: usize,
}

/// Measures the loss of a data set in file order, with the adapter of `ctx`, without gradients. As many examples are taken together as have the
/// tokens of `batch_size` of the longest, so that many short ones do not take a pass over the weights each. `progress` is told how
/// many examples were measured, and how many there are.
///
/// # Errors
/// What the model refuses, a loss that is no number, or what `progress` returns.
pub fn evaluate(
    (model, ctx): (&dyn Model, &Context),
    objective: &dyn Objective,
    data: &Dataset,
    (batch_size, compute): (usize, DType),
    progress: &mut dyn FnMut(usize, usize) -> Result<(), BoxError>,
) -> Result<EvalLoss> {
    let (mut sum, mut counted) = (0.0f64, 0);
    let mut done = 0;
    for batch in data.in_order(batch_size * data.longest()) {
        let counts = objective.counts(&batch);
        if counts > 0 {
            // The denominator keeps the sum of a batch within f32's best range.
            let how = How { denominator: counts as f32, compute, checkpointing: false, ctx: ctx.clone() };
            let micro = Micro::new(&batch, how)?;
            let mean = objective.loss(&Tape::disabled(), model, &micro)?;
            let mean = mean.value().to_device(&Device::Cpu)?;
            sum += f64::from(mean.data::<f32>()[0]) * counts as f64;
            counted += counts;
        }
        done += batch.rows.len();
        progress(done, data.len()).map_err(Error::Caller)?;
    }
    let loss = sum / counted.max(1) as f64;
    if !loss.is_finite() {
        return Err(Error::Evaluation { loss, examples: data.len() });
    }
    Ok(EvalLoss { loss, perplexity: loss.exp(), tokens: counted })
}
