//! Which architectures there are: one file and one line each.

use crate::{Architecture, FolderWeights, GptNeo, Llama, Loading, Model, ModelConfig, ModelFolder, Result, Weights};
use halfbyte_tensor::Device;

/// The architectures that can be loaded, by their names in `config.json`.
pub const SUPPORTED: [&str; 2] = ["LlamaForCausalLM", "GPTNeoForCausalLM"];

/// Builds the model that `config` describes out of whatever `weights` provides.
pub fn build(config: &ModelConfig, weights: &mut dyn Weights) -> Result<Box<dyn Model>> {
    Ok(match config.architecture {
        Architecture::Llama { .. } => Box::new(Llama::new(config, weights)?),
        Architecture::GptNeo { .. } => Box::new(GptNeo::new(config, weights)?),
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
    let constant = [".attn.attention.bias", ".attn.attention.masked_bias", ".rotary_emb.inv_freq"];
    constant.iter().any(|it| name.ends_with(it)) || (tied && name == "lm_head.weight")
}
