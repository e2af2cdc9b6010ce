//! Configurations of the GPTs.

use super::{
    Architecture, ModelConfig,
    keys::{Keys, Parsed},
};
use crate::{GptKind, GptSpec};
use halfbyte_ops::{
    gelu::Gelu,
    rope::{Pairs, RopeScaling, RopeSpec},
};
use serde_json::{Map, Value};

/// One of them by its names.
pub(crate) struct GptFamily {
    /// In `architectures`.
    pub(crate) architecture: &'static str,
    /// In `model_type`.
    pub(crate) model_type: &'static str,
    kind: GptKind,
}

/// All of them.
pub(crate) const GPTS: [GptFamily; 4] = [
    GptFamily { architecture: "GPTNeoForCausalLM", model_type: "gpt_neo", kind: GptKind::Neo },
    GptFamily { architecture: "GPTNeoXForCausalLM", model_type: "gpt_neox", kind: GptKind::NeoX },
    GptFamily { architecture: "GPT2LMHeadModel", model_type: "gpt2", kind: GptKind::Two },
    GptFamily { architecture: "GPTJForCausalLM", model_type: "gptj", kind: GptKind::J },
];

impl GptFamily {
    /// Reads the configuration.
    pub(crate) fn config(&self, keys: &Keys<'_>) -> Parsed<ModelConfig> {
        match self.kind {
            GptKind::J => j(keys),
            GptKind::Neo => neo(keys),
            GptKind::NeoX => neox(keys),
            GptKind::Two => two(keys),
        }
    }
}

