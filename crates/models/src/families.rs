//! The decoders that are built like LLaMA: each a row of a table.

use crate::{
    Architecture, Biases, BlockSpec, EmbeddingScale, ModelConfig, Norms, QkNorm,
    config::{DEFAULT_WINDOW, Keys, Mixture, Parsed, Rotated, Window},
};
use halfbyte_ops::{Gate, RmsNorm, Shaping};
use serde_json::Map;

/// How a family differs from LLaMA: in what its `config.json` says, and in what transformers knows without being told.
pub(crate) struct Family {
    /// Its name in `architectures`.
    pub(crate) architecture: &'static str,
    /// Its name in `model_type`.
    pub(crate) model_type: &'static str,
    qkv_bias: Flag,
    o_bias: Flag,
    mlp_bias: Flag,
    /// The key that names the gate's function, and which it is.
    gate: (&'static str, Gate),
    /// What norms are like, with the epsilon of a file that does not name one.
    norm: RmsNorm,
    norms: Norms,
    qk_norm: QkNorm,
    window: Window,
    rotated: Rotated,
    /// What scores are multiplied with.
    scale: Scale,
    around: Around,
    /// Whether queries, keys and values are one layer, and gate and up another.
    fused: bool,
    /// Whether blocks have experts.
    mixture: Mixture,
    /// Keys of dropouts, which are not applied.
    dropouts: &'static [&'static str],
    /// Where the file does not say: key and value heads (else as many as query heads), channels of a head (else
    /// `hidden_size / num_attention_heads`), positions, the base of rotations, whether the head is the embedding.
    kv_heads: Option<usize>,
    head_dim: Option<usize>,
    positions: usize,
    theta: f64,
    tied: bool,
}

