//! Model folders in Hugging Face's layout with seeded random weights, small enough to train in a moment.

use crate::tokenizer::{EOS, VOCAB, tokenizer_json};
use halfbyte_lora::Role;
use halfbyte_models::{ModelConfig, WeightSpec, spec};
use serde_json::{Map, Value, json};
use std::{fs, path::Path};

/// Channels of the residual stream.
const HIDDEN: usize = 32;
/// Channels inside the MLP.
const INNER: usize = 64;
/// Blocks.
const LAYERS: usize = 2;
/// Query heads; LLaMA has half as many for keys and values.
const HEADS: usize = 4;
/// Positions of the model.
const POSITIONS: usize = 64;
/// Experts of a block that has them.
const EXPERTS: usize = 6;
/// Keys that a query sees where it does not see all.
const WINDOW: usize = 4;

/// The architecture of a tiny model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Rotary positions, RMS norms, four query heads on two key and value heads.
    Llama,
    /// LLaMA with a window on every layer, and heads that are wider than hidden / heads.
    Mistral,
    /// LLaMA with biases on queries, keys and values, and a window on the second layer.
    Qwen2,
    /// LLaMA with norms on queries and keys.
    Qwen3,
    /// LLaMA with a layer that is not rotated, and has a window.
    SmolLm3,
    /// LLaMA with multipliers on embeddings, scores, residuals and logits.
    Granite,
    /// LLaMA with norms behind attention and MLP, and on queries and keys as a whole.
    Olmo2,
    /// Norms of 1 + w around both halves of a block, caps on scores and logits, a window on the first layer.
    Gemma2,
    /// Gemma 2 with norms on queries and keys and two bases of rotation, and without caps.
    Gemma3,
    /// LLaMA with fused projections, and a part of every head rotated.
    Phi3,
    /// LLaMA with experts in every block, and a window on every layer.
    Mixtral,
    /// Qwen3 with experts in the first block.
    Qwen3Moe,
    /// LLaMA with sinks, limits in the gate, experts in one parameter, biases, and a window on every other layer.
    GptOss,
    /// Layer norms, a part of every head rotated, fused queries, keys and values, attention beside the MLP.
    GptNeoX,
    /// Layer norms, a part of every head rotated, neighbour by neighbour, attention beside the MLP, a bias on the output head.
    GptJ,
    /// Learned positions, layer norms, fused queries, keys and values, matrices stored the other way round.
    Gpt2,
    /// Learned positions, layer norms, one global and one local layer.
    GptNeo,
}

impl Family {
    /// All of them.
    pub const ALL: [Family; 17] = [
        Family::Llama,
        Family::Mistral,
        Family::Qwen2,
        Family::Qwen3,
        Family::SmolLm3,
        Family::Granite,
        Family::Olmo2,
        Family::Gemma2,
        Family::Gemma3,
        Family::Phi3,
        Family::Mixtral,
        Family::Qwen3Moe,
        Family::GptOss,
        Family::GptNeoX,
        Family::Gpt2,
        Family::GptJ,
        Family::GptNeo,
    ];
}

/// A tensor of a folder to be written.
#[derive(Clone, Debug)]
pub struct NamedTensor {
    /// Its name in the file.
    pub name: String,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Row-major.
    pub values: Vec<f32>,
}

/// What a tiny model is like.
#[derive(Clone, Debug)]
pub struct TinyModel {
    /// Its architecture.
    pub family: Family,
    /// Whether the output head is the embedding.
    pub tied: bool,
    /// Whether q, k, v and o of LLaMA and Qwen3 have biases.
    pub attention_bias: bool,
    /// Files that the tensors are spread over; above 1 with an index.
    pub shards: usize,
    /// Whether weights are written as bf16 instead of f32.
    pub bf16: bool,
    /// Blocks.
    pub layers: usize,
    /// Seed of the weights.
    pub seed: u64,
}

