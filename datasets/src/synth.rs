//! A model folder of a real model's shape with random weights, to measure load and training at
//! sizes whose weights nobody wants to download.

use std::borrow::Cow;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use anyhow::{Context, Result, bail};
use halfbyte_files::{Dtype, ShardedWriter, TensorSpec};
use halfbyte_frozen::{Format, bitsandbytes};
use halfbyte_lora::Role;
use halfbyte_models::{ModelConfig, WeightSpec, spec};
use serde_json::{Value, json};

mod headers;
mod quantized;

/// The most that one safetensors file holds: the size at which Hugging Face folders are cut by default.
const SHARD_BYTES: u64 = 5_000_000_000;
/// A tokenizer whose ids are valid in every model with a vocabulary no smaller. In the program, so that it runs where the
/// project's folder is not.
const TOKENIZER: [(&str, &[u8]); 2] = [
    ("tokenizer.json", include_bytes!("../models/tiny-llama/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../models/tiny-llama/tokenizer_config.json")),
];

/// The shapes on offer.
const LIKE: &[(&str, Shape)] = &[
    ("llama-8b", Shape { positions: 131_072, ..Shape::llama([4096, 14_336, 32, 32, 8, 128_256]) }),
    ("llama-65b", Shape::llama([8192, 22_016, 80, 64, 64, 32_000])),
    ("llama-7b", Shape::llama([4096, 11_008, 32, 32, 32, 32_000])),
    ("llama-13b", Shape::llama([5120, 13_824, 40, 40, 40, 32_000])),
    ("mistral-7b", Shape { kind: Kind::Mistral, positions: 32_768, ..Shape::llama([4096, 14_336, 32, 32, 8, 32_000]) }),
    ("qwen2.5-7b", Shape { kind: Kind::Qwen2, positions: 131_072, ..Shape::llama([3584, 18_944, 28, 28, 4, 152_064]) }),
    ("qwen3-8b", Shape { kind: Kind::Qwen3, positions: 40_960, ..Shape::llama([4096, 12_288, 36, 32, 8, 151_936]) }),
    (
        "smollm3-3b",
        Shape {
            kind: Kind::SmolLm3,
            tied: true,
            positions: 65_536,
            ..Shape::llama([2048, 11_008, 36, 16, 4, 128_256])
        },
    ),
    (
        "granite-3.3-8b",
        Shape {
            kind: Kind::Granite,
            tied: true,
            positions: 131_072,
            ..Shape::llama([4096, 12_800, 40, 32, 8, 49_159])
        },
    ),
    ("olmo2-7b", Shape { kind: Kind::Olmo2, positions: 4096, ..Shape::llama([4096, 11_008, 32, 32, 32, 100_352]) }),
    (
        "gemma2-2b",
        Shape { kind: Kind::Gemma2, tied: true, positions: 8192, ..Shape::llama([2304, 9216, 26, 8, 4, 256_000]) },
    ),
    (
        "gemma2-9b",
        Shape { kind: Kind::Gemma2, tied: true, positions: 8192, ..Shape::llama([3584, 14_336, 42, 16, 8, 256_000]) },
    ),
    (
        "gemma3-1b",
        Shape { kind: Kind::Gemma3, tied: true, positions: 32_768, ..Shape::llama([1152, 6912, 26, 4, 1, 262_144]) },
    ),
    ("phi3-mini", Shape { kind: Kind::Phi3, positions: 4096, ..Shape::llama([3072, 8192, 32, 32, 32, 32_064]) }),
    ("phi4", Shape { kind: Kind::Phi3, positions: 16_384, ..Shape::llama([5120, 17_920, 40, 40, 10, 100_352]) }),
    (
        "mixtral-8x7b",
        Shape { kind: Kind::Mixtral, positions: 32_768, ..Shape::llama([4096, 14_336, 32, 32, 8, 32_000]) },
    ),
    (
        "mixtral-8x22b",
        Shape { kind: Kind::Mixtral, positions: 65_536, ..Shape::llama([6144, 16_384, 56, 48, 8, 32_000]) },
    ),
    (
        "qwen3-30b-a3b",
        Shape { kind: Kind::Qwen3Moe, positions: 40_960, ..Shape::llama([2048, 6144, 48, 32, 4, 151_936]) },
    ),
    ("gpt-oss-20b", Shape { kind: Kind::GptOss, positions: 131_072, ..Shape::llama([2880, 2880, 24, 64, 8, 201_088]) }),
    ("smollm2-135m", Shape { tied: true, ..Shape::llama([576, 1536, 30, 9, 3, 49_152]) }),
    ("pythia-1.4b", Shape { kind: Kind::GptNeoX, ..Shape::llama([2048, 8192, 24, 16, 16, 50_304]) }),
    ("gpt2", Shape { kind: Kind::Gpt2, tied: true, positions: 1024, ..Shape::llama([768, 3072, 12, 12, 12, 50_257]) }),
    ("gpt-j-6b", Shape { kind: Kind::GptJ, ..Shape::llama([4096, 16_384, 28, 16, 16, 50_400]) }),
    ("gpt-neo-1.3b", Shape { kind: Kind::GptNeo, tied: true, ..Shape::llama([2048, 8192, 24, 16, 16, 50_257]) }),
];

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    SmolLm3,
    Granite,
    Olmo2,
    Gemma2,
    Gemma3,
    Phi3,
    Mixtral,
    Qwen3Moe,
    GptOss,
    GptNeoX,
    Gpt2,
    GptJ,
    GptNeo,
}