enum Flag {
    Always,
    Never,
    /// As this key says; else not.
    Key(&'static str),
    /// As this key says; else they have.
    Unless(&'static str),
}

/// What scores are multiplied with.
enum Scale {
    /// 1 over the root of the head's channels.
    HeadDim,
    /// This key; 1 where it is absent.
    Key(&'static str),
    /// 1 over the root of this key; of 256 where it is absent.
    RootOf(&'static str),
}

/// What is done to embeddings, to what joins the residual stream, to scores and to logits.
enum Around {
    Nothing,
    /// Granite's multipliers.
    Multipliers,
    /// Gemma's root of `hidden_size`, and soft-caps; those of files that do not say: on scores, none for a family that has none, and
    /// on logits.
    Caps(Option<f64>, Option<f64>),
    /// gpt-oss's sinks, and the limits of its gate.
    Sinks,
}

const LLAMA: Family = Family {
    architecture: "LlamaForCausalLM",
    model_type: "llama",
    qkv_bias: Flag::Key("attention_bias"),
    o_bias: Flag::Key("attention_bias"),
    mlp_bias: Flag::Key("mlp_bias"),
    gate: ("hidden_act", Gate::Silu),
    norm: RmsNorm { eps: 1e-6, offset: 0.0, rounds_last: false },
    norms: Norms::Before,
    qk_norm: QkNorm::None,
    window: Window::None,
    rotated: Rotated::All,
    scale: Scale::HeadDim,
    around: Around::Nothing,
    fused: false,
    mixture: Mixture::None,
    dropouts: &["attention_dropout"],
    kv_heads: None,
    head_dim: None,
    positions: 2048,
    theta: 10_000.0,
    tied: false,
};
const MISTRAL: Family = Family {
    architecture: "MistralForCausalLM",
    model_type: "mistral",
    qkv_bias: Flag::Never,
    o_bias: Flag::Never,
    mlp_bias: Flag::Never,
    window: Window::Everywhere(Some(DEFAULT_WINDOW)),
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
    qk_norm: QkNorm::Heads,
    window: Window::SomeLayers,
    kv_heads: Some(32),
    head_dim: Some(128),
    positions: 32_768,
    ..LLAMA
};
const SMOLLM3: Family = Family {
    architecture: "SmolLM3ForCausalLM",
    model_type: "smollm3",
    window: Window::NotRotated,
    rotated: Rotated::Some,
    kv_heads: Some(4),
    positions: 32_768,
    theta: 2_000_000.0,
    tied: true,
    ..LLAMA
};
const GRANITE: Family = Family {
    architecture: "GraniteForCausalLM",
    model_type: "granite",
    scale: Scale::Key("attention_multiplier"),
    around: Around::Multipliers,
    ..LLAMA
};
const OLMO2: Family = Family {
    architecture: "Olmo2ForCausalLM",
    model_type: "olmo2",
    mlp_bias: Flag::Never,
    norm: RmsNorm { eps: 1e-5, offset: 0.0, rounds_last: true },
    norms: Norms::After,
    qk_norm: QkNorm::Whole,
    ..LLAMA
};
const GEMMA2: Family = Family {
    architecture: "Gemma2ForCausalLM",
    model_type: "gemma2",
    mlp_bias: Flag::Never,
    gate: ("hidden_activation", Gate::GeluTanh),
    norm: RmsNorm { eps: 1e-6, offset: 1.0, rounds_last: true },
    norms: Norms::Around,
    window: Window::AllBut(2, DEFAULT_WINDOW),
    scale: Scale::RootOf("query_pre_attn_scalar"),
    around: Around::Caps(Some(50.0), Some(30.0)),
    kv_heads: Some(4),
    head_dim: Some(256),
    positions: 8192,
    tied: true,
    ..LLAMA
};
const GEMMA3: Family = Family {
    architecture: "Gemma3ForCausalLM",
    model_type: "gemma3_text",
    qk_norm: QkNorm::Heads,
    window: Window::AllBut(6, DEFAULT_WINDOW),
    rotated: Rotated::ByWindow,
    around: Around::Caps(None, None),
    positions: 131_072,
    ..GEMMA2
};

const PHI3: Family = Family {
    architecture: "Phi3ForCausalLM",
    model_type: "phi3",
    qkv_bias: Flag::Never,
    o_bias: Flag::Never,
    mlp_bias: Flag::Never,
    norm: RmsNorm { eps: 1e-5, offset: 0.0, rounds_last: false },
    window: Window::Everywhere(None),
    rotated: Rotated::Part(4096),
    fused: true,
    dropouts: &["attention_dropout", "resid_pdrop", "embd_pdrop"],
    positions: 4096,
    ..LLAMA
};

const MIXTRAL: Family = Family {
    architecture: "MixtralForCausalLM",
    model_type: "mixtral",
    norm: RmsNorm { eps: 1e-5, offset: 0.0, rounds_last: false },
    window: Window::Everywhere(None),
    mixture: Mixture::Mixtral,
    dropouts: &["attention_dropout", "router_jitter_noise"],
    theta: 1_000_000.0,
    ..MISTRAL
};
const QWEN3_MOE: Family = Family {
    architecture: "Qwen3MoeForCausalLM",
    model_type: "qwen3_moe",
    window: Window::IfUsed,
    mixture: Mixture::Qwen,
    kv_heads: Some(4),
    head_dim: None,
    ..QWEN3
};
const GPT_OSS: Family = Family {
    architecture: "GptOssForCausalLM",
    model_type: "gpt_oss",
    qkv_bias: Flag::Unless("attention_bias"),
    o_bias: Flag::Unless("attention_bias"),
    mlp_bias: Flag::Never,
    norm: RmsNorm { eps: 1e-5, offset: 0.0, rounds_last: true },
    window: Window::AllBut(2, 128),
    rotated: Rotated::Yarn,
    around: Around::Sinks,
    mixture: Mixture::Oss,
    kv_heads: Some(8),
    head_dim: Some(64),
    positions: 131_072,
    theta: 150_000.0,
    ..LLAMA
};

/// The table.
pub(crate) const FAMILIES: [&Family; 13] = [
    &LLAMA, &MISTRAL, &QWEN2, &QWEN3, &SMOLLM3, &GRANITE, &OLMO2, &GEMMA2, &GEMMA3, &PHI3, &MIXTRAL, &QWEN3_MOE,
    &GPT_OSS,
];

impl Family {
    /// The row of an architecture, however it is capitalised, of the same without a head (`LlamaModel`), or of a model type.
    pub(crate) fn named(name: &str) -> Option<&'static Family> {
        FAMILIES.into_iter().find(|it| is_named(name, it.architecture, it.model_type))
    }

    /// Reads the family's configuration.
    pub(crate) fn config(&self, keys: &Keys<'_>) -> Parsed<ModelConfig> {
        let (key, gate) = self.gate;
        keys.expect(key, if gate == Gate::Silu { &["silu", "swish"] } else { &["gelu_pytorch_tanh"] })?;
        let hidden = keys.size("hidden_size", None)?;
        let heads = keys.size("num_attention_heads", None)?;
        let layers = keys.size("num_hidden_layers", None)?;
        let head_dim = keys.size("head_dim", Some(self.head_dim.unwrap_or(hidden / heads.max(1))))?;
        let positions = keys.size("max_position_embeddings", Some(self.positions))?;
        let (ropes, layer_specs, notes) =
            keys.layers((self.window, self.rotated), layers, (head_dim, positions, self.theta))?;
        let (experts, layer_specs) = keys.experts(self.mixture, layer_specs)?;
        let plain = BlockSpec {
            norm: RmsNorm { eps: keys.epsilon("rms_norm_eps", f64::from(self.norm.eps))?, ..self.norm },
            norms: self.norms,
            biases: Biases { qkv: self.qkv_bias.of(keys)?, o: self.o_bias.of(keys)?, mlp: self.mlp_bias.of(keys)? },
            qk_norm: self.qk_norm,
            gate,
            scale: self.scale.of(keys, head_dim)?,
            cap: None,
            sinks: false,
            ropes,
            layers: layer_specs,
            embedding: EmbeddingScale::Exact(1.0),
            residual: 1.0,
            logits: Shaping::default(),
            fused: self.fused,
            experts,
        };
        Ok(ModelConfig {
            architecture: Architecture::Decoder(self.around.of(keys, plain, hidden)?),
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
            tie_word_embeddings: keys.flag("tie_word_embeddings", self.tied)?,
            eos_token_ids: keys.eos(),
            notes: [notes, keys.dropout_notes(self.dropouts)].concat(),
            raw: Map::new(),
        })
    }
}

/// Whether `name` means the architecture that is called `architecture`, such as `LlamaForCausalLM`.
pub(crate) fn is_named(name: &str, architecture: &str, model_type: &str) -> bool {
    let bare = architecture.strip_suffix("ForCausalLM").or(architecture.strip_suffix("LMHeadModel"));
    let headless = bare.map(|it| format!("{it}Model"));
    name.eq_ignore_ascii_case(architecture)
        || headless.is_some_and(|it| it.eq_ignore_ascii_case(name))
        || name == model_type
}

impl Flag {
    fn of(&self, keys: &Keys<'_>) -> Parsed<bool> {
        match self {
            Flag::Always => Ok(true),
            Flag::Never => Ok(false),
            Flag::Key(key) => keys.flag(key, false),
            Flag::Unless(key) => keys.flag(key, true),
        }
    }
}

impl Scale {
    fn of(&self, keys: &Keys<'_>, head_dim: usize) -> Parsed<f32> {
        Ok(match self {
            Scale::HeadDim => 1.0 / (head_dim as f32).sqrt(),
            Scale::Key(key) => keys.positive(key, Some(1.0))?.unwrap_or(1.0) as f32,
            Scale::RootOf(key) => (1.0 / keys.positive(key, Some(256.0))?.unwrap_or(256.0).sqrt()) as f32,
        })
    }
}

impl Around {
    fn of(&self, keys: &Keys<'_>, plain: BlockSpec, hidden: usize) -> Parsed<BlockSpec> {
        let multiplier = |key: &str| Ok::<f64, String>(keys.positive(key, Some(1.0))?.unwrap_or(1.0));
        Ok(match *self {
            Around::Nothing => plain,
            Around::Multipliers => BlockSpec {
                embedding: EmbeddingScale::Exact(multiplier("embedding_multiplier")? as f32),
                residual: multiplier("residual_multiplier")? as f32,
                logits: Shaping { factor: (1.0 / multiplier("logits_scaling")?) as f32, cap: None },
                ..plain
            },
            Around::Sinks => {
                let of =
                    |key: &str, default| Ok::<_, String>(keys.positive(key, Some(default))?.unwrap_or(default) as f32);
                let gate = Gate::Clamped { alpha: of("swiglu_alpha", 1.702)?, limit: of("swiglu_limit", 7.0)? };
                BlockSpec { sinks: true, gate, ..plain }
            }
            Around::Caps(on_scores, on_logits) => BlockSpec {
                embedding: EmbeddingScale::Rounded((hidden as f64).sqrt() as f32),
                cap: match on_scores {
                    Some(_) => keys.positive("attn_logit_softcapping", on_scores)?.map(|it| it as f32),
                    None => None,
                },
                logits: Shaping {
                    factor: 1.0,
                    cap: keys.positive("final_logit_softcapping", on_logits)?.map(|it| it as f32),
                },
                ..plain
            },
        })
    }
}