/// The names of sizes and their values where a file has none.
struct Sizes {
    hidden: (&'static str, usize),
    layers: (&'static str, usize),
    heads: (&'static str, usize),
    inner: &'static str,
    positions: (&'static str, usize),
    vocab: usize,
    tied: bool,
    dropouts: &'static [&'static str],
}

/// A configuration whose architecture `spec` makes of the number of layers and the channels of a head.
fn sized(keys: &Keys<'_>, sizes: &Sizes, spec: impl FnOnce(usize, usize) -> Parsed<GptSpec>) -> Parsed<ModelConfig> {
    // transformers knows these by the names that other models use, too, and then those count.
    let either = |usual: &str, (own, default): (&str, usize)| keys.size(usual, Some(keys.size(own, Some(default))?));
    let hidden = either("hidden_size", sizes.hidden)?;
    let layers = either("num_hidden_layers", sizes.layers)?;
    let heads = either("num_attention_heads", sizes.heads)?;
    if heads == 0 || !hidden.is_multiple_of(heads) {
        return Err(format!("hidden_size {hidden} cannot be split into {heads} heads"));
    }
    Ok(ModelConfig {
        architecture: Architecture::Gpt(spec(layers, hidden / heads)?),
        vocab_size: keys.size("vocab_size", Some(sizes.vocab))?,
        hidden_size: hidden,
        intermediate_size: keys.size(sizes.inner, Some(4 * hidden))?,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim: hidden / heads,
        max_position_embeddings: either("max_position_embeddings", sizes.positions)?,
        tie_word_embeddings: keys.flag("tie_word_embeddings", sizes.tied)?,
        eos_token_ids: keys.eos(),
        notes: keys.dropout_notes(sizes.dropouts),
        raw: Map::new(),
    })
}

fn neo(keys: &Keys<'_>) -> Parsed<ModelConfig> {
    keys.expect("activation_function", &["gelu_new"])?;
    let sizes = Sizes {
        hidden: ("hidden_size", 2048),
        layers: ("num_layers", 24),
        heads: ("num_heads", 16),
        inner: "intermediate_size",
        positions: ("max_position_embeddings", 2048),
        vocab: 50257,
        tied: true,
        dropouts: &["resid_dropout", "embed_dropout", "attention_dropout"],
    };
    sized(keys, &sizes, |layers, _| {
        let window = keys.size("window_size", Some(256))?;
        Ok(GptSpec {
            kind: GptKind::Neo,
            norm_eps: keys.epsilon("layer_norm_epsilon", 1e-5)?,
            scale: 1.0,
            windows: attention_layers(keys.raw, layers)?.iter().map(|it| it.then_some(window)).collect(),
            gelu: Gelu::Tanh,
            rope: None,
            parallel: false,
            biases: [false, true, false],
        })
    })
}

fn neox(keys: &Keys<'_>) -> Parsed<ModelConfig> {
    let gelu = match keys.given("hidden_act").and_then(Value::as_str) {
        None | Some("gelu") => Gelu::Exact,
        Some("gelu_new" | "gelu_fast" | "gelu_pytorch_tanh") => Gelu::Tanh,
        Some(other) => {
            return Err(format!(
                "hidden_act is {other}; only gelu, gelu_new, gelu_fast and gelu_pytorch_tanh are supported"
            ));
        }
    };
    let sizes = Sizes {
        hidden: ("hidden_size", 6144),
        layers: ("num_hidden_layers", 44),
        heads: ("num_attention_heads", 64),
        inner: "intermediate_size",
        positions: ("max_position_embeddings", 2048),
        vocab: 50432,
        tied: false,
        dropouts: &["hidden_dropout", "attention_dropout"],
    };
    let positions = keys.size(sizes.positions.0, Some(sizes.positions.1))?;
    let mut notes = Vec::new();
    let config = sized(keys, &sizes, |layers, head_dim| {
        let (rope, told) = super::rope::neox(keys, (head_dim, positions))?;
        notes = told;
        let attention_bias = keys.flag("attention_bias", true)?;
        Ok(GptSpec {
            kind: GptKind::NeoX,
            norm_eps: keys.epsilon("layer_norm_eps", 1e-5)?,
            scale: 1.0 / (head_dim as f32).sqrt(),
            windows: vec![None; layers],
            gelu,
            rope: Some(rope),
            parallel: keys.flag("use_parallel_residual", true)?,
            biases: [attention_bias, attention_bias, false],
        })
    })?;
    Ok(ModelConfig { notes: [notes, config.notes.clone()].concat(), ..config })
}

/// What GPT-2 calls its sizes, and GPT-J.
const TWO: Sizes = Sizes {
    hidden: ("n_embd", 768),
    layers: ("n_layer", 12),
    heads: ("n_head", 12),
    inner: "n_inner",
    positions: ("n_positions", 1024),
    vocab: 50257,
    tied: true,
    dropouts: &["resid_pdrop", "embd_pdrop", "attn_pdrop"],
};

fn j(keys: &Keys<'_>) -> Parsed<ModelConfig> {
    keys.expect("activation_function", &["gelu_new", "gelu_pytorch_tanh"])?;
    if keys.flag("tie_word_embeddings", false)? {
        return Err("tie_word_embeddings is true; here the output head has a matrix of its own, and a bias".into());
    }
    if !keys.flag("scale_attn_weights", true)? {
        return Err("scale_attn_weights is false; scores are scaled in this architecture, as in transformers".into());
    }
    let sizes = Sizes {
        hidden: ("n_embd", 4096),
        layers: ("n_layer", 28),
        heads: ("n_head", 16),
        positions: ("n_positions", 2048),
        vocab: 50400,
        tied: false,
        ..TWO
    };
    let max_position = keys.size("max_position_embeddings", Some(keys.size("n_positions", Some(2048))?))?;
    let channels = match keys.has("rotary_dim") {
        true => keys.size("rotary_dim", None)?,
        false => 64,
    };
    sized(keys, &sizes, |layers, head_dim| {
        if channels > head_dim || !head_dim.is_multiple_of(2) {
            return Err(format!("rotary_dim is {channels}, of heads of {head_dim} channels"));
        }
        let scaling = RopeScaling::None;
        Ok(GptSpec {
            kind: GptKind::J,
            norm_eps: keys.epsilon("layer_norm_epsilon", 1e-5)?,
            scale: 1.0 / (head_dim as f32).sqrt(),
            windows: vec![None; layers],
            gelu: Gelu::Tanh,
            rope: Some(RopeSpec { theta: 10_000.0, channels, max_position, scaling, pairs: Pairs::Neighbours }),
            parallel: true,
            biases: [false, false, true],
        })
    })
}

fn two(keys: &Keys<'_>) -> Parsed<ModelConfig> {
    keys.expect("activation_function", &["gelu_new", "gelu_pytorch_tanh"])?;
    let sizes = TWO;
    sized(keys, &sizes, |layers, head_dim| {
        let scaled = keys.flag("scale_attn_weights", true)?;
        Ok(GptSpec {
            kind: GptKind::Two,
            norm_eps: keys.epsilon("layer_norm_epsilon", 1e-5)?,
            scale: if scaled { 1.0 / (head_dim as f32).sqrt() } else { 1.0 },
            windows: vec![None; layers],
            gelu: Gelu::Tanh,
            rope: None,
            parallel: false,
            biases: [true, true, false],
        })
    })
}

/// Whether each layer is local: from `attention_layers`, or expanded from `attention_types` (`[[["global", "local"], 12]]`).
fn attention_layers(raw: &Map<String, Value>, layers: usize) -> Parsed<Vec<bool>> {
    let local = |it: &Value| match it.as_str() {
        Some("global") => Ok(false),
        Some("local") => Ok(true),
        _ => Err(format!("attention type {it} is neither global nor local")),
    };
    let mut found = Vec::new();
    if let Some(Value::Array(kinds)) = raw.get("attention_layers") {
        found = kinds.iter().map(local).collect::<Parsed<Vec<_>>>()?;
    } else if let Some(Value::Array(groups)) = raw.get("attention_types") {
        for group in groups {
            let kinds = group.get(0).and_then(Value::as_array).ok_or("attention_types is malformed")?;
            let times = group
                .get(1)
                .and_then(Value::as_u64)
                .filter(|it| *it <= 1 << 16)
                .ok_or("attention_types is malformed")?;
            for _ in 0..times {
                for kind in kinds {
                    found.push(local(kind)?);
                }
            }
        }
    } else {
        found = (0..layers).map(|it| it % 2 == 1).collect();
    }
    if found.len() == layers {
        Ok(found)
    } else {
        Err(format!("attention_types describes {} layers, num_layers is {layers}", found.len()))
    }
}