#[derive(Clone, Copy)]
struct Shape {
    kind: Kind,
    hidden: usize,
    inner: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocab: usize,
    tied: bool,
    positions: usize,
}

impl Shape {
    const fn llama([hidden, inner, layers, heads, kv_heads, vocab]: [usize; 6]) -> Shape {
        Shape { kind: Kind::Llama, hidden, inner, layers, heads, kv_heads, vocab, tied: false, positions: 2048 }
    }

    fn config(&self) -> Value {
        let Shape { hidden, inner, layers, heads, kv_heads, vocab, tied, positions, .. } = self;
        let decoder = |architecture: &str, model_type: &str, more: Value| {
            let mut config = json!({
                "architectures": [architecture], "model_type": model_type, "vocab_size": vocab,
                "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
                "num_attention_heads": heads, "num_key_value_heads": kv_heads, "hidden_act": "silu",
                "max_position_embeddings": positions, "rms_norm_eps": 1e-6, "tie_word_embeddings": tied,
                "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1, "torch_dtype": "bfloat16",
            });
            config.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
            config
        };
        let no_window = json!({
            "rope_theta": 1e6, "sliding_window": positions, "use_sliding_window": false, "max_window_layers": layers,
        });
        match self.kind {
            Kind::Llama => {
                let more = json!({ "rope_theta": 10000.0, "attention_bias": false, "mlp_bias": false });
                decoder("LlamaForCausalLM", "llama", more)
            }
            Kind::Mistral => {
                decoder("MistralForCausalLM", "mistral", json!({ "rope_theta": 10000.0, "sliding_window": 4096 }))
            }
            Kind::Qwen2 => decoder("Qwen2ForCausalLM", "qwen2", no_window),
            Kind::Qwen3 => {
                let mut config = decoder("Qwen3ForCausalLM", "qwen3", no_window);
                config["head_dim"] = json!(128);
                config["attention_bias"] = json!(false);
                config
            }
            Kind::SmolLm3 => decoder("SmolLM3ForCausalLM", "smollm3", json!({ "rope_theta": 5e6 })),
            Kind::Granite => decoder(
                "GraniteForCausalLM",
                "granite",
                json!({
                    "rope_theta": 1e7, "embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 16.0,
                    "attention_multiplier": 0.007_812_5,
                }),
            ),
            Kind::Olmo2 => decoder("Olmo2ForCausalLM", "olmo2", json!({ "rope_theta": 5e5 })),
            Kind::Gemma2 => gemma(decoder("Gemma2ForCausalLM", "gemma2", json!({ "sliding_window": 4096 }))),
            Kind::Gemma3 => gemma(decoder("Gemma3ForCausalLM", "gemma3_text", json!({ "sliding_window": 512 }))),
            Kind::Phi3 => decoder("Phi3ForCausalLM", "phi3", json!({ "rope_theta": 10000.0 })),
            Kind::Mixtral => {
                let experts = json!({ "num_local_experts": 8, "num_experts_per_tok": 2, "rope_theta": 1e6 });
                decoder("MixtralForCausalLM", "mixtral", experts)
            }
            Kind::Qwen3Moe => {
                let experts = json!({
                    "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": true,
                    "decoder_sparse_step": 1, "mlp_only_layers": [], "head_dim": 128, "rope_theta": 1e6,
                });
                decoder("Qwen3MoeForCausalLM", "qwen3_moe", experts)
            }
            Kind::GptOss => {
                let experts = json!({
                    "num_local_experts": 32, "num_experts_per_tok": 4, "head_dim": 64, "sliding_window": 128,
                    "attention_bias": true, "swiglu_limit": 7.0, "rope_theta": 150_000, "rms_norm_eps": 1e-5,
                    "rope_scaling": {
                        "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
                        "original_max_position_embeddings": 4096,
                    },
                });
                decoder("GptOssForCausalLM", "gpt_oss", experts)
            }
            Kind::GptNeoX => json!({
                "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "vocab_size": vocab, "hidden_size": hidden,
                "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads, "hidden_act": "gelu",
                "rotary_pct": 0.25, "rotary_emb_base": 10000, "use_parallel_residual": true, "layer_norm_eps": 1e-5,
                "max_position_embeddings": positions, "tie_word_embeddings": tied, "bos_token_id": 0, "eos_token_id": 0,
                "torch_dtype": "bfloat16",
            }),
            Kind::Gpt2 => json!({
                "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": vocab, "n_embd": hidden,
                "n_inner": inner, "n_layer": layers, "n_head": heads, "n_positions": positions,
                "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": tied,
                "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": "bfloat16",
            }),
            Kind::GptJ => json!({
                "architectures": ["GPTJForCausalLM"], "model_type": "gptj", "vocab_size": vocab, "n_embd": hidden,
                "n_inner": inner, "n_layer": layers, "n_head": heads, "n_positions": positions, "rotary": true, "rotary_dim": 64,
                "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": tied,
                "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": "bfloat16",
            }),
            Kind::GptNeo => json!({
                "architectures": ["GPTNeoForCausalLM"], "model_type": "gpt_neo", "vocab_size": vocab,
                "hidden_size": hidden, "intermediate_size": inner, "num_layers": layers, "num_heads": heads,
                "attention_types": [[["global", "local"], layers / 2]], "window_size": 256,
                "activation_function": "gelu_new", "max_position_embeddings": positions, "layer_norm_epsilon": 1e-5,
                "tie_word_embeddings": tied, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1,
                "torch_dtype": "bfloat16",
            }),
        }
    }

