//! Mixtures of experts, as configurations describe them.

use super::keys::{Keys, Parsed};
use crate::{ExpertNames, ExpertSpec, LayerSpec};
use halfbyte_ops::experts::Choice;

/// Which mixtures a family has.
#[derive(Clone, Copy)]
pub(crate) enum Mixture {
    /// None.
    None,
    /// In every block, as wide as `intermediate_size`; weights are always normalised.
    Mixtral,
    /// In every `decoder_sparse_step`th block but `mlp_only_layers`, as wide as `moe_intermediate_size`; weights are normalised where
    /// `norm_topk_prob` says so.
    Qwen,
    /// In every block, as wide as `intermediate_size`, with biases; weights are always normalised.
    Oss,
}

const OSS: ExpertNames = ExpertNames { file: "mlp", router: "router", matrices: None, module: "mlp" };
const MIXTRAL: ExpertNames =
    ExpertNames { file: "block_sparse_moe", router: "gate", matrices: Some(["w1", "w3", "w2"]), module: "mlp" };
const QWEN: ExpertNames = ExpertNames { router: "gate", matrices: Some(["gate_proj", "up_proj", "down_proj"]), ..OSS };

/// Channels of all experts of a layer.
const WIDEST: usize = 1 << 32;
/// Experts of all layers.
const MOST: usize = 1 << 18;

impl Keys<'_> {
    /// The experts of a model, and the layers with what they have of them.
    pub(crate) fn experts(
        &self,
        mixture: Mixture,
        layers: Vec<LayerSpec>,
    ) -> Parsed<(Option<ExpertSpec>, Vec<LayerSpec>)> {
        let (names, count, each, inner, normalised) = match mixture {
            Mixture::None => return Ok((None, layers)),
            Mixture::Mixtral => (MIXTRAL, 8, 2, self.size("intermediate_size", None)?, true),
            Mixture::Oss => (OSS, 128, 4, self.size("intermediate_size", None)?, true),
            Mixture::Qwen => {
                let inner = self.size("moe_intermediate_size", Some(768))?;
                (QWEN, 128, 8, inner, self.flag("norm_topk_prob", false)?)
            }
        };
        // transformers takes either name for either, and writes the second.
        let count = self.size("num_local_experts", Some(self.size("num_experts", Some(count))?))?;
        // Each has names of its own, and no machine could list so many.
        if count.saturating_mul(layers.len()) > MOST {
            return Err(format!("num_experts is {count} in {} layers, which no model has", layers.len()));
        }
        if inner.saturating_mul(count.max(1)) > WIDEST {
            return Err(format!("{count} experts of {inner} channels are more than any model has"));
        }
        // gpt-oss's own files have it under either name.
        let each = self.size("num_experts_per_tok", Some(self.size("experts_per_token", Some(each))?))?;
        let sparse = self.sparse(mixture, layers.len(), count)?;
        if each == 0 || each > count && sparse.contains(&true) {
            return Err(format!("num_experts_per_tok is {each}, of {count} experts"));
        }
        let balance = if self.flag("output_router_logits", false)? {
            Some(self.float("router_aux_loss_coef", 0.001)? as f32).filter(|it| *it != 0.0)
        } else {
            None
        };
        if balance.is_some_and(|it| !it.is_finite()) {
            return Err("router_aux_loss_coef is not a number".into());
        }
        let spec = ExpertSpec { count, choice: Choice { each, normalised }, inner, names, balance };
        let layers = layers.into_iter().zip(&sparse).map(|(it, sparse)| LayerSpec { sparse: *sparse, ..it }).collect();
        Ok((sparse.contains(&true).then_some(spec), layers))
    }

    /// Which blocks have experts.
    fn sparse(&self, mixture: Mixture, layers: usize, count: usize) -> Parsed<Vec<bool>> {
        if !matches!(mixture, Mixture::Qwen) {
            return Ok(vec![true; layers]);
        }
        let step = self.size("decoder_sparse_step", Some(1))?;
        if step == 0 {
            return Err("decoder_sparse_step is 0, expected a number of layers".into());
        }
        let mut sparse: Vec<bool> = (1..=layers).map(|it| count > 0 && it.is_multiple_of(step)).collect();
        let listed = match self.given("mlp_only_layers") {
            None => &[][..],
            Some(it) => it.as_array().ok_or("mlp_only_layers is not a list")?,
        };
        for it in listed {
            let at = it.as_u64().ok_or(format!("mlp_only_layers holds {it}, expected numbers of layers"))?;
            // One that there is not changes nothing, as in transformers.
            if let Some(sparse) = usize::try_from(at).ok().and_then(|it| sparse.get_mut(it)) {
                *sparse = false;
            }
        }
        Ok(sparse)
    }
}
