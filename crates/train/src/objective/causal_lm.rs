use super::{Micro, Objective};
use crate::Result;
use halfbyte_autograd::{Tape, Var};
use halfbyte_data::Batch;
use halfbyte_models::Model;
use halfbyte_ops::experts::Balance;

/// The next token's cross-entropy, a mean over all trained tokens of a step.
///
/// For a model that is trained so (`output_router_logits`), with the loss that keeps experts equally busy: of each micro-batch, by its
/// share of the step's trained tokens. It is no sum over tokens, so an evaluation, whose result must not depend on how its batches are
/// cut, goes without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CausalLm;

impl Objective for CausalLm {
    fn counts(&self, batch: &Batch) -> usize {
        batch.trained
    }

    fn loss<'m>(&self, tape: &Tape<'m>, model: &'m dyn Model, micro: &Micro<'_>) -> Result<Var> {
        let balance = model.config().balance().filter(|_| tape.is_recording());
        let balance = balance.map(|(experts, factor)| (Balance::new(experts), factor));
        let hidden = micro.balanced(tape, model, balance.as_ref().map(|it| it.0.clone()))?;
        let head = model.head(tape, &micro.how.ctx);
        let loss = head.loss(tape, &hidden, &micro.targets, micro.how.denominator)?;
        let Some((balance, factor)) = balance else { return Ok(loss) };
        let share = micro.targets.rows().len() as f32 / micro.how.denominator;
        Ok(balance.join(tape, &loss, factor * share)?)
    }
}