    /// Every tensor, in the order of a forward pass.
    fn tensors(&self, quantized: bool) -> Result<Vec<Random>> {
        let all = self.spec()?.into_iter();
        if quantized && self.kind == Kind::GptOss {
            return Ok(all.flat_map(quantized::in_mxfp4).collect());
        }
        if !quantized {
            return Ok(all.map(Random::dense).collect());
        }
        Ok(all.map(quantized::tensors).collect::<Result<Vec<_>>>()?.concat())
    }

    /// Their names and shapes as long as they are dense.
    fn spec(&self) -> Result<Vec<WeightSpec>> {
        Ok(spec(&ModelConfig::parse(Path::new("config.json"), &self.config().to_string())?)?)
    }
}

/// Heads of 256 channels, and another activation.
fn gemma(mut config: Value) -> Value {
    config.as_object_mut().expect("an object").remove("hidden_act");
    config["hidden_activation"] = json!("gelu_pytorch_tanh");
    config["head_dim"] = json!(256);
    config["query_pre_attn_scalar"] = json!(256);
    config
}

/// A tensor whose values are made when they are written.
#[derive(Clone)]
struct Random {
    spec: TensorSpec,
    fill: Fill,
}

#[derive(Clone)]
enum Fill {
    /// bf16 numbers from a normal distribution.
    Normal,
    /// One element all over.
    Constant(Vec<u8>),
    /// Bytes, each as likely as any other.
    Uniform,
    /// Just this.
    Bytes(Vec<u8>),
}

impl Random {
    /// Weights of norms are 1, biases 0, as in a model that was just made.
    fn dense(WeightSpec { name, shape, role, .. }: WeightSpec) -> Random {
        let fill = match role {
            Role::Bias | Role::Sink => Fill::Constant(vec![0, 0]),
            Role::Norm => Fill::Constant(vec![0x80, 0x3f]),
            _ => Fill::Normal,
        };
        Random { spec: TensorSpec::new(name, Dtype::Bf16, &shape), fill }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        static NORMAL: LazyLock<Vec<u16>> = LazyLock::new(|| normal_bf16(0.02));
        let hash = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(1_099_511_628_211);
        let mut state = self.spec.name.bytes().fold(14_695_981_039_346_656_037, hash);
        let len = self.spec.bytes();
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            match &self.fill {
                Fill::Bytes(all) => return Cow::Borrowed(all),
                Fill::Constant(element) => bytes.extend(element),
                Fill::Uniform => bytes.extend(split_mix(&mut state).to_le_bytes()),
                Fill::Normal => {
                    let random = split_mix(&mut state);
                    for shift in [0, 16, 32, 48] {
                        bytes.extend(NORMAL[usize::from((random >> shift) as u16)].to_le_bytes());
                    }
                }
            }
        }
        bytes.truncate(len);
        Cow::Owned(bytes)
    }
}

