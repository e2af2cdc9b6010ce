//! Which architectures there are.

use crate::{
    Architecture, Decoder, FolderWeights, Gpt, Loading, Model, ModelConfig, ModelFolder, Result, Weights, config::GPTS,
    families::FAMILIES,
};
use halfbyte_tensor::Device;

/// The architectures that can be loaded, by their names in `config.json`.
pub const SUPPORTED: [&str; FAMILIES.len() + GPTS.len()] = {
    let mut names = [""; FAMILIES.len() + GPTS.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = if i < FAMILIES.len() { FAMILIES[i].architecture } else { GPTS[i - FAMILIES.len()].architecture };
        i += 1;
    }
    names
};

/// Builds the model that `config` describes out of whatever `weights` provides.
pub fn build(config: &ModelConfig, weights: &mut dyn Weights) -> Result<Box<dyn Model>> {
    Ok(match config.architecture {
        Architecture::Decoder(_) => Box::new(Decoder::new(config, weights)?),
        Architecture::Gpt(_) => Box::new(Gpt::new(config, weights)?),
    })
}

impl ModelFolder {
    /// Loads the model onto a device, one matrix at a time. `progress` is told the bytes of every tensor read.
    pub fn load(
        &self,
        loading: Loading<'_>,
        device: &Device,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Box<dyn Model>> {
        let mut weights = FolderWeights::new(self, loading, device, progress);
        let model = build(self.config(), &mut weights)?;
        let tied = self.config().tie_word_embeddings;
        weights.finish(|name| ignored(name, tied))?;
        Ok(model)
    }
}

/// Tensors of older files that hold nothing a model needs.
fn ignored(name: &str, tied: bool) -> bool {
    let constant =
        [".attention.bias", ".attention.masked_bias", ".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"];
    constant.iter().any(|it| name.ends_with(it)) || (tied && name == "lm_head.weight") || is_value_head(name)
}

/// Whether a tensor belongs to the head with which reinforcement learning estimates a value, beside the language model.
pub(crate) fn is_value_head(name: &str) -> bool {
    name.starts_with("v_head.")
}
