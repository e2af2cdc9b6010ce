use super::{Micro, Objective};
use crate::Result;
use halfbyte_autograd::{Tape, Var};
use halfbyte_data::Batch;
use halfbyte_models::Model;

/// The next token's cross-entropy, a mean over all trained tokens of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CausalLm;

impl Objective for CausalLm {
    fn counts(&self, batch: &Batch) -> usize {
        batch.trained
    }

    fn loss<'m>(&self, tape: &Tape<'m>, model: &'m dyn Model, micro: &Micro<'_>) -> Result<Var> {
        let hidden = micro.hidden(tape, model)?;
        let head = model.head(tape, &micro.how.ctx);
        Ok(head.loss(tape, &hidden, &micro.targets, micro.how.denominator)?)
    }
}
