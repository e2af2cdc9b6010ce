//! The decoders that are built like LLaMA: each a row of a table.

use crate::{
    Architecture, Biases, BlockSpec, ModelConfig,
    config::{Keys, Parsed},
};
use serde_json::{Map, Value};

/// How a family differs from LLaMA: in what its `config.json` says, and in what transformers knows without being told.
pub(crate) struct Family {
    /// Its name in `architectures`.
    pub(crate) architecture: &'static str,
    /// Its name in `model_type`.
    pub(crate) model_type: &'static str,
    qkv_bias: Flag,
    o_bias: Flag,
    mlp_bias: Flag,
    /// Whether queries and keys are normalised, each head by itself, before they are rotated.
    qk_norm: bool,
    window: Window,
    /// Where the file does not say: key and value heads (else as many as query heads), channels of a head (else
    /// `hidden_size / num_attention_heads`), positions.
    kv_heads: Option<usize>,
    head_dim: Option<usize>,
    positions: usize,
}

enum Flag {
    Always,
    Never,
    /// As this key says; else not.
    Key(&'static str),
}

/// Which layers see only a window of the keys.
enum Window {
    None,
    /// All of them, unless `sliding_window` is null; 4096 where it is absent.
    Everywhere,
    /// With `use_sliding_window`: those that `layer_types` names, or those from `max_window_layers` on.
    SomeLayers,
}

const LLAMA: Family = Family {
    architecture: "LlamaForCausalLM",
    model_type: "llama",
    qkv_bias: Flag::Key("attention_bias"),
    o_bias: Flag::Key("attention_bias"),
    mlp_bias: Flag::Key("mlp_bias"),
    qk_norm: false,
    window: Window::None,
    kv_heads: None,
    head_dim: None,
    positions: 2048,
};
const MISTRAL: Family = Family {
    architecture: "MistralForCausalLM",
    model_type: "mistral",
    qkv_bias: Flag::Never,
    o_bias: Flag::Never,
    mlp_bias: Flag::Never,
    window: Window::Everywhere,
    kv_heads: Some(8),
    positions: 131_072,
    ..LLAMA
};
const QWEN2: Family = Family {
    architecture: "Qwen2ForCausalLM",
    model_type: "qwen2",
    qkv_bias: Flag::Always,
    o_bias: Flag::Never,
    mlp_bias: Flag::Never,
    window: Window::SomeLayers,
    kv_heads: Some(32),
    positions: 32_768,
    ..LLAMA
};
const QWEN3: Family = Family {
    architecture: "Qwen3ForCausalLM",
    model_type: "qwen3",
    mlp_bias: Flag::Never,
    qk_norm: true,
    window: Window::SomeLayers,
    kv_heads: Some(32),
    head_dim: Some(128),
    positions: 32_768,
    ..LLAMA
};

/// The table.
pub(crate) const FAMILIES: [&Family; 4] = [&LLAMA, &MISTRAL, &QWEN2, &QWEN3];

/// The window of a file that does not name one.
const DEFAULT_WINDOW: usize = 4096;
/// The first layer with a window, of a file that does not name one.
const DEFAULT_WINDOW_LAYERS: usize = 28;

impl Family {
    /// The row of an architecture, however it is capitalised, of the same without a head (`LlamaModel`), or of a model type.
    pub(crate) fn named(name: &str) -> Option<&'static Family> {
        FAMILIES.into_iter().find(|it| is_named(name, it.architecture, it.model_type))
    }

