use crate::{
    KvCache, Model, Result, extend,
    generate::{AT_ONCE, portions},
};
use halfbyte_autograd::{Tape, Var};
use halfbyte_lora::Context;
use halfbyte_ops::{Ids, cross_entropy::logits, embedding};
use halfbyte_tensor::DType;

/// Texts whose continuation is gone through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rehearsed {
    /// Tokens of the prompts that are under way together.
    pub prompts: Vec<usize>,
    /// How many new tokens each of them gets.
    pub new: usize,
    /// Tokens of the prompts that wait for a place: the first of those under way may end together, and these come in beside the others.
    pub next: Vec<usize>,
}

/// Goes through the passes that continue texts, with a model on a dry device: those of the prompts, the last one, before which a cache has
/// grown as it would, and those in which others come in beside what is held then. What they hold stands in the device's books then.
///
/// # Errors
/// What a pass reports.
pub fn rehearse(model: &dyn Model, texts: &Rehearsed, (compute, ctx): (DType, &Context)) -> Result<()> {
    let Rehearsed { prompts, new, next } = texts;
    let mut cache = KvCache::new(model.config(), compute, prompts.len());
    cache.announce(prompts.iter().chain(next).max().unwrap_or(&0) + new);
    read(model, &mut cache, prompts, ctx)?;
    // What comes last is never seen by another pass.
    let last = cache.lengths()[0] + new.saturating_sub(1);
    if cache.lengths()[0] < last {
        cache.skip(last - 1 - cache.lengths()[0]);
        let ones = vec![1; prompts.len()];
        pass(model, &mut cache, &ones, ctx)?;
    }
    // More are not read at once.
    let next = &next[..next.len().min(prompts.len()).min(AT_ONCE)];
    if next.is_empty() {
        return Ok(());
    }
    cache.retain(&(0..prompts.len()).map(|it| it >= next.len()).collect::<Vec<_>>());
    let lengths = [cache.lengths(), next].concat();
    next.iter().for_each(|_| cache.admit());
    read(model, &mut cache, &lengths, ctx)
}

/// Passes until sequences have so many tokens.
fn read(model: &dyn Model, cache: &mut KvCache, until: &[usize], ctx: &Context) -> Result<()> {
    while cache.lengths() != until {
        let missing: Vec<usize> = until.iter().zip(cache.lengths()).map(|(until, held)| until - held).collect();
        pass(model, cache, &portions(missing.into_iter()), ctx)?;
    }
    Ok(())
}

/// A pass of so many new tokens of each sequence, the last of which are asked what comes next.
fn pass(model: &dyn Model, cache: &mut KvCache, new: &[usize], ctx: &Context) -> Result<()> {
    let (layout, tape) = (cache.begin(new)?, Tape::disabled());
    let hidden = extend(model, &Ids::new(vec![0; new.iter().sum()]), &layout, cache, ctx)?;
    let last = Ids::new(layout.segments().iter().map(|it| (it.first + it.count - 1) as u32).collect());
    let picked = embedding(&tape, &Var::constant(hidden.clone()), &last, hidden.dtype())?;
    logits(picked.value(), model.head(&tape, ctx).as_head())?;
    Ok(())
}