impl TinyModel {
    /// A LLaMA with a tied head in one f32 file.
    pub fn llama() -> TinyModel {
        TinyModel {
            family: Family::Llama,
            tied: true,
            attention_bias: false,
            shards: 1,
            bf16: false,
            layers: LAYERS,
            seed: 1,
        }
    }

    /// A model of another family like LLaMA, with a head of its own.
    pub fn of(family: Family) -> TinyModel {
        TinyModel { family, tied: false, ..TinyModel::llama() }
    }

    /// A GPT-Neo with a tied head in one f32 file.
    pub fn gpt_neo() -> TinyModel {
        TinyModel { family: Family::GptNeo, ..TinyModel::llama() }
    }

    /// The paths of all linear layers with `(out, in)`, the output head apart.
    pub fn linears(&self) -> Vec<(String, [usize; 2])> {
        // Experts that are one parameter are no layers.
        let matrices = self.spec().into_iter().filter(|it| it.role == Role::Linear && it.shape.len() == 2);
        let path = |name: &str| name.strip_suffix(".weight").expect("a matrix is called weight").to_owned();
        matrices.map(|it| (path(&it.name), [it.shape[0], it.shape[1]])).collect()
    }

    /// Parameters of an adapter of this rank on all linear layers.
    pub fn adapter_parameters(&self, rank: usize) -> usize {
        let linears = self.linears();
        let has_experts = linears.iter().any(|it| it.0.contains(".experts."));
        // The gate and what is beside it are one matrix of twice the rank, and of blocks without experts PEFT takes attention alone.
        let of = |(path, [out, inner]): &(String, [usize; 2])| match path {
            it if it.ends_with(".up_proj") || it.ends_with(".w3") => usize::from(!has_experts) * rank * (out + inner),
            it if has_experts && it.contains(".mlp.") && !it.contains(".experts.") => 0,
            it if has_experts && (it.ends_with(".gate_proj") || it.ends_with(".w1")) => 2 * rank * (2 * out + inner),
            _ => rank * (out + inner),
        };
        let routers = self.spec().into_iter().filter(|it| has_experts && it.role == Role::Router);
        linears.iter().map(of).sum::<usize>() + routers.map(|it| rank * (it.shape[0] + it.shape[1])).sum::<usize>()
    }