    /// Reads the family's configuration.
    pub(crate) fn config(&self, keys: &Keys<'_>) -> Parsed<ModelConfig> {
        keys.expect("hidden_act", &["silu", "swish"])?;
        let hidden = keys.size("hidden_size", None)?;
        let heads = keys.size("num_attention_heads", None)?;
        let layers = keys.size("num_hidden_layers", None)?;
        let head_dim = keys.size("head_dim", Some(self.head_dim.unwrap_or(hidden / heads.max(1))))?;
        let positions = keys.size("max_position_embeddings", Some(self.positions))?;
        let (rope, notes) = keys.rope(head_dim, positions)?;
        Ok(ModelConfig {
            architecture: Architecture::Decoder(BlockSpec {
                norm_eps: keys.epsilon("rms_norm_eps", 1e-6)?,
                biases: Biases { qkv: self.qkv_bias.of(keys)?, o: self.o_bias.of(keys)?, mlp: self.mlp_bias.of(keys)? },
                qk_norm: self.qk_norm,
                rope,
                windows: self.windows(keys, layers)?,
            }),
            vocab_size: keys.size("vocab_size", None)?,
            hidden_size: hidden,
            intermediate_size: keys.size("intermediate_size", None)?,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            // In all of them null stands for as many as there are query heads.
            num_key_value_heads: match self.kv_heads.filter(|_| !keys.has("num_key_value_heads")) {
                Some(default) => default,
                None => keys.size("num_key_value_heads", Some(heads))?,
            },
            head_dim,
            max_position_embeddings: positions,
            tie_word_embeddings: keys.flag("tie_word_embeddings", false)?,
            eos_token_ids: keys.eos(),
            notes: [notes, keys.dropout_notes(&["attention_dropout"])].concat(),
            raw: Map::new(),
        })
    }

    /// The window of every layer.
    fn windows(&self, keys: &Keys<'_>, layers: usize) -> Parsed<Vec<Option<usize>>> {
        let width = match self.window {
            Window::None => return Ok(vec![None; layers]),
            Window::SomeLayers if !keys.flag("use_sliding_window", false)? => None,
            _ if keys.has("sliding_window") && keys.given("sliding_window").is_none() => None,
            _ => Some(keys.size("sliding_window", Some(DEFAULT_WINDOW))?),
        };
        if width == Some(0) {
            return Err("sliding_window is 0, with which a token would not even see itself".into());
        }
        let first = match self.window {
            Window::SomeLayers => keys.size("max_window_layers", Some(DEFAULT_WINDOW_LAYERS))?,
            _ => 0,
        };
        let by_rule: Vec<Option<usize>> = (0..layers).map(|it| width.filter(|_| it >= first)).collect();
        let Some(kinds) = keys.given("layer_types") else { return Ok(by_rule) };
        let listed = listed_windows(kinds, layers, width)?;
        if matches!(self.window, Window::Everywhere) && listed != by_rule {
            // transformers ignores the list here, so that the two readings differ.
            return Err(format!(
                "layer_types and sliding_window contradict each other; in a {} every layer has the window, or none",
                self.architecture
            ));
        }
        Ok(listed)
    }
}

/// Whether `name` means the architecture that is called `architecture`, such as `LlamaForCausalLM`.
pub(crate) fn is_named(name: &str, architecture: &str, model_type: &str) -> bool {
    let headless = architecture.strip_suffix("ForCausalLM").map(|it| format!("{it}Model"));
    name.eq_ignore_ascii_case(architecture)
        || headless.is_some_and(|it| it.eq_ignore_ascii_case(name))
        || name == model_type
}

/// The windows that `layer_types` describes.
fn listed_windows(kinds: &Value, layers: usize, width: Option<usize>) -> Parsed<Vec<Option<usize>>> {
    let kinds = kinds.as_array().ok_or("layer_types is not a list")?;
    if kinds.len() != layers {
        return Err(format!("layer_types describes {} layers, num_hidden_layers is {layers}", kinds.len()));
    }
    let of = |kind: &Value| match (kind.as_str(), width) {
        (Some("full_attention"), _) => Ok(None),
        (Some("sliding_attention"), Some(width)) => Ok(Some(width)),
        (Some("sliding_attention"), None) => {
            Err("layer_types asks for sliding_attention, but no sliding_window is in use".to_owned())
        }
        _ => Err(format!(
            "layer_types holds {kind}, which is not supported; supported are full_attention and sliding_attention"
        )),
    };
    kinds.iter().map(of).collect()
}

impl Flag {
    fn of(&self, keys: &Keys<'_>) -> Parsed<bool> {
        match self {
            Flag::Always => Ok(true),
            Flag::Never => Ok(false),
            Flag::Key(key) => keys.flag(key, false),
        }
    }
}
