use crate::{KvCache, Model, Result, extend, generate::CHUNK};
use halfbyte_autograd::{Tape, Var};
use halfbyte_lora::Context;
use halfbyte_ops::{Ids, cross_entropy::logits, embedding};
use halfbyte_tensor::DType;

/// Goes through the passes that continue a prompt of `prompt` tokens until there are `longest`, with a model on a dry device: those
/// of the prompt, and one at each length at which a cache grows. What they hold stands in the device's books then.
///
/// # Errors
/// What a pass reports.
pub fn rehearse(model: &dyn Model, (prompt, longest): (usize, usize), (compute, ctx): (DType, &Context)) -> Result<()> {
    let mut cache = KvCache::new(model.config(), compute, 1);
    cache.announce(longest);
    while cache.lengths()[0] < prompt {
        let new = (prompt - cache.lengths()[0]).min(CHUNK);
        pass(model, &mut cache, new, ctx)?;
    }
    // What comes last is never seen by another pass.
    while cache.lengths()[0] + 1 < longest {
        cache.skip(longest - 2 - cache.lengths()[0]);
        pass(model, &mut cache, 1, ctx)?;
    }
    Ok(())
}

/// A pass of so many new tokens, the last of which is asked what comes next.
fn pass(model: &dyn Model, cache: &mut KvCache, new: usize, ctx: &Context) -> Result<()> {
    let (layout, tape) = (cache.begin(&[new])?, Tape::disabled());
    let hidden = extend(model, &Ids::new(vec![0; new]), &layout, cache, ctx)?;
    let last = Ids::new(vec![new as u32 - 1]);
    let picked = embedding(&tape, &Var::constant(hidden.clone()), &last, hidden.dtype())?;
    logits(picked.value(), model.head(&tape, ctx).as_head())?;
    Ok(())
}