    /// The `config.json`.
    pub fn config(&self) -> Value {
        let dtype = if self.bf16 { "bfloat16" } else { "float32" };
        let decoder = |architecture: &str, more: Value| {
            let mut config = json!({
                "architectures": [architecture], "hidden_act": "silu", "hidden_size": HIDDEN, "intermediate_size": INNER,
                "num_hidden_layers": self.layers, "num_attention_heads": HEADS, "num_key_value_heads": HEADS / 2,
                "vocab_size": VOCAB, "max_position_embeddings": POSITIONS, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
                "tie_word_embeddings": self.tied, "eos_token_id": EOS, "torch_dtype": dtype,
            });
            config.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
            config
        };
        match self.family {
            Family::Llama => decoder("LlamaForCausalLM", json!({ "attention_bias": self.attention_bias })),
            Family::Mistral => decoder("MistralForCausalLM", json!({ "sliding_window": WINDOW, "head_dim": 12 })),
            Family::Qwen2 => {
                let layers = json!({ "use_sliding_window": true, "sliding_window": WINDOW, "max_window_layers": 1 });
                decoder("Qwen2ForCausalLM", layers)
            }
            Family::Qwen3 => {
                decoder("Qwen3ForCausalLM", json!({ "head_dim": 16, "attention_bias": self.attention_bias }))
            }
            Family::SmolLm3 => {
                let layers =
                    json!({ "use_sliding_window": true, "sliding_window": WINDOW, "no_rope_layer_interval": 2 });
                decoder("SmolLM3ForCausalLM", layers)
            }
            Family::Granite => {
                let multipliers = json!({
                    "embedding_multiplier": 6.0, "residual_multiplier": 0.5, "attention_multiplier": 0.25,
                    "logits_scaling": 2.0,
                });
                decoder("GraniteForCausalLM", multipliers)
            }
            Family::Olmo2 => decoder("Olmo2ForCausalLM", json!({ "attention_bias": self.attention_bias })),
            Family::Gemma2 => {
                let more = json!({
                    "hidden_activation": "gelu_pytorch_tanh", "head_dim": 16, "query_pre_attn_scalar": 20,
                    "sliding_window": WINDOW, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 12.0,
                });
                without(decoder("Gemma2ForCausalLM", more), "hidden_act")
            }
            Family::Gemma3 => {
                let more = json!({
                    "hidden_activation": "gelu_pytorch_tanh", "head_dim": 16, "query_pre_attn_scalar": 20,
                    "sliding_window": WINDOW, "sliding_window_pattern": 2, "rope_local_base_freq": 100.0,
                });
                without(decoder("Gemma3ForCausalLM", more), "hidden_act")
            }
            Family::Phi3 => {
                let scaling = json!({ "type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0] });
                let more = json!({
                    "partial_rotary_factor": 0.5, "rope_scaling": scaling, "original_max_position_embeddings": 24,
                    "sliding_window": 2 * WINDOW,
                });
                decoder("Phi3ForCausalLM", more)
            }
            Family::Mixtral => {
                let experts =
                    json!({ "model_type": "mixtral", "num_local_experts": EXPERTS, "sliding_window": WINDOW });
                decoder("MixtralForCausalLM", experts)
            }
            Family::Qwen3Moe => {
                let experts = json!({
                    "model_type": "qwen3_moe", "num_experts": EXPERTS, "num_experts_per_tok": 2, "norm_topk_prob": true,
                    "moe_intermediate_size": INNER / 2, "mlp_only_layers": [1], "head_dim": 16,
                });
                decoder("Qwen3MoeForCausalLM", experts)
            }
            Family::GptOss => {
                let experts = json!({
                    "model_type": "gpt_oss", "num_local_experts": EXPERTS, "num_experts_per_tok": 2, "sliding_window": WINDOW,
                    "head_dim": 16, "swiglu_limit": 1.5, "rope_scaling": {
                        "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32, "truncate": false,
                    },
                });
                decoder("GptOssForCausalLM", experts)
            }
            Family::GptNeoX => json!({
                "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_act": "gelu",
                "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": self.layers, "num_attention_heads": HEADS,
                "rotary_pct": 0.5, "vocab_size": VOCAB, "max_position_embeddings": POSITIONS, "layer_norm_eps": 1e-5,
                "tie_word_embeddings": self.tied, "eos_token_id": EOS, "torch_dtype": dtype,
            }),
            Family::Gpt2 => json!({
                "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new", "n_embd": HIDDEN,
                "n_inner": INNER, "n_layer": self.layers, "n_head": HEADS, "vocab_size": VOCAB, "n_positions": POSITIONS,
                "layer_norm_epsilon": 1e-5, "tie_word_embeddings": self.tied, "eos_token_id": EOS, "torch_dtype": dtype,
            }),
            Family::GptJ => json!({
                "architectures": ["GPTJForCausalLM"], "model_type": "gptj", "activation_function": "gelu_new", "n_embd": HIDDEN,
                "n_inner": INNER, "n_layer": self.layers, "n_head": HEADS, "vocab_size": VOCAB, "n_positions": POSITIONS,
                "rotary_dim": HIDDEN / HEADS / 2, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": self.tied,
                "eos_token_id": EOS, "torch_dtype": dtype,
            }),
            Family::GptNeo => json!({
                "architectures": ["GPTNeoForCausalLM"], "model_type": "gpt_neo", "activation_function": "gelu_new",
                "hidden_size": HIDDEN, "intermediate_size": INNER, "num_layers": self.layers, "num_heads": HEADS,
                "attention_types": [[["global", "local"], 1]], "window_size": WINDOW, "vocab_size": VOCAB,
                "max_position_embeddings": POSITIONS, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": self.tied,
                "eos_token_id": EOS, "torch_dtype": dtype,
            }),
        }
    }

    /// The tensors, in the order of the names.
    pub fn tensors(&self) -> Vec<NamedTensor> {
        let mut noise = Noise(self.seed);
        let mut all: Vec<NamedTensor> = self.spec().into_iter().map(|it| noise.tensor(it)).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// What the model consists of, the linear layers first.
    fn spec(&self) -> Vec<WeightSpec> {
        let config =
            ModelConfig::parse(Path::new("config.json"), &self.config().to_string()).expect("a model of today");
        let (matrices, others): (Vec<_>, Vec<_>) =
            spec(&config).expect("a model of today").into_iter().partition(|it| it.role == Role::Linear);
        [matrices, others].concat()
    }

    /// Parameters in all.
    pub fn parameters(&self) -> usize {
        self.spec().iter().map(|it| it.shape.iter().product::<usize>()).sum()
    }

    /// Writes the folder.
    pub fn write(&self, dir: &Path) {
        self.write_with(dir, &self.tensors());
    }

    /// Writes the folder with other tensors than its own.
    pub fn write_with(&self, dir: &Path, tensors: &[NamedTensor]) {
        fs::create_dir_all(dir).expect("a new folder");
        fs::write(dir.join("config.json"), format!("{:#}\n", self.config())).expect("a new file");
        fs::write(dir.join("tokenizer.json"), tokenizer_json(0)).expect("a new file");
        let settings = json!({ "eos_token": "</s>", "unk_token": "?", "model_max_length": POSITIONS });
        fs::write(dir.join("tokenizer_config.json"), settings.to_string()).expect("a new file");
        if self.shards == 1 {
            fs::write(dir.join("model.safetensors"), self.safetensors(tensors)).expect("a new file");
            return;
        }
        let mut map = Map::new();
        for (at, part) in tensors.chunks(tensors.len().div_ceil(self.shards)).enumerate() {
            let file = format!("model-{:05}-of-{:05}.safetensors", at + 1, self.shards);
            fs::write(dir.join(&file), self.safetensors(part)).expect("a new file");
            map.extend(part.iter().map(|it| (it.name.clone(), json!(file))));
        }
        let index = json!({ "metadata": {}, "weight_map": map });
        fs::write(dir.join("model.safetensors.index.json"), index.to_string()).expect("a new file");
    }

    /// The bytes of a safetensors file.
    fn safetensors(&self, tensors: &[NamedTensor]) -> Vec<u8> {
        let (mut header, mut data) = (Map::new(), Vec::new());
        header.insert("__metadata__".into(), json!({ "format": "pt" }));
        for tensor in tensors {
            let begin = data.len();
            for value in &tensor.values {
                if self.bf16 { data.extend(bf16_bits(*value).to_le_bytes()) } else { data.extend(value.to_le_bytes()) }
            }
            let dtype = if self.bf16 { "BF16" } else { "F32" };
            let entry = json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": [begin, data.len()] });
            header.insert(tensor.name.clone(), entry);
        }
        let mut text = Value::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        [&(text.len() as u64).to_le_bytes()[..], &text, &data].concat()
    }
}

fn without(mut config: Value, key: &str) -> Value {
    config.as_object_mut().expect("an object").remove(key);
    config
}

/// The nearest bf16, ties to even.
fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// SplitMix64.
struct Noise(u64);

impl Noise {
    fn tensor(&mut self, WeightSpec { name, shape, role, .. }: WeightSpec) -> NamedTensor {
        // Matrices keep the size of their input, norms are near one, biases small.
        let (middle, spread) = match (role, &shape[..]) {
            (Role::Bias, _) => (0.0, 0.1),
            (Role::Sink, _) => (0.0, 1.0),
            (_, [_, inner] | [_, inner, _]) => (0.0, (3.0 / *inner as f32).sqrt()),
            (Role::Norm, _) => (1.0, 0.1),
            _ => (0.0, 0.1),
        };
        let values = (0..shape.iter().product::<usize>()).map(|_| middle + spread * self.uniform()).collect();
        NamedTensor { name, shape, values }
    }

    /// Between -1 and 1.
    fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}
