//! What is minimised. An objective is a file here and a line below: it turns a model and a micro-batch into a loss, and
//! knows nothing of accumulation, devices, loss scales or optimizers.

mod causal_lm;

pub use causal_lm::CausalLm;

use crate::Result;
use halfbyte_autograd::{Tape, Var};
use halfbyte_data::Batch;
use halfbyte_lora::Context;
use halfbyte_models::{Model, Pass};
use halfbyte_ops::{Ids, Layout, Targets, experts::Balance};
use halfbyte_tensor::{DType, Device};
use std::sync::Arc;

/// A loss that is a sum over a step's rows or tokens, over how many of them count.
pub trait Objective: Send + Sync {
    /// How much of a batch counts in the denominator: its trained tokens, its pairs of answers. A batch of which nothing
    /// counts is left out. A function of the batch alone, so that every rank knows the whole step's denominator.
    fn counts(&self, batch: &Batch) -> usize;

    /// A micro-batch's share of the step's loss, over [`How::denominator`]: a scalar f32 `[1]`, where the model lies. It may
    /// run the model several times, or on a tape of its own where it wants no gradient.
    ///
    /// # Errors
    /// What the model or an op refuses.
    fn loss<'m>(&self, tape: &Tape<'m>, model: &'m dyn Model, micro: &Micro<'_>) -> Result<Var>;
}

/// A micro-batch where the model can take it, and how it is to be computed.
pub struct Micro<'a> {
    /// Its sequences.
    pub batch: &'a Batch,
    /// Its token ids.
    pub ids: Ids,
    /// What each token predicts.
    pub targets: Targets,
    /// Where its sequences begin and end.
    pub layout: Layout,
    /// How.
    pub how: How,
}

/// How a loss is computed.
#[derive(Clone, Debug)]
pub struct How {
    /// What counts in the whole step, so that accumulation equals one large batch whatever the rows' lengths.
    pub denominator: f32,
    /// Dtype of the activations: f32, bf16 or f16.
    pub compute: DType,
    /// Whether blocks are recomputed in the backward pass instead of being kept.
    pub checkpointing: bool,
    /// Which adapter takes part, and the seed of dropout.
    pub ctx: Context,
}

impl<'a> Micro<'a> {
    /// A batch to be computed so.
    ///
    /// # Errors
    /// If its sequences are not as long as its ids.
    pub fn new(batch: &'a Batch, how: How) -> Result<Micro<'a>> {
        let (ids, targets) = (Ids::new(batch.ids.clone()), Targets::new(batch.targets.clone()));
        Ok(Micro { batch, ids, targets, layout: Layout::new(&batch.lengths)?, how })
    }

    /// Sends what it is of to a device now, not when it is first needed there.
    ///
    /// # Errors
    /// If a GPU reports one.
    pub fn send(&self, device: &Device) -> Result<()> {
        self.ids.send(device)?;
        self.targets.send(device)?;
        Ok(self.layout.send(device)?)
    }

    /// The model's normalised hidden states, one row for each target.
    ///
    /// # Errors
    /// If the model refuses the batch, or an op fails.
    pub fn hidden<'m>(&self, tape: &Tape<'m>, model: &'m dyn Model) -> Result<Var> {
        self.balanced(tape, model, None)
    }

    /// [`Micro::hidden`], with the experts that were chosen entered in a balance.
    ///
    /// # Errors
    /// As there.
    pub fn balanced<'m>(&self, tape: &Tape<'m>, model: &'m dyn Model, balance: Option<Arc<Balance>>) -> Result<Var> {
        let How { compute, checkpointing, ref ctx, .. } = self.how;
        let pass = Pass::new(&self.ids, &self.layout, ctx, compute);
        Ok(model.forward(tape, &mut Pass { checkpointing, balance, ..pass })?)
    }
}