/// What a folder holds of its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// bf16 numbers.
    Dense,
    /// NF4, as bitsandbytes saves it.
    Quantized,
    /// Where they would be: for plans, which read no more.
    Headers,
}

/// Writes the folder `out`, which must be new or empty, in the shape of the model `like`. Gives the number of parameters.
///
/// # Errors
/// If no shape is called so, or a file cannot be written.
pub fn write_like(like: &str, stored: Stored, out: &Path) -> Result<usize> {
    let Some((_, shape)) = LIKE.iter().find(|it| it.0 == like) else {
        let names: Vec<_> = LIKE.iter().map(|it| it.0).collect();
        bail!("no shape is called `{like}`; choose one of {}", names.join(", "));
    };
    write(shape, stored, out, SHARD_BYTES)
}

fn write(shape: &Shape, stored: Stored, out: &Path, shard_bytes: u64) -> Result<usize> {
    if fs::read_dir(out).is_ok_and(|mut it| it.next().is_some()) {
        bail!("{} is not empty; choose another folder, or remove it", out.display());
    }
    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    for (name, bytes) in TOKENIZER {
        fs::write(out.join(name), bytes).with_context(|| name.to_owned())?;
    }
    if stored != Stored::Headers {
        fs::write(out.join("rows.jsonl"), rows(shape.positions)).context("rows.jsonl")?;
    }
    let quantized = stored == Stored::Quantized;
    let tensors = shape.tensors(quantized)?;
    if stored == Stored::Headers {
        headers::write(out, &tensors)?;
    } else {
        let mut writer = ShardedWriter::create(out, tensors.iter().map(|it| it.spec.clone()).collect(), shard_bytes);
        for it in &tensors {
            writer.write(&it.spec.name, &it.data())?;
        }
        writer.finish()?;
    }
    // Last, so that a folder whose writing was cut off is not mistaken for a model.
    let mut config = shape.config();
    if quantized {
        config["quantization_config"] = match shape.kind {
            Kind::GptOss => json!({ "quant_method": "mxfp4" }),
            _ => bitsandbytes::quantization_config(Format::QLORA),
        };
    }
    fs::write(out.join("config.json"), serde_json::to_string_pretty(&config)?)?;
    Ok(shape.spec()?.iter().map(|it| it.shape.iter().product::<usize>()).sum())
}

/// Rows of text that all are longer than the model's context, so that a batch is full to its last token.
fn rows(positions: usize) -> String {
    const WORDS: [&str; 8] = ["good", "the", "film", "was", "a", "story", "and", "not"];
    let mut state = 7;
    let mut row = || {
        let words = (0..positions + positions / 8).map(|_| WORDS[split_mix(&mut state) as usize % WORDS.len()]);
        json!({ "text": words.collect::<Vec<_>>().join(" ") }).to_string() + "\n"
    };
    (0..(64 * 2048 / positions).max(2)).map(|_| row()).collect()
}

