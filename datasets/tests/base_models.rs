//! The tokenizer and the untrained base models.

#![allow(clippy::print_stdout, reason = "the figures of the data card")]

use halfbyte_datasets::init::{Arch, write};
use halfbyte_datasets::tokenizer::{END_OF_TEXT, END_OF_TEXT_ID, PAD, PAD_ID, VOCABULARY};
use halfbyte_datasets::{SEED, corpus};
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::Path;
use tokenizers::Tokenizer;

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON")
}

/// Shape, mean and standard deviation.
fn moments(tensors: &SafeTensors<'_>, name: &str) -> (Vec<usize>, f64, f64) {
    let view = tensors.tensor(name).expect(name);
    let values: Vec<f64> =
        view.data().chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect();
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
    (view.shape().to_vec(), mean, variance.sqrt())
}

#[test]
fn both_models_are_reproducible_and_share_the_tokenizer() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [a, b, neo] = ["a", "b", "neo"].map(|name| folder.path().join(name));
    let parameters = write(Arch::Llama, 7, &a).expect("a model");
    assert_eq!(parameters, write(Arch::Llama, 7, &b).expect("a model"));
    let neo_parameters = write(Arch::GptNeo, 8, &neo).expect("a model");
    for name in
        ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
    {
        let same = std::fs::read(a.join(name)).expect(name) == std::fs::read(b.join(name)).expect(name);
        assert!(same, "{name} differs between two runs");
    }
    let tokenizers = [&a, &neo].map(|f| std::fs::read(f.join("tokenizer.json")).expect("a tokenizer"));
    assert!(tokenizers[0] == tokenizers[1]);
    assert!((1_000_000..=4_000_000).contains(&parameters), "{parameters}");
    assert!((1_000_000..=2_000_000).contains(&neo_parameters), "{neo_parameters}");
    check_llama(&a, parameters);
    check_gpt_neo(&neo, neo_parameters);
    check_tokenizer(&a);
}

fn check_llama(folder: &Path, parameters: usize) {
    let config = json(&folder.join("config.json"));
    assert_eq!(config["architectures"][0], "LlamaForCausalLM");
    assert!(config["num_key_value_heads"].as_u64() < config["num_attention_heads"].as_u64());
    assert_eq!(config["vocab_size"], VOCABULARY);
    let bytes = std::fs::read(folder.join("model.safetensors")).expect("weights");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let hidden = config["hidden_size"].as_u64().expect("a number") as usize;
    let (shape, mean, std) = moments(&tensors, "model.embed_tokens.weight");
    assert_eq!(shape, [VOCABULARY, hidden]);
    assert!(mean.abs() < 2e-4 && (std - 0.02).abs() < 2e-4, "mean {mean}, standard deviation {std}");
    let residual = moments(&tensors, "model.layers.0.self_attn.o_proj.weight").2;
    assert!(residual < 0.0075, "projections onto the residual stream start smaller, not at {residual}");
    assert_eq!(moments(&tensors, "model.norm.weight").1, 1.0);
    assert_eq!(moments(&tensors, "model.layers.0.self_attn.k_proj.weight").0, [64, hidden]);
    assert!(tensors.tensor("lm_head.weight").is_err(), "the head is tied");
    assert_eq!(tensors.tensors().iter().map(|(_, t)| t.shape().iter().product::<usize>()).sum::<usize>(), parameters);
}

fn check_gpt_neo(folder: &Path, parameters: usize) {
    let config = json(&folder.join("config.json"));
    assert_eq!(config["architectures"][0], "GPTNeoForCausalLM");
    let layers = config["attention_layers"].as_array().expect("a list");
    assert_eq!(layers.len() as u64, config["num_layers"].as_u64().expect("a number"));
    assert_eq!((layers[0].as_str(), layers[1].as_str()), (Some("global"), Some("local")));
    let bytes = std::fs::read(folder.join("model.safetensors")).expect("weights");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let hidden = config["hidden_size"].as_u64().expect("a number") as usize;
    assert_eq!(moments(&tensors, "transformer.h.1.mlp.c_fc.weight").0, [4 * hidden, hidden]);
    assert_eq!(moments(&tensors, "transformer.h.3.attn.attention.out_proj.bias"), (vec![hidden], 0.0, 0.0));
    assert_eq!(tensors.tensors().iter().map(|(_, t)| t.shape().iter().product::<usize>()).sum::<usize>(), parameters);
}

fn check_tokenizer(folder: &Path) {
    let tokenizer = Tokenizer::from_file(folder.join("tokenizer.json")).expect("a tokenizer");
    assert_eq!(tokenizer.get_vocab_size(true), VOCABULARY);
    assert_eq!(tokenizer.token_to_id(END_OF_TEXT), Some(END_OF_TEXT_ID));
    assert_eq!(tokenizer.token_to_id(PAD), Some(PAD_ID));
    for word in [" positive", " negative", "Sentiment", "Review"] {
        let encoding = tokenizer.encode(word, false).expect("an encoding");
        assert_eq!(encoding.len(), 1, "`{word}` is split into {:?}", encoding.get_tokens());
    }
    let strange = ["", "  two spaces", "naïve café\n\ttabs", "数字 123", "🙂 emoji", "CAPITALS and-hyphens!?"];
    let ours: Vec<String> = corpus::documents(SEED + 5, 500).collect();
    let (mut bytes, mut tokens) = (0, 0);
    for text in strange.into_iter().chain(ours.iter().map(String::as_str)) {
        let encoding = tokenizer.encode(text, true).expect("an encoding");
        assert_eq!(tokenizer.decode(encoding.get_ids(), true).expect("a text"), text);
        bytes += text.len();
        tokens += encoding.len();
    }
    println!("{:.2} bytes a token", bytes as f64 / tokens as f64);
    assert!(bytes > 3 * tokens, "{bytes} bytes in {tokens} tokens");
}
