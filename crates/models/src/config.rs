//! `config.json`, in the style of today and in that of older versions of transformers.

mod keys;
mod known;
mod layers;
mod rope;

use crate::{
    BlockSpec, Error, Result,
    families::{Family, is_named},
    registry::{GPT_NEO, SUPPORTED},
};
pub(crate) use keys::{Keys, Parsed};
pub use known::{CONFIG as CONFIG_KEYS, QUANTIZATION as QUANTIZATION_KEYS};
pub(crate) use layers::{Rotated, Window};
use serde_json::{Map, Value};
use std::path::Path;

/// What a model's architecture needs beyond the sizes that all share.
#[derive(Clone, Debug, PartialEq)]
pub enum Architecture {
    /// LLaMA and what is built like it.
    Decoder(BlockSpec),
    /// `GPTNeoForCausalLM`.
    GptNeo {
        /// Whether each layer sees only a window.
        local: Vec<bool>,
        /// The window, in tokens.
        window_size: usize,
        /// Added to the variance.
        layer_norm_epsilon: f32,
    },
}

/// The facts of a `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The architecture and what is special about it.
    pub architecture: Architecture,
    /// Entries of the embedding.
    pub vocab_size: usize,
    /// Channels of the residual stream.
    pub hidden_size: usize,
    /// Channels inside the MLP.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Channels a head.
    pub head_dim: usize,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Ids that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Things a user should know, such as a dropout that is not applied.
    pub notes: Vec<String>,
    /// The whole file, for writing a model out again.
    pub raw: Map<String, Value>,
}

impl ModelConfig {
    /// Parses the text of a `config.json`. `path` is for messages.
    pub fn parse(path: &Path, text: &str) -> Result<ModelConfig> {
        let wrong = |message: String| Error::File { path: path.to_owned(), message };
        let raw: Value = serde_json::from_str(text).map_err(|e| wrong(format!("not JSON: {e}")))?;
        let Value::Object(raw) = raw else { return Err(wrong("expected a JSON object".into())) };
        let keys = Keys::new(&raw);
        let name = architecture_name(&raw);
        let mut model_type = GPT_NEO[1];
        let config = match name.as_deref() {
            Some(name) if is_named(name, GPT_NEO[0], GPT_NEO[1]) => gpt_neo(&keys),
            Some(name) => match Family::named(name) {
                Some(family) => {
                    model_type = family.model_type;
                    family.config(&keys)
                }
                None => Err(format!("architecture {name} is not supported; supported are {}", SUPPORTED.join(", "))),
            },
            None => {
                Err(format!("names no architecture; expected `architectures` with one of {}", SUPPORTED.join(", ")))
            }
        };
        let mut config = config.map_err(wrong)?;
        check_quantization(&raw).map_err(wrong)?;
        config.notes.extend(known::check(&raw, model_type).map_err(wrong)?);
        let architecture = Family::named(model_type).map_or(GPT_NEO[0], |it| it.architecture);
        config.notes.extend(contradiction(&raw, architecture, model_type));
        config.raw = raw;
        config.check().map_err(wrong)?;
        Ok(config)
    }

    /// The architecture's name in [`SUPPORTED`](crate::SUPPORTED), however the file spells it.
    pub fn architecture_name(&self) -> &'static str {
        let name = architecture_name(&self.raw).unwrap_or_default();
        Family::named(&name).map_or(GPT_NEO[0], |it| it.architecture)
    }

    /// For every layer, how many keys a query sees; all where there is none.
    pub fn windows(&self) -> Vec<Option<usize>> {
        match &self.architecture {
            Architecture::Decoder(spec) => spec.windows(),
            Architecture::GptNeo { local, window_size, .. } => {
                local.iter().map(|it| it.then_some(*window_size)).collect()
            }
        }
    }

    /// Gives the output head a matrix of its own, whatever the file says.
    pub(crate) fn untie(&mut self) {
        self.tie_word_embeddings = false;
        self.raw.insert("tie_word_embeddings".into(), false.into());
    }

    fn check(&self) -> std::result::Result<(), String> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        if let Some((name, value)) = sizes.iter().find(|it| it.1 == 0 || it.1 > 1 << 24) {
            return Err(format!("{name} is {value}, which no model has"));
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(format!(
                "{} attention heads cannot share {} key and value heads",
                self.num_attention_heads, self.num_key_value_heads
            ));
        }
        Ok(())
    }
}

