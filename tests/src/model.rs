//! Model folders in Hugging Face's layout with seeded random weights, small enough to train in a moment.

use crate::tokenizer::{EOS, VOCAB, tokenizer_json};
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

/// The architecture of a tiny model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Rotary positions, RMS norms, four query heads on two key and value heads.
    Llama,
    /// Learned positions, layer norms, one global and one local layer.
    GptNeo,
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
    /// Whether LLaMA's q, k, v and o have biases.
    pub attention_bias: bool,
    /// Files that the tensors are spread over; above 1 with an index.
    pub shards: usize,
    /// Whether weights are written as bf16 instead of f32.
    pub bf16: bool,
    /// Seed of the weights.
    pub seed: u64,
}

impl TinyModel {
    /// A LLaMA with a tied head in one f32 file.
    pub fn llama() -> TinyModel {
        TinyModel { family: Family::Llama, tied: true, attention_bias: false, shards: 1, bf16: false, seed: 1 }
    }

    /// A GPT-Neo with a tied head in one f32 file.
    pub fn gpt_neo() -> TinyModel {
        TinyModel { family: Family::GptNeo, ..TinyModel::llama() }
    }

    /// Inputs and outputs of the linear layers of a block, the output head apart, by name.
    pub fn block_linears(&self) -> Vec<(&'static str, [usize; 2])> {
        let kv = HIDDEN / 2;
        match self.family {
            Family::Llama => vec![
                ("self_attn.q_proj", [HIDDEN, HIDDEN]),
                ("self_attn.k_proj", [kv, HIDDEN]),
                ("self_attn.v_proj", [kv, HIDDEN]),
                ("self_attn.o_proj", [HIDDEN, HIDDEN]),
                ("mlp.gate_proj", [INNER, HIDDEN]),
                ("mlp.up_proj", [INNER, HIDDEN]),
                ("mlp.down_proj", [HIDDEN, INNER]),
            ],
            Family::GptNeo => vec![
                ("attn.attention.q_proj", [HIDDEN, HIDDEN]),
                ("attn.attention.k_proj", [HIDDEN, HIDDEN]),
                ("attn.attention.v_proj", [HIDDEN, HIDDEN]),
                ("attn.attention.out_proj", [HIDDEN, HIDDEN]),
                ("mlp.c_fc", [INNER, HIDDEN]),
                ("mlp.c_proj", [HIDDEN, INNER]),
            ],
        }
    }

    /// The paths of all linear layers with `(out, in)`, the output head apart.
    pub fn linears(&self) -> Vec<(String, [usize; 2])> {
        let block = match self.family {
            Family::Llama => "model.layers",
            Family::GptNeo => "transformer.h",
        };
        let in_layer = |layer: usize| {
            self.block_linears().into_iter().map(move |(name, dims)| (format!("{block}.{layer}.{name}"), dims))
        };
        (0..LAYERS).flat_map(in_layer).collect()
    }

    /// The `config.json`.
    pub fn config(&self) -> Value {
        let dtype = if self.bf16 { "bfloat16" } else { "float32" };
        match self.family {
            Family::Llama => json!({
                "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
                "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
                "num_attention_heads": HEADS, "num_key_value_heads": HEADS / 2, "vocab_size": VOCAB,
                "max_position_embeddings": POSITIONS, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
                "attention_bias": self.attention_bias, "tie_word_embeddings": self.tied, "eos_token_id": EOS,
                "torch_dtype": dtype,
            }),
            Family::GptNeo => json!({
                "architectures": ["GPTNeoForCausalLM"], "model_type": "gpt_neo", "activation_function": "gelu_new",
                "hidden_size": HIDDEN, "intermediate_size": INNER, "num_layers": LAYERS, "num_heads": HEADS,
                "attention_types": [[["global", "local"], 1]], "window_size": 4, "vocab_size": VOCAB,
                "max_position_embeddings": POSITIONS, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": self.tied,
                "eos_token_id": EOS, "torch_dtype": dtype,
            }),
        }
    }

    /// The tensors, in the order of the names.
    pub fn tensors(&self) -> Vec<NamedTensor> {
        let mut noise = Noise(self.seed);
        let mut all: Vec<NamedTensor> =
            self.shapes().into_iter().map(|(name, shape)| noise.tensor(name, shape)).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
        for (path, dims) in self.linears() {
            shapes.push((format!("{path}.weight"), dims.to_vec()));
            let biased = match self.family {
                Family::Llama => self.attention_bias && path.contains("self_attn"),
                Family::GptNeo => path.contains("mlp") || path.ends_with("out_proj"),
            };
            if biased {
                shapes.push((format!("{path}.bias"), vec![dims[0]]));
            }
        }
        let mut push = |name: String, shape: &[usize]| shapes.push((name, shape.to_vec()));
        match self.family {
            Family::Llama => {
                push("model.embed_tokens.weight".into(), &[VOCAB, HIDDEN]);
                push("model.norm.weight".into(), &[HIDDEN]);
                for layer in 0..LAYERS {
                    push(format!("model.layers.{layer}.input_layernorm.weight"), &[HIDDEN]);
                    push(format!("model.layers.{layer}.post_attention_layernorm.weight"), &[HIDDEN]);
                }
            }
            Family::GptNeo => {
                push("transformer.wte.weight".into(), &[VOCAB, HIDDEN]);
                push("transformer.wpe.weight".into(), &[POSITIONS, HIDDEN]);
                let norms = (0..LAYERS).flat_map(|it| [format!("h.{it}.ln_1"), format!("h.{it}.ln_2")]);
                for norm in norms.chain(["ln_f".to_owned()]) {
                    push(format!("transformer.{norm}.weight"), &[HIDDEN]);
                    push(format!("transformer.{norm}.bias"), &[HIDDEN]);
                }
            }
        }
        if !self.tied {
            push("lm_head.weight".into(), &[VOCAB, HIDDEN]);
        }
        shapes
    }

    /// Parameters in all.
    pub fn parameters(&self) -> usize {
        self.shapes().iter().map(|it| it.1.iter().product::<usize>()).sum()
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

/// The nearest bf16, ties to even.
fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// SplitMix64.
struct Noise(u64);

impl Noise {
    fn tensor(&mut self, name: String, shape: Vec<usize>) -> NamedTensor {
        // Matrices keep the size of their input, norms are near one, biases small.
        let (middle, spread) = match shape[..] {
            [_, inner] => (0.0, (3.0 / inner as f32).sqrt()),
            _ if name.ends_with("bias") => (0.0, 0.1),
            _ => (1.0, 0.1),
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