/// 65,536 draws from a normal distribution of this standard deviation (sums of twelve uniform ones), as bf16.
fn normal_bf16(deviation: f32) -> Vec<u16> {
    let mut state = 42;
    let mut uniform = || (split_mix(&mut state) >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
    let mut draw = || deviation * (0..12).map(|_| uniform()).sum::<f32>();
    (0..1 << 16).map(|_| (draw().to_bits() >> 16) as u16).collect()
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shapes_have_the_sizes_of_their_models() {
        let billions = |like: &str| {
            let shape = LIKE.iter().find(|it| it.0 == like).unwrap().1;
            shape.tensors(false).unwrap().iter().map(|it| it.spec.bytes()).sum::<usize>() as f64 / 2e9
        };
        let rounded = |like: &str| (billions(like) * 1000.0).round();
        assert_eq!(
            ["llama-7b", "llama-8b", "llama-13b", "llama-65b", "smollm2-135m", "gpt-neo-1.3b"].map(rounded),
            [6738.0, 8030.0, 13_016.0, 65_286.0, 135.0, 1316.0]
        );
        assert_eq!(
            [
                "smollm3-3b",
                "granite-3.3-8b",
                "olmo2-7b",
                "gemma2-2b",
                "gemma2-9b",
                "gemma3-1b",
                "phi3-mini",
                "phi4",
                "pythia-1.4b",
                "gpt2",
                "gpt-j-6b"
            ]
            .map(rounded),
            [3075.0, 8171.0, 7299.0, 2614.0, 9242.0, 1000.0, 3821.0, 14_660.0, 1415.0, 124.0, 6051.0]
        );
        assert_eq!(["mistral-7b", "qwen2.5-7b", "qwen3-8b"].map(rounded), [7242.0, 7616.0, 8191.0]);
        let experts = ["mixtral-8x7b", "mixtral-8x22b", "qwen3-30b-a3b", "gpt-oss-20b"];
        assert_eq!(experts.map(rounded), [46_703.0, 140_621.0, 30_532.0, 20_915.0]);
    }

    #[test]
    fn a_small_one_is_written_in_shards_that_its_index_knows() {
        let dir = std::env::temp_dir().join(format!("halfbyte-synth-{}", std::process::id()));
        let shape = Shape::llama([64, 96, 3, 4, 2, 3072]);
        write(&shape, Stored::Dense, &dir, 200_000).unwrap();
        let index: Value =
            serde_json::from_slice(&fs::read(dir.join("model.safetensors.index.json")).unwrap()).unwrap();
        let map = index["weight_map"].as_object().unwrap();
        assert_eq!(map.len(), shape.spec().unwrap().len());
        for (name, file) in map {
            let data = fs::read(dir.join(file.as_str().unwrap())).unwrap();
            let tensors = safetensors::SafeTensors::deserialize(&data).unwrap();
            let tensor = tensors.tensor(name).unwrap();
            let values =
                tensor.data().chunks(2).map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16));
            let (count, squares) = values.fold((0, 0.0), |(n, s), v| (n + 1, s + v * v));
            let expected = if tensor.shape().len() == 1 { 1.0 } else { 0.02 };
            let rms = (squares / count as f32).sqrt();
            assert!((rms / expected - 1.0).abs() < 0.05, "{name}: {rms}");
        }
        let error = write(&shape, Stored::Dense, &dir, 200_000).unwrap_err().to_string();
        assert!(error.contains("is not empty"), "{error}");
        fs::remove_dir_all(dir).unwrap();
        let error = write_like("llama-9b", Stored::Dense, Path::new("x")).unwrap_err().to_string();
        assert!(error.contains("no shape is called `llama-9b`") && error.contains("gpt-neo-1.3b"), "{error}");
    }

    #[test]
    fn headers_alone_name_every_tensor_of_a_file_that_takes_no_room() {
        let dir = std::env::temp_dir().join(format!("halfbyte-synth-headers-{}", std::process::id()));
        write_like("llama-7b", Stored::Headers, &dir).unwrap();
        let files = halfbyte_files::ShardedFiles::open(&dir).unwrap();
        let shape = LIKE.iter().find(|it| it.0 == "llama-7b").unwrap().1;
        for it in shape.spec().unwrap() {
            assert_eq!(files.get(&it.name).unwrap().1.shape, it.shape, "{}", it.name);
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let file = fs::metadata(dir.join("model.safetensors")).unwrap();
            assert!(file.len() > 13_000_000_000 && file.blocks() * 512 < 10_000_000, "{}", file.blocks());
        }
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_quantised_one_has_all_that_bitsandbytes_stores() {
        let dir = std::env::temp_dir().join(format!("halfbyte-synth-quantised-{}", std::process::id()));
        let shape = Shape { positions: 64, ..Shape::llama([64, 96, 3, 4, 2, 512]) };
        write(&shape, Stored::Quantized, &dir, 200_000).unwrap();
        let index: Value =
            serde_json::from_slice(&fs::read(dir.join("model.safetensors.index.json")).unwrap()).unwrap();
        let map = index["weight_map"].as_object().unwrap();
        // Seven matrices a layer of six tensors each and two norms, and three tensors around them.
        assert_eq!(map.len(), 3 * (7 * 6 + 2) + 3);
        let file = map["model.layers.2.mlp.up_proj.weight.absmax"].as_str().unwrap();
        let data = fs::read(dir.join(file)).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&data).unwrap();
        let tensor = |part: &str| tensors.tensor(&format!("model.layers.2.mlp.up_proj.weight{part}")).unwrap();
        assert_eq!((tensor("").shape(), tensor(".absmax").shape()), (&[96 * 64 / 2, 1][..], &[96][..]));
        assert_eq!((tensor(".quant_map").shape(), tensor(".nested_quant_map").shape()), (&[16][..], &[256][..]));
        let config: Value = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["quantization_config"]["bnb_4bit_quant_type"], "nf4");
        let rows = fs::read_to_string(dir.join("rows.jsonl")).unwrap();
        assert!(rows.lines().count() == 2048 && rows.lines().all(|it| it.matches(' ').count() >= 64));
        fs::remove_dir_all(dir).unwrap();
    }
}
