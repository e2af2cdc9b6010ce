//! `config.json`, in the style of today and in that of older versions of transformers.

mod experts;
mod gpt;
mod keys;
mod known;
mod layers;
mod rope;

use crate::{
    BlockSpec, Error, GptSpec, Result,
    families::{Family, is_named},
    folder::MXFP4,
    registry::SUPPORTED,
};
pub(crate) use experts::Mixture;
pub(crate) use gpt::{GPTS, GptFamily};
use halfbyte_ops::rope::RopeSpec;
pub(crate) use keys::{Keys, Parsed};
pub use known::{CONFIG as CONFIG_KEYS, QUANTIZATION as QUANTIZATION_KEYS};
pub(crate) use layers::{DEFAULT_WINDOW, Rotated, Window};
use serde_json::{Map, Value};
use std::path::Path;

/// What a model's architecture needs beyond the sizes that all share.
#[derive(Clone, Debug, PartialEq)]
pub enum Architecture {
    /// LLaMA and what is built like it.
    Decoder(BlockSpec),
    /// GPT-2, GPT-J, GPT-Neo and GPT-NeoX.
    Gpt(GptSpec),
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
        let found = match name.as_deref().map(|it| (it, Known::named(it))) {
            Some((_, Some(found))) => Ok(found),
            Some((name, None)) => {
                Err(format!("architecture {name} is not supported; supported are {}", SUPPORTED.join(", ")))
            }
            None => {
                Err(format!("names no architecture; expected `architectures` with one of {}", SUPPORTED.join(", ")))
            }
        };
        let found = found.map_err(wrong)?;
        let (architecture, model_type) = found.names();
        let mut config = found.config(&keys).map_err(wrong)?;
        check_quantization(&raw, model_type).map_err(wrong)?;
        config.notes.extend(known::check(&raw, model_type).map_err(wrong)?);
        config.notes.extend(contradiction(&raw, architecture, model_type));
        config.raw = raw;
        config.check().map_err(wrong)?;
        Ok(config)
    }

    /// The architecture's name in [`SUPPORTED`](crate::SUPPORTED), however the file spells it.
    pub fn architecture_name(&self) -> &'static str {
        let name = architecture_name(&self.raw).unwrap_or_default();
        Known::named(&name).map_or(SUPPORTED[0], |it| it.names().0)
    }

    /// For every layer, how many keys a query sees; all where there is none.
    pub fn windows(&self) -> Vec<Option<usize>> {
        match &self.architecture {
            Architecture::Decoder(spec) => spec.windows(),
            Architecture::Gpt(spec) => spec.windows.clone(),
        }
    }

    /// The experts of a block, and the factor on the loss that keeps them equally busy, where the model is trained by it.
    pub fn balance(&self) -> Option<(usize, f32)> {
        match &self.architecture {
            Architecture::Decoder(spec) => spec.experts.as_ref().and_then(|it| Some((it.count, it.balance?))),
            Architecture::Gpt(_) => None,
        }
    }

    /// The length beyond which all positions of a text are rotated in another way, if there is one.
    pub fn rope_switch(&self) -> Option<usize> {
        match &self.architecture {
            Architecture::Decoder(spec) => spec.ropes.iter().find_map(RopeSpec::switch),
            Architecture::Gpt(spec) => spec.rope.as_ref().and_then(RopeSpec::switch),
        }
    }

    /// Gives the output head a matrix of its own, whatever the file says.
    pub(crate) fn untie(&mut self) {
        self.tie_word_embeddings = false;
        self.raw.insert("tie_word_embeddings".into(), false.into());
    }

    /// Another number of tokens, whatever the file says.
    pub(crate) fn resize_vocabulary(&mut self, rows: usize) {
        self.vocab_size = rows;
        self.raw.insert("vocab_size".into(), rows.into());
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

/// A kind of model that can be read.
enum Known {
    Family(&'static Family),
    Gpt(&'static GptFamily),
}

impl Known {
    /// By its architecture, that of the model without a head, or its model type.
    fn named(name: &str) -> Option<Known> {
        let gpt = || GPTS.iter().find(|it| is_named(name, it.architecture, it.model_type)).map(Known::Gpt);
        Family::named(name).map(Known::Family).or_else(gpt)
    }

    /// Its architecture and its model type.
    fn names(&self) -> (&'static str, &'static str) {
        match self {
            Known::Family(it) => (it.architecture, it.model_type),
            Known::Gpt(it) => (it.architecture, it.model_type),
        }
    }

    fn config(&self, keys: &Keys<'_>) -> Parsed<ModelConfig> {
        match self {
            Known::Family(it) => it.config(keys),
            Known::Gpt(it) => it.config(keys),
        }
    }
}

/// Checkpoints of bitsandbytes are read as they are; those of other quantisers are refused by name.
fn check_quantization(raw: &Map<String, Value>, model_type: &str) -> Parsed<()> {
    let Some(settings) = raw.get("quantization_config").filter(|it| !it.is_null()) else { return Ok(()) };
    match settings.get("quant_method").and_then(Value::as_str) {
        Some("bitsandbytes") => Ok(()),
        Some(MXFP4) if model_type == "gpt_oss" => Ok(()),
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
    let is_known = |it: &str| Known::named(it).is_some();
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
