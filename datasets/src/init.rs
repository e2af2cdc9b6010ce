//! Hugging Face folders of the small base models before pretraining: config, tokenizer, random weights.

use crate::dice::Dice;
use crate::tokenizer::{self, END_OF_TEXT_ID, PAD_ID, VOCABULARY};
use anyhow::{Context, Result, anyhow};
use halfbyte_files::{Dtype, TensorSpec, TensorWriter};
use halfbyte_lora::Role;
use halfbyte_models::ModelConfig;
use serde_json::{Value, json};
use std::path::Path;

/// Standard deviation of the initial weights.
const STD: f64 = 0.02;
const MAX_POSITIONS: usize = 512;

const LLAMA: Llama = Llama { hidden: 192, layers: 6, heads: 6, kv_heads: 2, head_dim: 32, intermediate: 512 };
const GPT_NEO: GptNeo = GptNeo { hidden: 160, layers: 4, heads: 5, window: 64 };

/// Which model to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// Rotary positions, grouped-query attention, gated feed-forward.
    Llama,
    /// Learned positions, global and local attention in turn.
    GptNeo,
}

struct Llama {
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    intermediate: usize,
}

struct GptNeo {
    hidden: usize,
    layers: usize,
    heads: usize,
    window: usize,
}

/// How a tensor starts.
#[derive(Clone, Copy)]
enum Start {
    Ones,
    Zeros,
    Normal,
    /// A projection onto the residual stream: smaller by the root of twice the number of layers, so that the sum over
    /// the layers keeps its size.
    Residual,
}

struct Spec {
    name: String,
    shape: Vec<usize>,
    start: Start,
}

/// Writes `config.json`, `generation_config.json`, `tokenizer.json`, `tokenizer_config.json` and `model.safetensors`;
/// returns the number of parameters.
///
/// # Errors
/// If a file cannot be written.
pub fn write(arch: Arch, seed: u64, folder: &Path) -> Result<usize> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let (config, layers) = match arch {
        Arch::Llama => (LLAMA.config(), LLAMA.layers),
        Arch::GptNeo => (GPT_NEO.config(), GPT_NEO.layers),
    };
    let specs = specs(&config)?;
    write_json(&folder.join("config.json"), &config)?;
    write_json(&folder.join("generation_config.json"), &generation_config())?;
    write_json(&folder.join("tokenizer_config.json"), &tokenizer::config(MAX_POSITIONS))?;
    let json = tokenizer::train()?.to_string(true).map_err(|e| anyhow!("cannot write the tokenizer as JSON: {e}"))?;
    let path = folder.join("tokenizer.json");
    std::fs::write(&path, json).with_context(|| format!("cannot write {}", path.display()))?;
    write_weights(&folder.join("model.safetensors"), &specs, layers, seed)?;
    Ok(specs.iter().map(|s| s.shape.iter().product::<usize>()).sum())
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn generation_config() -> Value {
    json!({ "bos_token_id": END_OF_TEXT_ID, "eos_token_id": END_OF_TEXT_ID, "pad_token_id": PAD_ID })
}

fn write_weights(path: &Path, specs: &[Spec], layers: usize, seed: u64) -> Result<()> {
    let residual = STD / (2.0 * layers as f64).sqrt();
    let mut specs: Vec<&Spec> = specs.iter().collect();
    specs.sort_by_key(|it| &it.name);
    let announced = specs.iter().map(|it| TensorSpec::new(&it.name, Dtype::F32, &it.shape)).collect();
    let mut writer = TensorWriter::create(path, announced)?;
    for spec in specs {
        // A stream a tensor: its values depend on its name, not on the tensors before it.
        let mut dice = Dice::new(seed, &spec.name);
        let mut value = || match spec.start {
            Start::Ones => 1.0,
            Start::Zeros => 0.0,
            Start::Normal => (dice.normal() * STD) as f32,
            Start::Residual => (dice.normal() * residual) as f32,
        };
        let bytes: Vec<u8> = (0..spec.shape.iter().product()).flat_map(|_: usize| value().to_le_bytes()).collect();
        writer.write(&spec.name, &bytes)?;
    }
    Ok(writer.finish()?)
}

/// What the model consists of, and how it starts.
fn specs(config: &Value) -> Result<Vec<Spec>> {
    let weights = halfbyte_models::spec(&ModelConfig::parse(Path::new("config.json"), &config.to_string())?)?;
    let start = |i: usize, role: Role| match role {
        Role::Norm => Start::Ones,
        Role::Bias => Start::Zeros,
        // Either half of a block ends with the projection onto the residual stream, and what comes next is a norm.
        Role::Linear => match weights[i + 1..].iter().find(|it| it.role != Role::Bias) {
            Some(next) if next.role == Role::Norm => Start::Residual,
            _ => Start::Normal,
        },
        _ => Start::Normal,
    };
    let all = weights.iter().enumerate();
    Ok(all.map(|(i, it)| Spec { name: it.name.clone(), shape: it.shape.clone(), start: start(i, it.role) }).collect())
}

impl Llama {
    fn config(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": VOCABULARY,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": MAX_POSITIONS,
            "initializer_range": STD,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "rope_scaling": null,
            "attention_bias": false,
            "attention_dropout": 0.0,
            "mlp_bias": false,
            "tie_word_embeddings": true,
            "use_cache": true,
            "bos_token_id": END_OF_TEXT_ID,
            "eos_token_id": END_OF_TEXT_ID,
            "pad_token_id": PAD_ID,
            "torch_dtype": "float32",
        })
    }
}

impl GptNeo {
    fn config(&self) -> Value {
        json!({
            "architectures": ["GPTNeoForCausalLM"],
            "model_type": "gpt_neo",
            "vocab_size": VOCABULARY,
            "hidden_size": self.hidden,
            "intermediate_size": null,
            "num_layers": self.layers,
            "num_heads": self.heads,
            "attention_types": [[["global", "local"], self.layers / 2]],
            "attention_layers": (["global", "local"].repeat(self.layers / 2)),
            "window_size": self.window,
            "activation_function": "gelu_new",
            "max_position_embeddings": MAX_POSITIONS,
            "initializer_range": STD,
            "layer_norm_epsilon": 1e-5,
            "attention_dropout": 0.0,
            "embed_dropout": 0.0,
            "resid_dropout": 0.0,
            "classifier_dropout": 0.0,
            "tie_word_embeddings": true,
            "use_cache": true,
            "bos_token_id": END_OF_TEXT_ID,
            "eos_token_id": END_OF_TEXT_ID,
            "pad_token_id": PAD_ID,
            "torch_dtype": "float32",
        })
    }
}