/// Checkpoints of bitsandbytes are read as they are; those of other quantisers are refused by name.
fn check_quantization(raw: &Map<String, Value>) -> Parsed<()> {
    let Some(settings) = raw.get("quantization_config").filter(|it| !it.is_null()) else { return Ok(()) };
    match settings.get("quant_method").and_then(Value::as_str) {
        Some("bitsandbytes") => Ok(()),
        // Files of the first versions name no method.
        None if settings.get("load_in_4bit").is_some() || settings.get("load_in_8bit").is_some() => Ok(()),
        other => Err(format!(
            "the checkpoint is quantised by {} (quantization_config); only bitsandbytes is read as it is: load the original weights and choose --quant",
            other.unwrap_or("a method that it does not name")
        )),
    }
}

/// `model_type` decides, as in transformers, where it is one that is known; else the first of `architectures`.
fn architecture_name(raw: &Map<String, Value>) -> Option<String> {
    let listed = raw.get("architectures").and_then(|it| it.get(0)).and_then(Value::as_str);
    let of_type = raw.get("model_type").and_then(Value::as_str);
    let is_known = |it: &str| is_named(it, GPT_NEO[0], GPT_NEO[1]) || Family::named(it).is_some();
    // A model with another head, such as one that classifies, is not one that continues texts.
    let decides = of_type.filter(|it| is_known(it) && listed.is_none_or(is_known));
    decides.or(listed).or(of_type).map(str::to_owned)
}

/// Says where the two names of a model contradict each other.
fn contradiction(raw: &Map<String, Value>, architecture: &str, model_type: &str) -> Option<String> {
    let listed = raw.get("architectures").and_then(|it| it.get(0)).and_then(Value::as_str)?;
    (!is_named(listed, architecture, model_type)).then(|| {
        format!("config.json: architectures says {listed}, but model_type {model_type} counts, as in transformers: it is read as {architecture}")
    })
}

fn gpt_neo(keys: &Keys<'_>) -> Parsed<ModelConfig> {
    keys.expect("activation_function", &["gelu_new"])?;
    let hidden = keys.size("hidden_size", Some(2048))?;
    // transformers knows these by the names that other models use, too, and then those count.
    let layers = keys.size("num_hidden_layers", Some(keys.size("num_layers", Some(24))?))?;
    let heads = keys.size("num_attention_heads", Some(keys.size("num_heads", Some(16))?))?;
    if heads == 0 || !hidden.is_multiple_of(heads) {
        return Err(format!("hidden_size {hidden} cannot be split into {heads} heads"));
    }
    Ok(ModelConfig {
        architecture: Architecture::GptNeo {
            local: attention_layers(keys.raw, layers)?,
            window_size: keys.size("window_size", Some(256))?,
            layer_norm_epsilon: keys.epsilon("layer_norm_epsilon", 1e-5)?,
        },
        vocab_size: keys.size("vocab_size", Some(50257))?,
        hidden_size: hidden,
        intermediate_size: keys.size("intermediate_size", Some(4 * hidden))?,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim: hidden / heads,
        max_position_embeddings: keys.size("max_position_embeddings", Some(2048))?,
        tie_word_embeddings: keys.flag("tie_word_embeddings", true)?,
        eos_token_ids: keys.eos(),
        notes: keys.dropout_notes(&["resid_dropout", "embed_dropout", "attention_dropout"]),
        raw: Map::new(),
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
