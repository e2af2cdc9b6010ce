//! A text that is continued again and again, as in a conversation: what the model has seen of it is not computed anew.

use crate::{
    GenerateConfig, Generated, KvCache, Model, Result,
    generate::{Heard, Sequence, Texts, check, go_on},
};
use halfbyte_lora::Context;

/// What a model has seen of a text, for one model, one adapter and one dtype.
#[derive(Debug, Default)]
pub struct KeptText {
    ids: Vec<u32>,
    cache: Option<KvCache>,
}

impl KeptText {
    /// Nothing yet.
    pub fn new() -> KeptText {
        KeptText::default()
    }

    /// How many tokens of a prompt need no pass of their own. The last one always does, since it tells what comes next.
    pub fn held_of(&self, prompt: &[u32]) -> usize {
        let same = self.ids.iter().zip(prompt).take_while(|(held, asked)| held == asked).count();
        same.min(prompt.len().saturating_sub(1))
    }

    /// Continues a prompt as [`generate`](crate::generate) does, from where it leaves what was seen before. Rows are then summed in other
    /// portions, so that near ties can fall otherwise.
    ///
    /// # Errors
    /// A prompt that is empty or leaves no position free, or a pass that fails; then nothing is kept.
    pub fn generate(
        &mut self,
        model: &dyn Model,
        prompt: &[u32],
        (config, ctx): (&GenerateConfig, &Context),
        on_token: &mut dyn FnMut(u32) -> bool,
    ) -> Result<Generated> {
        check(prompt, model.config().max_position_embeddings)?;
        let held = self.held_of(prompt);
        // A rotation that holds from some length on stays with what was rotated so.
        let switched =
            |it: &KvCache| model.config().rope_switch().is_some_and(|at| it.longest() > at && prompt.len() <= at);
        let old = self.cache.take().filter(|it| it.compute() == config.compute && !switched(it));
        let kept = old.and_then(|mut it| it.truncate(held).then_some(it));
        let mut texts = Texts::of(Sequence::new(0, prompt.to_vec(), if kept.is_some() { held } else { 0 }));
        let mut cache = kept.unwrap_or_else(|| KvCache::new(model.config(), config.compute, 1));
        self.ids.clear();
        let mut done = vec![None];
        let mut listener = |_, heard: Heard<'_>| match heard {
            Heard::Token(id) => on_token(id),
            Heard::Ended(_) => true,
        };
        go_on(model, (&mut texts, &mut cache), (config, ctx), &mut listener, &mut done)?;
        let generated: Generated = done.pop().flatten().expect("the text ended");
        self.ids = [prompt, generated.ids.as_slice()].concat();
        self.ids.truncate(cache.lengths()[0]);
        self.cache = Some(cache);
        Ok(generated)
    }
}
